"""Every block, drawn in every way, against NumPy in float64."""

import keras
import numpy as np
import pytest
import reference

from keras_resnet import blocks
from keras_resnet.variants import Variant

KINDS = {
    "basic": {"block": "basic"},
    "bottleneck_v1": {"block": "bottleneck", "stride_in_1x1": True},
    "bottleneck_v1.5": {"block": "bottleneck"},
}
# Input channels and geometry; 3 filters are 12 channels after a bottleneck.
SAME = {"basic": 3, "bottleneck": 12}
OTHER = {"basic": 2, "bottleneck": 5}
GEOMETRIES = {
    "same": (SAME, {}),
    "strided": (OTHER, {"strides": 2}),
    "stride_to_dilation": (OTHER, {"dilation": 4, "dilation_before": 2}),
}
ORDERS = sorted(blocks.ACTIVATION_ORDERS)


def draw(variant, geometry, channels, size=(7, 6)):
    image = keras.Input((*size, channels), dtype="float64")
    output = blocks.residual_block(image, variant, blocks.Geometry(3, **geometry), name="b")
    model = keras.Model(image, output)
    reference.randomize(model)
    return model


def check_block(kind, channels, geometry, shortcut, order):
    """Compares a block of random weights and its equations, at inference and in training."""
    keras.config.set_dtype_policy("float64")
    variant = Variant("test", (1,), (3,), shortcut=shortcut, activation_order=order, **KINDS[kind])
    model = draw(variant, geometry, channels[variant.block])
    x = np.random.default_rng(1).normal(size=(2, *model.input_shape[1:]))
    for training in (False, True):
        expected = reference.block(
            x,
            reference.weights_of(model, "b"),
            reference.PROGRAMS[variant.block, order],
            shortcut,
            strides=geometry.get("strides", 1),
            strided_conv=2 if kind == "bottleneck_v1.5" else 1,
            dilations=(geometry.get("dilation_before", 1), geometry.get("dilation", 1)),
            is_first=geometry.get("is_first", False),
            training=training,
        )
        np.testing.assert_allclose(model(x, training=training), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shortcut", ["zero_padding", "projection", "projection_all", "none"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_block_equals_the_equations(kind, geometry, shortcut, order):
    check_block(kind, *GEOMETRIES[geometry], shortcut, order)


@pytest.mark.parametrize("order", ["relu_pre_activation", "full_pre_activation"])
@pytest.mark.parametrize("kind", KINDS)
def test_shortcut_of_the_first_block_starts_behind_the_activation(kind, order):
    check_block(kind, SAME, {"is_first": True}, "projection", order)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 8), (3, 3), (4, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_strided_block_of_odd_and_even_sizes(kind, size):
    keras.config.set_dtype_policy("float64")
    variant = Variant("test", (1,), (3,), conv_bias=True, **KINDS[kind])
    model = draw(variant, {"strides": 2}, channels=2, size=size)
    x = np.random.default_rng(1).normal(size=(1, *size, 2))
    expected = reference.block(
        x,
        reference.weights_of(model, "b"),
        reference.PROGRAMS[variant.block, "original"],
        "projection",
        strides=2,
        strided_conv=2 if kind == "bottleneck_v1.5" else 1,
    )
    assert expected.shape[1:3] == tuple(-(-side // 2) for side in size)
    np.testing.assert_allclose(model(x), expected, rtol=1e-9, atol=1e-10)


def test_batch_norm_moves_its_statistics_by_a_tenth():
    keras.config.set_dtype_policy("float64")
    image = keras.Input((4, 4, 3), dtype="float64")
    layer = keras.Model(image, blocks.batch_norm(image, name="bn"))
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(5, 4, 4, 3))
    layer(x, training=True)
    _, _, mean, variance = layer.get_weights()
    np.testing.assert_allclose(mean, 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * x.var(axis=(0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 10)])
def test_strided_convolutions_sample_the_grid_of_torch(kernel_size, size):
    keras.config.set_dtype_policy("float64")
    rng = np.random.default_rng(0)
    image = keras.Input((*size, 2), dtype="float64")
    model = keras.Model(image, blocks.conv(image, 3, kernel_size, strides=2, name="c"))
    reference.randomize(model)
    x, kernel = rng.normal(size=(1, *size, 2)), np.float64(model.get_weights()[0])
    expected = reference.conv2d(x, kernel, strides=2)
    # Centred on the pixels 0, 2, 4, ...: a strided convolution is the dense one, subsampled.
    np.testing.assert_allclose(expected, reference.conv2d(x, kernel)[:, ::2, ::2], atol=1e-12)
    np.testing.assert_allclose(model(x), expected, atol=1e-10)
    same = keras.ops.convert_to_numpy(keras.ops.conv(x, kernel, strides=2, padding="same"))
    is_shifted = any(side % 2 == 0 for side in size)
    assert np.allclose(same, expected) is not is_shifted


@pytest.mark.parametrize("size", [(16, 16), (17, 21)])
def test_imagenet_stem_equals_the_equations(size):
    keras.config.set_dtype_policy("float64")
    image = keras.Input((*size, 3), dtype="float64")
    stem = blocks.STEMS["imagenet"].draw(image, Variant("test", (1,), (4,)))
    model = keras.Model(image, stem)
    reference.randomize(model)
    weights = reference.weights_of(model, "stem")
    x = np.random.default_rng(1).normal(size=(2, *size, 3))
    expected = reference.conv2d(x, *weights["conv"], strides=2)
    expected = reference.max_pool(reference.relu(reference.batch_norm(expected, *weights["bn"])))
    np.testing.assert_allclose(model(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_initial_weights_have_the_variance_of_fan_out(kernel_size):
    image = keras.Input((8, 8, 64))
    kernel = keras.Model(image, blocks.conv(image, 256, kernel_size, name="c")).get_weights()[0]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (kernel_size**2 * 256)), rel=0.02)
    # Not cut off at two standard deviations, as Keras's "he_normal" is.
    assert np.mean(np.abs(kernel) > 2 * kernel.std()) == pytest.approx(0.0455, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_block_of_zero_gamma_is_the_identity_on_non_negative_input(kind):
    variant = Variant("test", (1,), (3,), zero_init_residual=True, **KINDS[kind])
    channels = 3 * blocks.RESIDUALS[variant.block].expansion
    image = keras.Input((6, 5, channels))
    output = blocks.residual_block(image, variant, blocks.Geometry(3), name="b")
    x = np.random.default_rng(0).uniform(0, 3, size=(2, 6, 5, channels)).astype("float32")
    for training in (False, True):
        np.testing.assert_array_equal(keras.Model(image, output)(x, training=training), x)
