"""The pools of stems, against NumPy: what is padded with, and where the windows begin."""

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet import Variant
from keras_resnet.stems import STEMS


def windows(x, before, after, padding):
    """Largest values of windows of 3x3, two pixels apart; (N, H, W, C)."""
    sides = ((0, 0), (before, after), (before, after), (0, 0))
    x = np.pad(x, sides, constant_values=padding)
    height, width = x.shape[1] - 2, x.shape[2] - 2
    taps = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return np.max(taps, axis=0)


def stem(name, order, size):
    """Functions of an image to what goes into the pool, and to what comes out."""
    variant = Variant("net", (1,), (16,), stem=name, activation_order=order)
    image = keras.Input((*size, 3))
    pooled = STEMS[name].draw(image, variant, 16)
    first = "stem_pool_pad" if order == "original" or name == "imagenet_zero_padded" else None
    model = keras.Model(image, pooled)
    into = model.get_layer(first or "stem_pool_window").input
    return keras.Model(image, into), model


@pytest.mark.parametrize("size", [(32, 32), (33, 35), (34, 37)])
@pytest.mark.parametrize(
    ("name", "order", "before", "after", "padding"),
    [
        ("imagenet", "original", 1, 1, -np.inf),
        ("imagenet", "full_pre_activation", 1, 1, -np.inf),
        ("imagenet_zero_padded", "full_pre_activation", 1, 1, 0),
        ("imagenet_caffe", "original", 0, 1, -np.inf),
    ],
)
def test_the_pool_of_the_stem(name, order, before, after, padding, size):
    into, out = stem(name, order, size)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    x, received = np.asarray(into(images)), np.asarray(out(images))
    assert (x.min() < 0) == (order != "original")
    np.testing.assert_array_equal(received, windows(x, before, after, padding))


def test_down_sampling_at_the_end_of_stages():
    options = {"stride_in_last_block": True, "input_shape": (64, 64, 3)}
    model = keras_resnet.ResNet50V2(weights=None, **options)
    sizes = [model.get_layer(f"stage1_block{block}_out").output.shape[1] for block in (1, 2, 3)]
    assert sizes == [16, 16, 8]
    assert model.get_layer("stage4_block3_out").output.shape[1] == 2
    assert [x.shape[1] for x in model.pyramid_outputs.values()] == [16, 8, 4, 2]
    assert model.count_params() == keras_resnet.ResNet50V2(weights=None).count_params()
    with pytest.raises(ValueError, match=r"Expected one of 32. Received: output_stride=16"):
        keras_resnet.ResNet50V2(weights=None, output_stride=16, **options)
