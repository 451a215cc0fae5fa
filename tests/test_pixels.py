"""Resizing and normalising inside tf.data: the numbers of TensorFlow, Keras and `Preprocessing`."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.preprocessing import CIFAR10, IMAGENET, Preprocessing
from training import pixels


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def of_unknown_size(function):
    """The function as tf.data calls it on files: nothing is known of the image but its channels."""
    return tf.function(function, input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)])


def assert_same_grey_levels(values, expected):
    """But for some that lie halfway between two, or whose passes come in the other order."""
    difference = np.abs(values - expected)
    assert difference.max() <= 2
    assert (difference > 0.01).mean() < 0.2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(50, 70), (20, 90), (24, 32), (1, 1), (9, 2)])
def test_resize_has_the_bits_of_tensorflow(interpolation, antialias, shape):
    options = {"interpolation": interpolation, "antialias": antialias}
    image = noise(*shape, 3)
    expected = tf.image.resize(image, (24, 32), interpolation, antialias=antialias)
    expected = np.clip(expected, 0, 255)  # bicubic overshoots
    resize = of_unknown_size(lambda image: pixels.resize(image, (24, 32), **options))
    assert resize.get_concrete_function().structured_outputs.shape == (24, 32, 3)
    np.testing.assert_array_equal(resize(image), expected)
    batch = pixels.resize(tf.stack([image, image[::-1]]), tf.constant([24, 32]), **options)
    assert batch.dtype == tf.float32
    np.testing.assert_array_equal(batch[0], expected)


@pytest.mark.parametrize(
    "preprocessing",
    [
        IMAGENET,
        Preprocessing(size=(40, 40), resize_size=40, interpolation="bicubic"),
        Preprocessing(size=(32, 48), resize_size=36, antialias=False),
        Preprocessing(size=(20, 30), resize_size=None),
    ],
)
@pytest.mark.parametrize("shape", [(50, 70), (71, 50), (40, 40), (30, 300), (224, 224)])
def test_fit_gives_the_numbers_of_preprocessing(preprocessing, shape):
    image = noise(*shape, 3)
    expected = np.asarray(preprocessing.resize(image))
    fit = of_unknown_size(lambda image: pixels.fit(image, preprocessing))
    assert_same_grey_levels(fit(image), expected)
    batch = pixels.fit(tf.constant(image[None]), preprocessing)
    assert_same_grey_levels(batch[0], expected)


@pytest.mark.parametrize(
    "preprocessing",
    [
        CIFAR10,
        Preprocessing(channel_order="bgr", scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0,) * 3),
        Preprocessing(mean=(0.3,), std=(0.4,)),
    ],
)
def test_normalize_has_the_bits_of_preprocessing(preprocessing):
    images = noise(4, 6, 5, len(preprocessing.mean))
    expected = preprocessing.normalize(images)
    for given in (tf.constant(images), tf.constant(images, tf.float32)):
        normalized = pixels.normalize(given, preprocessing)
        np.testing.assert_array_equal(normalized, expected)


def test_to_uint8_rounds():
    values = np.random.default_rng(0).uniform(0, 255, 1000).astype("float32")
    np.testing.assert_array_equal(pixels.to_uint8(values), np.round(values).astype(np.uint8))
    np.testing.assert_array_equal(
        pixels.to_uint8(tf.constant([0.0, 0.4, 254.6, 255.0])), [0, 0, 255, 255]
    )
