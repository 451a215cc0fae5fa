"""`compile(jit_compile=True)` under strategies: an XLA program per replica, the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnet
from training.strategy import make_strategy

STEPS, BATCH = 3, 16
# Without batch statistics, which differ between one device and several.
NO_STATISTICS = {"activation_order": "no_normalization", "conv_bias": True}


def images_and_labels():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS * BATCH, 8, 8, 3)).astype("float32")
    return images, rng.integers(0, 10, len(images))


def trained(replicas, *, jit_compile, options=NO_STATISTICS, fit=None, **arguments):
    """A small network after three steps, on `replicas` devices or without any strategy."""
    keras.utils.set_random_seed(0)
    scope = make_strategy(replicas).scope() if replicas else tf.name_scope("")
    with scope:
        model = keras_resnet.CifarResNet(depth=8, input_shape=(8, 8, 3), **options)
        arguments = {
            "optimizer": keras.optimizers.SGD(0.05, momentum=0.9),
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
        } | arguments
        model.compile(jit_compile=jit_compile, **arguments)
    model.fit(*images_and_labels(), batch_size=BATCH, shuffle=False, verbose=0, **(fit or {}))
    return model


def largest_difference(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first.get_weights(), second.get_weights()))


@pytest.mark.parametrize("replicas", [2, 4])
def test_each_replica_is_one_xla_program(replicas):
    model = trained(replicas, jit_compile=True)
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


@pytest.mark.parametrize("replicas", [1, 4])
def test_weights_are_those_of_one_device(replicas):
    one = trained(None, jit_compile=False)
    many = trained(replicas, jit_compile=True)
    assert largest_difference(many, one) < 1e-5


def test_batch_statistics_as_without_xla():
    plain = trained(2, jit_compile=False, options={})
    compiled = trained(2, jit_compile=True, options={})
    assert largest_difference(compiled, plain) < 1e-4


def test_reported_loss_is_that_of_the_whole_batch():
    images, labels = images_and_labels()
    model = trained(2, jit_compile=True, optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0).history
    probabilities = model.predict(images, verbose=0)[np.arange(len(labels)), labels]
    assert history["loss"][0] == pytest.approx(-np.log(probabilities).mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"steps_per_execution": 3},
        {"fit": {"sample_weight": np.linspace(0, 1, STEPS * BATCH)}},
        {"loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=3)},
        {"optimizer": {"class_name": "SGD", "config": {"use_ema": True, "clipnorm": 0.1}}},
    ],
    ids=["steps_per_execution", "sample_weight", "custom loss", "EMA and clipping"],
)
def test_what_else_fit_offers(arguments):
    compiled, plain = (trained(2, jit_compile=jit, **arguments) for jit in (True, False))
    assert largest_difference(compiled, plain) < 1e-5


@pytest.mark.slow
def test_regularisation_counts():
    def regularised(jit_compile):
        keras.utils.set_random_seed(0)
        with make_strategy(2).scope():
            model = keras_resnet.CifarResNet(depth=8, input_shape=(8, 8, 3), **NO_STATISTICS)
            model.get_layer("predictions").kernel.regularizer = keras.regularizers.L2(0.5)
            model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit_compile)
        model.fit(*images_and_labels(), batch_size=BATCH, shuffle=False, verbose=0)
        return model

    plain, compiled = regularised(False), regularised(True)
    assert largest_difference(compiled, plain) < 1e-5
    assert largest_difference(compiled, trained(2, jit_compile=True, optimizer="sgd")) > 1e-3


def test_mixed_float16_with_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    model = trained(2, jit_compile=True)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == STEPS


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


def test_evaluate_and_predict():
    images, labels = images_and_labels()
    compiled = trained(2, jit_compile=True)
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


def test_variables_are_made_before_the_trace():
    traces = []

    class Counting(keras_resnet.ResNet):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    inner = keras_resnet.CifarResNet(depth=8, input_shape=(8, 8, 3))
    model = Counting(inner.inputs, inner.outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*images_and_labels(), batch_size=BATCH, verbose=0)
    assert len(traces) == 1
