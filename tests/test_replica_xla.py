"""`compile(jit_compile=True)` under strategies: an XLA program per replica, the same weights."""

import dataclasses
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnet
from keras_resnet.layers import StochasticDepth
from keras_resnet.variants import VARIANTS
from training.strategy import make_strategy

# A block that keeps its size, and one that halves it: XLA compiles this in half the time of three.
NETWORK = dataclasses.replace(VARIANTS["cifar_resnet20"], blocks=(1, 1), filters=(16, 32))
STEPS, BATCH = 3, 16
# Without batch statistics, which differ between one device and several.
NO_STATISTICS = {"activation_order": "no_normalization", "conv_bias": True}


def images_and_labels():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS * BATCH, 8, 8, 3)).astype("float32")
    return images, rng.integers(0, 10, len(images))


def trained(
    replicas, *, jit_compile, options=NO_STATISTICS, fit=None, accumulation_steps=1, **arguments
):
    """A small network after three steps, on `replicas` devices or without any strategy."""
    random.seed(0)  # Keras draws the initial weights from it
    scope = make_strategy(replicas).scope() if replicas else tf.name_scope("")
    with scope:
        model = keras_resnet.build(NETWORK, input_shape=(8, 8, 3), **options)
        arguments = {
            "optimizer": keras.optimizers.SGD(0.05, momentum=0.9),
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
        } | arguments
        model.compile(jit_compile=jit_compile, **arguments)
    model.accumulation_steps = accumulation_steps
    model.fit(*images_and_labels(), batch_size=BATCH, shuffle=False, verbose=0, **(fit or {}))
    return model


@pytest.fixture(scope="module")
def on_one_device():
    """What replicas are compared with; no test trains it further."""
    return trained(None, jit_compile=False)


@pytest.fixture(scope="module")
def compiled():
    """Two replicas, with XLA; no test trains them further."""
    return trained(2, jit_compile=True)


def largest_difference(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first.get_weights(), second.get_weights()))


@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_each_replica_is_one_xla_program(replicas, compiled):
    model = compiled if replicas == 2 else trained(replicas, jit_compile=True)
    images, labels = images_and_labels()
    strategy = model.distribute_strategy
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    step = tf.function(lambda data: strategy.run(model.train_step, args=(data,)))
    traced = step.get_concrete_function(
        next(iter(strategy.experimental_distribute_dataset(batches)))
    )
    library = traced.graph.as_graph_def().library.function
    programs = [function for function in library if function.attr["_XlaMustCompile"].b]
    forward_backward = [
        program
        for program in programs
        if any(node.op == "Conv2DBackpropFilter" for node in program.node_def)
    ]
    assert len(forward_backward) == replicas
    outside = [node.op for node in traced.graph.as_graph_def().node]
    assert "Conv2D" not in outside
    assert "Conv2DBackpropFilter" not in outside


