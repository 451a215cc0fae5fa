"""Augmentation policies against the programs they are known by: torchvision's, timm's, Torch's."""

import collections
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from training import photometric

FILL = (124, 116, 104)
PHOTO = load_sample_image("flower.jpg")[40:400:6, 100:500:5]  # (60, 80, 3)


def affine(image, *matrix):
    options = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **options)


def rotated(image, degrees):
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=FILL)


def timm_rand_augment(image, magnitude, sign):
    """`timm.data.auto_augment`: the increasing operations at a magnitude of 0..10."""
    level = magnitude / 10
    factor = max(0.1, 1.0 + sign * level * 0.9)
    width, height = image.size

    def solarize_add(image, add, thresh=128):
        table = [min(255, i + add) if i < thresh else i for i in range(256)]
        return image.point(table * 3)

    return {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: rotated(image, sign * level * 30.0),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(level * 4)),
        "solarize": lambda: ImageOps.solarize(image, 256 - min(256, int(level * 256))),
        "solarize_add": lambda: solarize_add(image, min(128, int(level * 110))),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "shear_x": lambda: affine(image, 1, sign * level * 0.3, 0, 0, 1, 0),
        "shear_y": lambda: affine(image, 1, 0, 0, sign * level * 0.3, 1, 0),
        "translate_x": lambda: affine(image, 1, 0, sign * level * 0.45 * width, 0, 1, 0),
        "translate_y": lambda: affine(image, 1, 0, 0, 0, 1, sign * level * 0.45 * height),
    }


def torchvision_trivial_augment(image, bin_, sign):
    """`torchvision.transforms.TrivialAugmentWide` with 31 bins."""

    def signed(largest):
        return sign * float(np.linspace(0.0, largest, 31)[bin_])

    bits = int(8 - np.round(np.arange(31) / (30 / 6))[bin_])
    pixels = sign * int(np.linspace(0.0, 32.0, 31)[bin_])
    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(image, 1, signed(0.99), 0, 0, 1, 0),
        "shear_y": lambda: affine(image, 1, 0, 0, signed(0.99), 1, 0),
        "translate_x": lambda: affine(image, 1, 0, pixels, 0, 1, 0),
        "translate_y": lambda: affine(image, 1, 0, 0, 0, 1, pixels),
        "rotate": lambda: rotated(image, signed(135.0)),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + signed(0.99)),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + signed(0.99)),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + signed(0.99)),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + signed(0.99)),
        "posterize": lambda: ImageOps.posterize(image, bits),
        "solarize": lambda: ImageOps.solarize(image, np.linspace(255.0, 0.0, 31)[bin_]),
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }


def assert_same_operations(ours, theirs):
    assert list(ours) == list(theirs)
    for name, operation in ours.items():
        truth = np.asarray(theirs[name]())
        assert np.abs(operation().numpy().astype(int) - truth).max() <= 1, name


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [0, 2.5, 6, 7, 7.43, 10])
def test_rand_augment_has_the_operations_of_timm(magnitude, sign):
    level = tf.constant(magnitude / 10)
    ours = photometric.rand_augment_operations(tf.constant(PHOTO), level, float(sign), FILL)
    if magnitude == 10:  # Pillow's posterize refuses no bits
        assert not ours.pop("posterize")().numpy().any()
    theirs = timm_rand_augment(Image.fromarray(PHOTO), magnitude, sign)
    assert_same_operations(ours, {name: theirs[name] for name in ours})


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bin_", [0, 1, 13, 22, 30])
def test_trivial_augment_has_the_operations_of_torchvision(bin_, sign):
    level = tf.constant(bin_, tf.float32) / 30
    ours = photometric.trivial_augment_operations(tf.constant(PHOTO), level, float(sign), FILL)
    assert_same_operations(ours, torchvision_trivial_augment(Image.fromarray(PHOTO), bin_, sign))


def drawn(policy, image, draws, **keywords):
    seeds = tf.data.Dataset.range(draws).map(lambda number: tf.stack([5, number]))
    changed = seeds.map(lambda seed: policy(tf.constant(image), seed, **keywords))
    return next(changed.batch(draws).as_numpy_iterator())


def test_rand_augment_draws_every_operation_equally_often():
    image = PHOTO[::4, ::4].copy()
    results = collections.defaultdict(set)
    for sign in (1.0, -1.0):
        ops = photometric.rand_augment_operations(tf.constant(image), tf.constant(0.7), sign, 0)
        for name, operation in ops.items():
            results[operation().numpy().tobytes()].add(name)
    assert all(len(names) == 1 for names in results.values())
    results[image.tobytes()] = {"untouched"}
    out = drawn(photometric.rand_augment, image, 1500, layers=1, magnitude_std=0.0)
    counts = collections.Counter(name for each in out for name in results[each.tobytes()])
    assert abs(counts.pop("untouched") / 1500 - 0.5) < 0.05
    assert len(counts) == 15
    assert abs(np.array([*counts.values()]) - 50).max() < 4 * math.sqrt(50)


