"""The package's own layers against NumPy and the papers."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from keras_resnet.layers import BatchNormalization, GroupedConv2D, StochasticDepth, ZeroPadShortcut


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_zero_pad_shortcut_keeps_every_nth_pixel_and_appends_zeros(strides, size, data_format):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    kept = x[:, ::strides, ::strides]
    expected = np.concatenate([kept, np.zeros((*kept.shape[:3], 5), "float32")], axis=-1)
    if data_format == "channels_first":
        x, expected = np.moveaxis(x, -1, 1), np.moveaxis(expected, -1, 1)
    layer = ZeroPadShortcut(8, strides, data_format=data_format)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), expected)
    assert layer.compute_output_shape(x.shape) == expected.shape
    assert not layer.weights


def test_zero_pad_shortcut_of_open_sizes():
    last = ZeroPadShortcut(8, 2, data_format="channels_last")
    assert last.compute_output_shape((None, None, 7, 3)) == (None, None, 4, 8)
    first = ZeroPadShortcut(8, 2, data_format="channels_first")
    assert first.compute_output_shape((None, 3, 7, None)) == (None, 8, 4, None)


def test_zero_pad_shortcut_follows_keras_s_data_format():
    keras.config.set_image_data_format("channels_first")
    assert ZeroPadShortcut(8)(np.zeros((1, 3, 4, 5))).shape == (1, 8, 4, 5)


def test_zero_pad_shortcut_cannot_drop_channels():
    with pytest.raises(ValueError) as error:
        ZeroPadShortcut(4).compute_output_shape((1, 8, 8, 6))
    assert str(error.value) == (
        "A zero-padded shortcut cannot reduce channels. Expected at most 4 input channels. "
        "Received: 6."
    )


@pytest.mark.parametrize(
    "layer",
    [
        ZeroPadShortcut(8, 2, data_format="channels_first", name="pad"),
        StochasticDepth(0.7, per_image=True, seed=3, name="drop", dtype="mixed_bfloat16"),
        GroupedConv2D(8, 3, strides=2, groups=4, use_bias=False, name="conv"),
    ],
)
def test_layers_come_back_from_their_config(layer):
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"].startswith("keras_resnet>")
    assert keras.saving.deserialize_keras_object(config).get_config() == layer.get_config()


# Groups, channels and filters: several groups together, groups that do not divide evenly into
# parts, as many groups as channels, and groups wider than the parts.
GROUPS = {"many": (8, 64, 64), "odd": (3, 30, 12), "depthwise": (24, 24, 48), "wide": (2, 96, 40)}


@pytest.mark.parametrize("shape", GROUPS)
@pytest.mark.parametrize(
    ("strides", "dilation", "jit_compile"),
    [(1, 1, False), (2, 1, False), (1, 2, False), (2, 1, True)],
)
def test_gradients_of_grouped_convolutions(shape, strides, dilation, jit_compile):
    """A convolution is linear in images and in kernel: `<u, conv(dx, k)> = <gradient, dx>`."""
    groups, channels, filters = GROUPS[shape]
    layer = GroupedConv2D(filters, 3, strides=strides, groups=groups, dilation_rate=dilation)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, channels))
    y = layer(np.float32(x))
    kernel = np.float64(layer.kernel)

    def convolved(x, kernel):
        """NumPy's, without the padding of the reference."""
        padded = reference.conv2d(x, kernel, dilation=dilation)
        return padded[:, dilation:-dilation:strides, dilation:-dilation:strides]

    np.testing.assert_allclose(y, convolved(x, kernel), rtol=1e-4, atol=1e-5)

    @tf.function(jit_compile=jit_compile)
    def gradients(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, (x, layer.kernel.value), upstream)

    upstream = rng.normal(size=y.shape)
    found = gradients(tf.constant(x, "float32"), tf.constant(upstream, "float32"))
    for _ in range(5):
        dx, dk = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        for gradient, change, direction in zip(
            found, (convolved(dx, kernel), convolved(x, dk)), (dx, dk)
        ):
            expected = np.sum(upstream * change)
            scale = np.linalg.norm(upstream) * np.linalg.norm(change)
            assert abs(np.sum(gradient * direction) - expected) < 1e-6 * scale


def test_a_grouped_convolution_is_one_operation():
    """Keras's own is a call of a program of XLA, which servers and converters may not have."""
    layer = GroupedConv2D(8, 3, groups=4, differentiable=False)
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((None, 9, 9, 8))).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("Conv2D") == 1
    assert not any("Call" in kind or kind == "IdentityN" for kind in kinds)


def draws(layer, batch, times):
    """What `layer` makes of ones, `times` in a row: shape (times, batch)."""
    ones = np.ones((batch, 2, 2, 1), "float32")
    outputs = np.array(
        [keras.ops.convert_to_numpy(layer(ones, training=True)) for _ in range(times)]
    )
    assert set(np.unique(outputs)) <= {0.0, 1.0}  # not scaled in training
    assert np.all(outputs == outputs[..., :1, :1, :])  # whole images
    return outputs[..., 0, 0, 0]