@pytest.mark.parametrize("replicas", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_are_those_of_one_device(replicas, on_one_device):
    many = trained(replicas, jit_compile=True)
    assert largest_difference(many, on_one_device) < 1e-5


def test_batch_statistics_as_without_xla():
    plain = trained(2, jit_compile=False, options={})
    compiled = trained(2, jit_compile=True, options={})
    assert largest_difference(compiled, plain) < 1e-4


@pytest.mark.slow
def test_reported_loss_is_that_of_the_whole_batch():
    images, labels = images_and_labels()
    model = trained(2, jit_compile=True, optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0).history
    probabilities = model.predict(images, verbose=0)[np.arange(len(labels)), labels]
    assert history["loss"][0] == pytest.approx(-np.log(probabilities).mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "replicas"),
    [
        ({"steps_per_execution": 3}, None),
        ({"fit": {"sample_weight": np.linspace(0, 1, STEPS * BATCH)}}, None),
        ({"optimizer": {"class_name": "SGD", "config": {"use_ema": True}}}, None),
        # Of each replica's share, as Keras does it: the mean without a class, and the clipping.
        ({"loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=3)}, 2),
        ({"optimizer": {"class_name": "SGD", "config": {"clipnorm": 0.1}}}, 2),
    ],
    ids=["steps_per_execution", "sample_weight", "EMA", "custom loss", "clipping"],
)
def test_what_else_fit_offers(arguments, replicas):
    compiled = trained(2, jit_compile=True, **arguments)
    assert largest_difference(compiled, trained(replicas, jit_compile=False, **arguments)) < 1e-5


@pytest.mark.slow
def test_regularisation_counts():
    def regularised(jit_compile):
        keras.utils.set_random_seed(0)
        with make_strategy(2).scope():
            model = keras_resnet.build(NETWORK, input_shape=(8, 8, 3), **NO_STATISTICS)
            model.get_layer("predictions").kernel.regularizer = keras.regularizers.L2(0.5)
            model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit_compile)
        model.fit(*images_and_labels(), batch_size=BATCH, shuffle=False, verbose=0)
        return model

    plain, compiled = regularised(False), regularised(True)
    assert largest_difference(compiled, plain) < 1e-5
    assert largest_difference(compiled, trained(2, jit_compile=True, optimizer="sgd")) > 1e-3


def test_mixed_float16_with_loss_scaling(on_one_device):
    keras.config.set_dtype_policy("mixed_float16")
    model = trained(2, jit_compile=True)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == STEPS
    keras.config.set_dtype_policy("float32")
    start = trained(None, jit_compile=False, optimizer=keras.optimizers.SGD(0.0))
    change = largest_difference(start, on_one_device)
    assert largest_difference(model, on_one_device) < 0.05 * change


def test_a_step_that_overflows_on_one_replica_is_skipped_on_all():
    keras.config.set_dtype_policy("mixed_float16")
    model = trained(2, jit_compile=False)
    images, labels = images_and_labels()
    images[BATCH // 2 :] = 1e30  # the second half of a batch is that of the second replica
    before = model.get_weights()
    model.fit(images[:BATCH], labels[:BATCH], batch_size=BATCH, shuffle=False, verbose=0)
    np.testing.assert_equal(model.get_weights(), before)
    assert model.optimizer.dynamic_scale.numpy() == model.optimizer.initial_scale / 2


@pytest.mark.slow
def test_fit_after_load(tmp_path):
    images, labels = images_and_labels()
    model = trained(2, jit_compile=True)
    model.save(tmp_path / "model.keras")
    with make_strategy(2).scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.jit_compile
    for each in (model, loaded):
        each.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)
    assert largest_difference(model, loaded) < 1e-6


@pytest.mark.slow
def test_evaluate_and_predict(compiled):
    images, labels = images_and_labels()
    one = keras.models.clone_model(compiled)
    one.set_weights(compiled.get_weights())
    np.testing.assert_allclose(
        compiled.predict(images, batch_size=BATCH, verbose=0),
        one.predict(images, verbose=0),
        atol=1e-6,
    )
    accuracy = compiled.evaluate(images, labels, batch_size=BATCH, verbose=0, return_dict=True)
    expected = (one.predict(images, verbose=0).argmax(axis=1) == labels).mean()
    assert accuracy["accuracy"] == pytest.approx(expected)


def test_evaluation_is_compiled_too(compiled):
    images, labels = images_and_labels()
    step = tf.function(lambda data: compiled.distribute_strategy.run(compiled.test_step, (data,)))
    traced = step.get_concrete_function((images[:4], labels[:4]))
    outside = [node.op for node in traced.graph.as_graph_def().node]
    assert "Conv2D" not in outside


UNEVEN = 2 * BATCH + 1  # the last batch is a single image: one replica gets it, the other nothing


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_uneven_and_empty_shares_count_every_image_the_same(jit_compile):
    images, labels = (part[:UNEVEN] for part in images_and_labels())
    one, two = trained(None, jit_compile=False), trained(2, jit_compile=jit_compile)
    for model in (one, two):
        model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)
    assert largest_difference(one, two) < 1e-5
    expected, received = (
        model.evaluate(images, labels, batch_size=BATCH, verbose=0, return_dict=True)
        for model in (one, two)
    )
    assert received == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(
        two.predict(images, batch_size=BATCH, verbose=0),
        one.predict(images, batch_size=BATCH, verbose=0),
        atol=1e-5,
    )