def replaced(monkeypatch, policy, operation):
    """A policy whose only operation is `operation(image, level, sign)`."""

    def operations(image, level, sign, fill):
        return {"only": lambda: operation(image, level, sign)}

    monkeypatch.setattr(photometric, f"{policy}_operations", operations)
    return getattr(photometric, policy)


def test_rand_augment_draws_its_magnitudes_from_a_normal_distribution(monkeypatch):
    def level_and_sign(image, level, sign):
        tenths = tf.round(10_000 * level)
        values = tf.stack([tenths // 256, tenths % 256, 128 + sign])
        return tf.cast(tf.broadcast_to(values, tf.shape(image)), tf.uint8)

    policy = replaced(monkeypatch, "rand_augment", level_and_sign)
    image = np.zeros((1, 1, 3), np.uint8)

    def levels(**keywords):
        keywords = {"layers": 1, "probability": 1} | keywords
        out = drawn(policy, image, 2000, **keywords)[:, 0, 0].astype(int)
        return (out[:, 0] * 256 + out[:, 1]) / 10_000, out[:, 2] - 128

    found, signs = levels()
    assert abs(found.mean() - 0.7) < 0.005
    assert abs(found.std() - 0.05) < 0.003
    assert abs((signs == 1).mean() - 0.5) < 0.04
    applied = levels(probability=0.5)[1]
    assert abs((applied == 1).sum() - (applied == -1).sum()) < 4 * math.sqrt(1000)
    assert abs(np.corrcoef(found, signs)[0, 1]) < 0.08
    assert set(levels(magnitude=3, magnitude_std=0)[0]) == {0.3}
    found, _ = levels(magnitude=10, magnitude_std=1)
    assert abs((found == 1).mean() - 0.5) < 0.04  # cut off, as in timm


def test_rand_augment_applies_its_layers_one_after_the_other(monkeypatch):
    policy = replaced(monkeypatch, "rand_augment", lambda image, level, sign: image + 1)
    image = np.zeros((2, 2, 3), np.uint8)
    counts = np.bincount(drawn(policy, image, 2000, layers=3)[:, 0, 0, 0], minlength=4)
    np.testing.assert_allclose(counts / 2000, np.array([1, 3, 3, 1]) / 8, atol=0.04)


def test_trivial_augment_draws_one_operation_at_31_magnitudes(monkeypatch):
    image = PHOTO[::4, ::4].copy()
    unlike = {each.tobytes() for each in drawn(photometric.trivial_augment, image, 1000)}
    assert 200 < len(unlike) <= 14 * 31 * 2
    policy = replaced(
        monkeypatch,
        "trivial_augment",
        lambda image, level, sign: tf.cast(image + 100 + sign * tf.round(30 * level), tf.uint8),
    )
    out = drawn(policy, np.zeros((1, 1, 1), np.float32), 4000)[:, 0, 0, 0].astype(int) - 100
    values, counts = np.unique(out, return_counts=True)
    assert values.tolist() == list(range(-30, 31))
    assert abs(counts - 4000 / 62)[values != 0].max() < 40


def test_policies_take_grey_images():
    grey = tf.constant(PHOTO[::4, ::4, :1])
    for policy in (photometric.rand_augment, photometric.trivial_augment):
        seeds = [tf.constant((1, seed), tf.int64) for seed in range(60)]
        out = [policy(grey, seed).numpy() for seed in seeds]
        assert {each.shape for each in out} == {grey.shape}
        assert len({each.tobytes() for each in out}) > 20


def test_colour_pca_shifts_along_the_components_of_torch():
    # fb.resnet.torch, ColorJitter "Lighting", on values 0..1.
    eigenvalues = np.array([0.2175, 0.0188, 0.0045])
    eigenvectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    grey = tf.fill((20_000, 1, 2, 3), tf.constant(128, tf.uint8))
    shifts = photometric.colour_pca(grey, (1, 2), std=0.5).numpy().astype(float) - 128
    np.testing.assert_array_equal(shifts[:, 0, 0], shifts[:, 0, 1])  # one shift for an image
    truth = eigenvectors @ np.diag((255 * 0.5 * eigenvalues) ** 2) @ eigenvectors.T
    np.testing.assert_allclose(np.cov(shifts[:, 0, 0].T), truth + np.eye(3) / 12, rtol=0.05)
    assert np.abs(shifts.mean(axis=0)).max() < 1
    bright = photometric.colour_pca(grey + 122, (1, 2), std=1.0).numpy()
    assert bright.min() > 50  # clipped, not wrapped around


def test_colour_pca_of_grey_images_is_explained():
    with pytest.raises(ValueError, match="colour_pca") as error:
        photometric.colour_pca(tf.zeros((2, 8, 8, 1), tf.uint8), (0, 0))
    assert str(error.value) == (
        "Only colours have principal components. Expected images with 3 channels. "
        "Received: shape (2, 8, 8, 1). Leave `colour_pca` out."
    )
