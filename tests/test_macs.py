"""Multiply-adds of layers, and of models inside models."""

import keras
import pytest
from keras import layers
from structure import build_unallocated

from keras_resnet import build, count_macs


@pytest.mark.parametrize(("output_stride", "factors"), [(16, (1, 4)), (8, (4, 16))])
def test_dilated_stages_cost_as_much_more_as_they_have_pixels(output_stride, factors):
    strided = stage_macs(build_unallocated("resnet18"))
    dilated = stage_macs(build_unallocated("resnet18", output_stride=output_stride))
    assert dilated == strided[:2] + [macs * factor for macs, factor in zip(strided[2:], factors)]


def stage_macs(model):
    """Multiply-adds of each stage of a network."""
    tops = [count_macs(keras.Model(model.input, out)) for out in model.pyramid_outputs.values()]
    stem = count_macs(keras.Model(model.input, model.get_layer("stem_pool").output))
    return [top - below for below, top in zip([stem, *tops], tops)]


def test_open_sizes_need_an_input_shape():
    model = build("cifar_resnet8", input_shape=(None, None, 3))
    closed = build("cifar_resnet8", input_shape=(40, 24, 3))
    assert count_macs(model, (40, 24, 3)) == count_macs(closed)
    with pytest.raises(ValueError) as error:
        count_macs(model)
    assert str(error.value) == (
        "The model leaves the size of its input open. Expected `input_shape`, e.g. "
        "(224, 224, 3). Received: a model with input shape (None, None, None, 3)"
    )


def test_channels_first_costs_the_same():
    expected = count_macs(build("cifar_resnet8"))
    keras.config.set_image_data_format("channels_first")
    assert count_macs(build("cifar_resnet8")) == expected


def test_models_inside_models_are_walked():
    inner = build("cifar_resnet8", name="inner")
    image = keras.Input((32, 32, 3))
    outer = keras.Model(image, layers.Dense(4)(inner(layers.Rescaling(2.0)(image))))
    assert count_macs(outer) == count_macs(inner) + 10 * 4


def test_sequential_models_are_walked():
    rows = [layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)]
    expected = 6 * 6 * 3 * 3 * 3 * 4 + 6 * 6 * 4 * 2
    sequential = keras.Sequential([keras.Input((8, 8, 3)), *rows])
    assert count_macs(sequential) == expected
    image = keras.Input((8, 8, 3))
    assert count_macs(keras.Model(image, sequential(image))) == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.Conv2D(8, 3, padding="same"), 8 * 8 * 3 * 3 * 4 * 8),
        (layers.Conv2D(8, 3, groups=2), 6 * 6 * 3 * 3 * 2 * 8),
        (layers.Conv2D(8, 3, strides=2, dilation_rate=1, padding="same"), 4 * 4 * 9 * 4 * 8),
        (layers.Conv2D(8, 3, dilation_rate=2), 4 * 4 * 9 * 4 * 8),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), 6 * 6 * 9 * 4 * 2),
        (layers.SeparableConv2D(8, 3, depth_multiplier=2), 6 * 6 * (9 * 4 * 2 + 4 * 2 * 8)),
        (layers.Conv2DTranspose(5, 3, strides=2), 8 * 8 * 9 * 4 * 5),
        (layers.Dense(5), 8 * 8 * 4 * 5),
        (layers.BatchNormalization(), 0),
        (layers.MaxPooling2D(), 0),
    ],
)
def test_layers(layer, expected):
    image = keras.Input((8, 8, 4))
    assert count_macs(keras.Model(image, layer(image))) == expected