def test_an_empty_share_leaves_the_statistics_alone():
    images, labels = (part[:UNEVEN] for part in images_and_labels())
    model = trained(2, jit_compile=False, options={}, optimizer=keras.optimizers.SGD(0.0))
    variance = model.get_layer("stem_bn").moving_variance
    model.fit(images[:-1], labels[:-1], batch_size=BATCH, shuffle=False, verbose=0)
    images_of_one = tf.data.Dataset.from_tensor_slices((images[-1:], labels[-1:])).batch(BATCH)
    before = np.array([copy.numpy() for copy in variance.value.values])
    expected = before.copy()
    probe = keras.Model(model.inputs, model.get_layer("stem_conv").output)
    expected[0] = 0.9 * before[0] + 0.1 * probe(images[-1:]).numpy().var(axis=(0, 1, 2))
    model.fit(images_of_one, verbose=0)
    np.testing.assert_allclose(variance.numpy(), expected.mean(axis=0), rtol=1e-4)


def test_a_first_batch_that_does_not_divide():
    images, labels = images_and_labels()
    one, two = trained(None, jit_compile=False), trained(2, jit_compile=False)
    for model in (one, two):
        model.fit(images[:5], labels[:5], batch_size=5, shuffle=False, verbose=0)
    assert largest_difference(one, two) < 1e-5


def test_gradients_of_images_that_grow_are_accumulated_too():
    images, labels = (values[:BATCH] for values in images_and_labels())
    small, large = (
        tf.data.Dataset.from_tensors((images[:, :side, :side], labels)) for side in (6, 8)
    )
    models = []
    for parts in (1, 4):
        random.seed(0)  # Keras draws the initial weights from it
        model = keras_resnet.build(NETWORK, input_shape=(None, None, 3), **NO_STATISTICS)
        model.accumulation_steps = parts
        model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
        model.fit(small.concatenate(large), shuffle=False, verbose=0)
        models.append(model)
    assert largest_difference(*models) < 1e-5


@pytest.mark.parametrize(("replicas", "jit_compile"), [(None, False), (1, True), (2, True)])
def test_accumulated_gradients_are_those_of_the_whole_batch(replicas, jit_compile):
    whole = trained(None, jit_compile=False)
    parts = trained(replicas, jit_compile=jit_compile, accumulation_steps=4)
    assert largest_difference(whole, parts) < 1e-5
    images, labels = images_and_labels()
    histories = [
        model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0).history
        for model in (whole, parts)
    ]
    for name in ("loss", "accuracy"):
        assert histories[1][name] == pytest.approx(histories[0][name], rel=1e-4)


def test_shares_that_do_not_divide_into_parts_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="multiple of accumulation_steps=3"):
        trained(2, jit_compile=False, accumulation_steps=3)


def untrained(*more_outputs, loss="sparse_categorical_crossentropy", **options):
    """A network on two replicas, with further outputs behind its pooled features."""
    with make_strategy(2).scope():
        inner = keras_resnet.build(NETWORK, input_shape=(8, 8, 3), **options)
        features = inner.get_layer("head_pool").output
        outputs = [inner.output, *(layer(features) for layer in more_outputs)]
        model = keras_resnet.ResNet(inner.input, outputs if more_outputs else inner.output)
        model.compile("sgd", loss)
    return model


