"""Crops and erased boxes against NumPy programs of what torchvision does."""

import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from training import boxes

DRAWS = 2000


def drawn(crop, height, width, size=(224, 224), draws=DRAWS, **keywords):
    """Boxes of many seeds, in a tf.data pipeline: `(draws, 4)`."""
    seeds = tf.data.Dataset.range(draws).map(lambda number: tf.stack([7, number]))
    found = seeds.map(lambda seed: tf.stack(crop(height, width, seed, size, **keywords)))
    return next(found.batch(draws).as_numpy_iterator())


def inception_crop_in_numpy(rng, height, width, area=(0.08, 1), aspect=(3 / 4, 4 / 3)):
    """`RandomResizedCrop.get_params` of torchvision."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    h, w = height, width
    if width / height < aspect[0]:
        h = round(w / aspect[0])
    elif width / height > aspect[1]:
        w = round(h * aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("crop", [boxes.scale_crop, boxes.inception_crop])
@pytest.mark.parametrize(
    "sides", [(1, 1), (1, 2), (1, 1000), (977, 1), (2, 3), (3, 200), (31, 33), (375, 500)]
)
def test_boxes_lie_inside_images_of_every_size(crop, sides):
    found = drawn(crop, *sides, size=(224, 160), draws=200)
    assert found.dtype == np.int32
    assert found.shape == (200, 4)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= sides).all()


@pytest.mark.parametrize(
    ("sides", "keywords"),
    [
        ((375, 500), {}),
        ((500, 333), {"area": (0.35, 1)}),
        ((300, 1000), {"aspect": (0.5, 1.5)}),  # where many draws do not fit
    ],
)
def test_inception_crop_draws_what_torchvision_draws(sides, keywords):
    found = drawn(boxes.inception_crop, *sides, **keywords)
    rng = np.random.default_rng(0)
    truth = np.array([inception_crop_in_numpy(rng, *sides, **keywords) for _ in range(DRAWS)])
    areas = found[:, 2] * found[:, 3] / (sides[0] * sides[1])
    low, high = keywords.get("area", (0.08, 1))
    assert low - 0.01 < areas.min() < low + 0.05
    assert areas.max() <= high
    aspects = found[:, 3] / found[:, 2]
    low, high = keywords.get("aspect", (3 / 4, 4 / 3))
    assert low - 0.02 < aspects.min() < aspects.max() < high + 0.02
    columns = [found[:, 0], found[:, 1], areas, aspects]
    true_area = truth[:, 2] * truth[:, 3] / (sides[0] * sides[1])
    for ours, theirs in zip(
        columns, [truth[:, 0], truth[:, 1], true_area, truth[:, 3] / truth[:, 2]], strict=True
    ):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("sides", [(1, 1000), (1, 6), (977, 1), (4, 400)])
def test_inception_crop_falls_back_to_the_centre_as_torchvision_does(sides):
    keywords = {"area": (0.9, 1)}
    truth = inception_crop_in_numpy(np.random.default_rng(0), *sides, **keywords)
    found = drawn(boxes.inception_crop, *sides, draws=20, **keywords)
    np.testing.assert_array_equal(found, [truth] * 20)


def test_scale_crop_is_to_resize_and_to_crop():
    # At half the size, a box at even places covers exactly the pixels of a crop.
    rng = np.random.default_rng(0)
    image = tf.image.resize(rng.integers(0, 256, (60, 90, 3)), (512, 768), "bicubic")
    resized = tf.image.resize(image, (256, 384), antialias=True).numpy()
    found = drawn(boxes.scale_crop, 512, 768, draws=60, shortest=(256, 256))
    even = found[(found[:, :2] % 2 == 0).all(axis=1)]
    assert len(even) > 5
    for top, left, height, width in even:
        box = image[top : top + height, left : left + width]
        ours = tf.image.resize(box, (224, 224), antialias=True).numpy()
        crop = resized[top // 2 : top // 2 + 224, left // 2 : left // 2 + 224]
        np.testing.assert_allclose(ours[1:-1, 1:-1], crop[1:-1, 1:-1], atol=1e-3)


@pytest.mark.parametrize("size", [(224, 224), (160, 160), (192, 96)])
def test_scale_crop_has_the_scales_of_the_paper_at_every_size(size):
    found = drawn(boxes.scale_crop, 1000, 1500, size)
    height, width = np.array(size) / max(size)
    scales = 224 * 1000 / (found[:, 2] / height)  # the image's shorter side, for a crop of 224
    np.testing.assert_allclose(found[:, 3] / found[:, 2], width / height, rtol=0.01)
    uniform = np.random.default_rng(0).integers(256, 481, DRAWS)
    assert 255 < scales.min() < scales.max() < 481
    assert scipy.stats.ks_2samp(scales, uniform).pvalue > 1e-3
    places = found[:, :2] / ((1000, 1500) - found[:, 2:])
    for place in places.T:
        assert scipy.stats.kstest(place, "uniform").pvalue > 1e-3
    sides = drawn(boxes.scale_crop, 10_000, 10_000, size, shortest=(256, 257)).max(axis=1)
    assert abs((sides > 8730).mean() - 0.5) < 0.05  # 256 and 257, both ends included


def erased(image, draws=1000, **keywords):
    batch = tf.constant(np.broadcast_to(image, (draws, *image.shape)))
    keywords = {"mean": (120, 110, 100), "std": (60, 50, 40), "probability": 1} | keywords
    return boxes.random_erasing(batch, (3, 4), **keywords).numpy()


def boxes_of(changed):
    """Height and width of the changed box in each mask; it must be a box."""
    sides = np.stack([changed.any(axis=2).sum(axis=1), changed.any(axis=1).sum(axis=1)], axis=1)
    np.testing.assert_array_equal(changed.sum(axis=(1, 2)), sides.prod(axis=1))
    rows, columns = changed.any(axis=2), changed.any(axis=1)
    assert (np.abs(np.diff(np.pad(rows, [(0, 0), (1, 1)]).astype(int))).sum(axis=1) <= 2).all()
    assert (np.abs(np.diff(np.pad(columns, [(0, 0), (1, 1)]).astype(int))).sum(axis=1) <= 2).all()
    return sides


def test_random_erasing_paints_a_box_in_the_mean_colour():
    out = erased(np.zeros((60, 80, 3), np.uint8))
    changed = (out != 0).all(axis=-1)
    assert set(map(tuple, out[changed])) == {(120, 110, 100)}
    assert not out[~changed].any()
    sides = boxes_of(changed)
    areas, aspects = sides.prod(axis=1) / (60 * 80), sides[:, 0] / sides[:, 1]
    assert 0.015 < areas.min() < 0.04
    assert 0.3 < areas.max() < 0.34
    assert 0.25 < aspects.min() < 0.4
    assert 2.5 < aspects.max() < 4
    rng = np.random.default_rng(0)
    truth = []  # torchvision's program, whose aspect is height per width
    while len(truth) < 1000:
        target, ratio = 4800 * rng.uniform(0.02, 1 / 3), np.exp(rng.uniform(*np.log([0.3, 3.3])))
        height, width = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
        if height <= 60 and width <= 80:
            truth.append((height, width))
    for ours, theirs in zip(sides.T, np.transpose(truth), strict=True):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


def test_random_erasing_changes_as_many_images_as_it_says():
    image = np.full((24, 24, 3), 7, np.uint8)
    for probability in (0, 0.25, 1):
        out = erased(image, probability=probability, fill=(9, 9, 200))
        changed = (out != 7).any(axis=(1, 2, 3))
        assert abs(changed.mean() - probability) < 0.03
        assert set(np.unique(out)) <= {7, 9, 200}


def test_random_erasing_paints_normal_noise():
    out = erased(np.zeros((40, 40, 3), np.uint8), draws=300, fill="noise", std=(30, 20, 10))
    pixels = out[out.any(axis=-1)].astype(float)
    np.testing.assert_allclose(pixels.mean(axis=0), (120, 110, 100), atol=0.5)
    np.testing.assert_allclose(pixels.std(axis=0), (30, 20, 10), rtol=0.02)
    assert np.abs(np.corrcoef(pixels.T)[np.triu_indices(3, 1)]).max() < 0.02
    bright = erased(np.zeros((40, 40, 3), np.uint8), draws=50, fill="noise", mean=(250, 250, 250))
    low, high = np.percentile(bright[bright.any(axis=-1)], [5, 95])
    assert (low > 100, high) == (True, 255)  # clipped, not wrapped around


def test_random_erasing_of_one_image_and_of_tiny_ones():
    image = np.zeros((30, 30, 3), np.uint8)
    options = {"mean": 1, "std": 1, "probability": 1}
    one = boxes.random_erasing(tf.constant(image), (1, 2), **options).numpy()
    assert one.shape == image.shape
    boxes_of(one[None, ..., 0] == 1)
    for shape in ((1, 1, 1), (1, 50, 3), (2, 2, 3)):
        out = boxes.random_erasing(tf.zeros((40, *shape), tf.uint8), (1, 2), **options)
        assert out.shape == (40, *shape)
