"""The steps of `fit`, `evaluate` and `predict` on TensorFlow, as several replicas need them.

- XLA inside each replica. Keras 3.15 wraps it around `strategy.run`, all replicas in one program on
  the first device, and fails with two of them. Here each replica compiles its own forward and
  backward pass; all-reduce, optimizer and metrics stay outside, where they may cross devices.
- Shares of any size. The last batch may leave some replicas fewer images than others, or none;
  every image counts the same, in the gradient and in the metrics.
- One set of moving statistics. Each replica learns its own; their mean is evaluated and saved.
- One trace. Variables of optimizer and metrics are made before the step is traced.
"""

import contextlib
import functools
import logging

import keras
import tensorflow as tf

from keras_resnet import dropping, sharing

logger = logging.getLogger(__name__)


def _averaged_first(name):
    """The method of `keras.Model` of that name, on the mean of the replicas' statistics."""
    method = getattr(keras.Model, name)

    @functools.wraps(method)
    def averaged(self, *args, **kwargs):
        self.average_moving_statistics()
        return method(self, *args, **kwargs)

    return averaged


class ReplicaModel(keras.Model):
    """A Keras model that trains under any `tf.distribute` strategy, with XLA or without.

    What a subclass adds in its own `compute_loss` is summed over the replicas, as by Keras: it
    divides a mean by `self.distribute_strategy.num_replicas_in_sync`.

    Attributes:
        accumulation_steps: In how many parts, one after the other, each replica does its share of
            a training batch: the memory of a smaller batch, the gradient of the whole one. (Batch
            statistics are those of a part.) The share must divide by it.
    """

    _accumulation_steps = 1
    _unreached = frozenset()  # numbers of the trainable weights that no loss asks for

    evaluate = _averaged_first("evaluate")
    predict = _averaged_first("predict")
    test_on_batch = _averaged_first("test_on_batch")
    save = _averaged_first("save")
    save_weights = _averaged_first("save_weights")
    get_weights = _averaged_first("get_weights")
    export = _averaged_first("export")

    @property
    def accumulation_steps(self) -> int:
        return self._accumulation_steps

    @accumulation_steps.setter
    def accumulation_steps(self, steps: int):
        self._accumulation_steps = steps
        self.train_function = None  # the next `fit` traces another

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        history = super().fit(*args, **kwargs)
        self.average_moving_statistics()
        return history

    @functools.wraps(keras.Model.predict_on_batch)
    def predict_on_batch(self, x):
        self.average_moving_statistics()
        answers = super().predict_on_batch(x)
        # Keras shows the whole batch to every replica, and joins what they all answer.
        count = len(keras.tree.flatten(x)[0])
        return keras.tree.map_structure(lambda part: part[:count], answers)

    def average_moving_statistics(self) -> None:
        """Sets every non-trainable float weight to its mean over the replicas of this process.

        Each replica keeps its own moving mean and variance of the images it saw, and only those of
        the first are saved. The methods that fit, evaluate, predict and save call this.
        """
        for weight in self.non_trainable_variables:
            copies = getattr(weight.value, "values", ())
            if len(copies) > 1 and weight.value.dtype.is_floating:
                weight.value.assign(tf.add_n([tf.identity(copy) for copy in copies]) / len(copies))

    @functools.cached_property
    def _residuals(self):
        return dropping.find_residuals(self)

    def call(self, inputs, training=None, mask=None):
        if not (training and self._residuals) or self._is_synchronized:
            return super().call(inputs, training=training, mask=mask)
        standardized = self._standardize_inputs(inputs)
        if not dropping.is_differentiable(standardized):
            return super().call(inputs, training=training, mask=mask)
        return dropping.run(self, standardized, self._residuals)

    def train_step(self, data):
        if not self._has_replicas and self.accumulation_steps == 1:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images = sharing.count(x)
        weight = sharing.weight_of_loss(images, self.loss, sample_weight)
        loss, y_pred, gradients = self._learn_from_share(images, weight, (x, y, sample_weight))
        self._loss_tracker.update_state(loss, sample_weight=weight)
        if gradients:
            gradients = sharing.together(gradients, self.optimizer)
            for number in self._unreached:
                gradients[number] = None
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
        return self._logs(x, y, y_pred, sample_weight)

    def test_step(self, data):
        if not self._has_replicas:
            return super().test_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weight = sharing.weight_of_loss(sharing.count(x), self.loss, sample_weight)

        def score(x, y, sample_weight):
            y_pred, loss = self._predictions_and_loss(x, y, sample_weight, training=False)
            return self._unscaled(loss), y_pred

        loss, y_pred = self._of_share(score, x, y, sample_weight)
        self._loss_tracker.update_state(loss, sample_weight=weight)
        return self._logs(x, y, y_pred, sample_weight)

    def predict_step(self, data):
        if not self._has_replicas:
            return super().predict_step(data)
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        _, y_pred = self._of_share(lambda inputs: (0.0, self(inputs, training=False)), x)
        return y_pred

    def _accumulate(self, x, y, sample_weight, share):
        """`_loss_and_gradients` of a share, in parts that never lie in memory together."""
        parts = self.accumulation_steps
        if parts == 1:
            return self._loss_and_gradients(x, y, sample_weight, share)
        sharing.check_parts(self.loss, parts)
        data = sharing.divided((x, y, sample_weight), parts)

        def body(number, loss, gradients, predictions):
            part = keras.tree.map_structure(lambda all: None if all is None else all[number], data)
            more_loss, y_pred, more = self._loss_and_gradients(*part, share / parts)
            predictions = [
                array.write(number, value)
                for array, value in zip(predictions, keras.tree.flatten(y_pred))
            ]
            gradients = [old + new for old, new in zip(gradients, more)]
            return number + 1, loss + more_loss / parts, gradients, predictions

        outputs = keras.tree.flatten(self.output)
        start = (
            0,
            0.0,
            self._zeros(),
            [tf.TensorArray(output.dtype, parts) for output in outputs],
        )
        if self._is_synchronized:
            state = start
            for _ in range(parts):
                state = body(*state)
        else:
            state = tf.while_loop(
                lambda number, *_: number < parts, body, start, parallel_iterations=1
            )
        _, loss, gradients, predictions = state
        y_pred = keras.tree.pack_sequence_as(self.output, [array.concat() for array in predictions])
        return loss, dropping.without_list(y_pred), gradients

    def _loss_and_gradients(self, x, y, sample_weight, share):
        """One replica: its loss as a mean over its images, its predictions and its gradients.

        `share` weighs the gradients, which are summed over the replicas: the number of images here
        by that of an even share.
        """
        with tf.GradientTape() as tape:
            y_pred, loss = self._predictions_and_loss(x, y, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss * tf.cast(share, loss.dtype))
        gradients = tape.gradient(scaled, [weight.value for weight in self.trainable_weights])
        self._unreached = frozenset(i for i, each in enumerate(gradients) if each is None)
        # Tensors all the same: shares without images give as many.
        gradients = [
            zero if each is None else tf.convert_to_tensor(each)
            for each, zero in zip(gradients, self._zeros())
        ]
        return self._unscaled(loss), y_pred, gradients

    def _predictions_and_loss(self, x, y, sample_weight, training):
        y_pred = self(x, training=training)
        with sharing.counted(self._compile_loss, sharing.count(x)):
            loss = self._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
            )
        return y_pred, loss

    def _zeros(self):
        return [tf.zeros_like(weight.value) for weight in self.trainable_weights]

    def _learn_from_share(self, images, weight, data):
        """`_accumulate` where the replicas may have different numbers of images, or none."""
        learn = self._compiled(self._accumulate)
        if isinstance(images, int):
            return learn(*data, 1.0)
        share = tf.cast(weight, tf.float32) / sharing.even_share(images)
        if self._is_synchronized:
            tf.debugging.assert_positive(
                images,
                "A replica got no images, and synchronised batch normalisation needs some on each. "
                "Expected batches of at least one image per replica: drop_remainder=True.",
            )
            return learn(*data, share)
        return tf.cond(
            images > 0, lambda: learn(*data, share), lambda: (*self._nothing(), self._zeros())
        )

    def _of_share(self, function, x, *others):
        """`function` of a batch, which gives a loss and predictions, if this replica has images.

        Convolutions on nothing fail inside oneDNN.
        """
        function = self._compiled(function)
        images = sharing.count(x)
        if isinstance(images, int):
            return function(x, *others)
        return tf.cond(images > 0, lambda: function(x, *others), self._nothing)

    def _nothing(self):
        """The loss of no images, and their predictions."""
        y_pred = keras.tree.map_structure(
            lambda spec: tf.zeros([0, *(size or 0 for size in spec.shape[1:])], spec.dtype),
            dropping.without_list(self.output),
        )
        return 0.0, y_pred

    def _unscaled(self, loss):
        """The mean over one replica's images: Keras divides by the replicas, to sum gradients."""
        return tf.cast(loss, tf.float32) * self.distribute_strategy.num_replicas_in_sync

    @functools.wraps(keras.Model.compute_metrics)
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        compute = functools.partial(super().compute_metrics, x, y, y_pred, sample_weight)
        images = sharing.count(y_pred)
        builds = tf.distribute.in_cross_replica_context()
        if isinstance(images, int) or builds or not self._has_replicas:
            return compute()
        # A metric may be a mean, which is NaN of no images.
        return tf.cond(images > 0, compute, self.get_metrics_result)

    def _logs(self, x, y, y_pred, sample_weight):
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        if isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            # Keras averages over an axis that its logs do not have.
            logs = keras.tree.map_structure(lambda value: tf.reshape(value, [1]), logs)
        return logs

    def _compiled(self, function):
        """The function as one XLA program of this replica, if that is asked for."""
        if not self.jit_compile or self._is_synchronized:
            return function
        return tf.function(function, jit_compile=True, autograph=False)

    @property
    def _has_replicas(self):
        return self.distribute_strategy.num_replicas_in_sync > 1

    @property
    def _is_synchronized(self):
        """Whether replicas wait for each other inside the network: not in a branch, loop or XLA."""
        return any(getattr(layer, "synchronized", False) for layer in self._flatten_layers())

    def _resolve_auto_jit_compile(self):
        """`jit_compile="auto"`: XLA where every replica is an accelerator."""
        if self._distribute_strategy is None:
            return super()._resolve_auto_jit_compile()
        devices = self.distribute_strategy.extended.worker_devices
        kinds = sorted({tf.DeviceSpec.from_string(device).device_type for device in devices})
        chosen = "CPU" not in kinds
        logger.info(
            "jit_compile='auto': %s on %d replica(s), %s.",
            "XLA, an accelerator each" if chosen else "no XLA, because oneDNN trains faster,",
            self.distribute_strategy.num_replicas_in_sync,
            ", ".join(kinds),
        )
        return chosen

    def _make_function(self, step_function):
        if self.jit_compile and self._has_replicas and self._is_synchronized:
            logger.warning(
                "jit_compile=True: without XLA all the same. Synchronised batch normalisation "
                "crosses the replicas inside the network, and an XLA program does not."
            )
        with self._without_outer_xla():
            return super()._make_function(step_function)

    def make_predict_function(self, force=False):
        with self._without_outer_xla():
            return super().make_predict_function(force)

    @contextlib.contextmanager
    def _without_outer_xla(self):
        """Several replicas compile inside `strategy.run`; Keras must not wrap XLA around it."""
        chosen = self.jit_compile
        if self._has_replicas:
            self.jit_compile = False
        try:
            yield
        finally:
            self.jit_compile = chosen

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Makes the variables of optimizer and metrics before the step is traced.

        Keras does so under a strategy only, and there averages the first batch over the replicas,
        which fails if it is uneven. Elsewhere it makes them in the trace, and TensorFlow traces a
        second time: minutes, for a thousand layers. Here the shapes alone do, and no batch of a
        generator is lost.
        """
        if self._has_replicas:
            sharing.check_optimizer(self.optimizer)
            sharing.spread_losses(self._compile_loss)
        if iterator is not None:
            spec = iterator._get_iterator().element_spec
            leaves = [
                tf.nest.flatten(part, expand_composites=True)[0] for part in tf.nest.flatten(spec)
            ]
            if any(getattr(leaf, "shape", None) is None for leaf in leaves):
                return super()._maybe_symbolic_build(iterator, data_batch)
            data_batch = tf.nest.pack_sequence_as(spec, leaves)
        elif self._distribute_strategy is None:
            return
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)
