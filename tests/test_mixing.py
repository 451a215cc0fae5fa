"""Mixing against NumPy in float64, and against programs of the papers' distributions."""

import functools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from training import mixing

FUNCTIONS = [mixing.mixup, mixing.cutmix]


def batch(count, height=8, width=10, dtype=np.uint8, seed=0):
    """Random images; every one has its own class, so that the labels tell who was mixed."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, 3)).astype(dtype)
    return images, np.eye(count, dtype=np.float32)


def pairs(labels):
    """Of labels mixed from one-hot ones: partner of every image, and its own share."""
    own = np.diag(labels).astype(float)
    others = labels - np.diag(np.diag(labels))
    partners = np.where(others.any(axis=1), others.argmax(axis=1), np.arange(len(labels)))
    assert ((labels != 0).sum(axis=1) <= 2).all()
    return partners, own


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_labels_sum_to_one_and_dtypes_stay(function, dtype):
    images, labels = batch(32, dtype=dtype)
    out, mixed = function(tf.constant(images), tf.constant(labels), (1, 2), alpha=1.0)
    assert (out.dtype, out.shape) == (dtype, images.shape)
    assert (mixed.dtype, mixed.shape) == ("float32", labels.shape)
    np.testing.assert_allclose(mixed.numpy().sum(axis=1), 1, atol=1e-6)
    partners, shares = pairs(mixed.numpy())
    assert ((shares >= 0) & (shares <= 1)).all()
    assert len(set(np.round(shares, 6))) > 8  # every image has its own draw
    assert (partners != np.arange(32)).sum() > 16
    assert sorted(partners[shares < 1]) == sorted(set(partners[shares < 1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_is_the_convex_combination(dtype):
    images, labels = batch(64, dtype=dtype)
    images = images if dtype == np.uint8 else images / 50 - 2  # any range
    out, mixed = mixing.mixup(tf.constant(images, dtype), tf.constant(labels), (3, 4), alpha=1.0)
    partners, shares = pairs(mixed.numpy())
    shares = shares[:, None, None, None]
    truth = shares * images.astype(float) + (1 - shares) * images[partners]
    np.testing.assert_allclose(out, truth, rtol=0, atol=0.5001 if dtype == np.uint8 else 1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_mixup_draws_its_shares_from_the_beta_distribution(alpha):
    images, labels = batch(3000, 1, 1)
    _, mixed = mixing.mixup(tf.constant(images), tf.constant(labels), (5, 6), alpha=alpha)
    _, shares = pairs(mixed.numpy())
    truth = np.random.default_rng(0).beta(alpha, alpha, 3000)
    # Rounded, as float32 ends at 1e-7 below 1.
    assert scipy.stats.ks_2samp(np.round(shares, 5), np.round(truth, 5)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.001, 1000])
def test_extreme_alphas_give_numbers(alpha):
    images, labels = batch(500, 2, 2, np.float32)
    for function in FUNCTIONS:
        out, mixed = function(tf.constant(images), tf.constant(labels), (5, 6), alpha=alpha)
        assert np.isfinite(out).all()
        assert np.isfinite(mixed).all()
    _, mixed = mixing.mixup(tf.constant(images), tf.constant(labels), (5, 6), alpha=alpha)
    _, shares = pairs(mixed.numpy())
    if alpha < 1:
        assert ((shares < 1e-3) | (shares > 1 - 1e-3)).mean() > 0.98
        assert abs(shares.mean() - 0.5) < 0.1
    else:
        assert np.abs(shares[shares < 1] - 0.5).max() < 0.05


def test_cutmix_takes_a_box_of_the_other_image_and_its_exact_share():
    images, labels = batch(300, 9, 14)
    out, mixed = mixing.cutmix(tf.constant(images), tf.constant(labels), (7, 8))
    partners, shares = pairs(mixed.numpy())
    for i, image in enumerate(out.numpy()):
        # Random colours: two images have no pixel in common.
        other = (image == images[partners[i]]).all(axis=-1)
        own = (image == images[i]).all(axis=-1)
        assert (own | other).all()
        if partners[i] == i:
            continue
        rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
        assert other.sum() == len(rows) * len(columns)
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        assert abs(shares[i] - (1 - other.mean())) < 1e-6
    assert len({round(share, 5) for share in shares}) > 30


def test_cutmix_draws_the_boxes_of_the_paper():
    height, width, count = 20, 30, 2000
    images, labels = batch(count, height, width)
    _, mixed = mixing.cutmix(tf.constant(images), tf.constant(labels), (9, 1))
    _, shares = pairs(mixed.numpy())
    rng = np.random.default_rng(0)
    share = np.sqrt(1 - rng.beta(1, 1, count))  # `rand_bbox` of the paper's program
    box_height, box_width = (height * share).astype(int), (width * share).astype(int)
    y, x = rng.integers(height, size=count), rng.integers(width, size=count)
    y1, y2 = np.clip([y - box_height // 2, y + box_height // 2], 0, height)
    x1, x2 = np.clip([x - box_width // 2, x + box_width // 2], 0, width)
    truth = 1 - (y2 - y1) * (x2 - x1) / (height * width)
    assert scipy.stats.ks_2samp(np.round(shares, 5), np.round(truth, 5)).pvalue > 1e-3


def test_one_of_several_mixings_is_drawn_for_every_batch():
    images, labels = map(tf.constant, batch(16, dtype=np.float32))
    mix = mixing.chain([functools.partial(mixing.mixup, alpha=1000), mixing.cutmix])
    seeds = tf.data.Dataset.range(300).map(lambda number: tf.stack([2, number]))
    blended = []
    for out, _ in seeds.map(lambda seed: mix(images, labels, seed)).as_numpy_iterator():
        of_batch = (
            (out[:, :, :, None, :] == tf.transpose(images, (1, 2, 0, 3)).numpy()).all(-1).any(-1)
        )
        blended.append(not of_batch.all())
    assert abs(np.mean(blended) - 0.5) < 0.1
    only, _ = mixing.chain([mixing.cutmix])(images, labels, tf.constant((1, 2), tf.int64))
    assert set(np.unique(only)) <= set(np.unique(images))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_image_alone_stays_as_it_is(function):
    images, labels = batch(1)
    out, mixed = function(tf.constant(images), tf.constant(labels), (1, 2))
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(mixed, labels)
