"""Decoding: the pixels of Pillow, and of a part of an image no others than in the whole."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from training import image_files

# A name for each kind of JPEG file -> Pillow's mode, and how it is written.
JPEGS = {
    "colours at half the size": ("RGB", {"subsampling": "4:2:0"}),
    "colours at half the width": ("RGB", {"subsampling": "4:2:2"}),
    "full colours": ("RGB", {"subsampling": "4:4:4"}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
}


def picture(height=97, width=121):
    """Smooth colours with sharp lines."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 7 + 2 * i) * np.cos(columns / (5 + i)) for i in range(3)]
    image = np.uint8(np.stack(waves, axis=-1) * 120 + 128)
    image[::13], image[:, ::17] = (255, 0, 0), (0, 80, 255)
    return Image.fromarray(image)


def encoded(mode="RGB", kind="JPEG", **options):
    file = io.BytesIO()
    picture().convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind != "CMYK"])
def test_a_jpeg_has_the_pixels_of_pillow(kind):
    mode, options = JPEGS[kind]
    file = encoded(mode, **options)
    image = image_files.decode(file).numpy()
    assert image.dtype == np.uint8
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
    assert np.abs(image - expected).max() <= 1  # 0 with the same libjpeg


@pytest.mark.parametrize("size_is_known", [True, False])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_box_of_a_jpeg_has_the_pixels_of_the_whole(kind, size_is_known):
    mode, options = JPEGS[kind]
    file = encoded(mode, **options)
    whole = image_files.decode(file).numpy()
    size = tf.constant(whole.shape[:2]) if size_is_known else None

    @tf.function
    def part(box):
        return image_files.decode(file, lambda height, width: tf.unstack(box), size)

    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = rng.integers(1, whole.shape[0] + 1), rng.integers(1, whole.shape[1] + 1)
        top = rng.integers(whole.shape[0] - height + 1)
        left = rng.integers(whole.shape[1] - width + 1)
        np.testing.assert_array_equal(
            part(tf.constant([top, left, height, width], tf.int32)),
            whole[top : top + height, left : left + width],
        )


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA")])
def test_a_box_of_another_file_is_cut_out(kind, mode):
    file = encoded(mode, kind)
    expected = np.asarray(picture().convert(mode).convert("RGB"))
    np.testing.assert_array_equal(image_files.decode(file), expected)
    box = image_files.decode(file, lambda height, width: (height - 90, 3, height // 2, 50))
    np.testing.assert_array_equal(box, expected[7:55, 3:53])


def test_no_more_of_a_jpeg_is_decoded_than_the_box_needs():
    """The upper half of a file is enough for the top of the image, and not for its bottom."""
    file = encoded(subsampling="4:2:0")
    half = file[: len(file) // 2]
    np.testing.assert_array_equal(
        image_files.decode(half, lambda height, width: (0, 8, 16, width - 8)),
        image_files.decode(file)[:16, 8:],
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        image_files.decode(half, lambda height, width: (height - 16, 0, 16, width))
    with pytest.raises(tf.errors.InvalidArgumentError):
        image_files.decode(half)
