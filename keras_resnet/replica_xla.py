"""The training step on TensorFlow: compiled by XLA on every replica, and traced once.

Keras 3.15 wraps XLA around `strategy.run`, all replicas in one program on the first device, and
fails with two of them. Here each replica compiles its own forward and backward pass; all-reduce,
optimizer and metrics stay outside, where they may cross devices.
"""

import functools

import keras
import tensorflow as tf

from keras_resnet import dropping


class ReplicaModel(keras.Model):
    """A Keras model whose `compile(jit_compile=True)` holds under any `tf.distribute` strategy."""

    @functools.cached_property
    def _residuals(self):
        return dropping.find_residuals(self)

    def call(self, inputs, training=None, mask=None):
        if not (training and self._residuals):
            return super().call(inputs, training=training, mask=mask)
        standardized = self._standardize_inputs(inputs)
        if self.jit_compile and any(None in tensor.shape for tensor in standardized):
            # XLA cannot differentiate a condition around tensors of open sizes (TensorFlow 2.21).
            return super().call(inputs, training=training, mask=mask)
        return dropping.run(self, standardized, self._residuals)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Makes the variables of optimizer and metrics before the training step is traced.

        Keras does so under a strategy only. Elsewhere it makes them in the trace, and TensorFlow
        traces a second time: minutes, for a thousand layers.
        """
        if self._distribute_strategy is not None:
            super()._maybe_symbolic_build(iterator, data_batch)
        elif iterator is not None:
            # The shapes alone: a batch taken from a generator would be lost to the training.
            spec = iterator._get_iterator().element_spec
            if all(getattr(part, "shape", None) is not None for part in tf.nest.flatten(spec)):
                self._symbolic_build(data_batch=spec)

    def train_step(self, data):
        if not self._compiles_inside:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        forward_backward = tf.function(self._loss_and_gradients, jit_compile=True, autograph=False)
        loss, y_pred, gradients = forward_backward(x, y, sample_weight)
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(keras.tree.flatten(x)[0])[0])
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _loss_and_gradients(self, x, y, sample_weight):
        """One replica's share: its loss as a mean over its images, predictions and gradients."""
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [weight.value for weight in self.trainable_weights])
        # Keras has divided the loss by the number of replicas, for gradients that are summed.
        return loss * self.distribute_strategy.num_replicas_in_sync, y_pred, gradients

    @property
    def _compiles_inside(self):
        """Whether XLA goes inside `strategy.run`, around one replica, instead of around it."""
        return self.jit_compile and self.distribute_strategy.num_replicas_in_sync > 1

    def _make_function(self, step_function):
        if not self._compiles_inside:
            return super()._make_function(step_function)
        self.jit_compile = False
        try:
            return super()._make_function(step_function)
        finally:
            self.jit_compile = True