def test_single_batches_are_answered_once_and_by_averaged_statistics():
    images, labels = (part[:5] for part in images_and_labels())
    model = untrained()
    for number, copy in enumerate(model.get_layer("stem_bn").moving_variance.value.values):
        copy.assign_add(tf.fill(copy.shape, float(number)))
    answers = model.predict_on_batch(images)
    one = keras.models.clone_model(model)
    one.set_weights(model.get_weights())
    expected = one(images).numpy()
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    model.get_layer("stem_bn").moving_variance.value.values[0].assign(tf.fill([16], 0.5))
    model.get_layer("stem_bn").moving_variance.value.values[1].assign(tf.fill([16], 2.5))
    loss = -np.log(expected[range(5), labels]).mean()
    assert model.test_on_batch(images, labels) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("parts", "jit_compile", "even"),
    [
        (1, False, False),
        pytest.param(1, True, False, marks=pytest.mark.slow),
        (2, False, True),
    ],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_weights_that_the_loss_does_not_reach_stay(parts, jit_compile, even):
    head = keras.layers.Dense(1, kernel_initializer="ones")
    model = untrained(head, **NO_STATISTICS)
    before = model.get_weights()
    model.compile(
        keras.optimizers.SGD(0.01, weight_decay=0.5),
        ["sparse_categorical_crossentropy", None],
        jit_compile=jit_compile,
    )
    model.accumulation_steps = parts
    images, labels = (part[: None if even else UNEVEN] for part in images_and_labels())
    model.fit(images, (labels, labels), batch_size=BATCH, verbose=0)
    np.testing.assert_array_equal(head.kernel, np.ones((32, 1)))
    assert max(np.abs(old - new).max() for old, new in zip(before, model.get_weights())) > 1e-3


def small(replicas, *, jit_compile=False, **arguments):
    """One layer, a penalty on what comes into it, and three steps of it."""
    random.seed(0)
    with make_strategy(replicas).scope():
        inputs = keras.Input((8, 8, 3))
        pooled = keras.layers.GlobalAveragePooling2D()(inputs)
        pooled = keras.layers.ActivityRegularization(l2=0.1)(pooled)
        outputs = keras.layers.Dense(10, activation="softmax")(pooled)
        model = keras_resnet.ResNet(inputs, outputs)
        arguments = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"} | arguments
        model.compile(jit_compile=jit_compile, **arguments)
    data = tuple(part[:UNEVEN] for part in images_and_labels())
    model.fit(*data, batch_size=BATCH, shuffle=False, verbose=0)
    return model


def mean_cross_entropy(y_true, y_pred):
    """One number for all images."""
    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y_true, y_pred))


class MeanCrossEntropy(keras.losses.Loss):
    """The same as an object."""

    def call(self, y_true, y_pred):
        return mean_cross_entropy(y_true, y_pred)


@pytest.mark.parametrize(
    "arguments",
    [
        {"jit_compile": True},
        {"loss": mean_cross_entropy},
        {"loss": MeanCrossEntropy()},
        {"loss": keras.losses.SparseCategoricalCrossentropy},
        {"loss": keras.losses.SparseCategoricalCrossentropy(reduction="sum")},
        {"optimizer": keras.optimizers.SGD(0.1, clipnorm=0.01)},
        {"optimizer": keras.optimizers.SGD(0.1, clipvalue=0.001)},
        {
            "optimizer": keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(0.1, global_clipnorm=0.01)
            )
        },
    ],
    ids=["xla", "function", "object", "class", "sum", "clipnorm", "clipvalue", "scaled_clipnorm"],
)
def test_losses_and_gradients_are_those_of_the_whole_batch(arguments):
    optimizer = arguments.get("optimizer", keras.optimizers.SGD())
    copies = [type(optimizer).from_config(optimizer.get_config()) for _ in range(2)]
    one, two = (
        small(replicas, **arguments | {"optimizer": copy}) for replicas, copy in zip((1, 2), copies)
    )
    assert largest_difference(one, two) < 1e-6
    images, labels = (part[:UNEVEN] for part in images_and_labels())
    scores = [model.evaluate(images, labels, batch_size=BATCH, verbose=0) for model in (one, two)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)


