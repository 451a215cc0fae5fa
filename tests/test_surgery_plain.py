"""Residual to plain and back: equal outputs, and exactly the cost that was announced."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import sklearn.datasets
from keras import layers
from structure import build_unallocated
from trained import images, look_trained, network, outputs

from keras_resnet import CifarResNet20, ResNet, count_macs, preprocess_input
from keras_resnet.axes import resolve
from keras_resnet.preprocessing import CIFAR10
from keras_resnet.surgery import fold_batch_norm, plain_cost, to_plain, to_residual
from keras_resnet.surgery.graph import Graph
from keras_resnet.surgery.pattern import is_addition

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")


def check_plain(model, max_cost=3.0, tolerance=1e-10):
    """Converts, compares the outputs, the cost, and that there is no shortcut any more."""
    cost, x = plain_cost(model), images(model)
    plain = to_plain(model, max_cost=max_cost)
    np.testing.assert_allclose(outputs(plain, x), outputs(model, x), rtol=0, atol=tolerance)
    assert not any(map(is_addition, Graph(plain).nodes))
    if isinstance(model, ResNet):
        assert resolve(plain.variant, {}).shortcut == "none"
    assert cost.parameters == model.count_params()
    assert cost.plain_parameters == plain.count_params()
    if None not in model.input_shape[1:]:
        assert cost.multiply_adds == count_macs(model)
        assert cost.plain_multiply_adds == count_macs(plain)
    return plain


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("cifar_resnet20", 502_026, 77_120_128),
        ("cifar_resnet56", 1_665_258, 246_989_440),
        ("cifar_resnet110", 3_410_106, 501_793_408),
        pytest.param("cifar_resnet1202", 38_694_810, 5_654_495_872, marks=pytest.mark.slow),
        ("resnet18", 20_176_296, 3_210_973_184),
        ("resnet34", 40_383_336, 6_910_349_312),
        ("resnet50", 277_325_800, 46_066_827_264),
    ],
)
def test_cost_of_the_papers_networks(name, parameters, multiply_adds):
    """Counted by hand in float64 NumPy: 38.69M and 5.65e9 for ResNet-1202."""
    cost = plain_cost(build_unallocated(name))
    assert (cost.plain_parameters, cost.plain_multiply_adds) == (parameters, multiply_adds)


def test_cost_grows_linearly_with_depth():
    """So that ResNet-1202 needs not be built: (n - 3) of 200 - 3 blocks per stage more."""
    low, high = (plain_cost(build_unallocated(f"cifar_resnet{depth}")) for depth in (20, 56))
    slope = (high.plain_parameters - low.plain_parameters) // 6
    assert low.plain_parameters + 197 * slope == 38_694_810


def test_cost_is_printed():
    assert str(plain_cost(CifarResNet20())) == (
        "271,098 -> 502,026 parameters, 40,551,040 -> 77,120,128 multiply-adds, 1.9 times"
    )
    open_size = network("cifar_resnet20", input_shape=(None, None, 3))
    assert plain_cost(open_size).multiply_adds is None
    assert "multiply-adds" not in str(plain_cost(open_size))


@pytest.mark.parametrize("order", ["original", "bn_after_addition"])
@pytest.mark.parametrize("shortcut", ["zero_padding", "projection", "projection_all"])
@pytest.mark.parametrize("size", [(12, 12, 3), (9, 14, 3)])
def test_two_layer_blocks(float64, order, shortcut, size):
    options = {"shortcut": shortcut, "activation_order": order, "input_shape": size}
    check_plain(network("cifar_resnet20", **options))


@pytest.mark.parametrize("order", ["relu_pre_activation", "full_pre_activation"])
def test_pre_activated_blocks_carry_both_signs(float64, order):
    check_plain(network("cifar_resnet20", activation_order=order), max_cost=6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet18", {"output_stride": 8}),
        ("resnet18", {"conv_bias": True}),
        ("resnet50", {}),
        ("resnet50", {"stride_in_1x1": True}),
        ("cifar_resnet20", {"survival_probability": 0.5}),
    ],
)
def test_other_networks(float64, name, options):
    blocks, filters = ((2, 1, 1, 1), (4, 4, 8, 8)) if "cifar" not in name else ((2, 1), (4, 8))
    model = network(name, blocks, (33, 40, 3), filters=filters, **options)
    check_plain(model, max_cost=30)


def test_the_result_is_a_resnet_of_the_same_names(tmp_path):
    model = network("cifar_resnet20", input_shape=(None, None, 3))
    plain, x = to_plain(model), images(model)
    np.testing.assert_allclose(outputs(plain, x), outputs(model, x), rtol=0, atol=1e-5)
    assert isinstance(plain, ResNet)
    assert plain.preprocessing == model.preprocessing
    assert plain.variant.shortcut == "none"
    assert plain.variant.blocks == model.variant.blocks
    assert list(plain.pyramid_outputs) == list(model.pyramid_outputs)
    gone = ("bn1", "bn2", "_bn", "_add", "_shortcut")
    names = [layer.name for layer in model.layers if not layer.name.endswith(gone)]
    assert sorted(layer.name for layer in plain.layers) == sorted(names)
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(plain, x))


def one_layer_blocks(strides=1, padding="same", kernel_size=3, source=("relu",)):
    """Two relu(BN(conv x) + x), the first with a projection, on foreign layers."""
    x = image = keras.Input((9, 8, 4))
    if not source:
        x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, use_bias=False)(x))
    for activation in source:
        x = layers.Activation(activation)(x)
    y = layers.Conv2D(6, kernel_size, strides=strides, padding=padding)(x)
    y = layers.BatchNormalization()(y)
    y = layers.Add()([y, layers.Conv2D(6, 1, strides=strides)(x)])
    x = layers.Activation("relu")(y)
    y = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same", use_bias=False)(x))
    x = layers.Activation("relu")(layers.Add()([x, y]))
    return look_trained(keras.Model(image, x))


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("source", [(), ("relu",)])
def test_one_layer_blocks_keep_their_width(float64, strides, kernel_size, source):
    """Of padding "same", which pads even and odd sizes differently."""
    model = one_layer_blocks(strides, kernel_size=kernel_size, source=source)
    plain = check_plain(model)
    projection = 4 * 6 + 6
    assert plain.count_params() == fold_batch_norm(model).count_params() - projection


@pytest.mark.parametrize("add", [layers.add, lambda pair: pair[0] + pair[1]])
def test_signed_input_of_a_two_layer_block(float64, add):
    x = image = keras.Input((9, 8, 4))
    for _ in range(2):
        y = layers.ReLU()(layers.Conv2D(4, 3, padding="same")(x))
        x = add([layers.Conv2D(4, 3, padding="same")(y), x])
    plain = check_plain(look_trained(keras.Model(image, x)))
    # Paper arithmetic: 3 times the weights of the block.
    assert plain.count_params() == 2 * (3 * 2 * 9 * 4 * 4 + 12 + 4)


def test_a_backbone_in_a_classifier(float64):
    backbone = network("cifar_resnet20", (1, 1))
    model = keras.Sequential([keras.Input((12, 12, 3)), backbone, layers.Dense(3)])
    assert check_plain(model).get_layer(backbone.name).variant.shortcut == "none"


def test_to_residual_and_back(float64):
    model = network("cifar_plainnet20", (3, 2))
    residual, x = to_residual(model), images(model)
    np.testing.assert_allclose(outputs(residual, x), outputs(model, x), rtol=0, atol=1e-10)
    # All but the stem and the convolution that widens.
    additions = [layer.name for layer in residual.layers if isinstance(layer, layers.Add)]
    assert len(additions) == 9
    assert "stage1_block1_conv1_add" in additions
    plain, folded = to_plain(residual), fold_batch_norm(model)
    assert residual.count_params() == plain.count_params() == folded.count_params()
    for one, other in zip(plain.weights, folded.weights):
        assert one.path == other.path
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_to_residual_of_grouped_and_dilated_convolutions(float64):
    x = image = keras.Input((9, 8, 4))
    centreless = {"kernel_size": 2, "dilation_rate": 2}  # between its taps
    for options in ({"groups": 2}, {"dilation_rate": 2}, {"kernel_size": 5}, centreless):
        options = {"kernel_size": 3, "padding": "same"} | options
        x = layers.ReLU()(layers.Conv2D(4, **options)(x))
    model = look_trained(keras.Model(image, x))
    residual = to_residual(model)
    assert sum(isinstance(layer, layers.Add) for layer in residual.layers) == 3
    np.testing.assert_allclose(*(outputs(net, images(model)) for net in (model, residual)))


SCRIPT = """
import sys
sys.path.insert(0, "tests")
import keras, numpy as np
from keras_resnet import surgery
from trained import images, network, outputs

assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
model, plain = network("cifar_resnet20", (1, 1)), network("cifar_plainnet20", (1, 1))
x = images(model)
for network, operate in (
    (model, surgery.fold_batch_norm),
    (model, lambda model: surgery.deepen(model, 1)),
    (plain, lambda model: surgery.deepen(model, 1)),
    (model, surgery.to_plain),
    (plain, surgery.to_residual),
):
    np.testing.assert_allclose(outputs(operate(network), x), outputs(network, x), atol=1e-5)
"""


@pytest.mark.parity
def test_on_jax():
    pytest.importorskip("jax", reason="needs JAX: make parity")
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        check=True,
    )


def check_on_images(x, y, size):
    """Trains for a few steps, then compares all predictions on images that it has not seen."""
    model = CifarResNet20(input_shape=size)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x[:128], y[:128], epochs=2, verbose=0)
    before = model.predict(x[128:], verbose=0)
    for convert in (fold_batch_norm, to_plain):
        after = convert(model).predict(x[128:], verbose=0)
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(after.argmax(-1), before.argmax(-1))


def test_predictions_on_digits():
    digits = sklearn.datasets.load_digits()
    check_on_images(digits.images[:512, ..., None] / 16, digits.target, (8, 8, 1))


@pytest.mark.slow
@pytest.mark.cifar10
def test_predictions_on_cifar10():
    from training import datasets

    batch = datasets.load("cifar10").splits["test"].examples().batch(384)
    images, labels = next(iter(batch.as_numpy_iterator()))
    check_on_images(preprocess_input(images, CIFAR10), labels, (32, 32, 3))


def test_bottlenecks_are_refused_with_their_cost():
    model = network("resnet50", (2, 3), (32, 32, 3))
    with pytest.raises(ValueError) as error:
        to_plain(model)
    cost = plain_cost(model)
    assert cost.growth > 5
    assert str(error.value) == (
        "The plain network would be too large. Expected at most `max_cost`=3 times the parameters "
        f"and multiply-adds. Received: 'resnet50', {cost}. "
        f"Pass `max_cost={int(np.ceil(cost.growth))}` to build it all the same."
    )


EXPECTED = (
    "The model is not made of blocks that can become plain. Expected additions of a chain of "
    "Conv2D, batch normalisation and ReLU, and a shortcut that is the identity, zero-padded or a "
    "1x1 convolution. Received: "
)


@pytest.mark.parametrize(
    ("name", "options", "received"),
    [
        ("cifar_plainnet20", {}, "'cifar_plainnet20', which has no addition."),
        (
            "cifar_resnet20",
            {"attention": "se"},
            "'cifar_resnet20', where these additions are none: stage1_block1_add, "
            "stage2_block1_add.",
        ),
        (
            "cifar_resnet20",
            {"shortcut": "average_pool"},
            "'cifar_resnet20', where these additions are none: stage2_block1_add.",
        ),
    ],
)
def test_models_without_the_pattern_are_refused(name, options, received):
    with pytest.raises(ValueError) as error:
        to_plain(network(name, (1, 1), **options))
    assert str(error.value) == EXPECTED + received


@pytest.mark.parametrize(
    ("shortcut", "residual"),
    [
        (layers.Conv2D(4, 3, padding="same"), {"padding": "same"}),
        (layers.Conv2D(4, 1, strides=2), {}),  # from 4 to 2 pixels both, but not to the same ones
        (layers.Conv2D(1, 1), {"padding": "same"}),  # one channel is added to all
    ],
)
def test_shortcuts_that_one_tap_cannot_be_are_refused(shortcut, residual):
    image = keras.Input((4, 4, 4))
    x = layers.ReLU()(image)
    y = layers.ReLU()(layers.Conv2D(4, 3, padding="same")(x))
    y = layers.Conv2D(4, 3, **residual)(y)
    total = layers.Add(name="total")([y, shortcut(x)])
    with pytest.raises(ValueError, match="these additions are none: total"):
        to_plain(keras.Model(image, total), max_cost=9)


def test_to_residual_wants_layers_that_keep_the_shape():
    image = keras.Input((9, 8, 4))
    x = layers.ReLU()(layers.Conv2D(5, 3, padding="same")(image))
    with pytest.raises(ValueError) as error:
        to_residual(keras.Model(image, layers.Conv2D(5, 3, padding="same")(x), name="other"))
    assert str(error.value) == (
        "The model has no layer that can become a residual block. Expected a Conv2D of stride 1 "
        "and padding 'same' with as many filters as input channels, followed by (batch "
        "normalisation and) ReLU. Received: 'other'."
    )