def test_stochastic_depth_draws_once_per_batch():
    kept = draws(StochasticDepth(0.7, seed=1), batch=4, times=500)
    assert np.all(kept == kept[:, :1])
    assert abs(kept[:, 0].mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / 500)


def test_stochastic_depth_draws_per_image():
    kept = draws(StochasticDepth(0.7, per_image=True, seed=1), batch=1000, times=2)
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / 2000)
    assert np.any(kept[0] != kept[1])


def test_stochastic_depth_scales_at_inference():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype("float32")
    y = StochasticDepth(0.25)(x, training=False)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), 0.25 * x)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(StochasticDepth(0.25)(x)), 0.25 * x)


def test_stochastic_depth_repeats_with_its_seed():
    one, two = (draws(StochasticDepth(0.5, seed=7), batch=1, times=40) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_stochastic_depth_of_1_keeps_everything():
    assert np.all(draws(StochasticDepth(1.0), batch=1, times=50) == 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_stochastic_depth_keeps_the_dtype(dtype):
    layer = StochasticDepth(0.5, dtype=dtype)
    for training in (False, True):
        y = layer(keras.ops.ones((1, 2, 2, 1), dtype), training=training)
        assert keras.backend.standardize_dtype(y.dtype) == dtype


@pytest.mark.parametrize("probability", [0, -0.1, 1.5])
def test_impossible_survival_probability(probability):
    with pytest.raises(ValueError) as error:
        StochasticDepth(probability)
    assert str(error.value) == (
        f"A survival probability lies in (0, 1]. Received: survival_probability={probability}"
    )


def batch_norms(axis=-1, **arguments):
    """Ours and Keras's, with the same weights, for maps of four channels."""
    pair = [
        layer(axis=axis, momentum=0.9, epsilon=1e-5, **arguments)
        for layer in (BatchNormalization, keras.layers.BatchNormalization)
    ]
    shape = (None, 4, None, None) if axis == 1 else (None, None, None, 4)
    values = np.random.default_rng(0).uniform(0.5, 2.0, size=(4, 4))
    for layer in pair:
        layer.build(shape)
        for weight, value in zip(layer.weights, values):
            weight.assign(value)
    return pair


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("axis", "dtype", "tolerance"),
    [
        (-1, "float32", 1e-5),
        (1, "float32", 1e-5),
        (-1, "float64", 1e-12),
        (-1, "mixed_bfloat16", 0.05),
        (-1, "mixed_float16", 5e-3),
        (-1, "bfloat16", 0.05),
    ],
)
def test_batch_norm_is_that_of_keras(axis, dtype, tolerance, training):
    rng = np.random.default_rng(1)
    shape = (3, 4, 5, 6) if axis == 1 else (3, 5, 6, 4)
    x, weights = rng.normal(1.0, 2.0, size=shape), rng.normal(size=shape)
    results = []
    for layer in batch_norms(axis, dtype=dtype):
        image = tf.cast(x, layer.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(image)
            y = layer(image, training=training)
            loss = tf.reduce_sum(tf.cast(y, "float64") * weights)
        sources = [image, layer.gamma.value, layer.beta.value]
        gradients = tape.gradient(loss, sources)
        assert y.dtype == layer.compute_dtype
        results.append([y, *gradients, layer.moving_mean, layer.moving_variance])
    for ours, theirs in zip(*results):
        ours, theirs = (np.float64(tf.cast(result, "float64")) for result in (ours, theirs))
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)


def test_frozen_batch_norm_uses_and_keeps_its_statistics():
    x = np.random.default_rng(1).normal(1.0, 2.0, size=(3, 5, 6, 4)).astype("float32")
    ours, theirs = batch_norms()
    ours.trainable = theirs.trainable = False
    before = ours.get_weights()
    y, expected = (layer(x, training=True) for layer in (ours, theirs))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.get_weights(), before)


@pytest.mark.parametrize("arguments", [{"scale": False}, {"center": False}])
def test_batch_norm_without_gamma_or_beta(arguments):
    x = np.random.default_rng(1).normal(1.0, 2.0, size=(3, 5, 6, 4)).astype("float32")
    ours, theirs = batch_norms(**arguments)
    y, expected = (layer(x, training=True) for layer in (ours, theirs))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_of_open_sizes_under_compilation():
    x = np.random.default_rng(1).normal(1.0, 2.0, size=(3, 5, 6, 4)).astype("float32")
    ours, theirs = batch_norms()
    signature = [tf.TensorSpec((None, None, None, 4))]
    compiled = tf.function(lambda x: ours(x, training=True), input_signature=signature)
    np.testing.assert_allclose(compiled(x), theirs(x, training=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-5)