def test_a_loss_of_one_number_goes_by_its_name_too():
    images, labels = (part[: BATCH // 2] for part in images_and_labels())
    images, labels = np.concatenate([images] * 2), np.eye(10)[np.concatenate([labels] * 2)]
    one, two = (small(replicas) for replicas in (1, 2))
    two.set_weights(one.get_weights())
    for model in (one, two):  # with the same images on both replicas, the mean of two is the whole
        model.compile("sgd", "dice")
        model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)
    assert largest_difference(one, two) < 1e-6


def test_sums_and_means_of_shares_that_may_be_uneven_are_refused():
    loss = [keras.losses.SparseCategoricalCrossentropy(reduction="sum"), "mse"]
    model = untrained(keras.layers.Dense(1), loss=loss, **NO_STATISTICS)
    images, labels = (part[:UNEVEN] for part in images_and_labels())
    with pytest.raises(ValueError, match="Expected one reduction for all losses"):
        model.fit(images, (labels, labels), batch_size=BATCH, verbose=0)


def test_losses_of_single_images_are_refused():
    with pytest.raises(ValueError, match="Received: reduction=None"):
        small(2, loss=keras.losses.SparseCategoricalCrossentropy(reduction=None))


def sum_of_probabilities(y_true, y_pred):
    """1, in one number for all images."""
    return keras.ops.mean(keras.ops.sum(y_pred, axis=-1))


def test_metrics_of_one_number_heed_no_empty_share():
    model = small(2, metrics=[sum_of_probabilities])
    images, labels = images_and_labels()
    for history in (
        model.fit(images[:1], labels[:1], verbose=0).history,
        model.evaluate(images[:1], labels[:1], verbose=0, return_dict=True),
    ):
        np.testing.assert_allclose(history["sum_of_probabilities"], 1, rtol=1e-6)


def test_the_losses_of_outputs_count_every_image_the_same():
    loss = ["sparse_categorical_crossentropy", "mse"]
    model = untrained(keras.layers.Dense(1, name="more"), loss=loss, **NO_STATISTICS)
    images, labels = (part[:5] for part in images_and_labels())
    # Shares of two, two, one and no images.
    logs = model.evaluate(images, (labels, labels), batch_size=4, verbose=0, return_dict=True)
    squares = (model.predict(images, verbose=0)[1][:, 0] - labels) ** 2
    assert logs["more_loss"] == pytest.approx(squares.mean(), rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["predictions_loss"] + logs["more_loss"], rel=1e-5)


@pytest.mark.parametrize("structure", [lambda output: output, lambda output: [output]])
def test_embeddings_and_lists_of_one_output_in_uneven_shares(structure):
    numbers = np.arange(UNEVEN) % 5
    models = []
    for replicas in (1, 2):
        random.seed(0)
        with make_strategy(replicas).scope():
            inputs = keras.Input((1,), dtype="int32")
            outputs = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(inputs))
            model = keras_resnet.ResNet(inputs, structure(outputs))
            model.compile("sgd", "mse")
        model.fit(numbers, np.eye(3)[numbers % 3], batch_size=BATCH, shuffle=False, verbose=0)
        models.append(model)
    assert largest_difference(*models) < 1e-6


@pytest.mark.parametrize(("replicas", "parts"), [(2, 1), (1, 2)])
def test_means_over_weights_are_not_shared(replicas, parts):
    model = small(replicas)
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight")
    model.accumulation_steps = parts
    model.compile("sgd", loss)
    images, labels = images_and_labels()
    with pytest.raises(ValueError, match="Received: reduction='mean_with_sample_weight'"):
        model.fit(images, labels, sample_weight=labels / 9, batch_size=BATCH, verbose=0)
    model.fit(images, labels, batch_size=BATCH, verbose=0)


def test_parts_may_change_between_two_fits():
    model = small(1)
    model.accumulation_steps = 3
    with pytest.raises(tf.errors.InvalidArgumentError, match="accumulation_steps=3"):
        model.fit(*images_and_labels(), batch_size=BATCH, verbose=0)


