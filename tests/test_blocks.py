"""Every block, drawn in every way, against NumPy in float64."""

import keras
import numpy as np
import pytest
import reference

from keras_resnet import Variant, build

KINDS = {
    "basic": {"block": "basic"},
    "bottleneck_v1": {"block": "bottleneck", "stride_in_1x1": True},
    "bottleneck_v1.5": {"block": "bottleneck"},
}
ORDERS = [
    "original",
    "bn_after_addition",
    "relu_before_addition",
    "relu_pre_activation",
    "full_pre_activation",
]
SHORTCUTS = ["zero_padding", "projection", "projection_all", "none"]


def drawn(kind, *, float64=True, size=(7, 6), blocks=(2, 2), filters=(3, 4), **fields):
    """A network of few channels whose blocks are of one kind, with random weights."""
    if float64:
        keras.config.set_dtype_policy("float64")
    variant = Variant("test", blocks, filters, **{"stem": "cifar"} | KINDS[kind] | fields)
    image = keras.Input((*size, 2), dtype="float64" if float64 else "float32")
    model = build(variant, include_top=False, input_tensor=image)
    if float64:
        reference.randomize(model)
    return model


def outputs(model, x, names, **arguments):
    """What the layers called `names` make of `x`."""
    tensors = {name: model.get_layer(name).output for name in names}
    maps = keras.Model(model.input, tensors)(x, **arguments)
    return [keras.ops.convert_to_numpy(maps[name]) for name in names]


def last_stem_layer(model):
    return [layer.name for layer in model.layers if layer.name.startswith("stem_")][-1]


def check_blocks(model, training=False):
    """Compares each block with its equations, fed with what the network feeds it."""
    variant = model.variant
    names = [f"stage{s + 1}_block{b + 1}" for s, n in enumerate(variant.blocks) for b in range(n)]
    layers = [last_stem_layer(model), *(f"{name}_out" for name in names)]
    weights = [reference.weights_of(model, name) for name in names]  # before training moves any
    x = np.random.default_rng(1).normal(size=(2, *model.input_shape[1:]))
    maps = outputs(model, x, layers, training=training)
    for name, weight, before, after in zip(names, weights, maps, maps[1:]):
        stage = int(name[len("stage")])
        changes = stage > 1 and name.endswith("block1")
        dilated = variant.output_stride is not None
        expected = reference.block(
            before,
            weight,
            reference.PROGRAMS[variant.block, variant.activation_order],
            variant.shortcut,
            strides=2 if changes and not dilated else 1,
            strided_conv=1 if variant.stride_in_1x1 or variant.block == "basic" else 2,
            dilations=(
                2 ** (stage - 1 - changes) if dilated else 1,
                2 ** (stage - 1) if dilated else 1,
            ),
            is_first=name == "stage1_block1",
            training=training,
        )
        scale = np.abs(expected).max()
        np.testing.assert_allclose(after, expected, rtol=1e-10, atol=1e-10 * scale, err_msg=name)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_equal_the_equations(kind, shortcut, order):
    model = drawn(kind, shortcut=shortcut, activation_order=order)
    check_blocks(model)
    check_blocks(model, training=True)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_dilated_blocks_equal_the_equations(kind, shortcut):
    check_blocks(
        drawn(kind, shortcut=shortcut, blocks=(1, 1, 2), filters=(3, 4, 5), output_stride=1)
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 8), (3, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_strided_blocks_of_odd_and_even_sizes(kind, size):
    model = drawn(kind, size=size, conv_bias=True)
    check_blocks(model)
    assert model.output_shape[1:3] == tuple(-(-side // 2) for side in size)


@pytest.mark.parametrize("size", [(16, 16), (17, 21)])
def test_imagenet_stem_equals_the_equations(size):
    model = drawn("basic", stem="imagenet", size=size)
    stem = reference.weights_of(model, "stem")
    x = np.random.default_rng(1).normal(size=(2, *size, 2))
    (output,) = outputs(model, x, ["stem_pool"])
    expected = reference.conv2d(x, *stem["conv"], strides=2)
    expected = reference.max_pool(reference.relu(reference.batch_norm(expected, *stem["bn"])))
    np.testing.assert_allclose(output, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(16, 16), (17, 17), (16, 19)])
def test_strided_convolutions_sample_the_grid_of_torch(size):
    """The centres are the pixels 0, 2, 4, ...: what a dense convolution gives, subsampled."""
    model = drawn("basic", stem="imagenet", size=size)
    x = np.random.default_rng(0).normal(size=(1, *size, 2))
    strided_3x3 = "stage2_block1_conv1"
    for before, name in ((None, "stem_conv"), ("stage1_block2_out", strided_3x3)):
        inputs = x if before is None else outputs(model, x, [before])[0]
        kernel = np.float64(model.get_layer(name).kernel)
        (output,) = outputs(model, x, [name])
        centred = reference.conv2d(inputs, kernel)[:, ::2, ::2]
        np.testing.assert_allclose(output, centred, rtol=1e-10, atol=1e-10)
        shifted = keras.ops.conv(inputs, kernel, strides=2, padding="same")
        is_even = any(side % 2 == 0 for side in inputs.shape[1:3])
        assert np.allclose(shifted, output) is not is_even


def test_batch_norm_moves_its_statistics_by_a_tenth():
    model = build(Variant("test", (1, 1), (8, 8), stem="cifar"), input_shape=(6, 6, 3))
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(5, 6, 6, 3)).astype("float32")
    (maps,) = outputs(model, x, ["stem_conv"])
    model(x, training=True)
    _, _, mean, variance = model.get_layer("stem_bn").get_weights()
    np.testing.assert_allclose(mean, 0.1 * maps.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * maps.var(axis=(0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(("name", "size"), [("stage2_block1_conv2", 3), ("stem_conv", 7)])
def test_initial_weights_have_the_variance_of_fan_out(name, size):
    """He et al. 2015b, and not cut off at two deviations as Keras's "he_normal" is."""
    model = build(Variant("test", (1, 1), (64, 128)), input_shape=(32, 32, 16))
    kernel = model.get_layer(name).get_weights()[0]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (size**2 * kernel.shape[-1])), rel=0.02)
    assert np.mean(np.abs(kernel) > 2 * kernel.std()) == pytest.approx(0.0455, rel=0.1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_block_of_zero_gamma_is_the_identity_on_non_negative_input(kind, training):
    model = drawn(kind, float64=False, zero_init_residual=True, shortcut="zero_padding")
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 2)).astype("float32")
    names = [f"stage{stage}_block{block}_out" for stage in (1, 2) for block in (1, 2)]
    first, second, third, fourth = outputs(model, x, names, training=training)
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(fourth, third)
    np.testing.assert_array_equal(third[..., : first.shape[-1]], first[:, ::2, ::2])
    assert np.any(first)
