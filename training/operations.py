"""Operations on images, those of Pillow to one grey level: augmentation policies are built on them.

TensorFlow's and Keras's of the same names compute something else: a contrast about the mean of each
channel, a brightness that is added, other kernels, borders that are blended or repeated.

Images are uint8 of shape `(height, width, channels)` with 1 or 3 channels, and so are the results.
TensorFlow's CPU kernels are fast along long rows of memory: where channels are told apart, a whole
line of an image stands for them.
"""

import math

import numpy as np
import tensorflow as tf

_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # as Pillow's; all sums are exact in float32


def auto_contrast(image):
    """Spreads the values of each channel over 0..255."""
    low, high = (
        reduce(tf.reshape(reduce(lines(image), axis=0), (-1, image.shape[-1])), axis=0)
        for reduce in (tf.reduce_min, tf.reduce_max)
    )
    low = tf.cast(low, tf.int32)[:, None]
    span = tf.cast(high, tf.int32)[:, None] - low
    table = (tf.range(256) - low) * 255 // tf.maximum(span, 1)
    return _looked_up(tf.where(span > 0, table, tf.range(256)), _entries(image), image)


def equalize(image):
    """Makes all values of each channel about as frequent."""
    channels = image.shape[-1]
    entries = _entries(image)
    counts = tf.math.bincount(entries, minlength=256 * channels, maxlength=256 * channels)
    counts = tf.reshape(counts, (channels, 256))
    largest = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1)
    of_largest = tf.gather(counts, largest, axis=1, batch_dims=1)
    step = (tf.reduce_sum(counts, axis=1) - of_largest)[:, None] // 255
    darker = tf.cumsum(counts, axis=1, exclusive=True)
    table = (darker + step // 2) // tf.maximum(step, 1)
    return _looked_up(tf.where(step > 0, table, tf.range(256)), entries, image)


def posterize(image, bits):
    """Keeps the highest `bits` (int32 scalar, 0..8) of each value."""
    mask = 256 - tf.bitwise.left_shift(1, 8 - bits)
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image, threshold):
    """Inverts the values from `threshold` (float scalar, 0..256) on."""
    return tf.where(tf.cast(image, tf.float32) < threshold, image, 255 - image)


def solarize_add(image, amount):
    """Adds `amount` (int32 scalar, 0..255) to the values below 128."""
    added = tf.cast(tf.minimum(tf.cast(image, tf.int32) + amount, 255), tf.uint8)
    return tf.where(image < 128, added, image)


def color(image, factor):
    """Blends with the grey image: `factor` 0 is grey, 1 changes nothing, 2 doubles the colour."""
    return _enhance(image, _grey(image), factor)


def contrast(image, factor):
    """Blends with the mean grey, one for all channels."""
    return _enhance(image, tf.floor(tf.reduce_mean(_grey(image)) + 0.5), factor)


def brightness(image, factor):
    """Blends with black."""
    return _enhance(image, 0.0, factor)


def sharpness(image, factor):
    """Blends with the smoothed image, whose border is not smoothed."""
    values, channels = tf.cast(lines(image), tf.float32), image.shape[-1]
    inner = values[1:-1, channels:-channels]
    summed = values[:-2] + values[1:-1] + values[2:]
    summed = summed[:, : -2 * channels] + summed[:, channels:-channels] + summed[:, 2 * channels :]
    smooth = tf.floor((summed + 4 * inner) / 13 + 0.5)
    change = tf.pad(smooth - inner, [(1, 1), (channels, channels)])
    return _enhance(image, tf.reshape(values + change, tf.shape(image)), factor)


def rotate(image, degrees, fill):
    """Turns anticlockwise about the centre by `degrees` (float scalar)."""
    radians = degrees * (math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    y, x = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32) / 2)
    return affine(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), fill)


def affine(image, matrix, fill):
    """Moves every pixel, with bilinear interpolation.

    Args:
        image: uint8 of shape `(height, width, channels)`.
        matrix: Six numbers `(a, b, c, d, e, f)`: the pixel of the result at `(x, y)` comes from
            `(a x + b y + c, d x + e y + f)`; from the upper left corner, so that centres of pixels
            lie at halves.
        fill: Colour of what comes from outside: one value or one per channel, 0..255.
    """
    a, b, c, d, e, f = matrix
    # TensorFlow counts from the centre of the corner pixel.
    from_centre = (a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2, 0, 0)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=tf.stack([tf.cast(value, tf.float32) for value in from_centre])[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    # Its own fill has one value for all channels, and blends with the border of the image.
    height, width, channels = tf.unstack(tf.shape(image))
    x = tf.cast(tf.range(width * channels) // channels, tf.float32) + 0.5
    y = tf.range(tf.cast(height, tf.float32))[:, None] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    moved = lines(tf.cast(moved[0] + 0.5, tf.uint8))
    return tf.reshape(tf.where(inside, moved, line_of(fill, image)), tf.shape(image))


def lines(images):
    """Images of shape `([batch,] height, width * channels)`."""
    shape = tf.shape(images)
    return tf.reshape(images, tf.concat([shape[:-2], [shape[-2] * shape[-1]]], axis=0))


def line_of(colour, images):
    """A line of images that is all of one colour (a value, or one per channel), uint8."""
    width, channels = tf.shape(images)[-2], images.shape[-1]
    if np.size(colour) not in (1, channels):
        raise ValueError(
            "A colour does not fit the images. Expected one value for all channels, or "
            f"{channels}, one per channel. Received: fill={colour!r}."
        )
    colour = tf.broadcast_to(tf.cast(colour, tf.uint8), [channels])
    return tf.tile(colour, [width])


def to_uint8(values):
    """Truncates, as Pillow does; beyond 0..255 it clips."""
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)


def _enhance(image, degenerate, factor):
    return to_uint8(degenerate + factor * (tf.cast(image, tf.float32) - degenerate))


def _grey(image):
    """Luma of every pixel, in all channels."""
    values = tf.cast(image, tf.float32)
    if image.shape[-1] == 1:
        return values
    return tf.floor(tf.tensordot(values, [[share] * 3 for share in _LUMA], 1) + 0.5)


def _entries(image):
    """Of each value, the entry in a row of tables of 256, one for each channel; as lines."""
    width, channels = tf.unstack(tf.shape(image)[-2:])
    return tf.cast(lines(image), tf.int32) + tf.tile(256 * tf.range(channels), [width])


def _looked_up(tables, entries, image):
    tables = tf.cast(tf.clip_by_value(tables, 0, 255), tf.uint8)
    return tf.reshape(tf.gather(tf.reshape(tables, [-1]), entries), tf.shape(image))
