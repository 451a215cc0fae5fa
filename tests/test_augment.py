"""Augmentation against NumPy, and against what the paper says."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.preprocessing import CIFAR10, IMAGENET, Preprocessing
from training import augment

FILL = (125, 123, 114)


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def crops_in_numpy(image, padding, fill, mirror):
    """Every image that padding, cropping and mirroring can make."""
    height, width, channels = image.shape
    padded = np.empty((height + 2 * padding, width + 2 * padding, channels), np.uint8)
    padded[:] = fill
    padded[padding:-padding, padding:-padding] = image
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            crops[crop.tobytes()] = (top, left, False)
            if mirror:
                crops[crop[:, ::-1].tobytes()] = (top, left, True)
    return crops


def test_pad_crop_flip_makes_every_crop_and_mirror_equally_often():
    image = random_images(6, 7, 3)
    crops = crops_in_numpy(image, 2, FILL, mirror=True)
    batch = np.broadcast_to(image, (5000, *image.shape))
    out = augment.pad_crop_flip(tf.constant(batch), (1, 2), padding=2, fill=FILL).numpy()
    assert out.dtype == np.uint8
    drawn = np.array([crops[crop.tobytes()] for crop in out])  # KeyError: not a crop
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 5 * 5 * 2
    assert counts.min() > 60  # 100 each, and four deviations
    assert counts.max() < 140
    assert abs(drawn[:, 2].mean() - 0.5) < 0.03


def test_shift_moves_by_one_over_black_and_never_mirrors():
    image = random_images(8, 8, 1)
    crops = crops_in_numpy(image, 1, 0, mirror=False)
    out = augment.shift(tf.constant(np.broadcast_to(image, (500, 8, 8, 1))), (3, 4)).numpy()
    assert len({crops[crop.tobytes()] for crop in out}) == 9


@pytest.mark.parametrize("name", ["pad_crop_flip", "shift"])
def test_one_image_is_handled_like_a_batch(name):
    function = augment.get_augmentation(name).build(CIFAR10)
    image = random_images(32, 32, 3)
    crops = crops_in_numpy(image, 4, FILL, mirror=True) | crops_in_numpy(image, 1, 0, mirror=False)
    out = function(tf.constant(image), tf.constant((5, 6), tf.int64)).numpy()
    assert out.shape == image.shape
    assert out.tobytes() in crops


def scale_crop(image, seed):
    return augment.scale_crop(image, seed, size=(12, 12), shortest=(12, 20))


@pytest.mark.parametrize("function", [augment.pad_crop_flip, augment.shift, scale_crop])
def test_the_seed_alone_decides_eagerly_and_in_tf_data(function):
    image = tf.constant(random_images(24, 18, 3))
    seeds = [(seed, seed + 1) for seed in range(8)]
    eager = [function(image, seed).numpy() for seed in seeds]
    tf.random.set_seed(99)
    again = [function(image, seed).numpy() for seed in seeds]
    dataset = tf.data.Dataset.from_tensor_slices(tf.constant(seeds, tf.int64))
    in_graph = list(dataset.map(lambda seed: function(image, seed)).as_numpy_iterator())
    np.testing.assert_array_equal(eager, again)
    np.testing.assert_array_equal(eager, in_graph)
    assert len({out.tobytes() for out in eager}) > 4


def test_the_border_of_the_table_has_the_mean_colour():
    function = augment.get_augmentation("pad_crop_flip").build(CIFAR10)
    out = function(tf.zeros((64, 32, 32, 3), tf.uint8), (0, 0)).numpy()
    assert set(map(tuple, out.reshape(-1, 3))) == {(0, 0, 0), FILL}
    assert np.abs(CIFAR10.normalize(np.array(FILL))).max() < 0.01  # the paper's zeros
    caffe = Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0,) * 3, scale=1.0, channel_order="bgr")
    function = augment.get_augmentation("pad_crop_flip").build(caffe)
    out = function(tf.zeros((64, 8, 8, 3), tf.uint8), (0, 0)).numpy()
    assert set(map(tuple, out.reshape(-1, 3))) == {(0, 0, 0), (3, 2, 1)}


def test_scale_crop_at_one_scale_is_resize_and_crop():
    image = random_images(30, 45, 3)
    resized = tf.image.resize(image, (20, 30), antialias=True).numpy().round().astype(np.uint8)
    crops = {}
    for top in range(5):
        for left in range(15):
            crop = resized[top : top + 16, left : left + 16]
            crops[crop.tobytes()] = (top, left, False)
            crops[crop[:, ::-1].tobytes()] = (top, left, True)
    drawn = set()
    for seed in range(200):
        out = augment.scale_crop(image, (seed, 0), size=(16, 16), shortest=(20, 20)).numpy()
        assert out.dtype == np.uint8
        drawn.add(crops[out.tobytes()])
    assert {top for top, _, _ in drawn} == set(range(5))
    assert {left for _, left, _ in drawn} == set(range(15))
    assert {mirrored for _, _, mirrored in drawn} == {False, True}


def test_scale_crop_draws_its_scale_from_the_whole_range():
    # On a horizontal ramp, the step from pixel to pixel tells the scale.
    ramp = np.broadcast_to(np.linspace(0, 255, 60)[None, :, None], (40, 60, 3)).astype(np.uint8)
    shorter = []
    for seed in range(150):
        out = augment.scale_crop(ramp, (seed, 7), size=(30, 30), shortest=(40, 80)).numpy()
        slope = abs(int(out[15, 27, 0]) - int(out[15, 2, 0])) / 25
        shorter.append(40 * (255 / 59) / slope)
    assert 38 < min(shorter) < 44
    assert 75 < max(shorter) < 84


def test_the_table_scales_in_proportion_to_the_input():
    assert augment.get_augmentation("scale_crop").build(IMAGENET).keywords == {
        "size": (224, 224),
        "shortest": (256, 480),
    }
    small = Preprocessing(size=(112, 112))
    function = augment.get_augmentation("scale_crop").build(small)
    assert function.keywords["shortest"] == (128, 240)
    assert function(random_images(90, 130, 3), (0, 0)).shape == (112, 112, 3)
    assert not augment.get_augmentation("scale_crop").takes_batches


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="crop") as error:
        augment.scale_crop(random_images(9, 9, 3), (0, 0), size=(224, 224), shortest=(200, 480))
    assert str(error.value) == (
        "The crop must fit the smallest scale. Expected max(size) <= shortest[0] <= shortest[1]. "
        "Received: size=(224, 224), shortest=(200, 480)."
    )
    with pytest.raises(ValueError, match="augmentation") as error:
        augment.get_augmentation("pad_crop")
    assert str(error.value) == (
        "Unknown augmentation. Expected one of pad_crop_flip, shift, scale_crop. "
        "Received: 'pad_crop'. Did you mean 'pad_crop_flip'?"
    )