@pytest.mark.parametrize("option", ["gradient_accumulation_steps", "ema_overwrite_frequency"])
def test_what_keras_does_on_one_device_only_is_refused(option):
    optimizer = keras.optimizers.SGD(use_ema=True, **{option: 2})
    with pytest.raises(ValueError, match=f"Expected {option}=None .* Received: {option}=2"):
        small(2, optimizer=keras.optimizers.LossScaleOptimizer(optimizer))


def test_optimizers_made_of_several_do_not_clip():
    model = small(2)
    with model.distribute_strategy.scope():
        inner = keras.optimizers.SGD(clipnorm=0.1)
        optimizer = keras.optimizers.MultiOptimizer(lambda weight: inner)
        model.compile(optimizer, "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="A `MultiOptimizer` would clip"):
        model.fit(*images_and_labels(), batch_size=BATCH, verbose=0)


def test_sums_are_not_done_in_parts():
    model = small(1)
    model.accumulation_steps = 2
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="reduction='sum' with accumulation_steps=2"):
        model.fit(*images_and_labels(), batch_size=BATCH, verbose=0)


def test_eager_steps_count_every_image_of_uneven_shares_the_same():
    two = untrained(**NO_STATISTICS)
    one = keras.models.clone_model(two)
    one.set_weights(two.get_weights())
    images, labels = (part[:3] for part in images_and_labels())
    for model in (one, two):
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        model.fit(images, labels, verbose=0)
    assert largest_difference(one, two) < 1e-6
    loss = -np.log(one(images[:1]).numpy()[0, labels[0]])
    assert two.evaluate(images[:1], labels[:1], verbose=0) == pytest.approx(loss, rel=1e-5)


def test_a_frozen_network_is_scored_while_it_fits():
    model = untrained(**NO_STATISTICS)
    model.trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    images, labels = images_and_labels()
    loss = -np.log(model(images).numpy()[range(len(labels)), labels]).mean()
    history = model.fit(images, labels, batch_size=BATCH, verbose=0).history
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)


def test_what_is_evaluated_is_what_is_saved(tmp_path):
    images, labels = images_and_labels()
    model = trained(2, jit_compile=False, options={})
    loss = model.evaluate(images, labels, batch_size=BATCH, verbose=0)[0]
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=False)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(images, labels, verbose=0)[0] == pytest.approx(loss, rel=1e-5)
    exported = tf.saved_model.load(tmp_path / "exported")
    expected = loaded.predict(images, verbose=0)
    np.testing.assert_allclose(exported.serve(images), expected, atol=1e-5)


def test_what_is_validated_within_fit_is_what_its_callbacks_save(tmp_path):
    images, labels = images_and_labels()
    model = trained(2, jit_compile=False, options={})
    history = model.fit(
        *(images, labels),
        batch_size=BATCH,
        validation_data=(images, labels),
        callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")],
        verbose=0,
    ).history
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loss = loaded.evaluate(images, labels, verbose=0)[0]
    assert loss == pytest.approx(history["val_loss"][0], rel=1e-5)


