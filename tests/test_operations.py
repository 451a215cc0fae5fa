"""Operations on images against Pillow's."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from training import operations

FILL = (10, 120, 230)


def _images():
    rng = np.random.default_rng(0)
    photo = load_sample_image("china.jpg")
    return {
        "photo": photo[::5, ::5],
        "dark": photo[1::8, 1::8] // 3 + 20,
        "noise": rng.integers(0, 256, (33, 47, 3), dtype=np.uint8),
        "constant": np.full((20, 21, 3), 7, np.uint8),
        "tiny": rng.integers(0, 256, (3, 3, 3), dtype=np.uint8),
        "grey": photo[::6, ::6, :1],
    }


IMAGES = _images()


def in_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def difference(ours, theirs):
    """Grey levels between a result and Pillow's, for each pixel."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - theirs.reshape(ours.shape)).max(axis=-1)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_operations_on_values_are_those_of_pillow(image):
    pillow, image = in_pillow(image), tf.constant(image)
    assert difference(operations.auto_contrast(image), ImageOps.autocontrast(pillow)).max() <= 1
    assert difference(operations.equalize(image), ImageOps.equalize(pillow)).max() == 0
    for bits in range(1, 9):
        truth = ImageOps.posterize(pillow, bits)
        assert difference(operations.posterize(image, bits), truth).max() == 0
    assert not operations.posterize(image, 0).numpy().any()
    for threshold in (0, 1, 100.5, 128, 255, 256):
        truth = ImageOps.solarize(pillow, threshold)
        assert difference(operations.solarize(image, threshold), truth).max() == 0
    for amount in (0, 77, 110):
        truth = np.where(image < 128, np.minimum(image.numpy().astype(int) + amount, 255), image)
        assert difference(operations.solarize_add(image, amount), truth).max() == 0


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancements_are_those_of_pillow(image, name):
    enhance = getattr(ImageEnhance, name.capitalize())(in_pillow(image)).enhance
    for factor in (0.0, 0.1, 0.37, 1.0, 1.63, 1.99):
        ours = getattr(operations, name)(tf.constant(image), tf.constant(factor))
        assert difference(ours, enhance(factor)).max() <= 1
        # Not a level too dark throughout, either.
        assert difference(ours, enhance(factor)).mean() < 0.02


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_movements_are_those_of_pillow(image):
    fill = FILL[: image.shape[-1]]
    options = {"resample": Image.Resampling.BILINEAR, "fillcolor": fill if len(fill) > 1 else 10}
    pillow = in_pillow(image)
    for degrees in (0.0, 7.5, 30.0, -30.0, 89.0, 135.0, 180.0):
        ours = operations.rotate(image, tf.constant(degrees), fill)
        assert difference(ours, pillow.rotate(degrees, **options)).max() <= 1
    for matrix in [
        (1, 0.3, 0, 0, 1, 0),
        (1, 0, 0, -0.21, 1, 0),
        (1, 0, 13.7, 0, 1, 0),
        (1, 0, 0, 0, 1, -5),
        (1, 0, 500, 0, 1, 0),
        (0.9, 0.2, 3.5, -0.1, 1.2, -4.1),
    ]:
        truth = pillow.transform(pillow.size, Image.Transform.AFFINE, matrix, **options)
        assert difference(operations.affine(image, matrix, fill), truth).max() <= 1