def test_callbacks_save_the_mean_of_the_replicas_without_validation_too(tmp_path):
    model = trained(
        2,
        jit_compile=False,
        options={},
        fit={"callbacks": [keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")]},
    )
    assert largest_difference(keras.models.load_model(tmp_path / "model.keras"), model) < 1e-7


@pytest.mark.parametrize("method", ["get_weights", "export"])
def test_callbacks_read_the_mean_of_the_replicas(method, tmp_path):
    model = untrained()
    copies = model.get_layer("stem_bn").moving_variance.value.values
    for number, copy in enumerate(copies):
        copy.assign(tf.fill(copy.shape, float(number)))
    if method == "export":
        model.export(tmp_path, verbose=False)
    else:
        model.get_weights()
    for copy in copies:
        np.testing.assert_array_equal(copy, np.full(copy.shape, 0.5))


def test_auto_takes_no_xla_on_cpus_and_says_so(caplog):
    caplog.set_level("INFO", logger="keras_resnet")
    model = trained(2, jit_compile="auto")
    assert not model.jit_compile
    assert "no XLA, because oneDNN trains faster, on 2 replica(s), CPU" in caplog.text


@pytest.mark.parametrize(("devices", "chosen"), [("GPU", True), ("TPU", True), ("CPU", False)])
def test_auto_takes_xla_where_every_replica_is_an_accelerator(devices, chosen, monkeypatch):
    with make_strategy(2).scope():
        model = keras_resnet.build(NETWORK, input_shape=(8, 8, 3))
    names = (f"/job:localhost/replica:0/task:0/device:{devices}:{number}" for number in range(2))
    extended = model.distribute_strategy.extended
    monkeypatch.setattr(type(extended), "worker_devices", tuple(names))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile="auto")
    assert model.jit_compile == chosen


def synchronized(
    replicas, *, jit_compile=False, order=range(BATCH), accumulation_steps=1, **options
):
    """`trained` with synchronised batch normalisation; `order` is that of the images of a batch."""
    random.seed(0)
    with make_strategy(replicas).scope():
        model = keras_resnet.build(NETWORK, input_shape=(8, 8, 3), **options)
        keras_resnet.surgery.synchronize_batch_norm(model)
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit_compile)
    model.accumulation_steps = accumulation_steps
    order = [start + place for start in range(0, STEPS * BATCH, BATCH) for place in order]
    images, labels = (part[order] for part in images_and_labels())
    model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)
    return model


def test_synchronised_statistics_take_the_road_that_works_and_say_so(caplog):
    two = synchronized(2, jit_compile=True)
    assert "without XLA all the same" in caplog.text
    assert largest_difference(synchronized(1), two) < 1e-4


def test_synchronised_statistics_of_a_part_are_those_of_its_images_on_all_replicas():
    two = synchronized(2, accumulation_steps=2)
    # The first part of one device are the first parts of both.
    order = [*range(0, 4), *range(8, 12), *range(4, 8), *range(12, 16)]
    one = synchronized(1, accumulation_steps=2, order=order)
    assert largest_difference(one, two) < 1e-4
    assert largest_difference(synchronized(1), two) > 1e-3


def test_synchronised_statistics_with_stochastic_depth(monkeypatch):
    monkeypatch.setattr(StochasticDepth, "draw", lambda layer, shape=(): tf.fill(shape, True))
    one, two = (synchronized(replicas, survival_probability=0.5) for replicas in (1, 2))
    assert largest_difference(one, two) < 1e-4


@pytest.mark.slow
def test_a_custom_metric_and_a_custom_loss():
    @keras.saving.register_keras_serializable("tests")
    class Worst(keras.metrics.Metric):
        def __init__(self, name="worst", **kwargs):
            super().__init__(name=name, **kwargs)
            self.total = self.add_variable((), "zeros", name="total")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.total.assign_add(keras.ops.sum(1 - keras.ops.max(y_pred, axis=-1)))

        def result(self):
            return self.total

    def squared(y_true, y_pred):
        return keras.ops.sum((keras.ops.one_hot(y_true, 10) - y_pred) ** 2, axis=-1)

    compiled, plain = (
        trained(2, jit_compile=jit, loss=squared, metrics=[Worst()]) for jit in (True, False)
    )
    assert largest_difference(compiled, plain) < 1e-5
    images, labels = images_and_labels()
    expected = (1 - plain.predict(images, verbose=0).max(axis=-1)).sum()
    worst = compiled.evaluate(images, labels, verbose=0, return_dict=True)["worst"]
    assert worst == pytest.approx(expected, rel=1e-4)


def test_variables_are_made_before_the_trace():
    traces = []

    class Counting(keras_resnet.ResNet):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    inner = keras_resnet.build(NETWORK, input_shape=(8, 8, 3))
    model = Counting(inner.inputs, inner.outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*images_and_labels(), batch_size=BATCH, verbose=0)
    assert len(traces) == 1
