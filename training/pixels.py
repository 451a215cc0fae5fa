"""What `Preprocessing` does, in TensorFlow as tf.data wants it: the same numbers for less work.

TensorFlow's CPU kernels are fast along long rows of memory. An image has rows of three channels, so
here a whole line of it stands for the channels.
"""

import dataclasses

import tensorflow as tf

from keras_resnet.preprocessing import Preprocessing


def resize(images, size, interpolation="bilinear", antialias=True):
    """`tf.image.resize`, clipped to the values an image can have.

    With `antialias` one axis after the other, which gives the same bits for a third of the work.

    Args:
        images: Tensor of shape `([batch,] height, width, channels)`, values 0..255.
        size: Height and width in pixels: two integers or a tensor of them.
        interpolation: `"bilinear"` or `"bicubic"`.
        antialias: Whether a shrinking resize averages over all pixels it covers.

    Returns:
        float32 of shape `([batch,] *size, channels)`.
    """
    if antialias:
        height, width = tf.unstack(size)
        images = _resize_height(images, height, interpolation)
        images = _transpose(_resize_height(_transpose(images), width, interpolation))
    else:
        images = tf.image.resize(images, size, interpolation)
    images = tf.cast(images, tf.float32)
    return tf.clip_by_value(images, 0.0, 255.0) if interpolation == "bicubic" else images


def fit(images, preprocessing: Preprocessing):
    """`Preprocessing.resize`, but for images that are known to fit: they stay integers.

    Args:
        images: Tensor of shape `([batch,] height, width, channels)`, values 0..255.
        preprocessing: Gives `size`, `resize_size` and the interpolation.

    Returns:
        Tensor of shape `([batch,] *size, channels)`: float32, or the images themselves where their
        static size fits.
    """
    fits = images.shape[-3:-1] == preprocessing.size
    return images if fits else preprocessing.resize(images)


def to_uint8(images):
    """Rounds.

    Args:
        images: float32 of any shape, values 0..255.
    """
    return tf.cast(images + 0.5, tf.uint8)  # `tf.round` takes several times longer


def normalize(images, preprocessing: Preprocessing):
    """`Preprocessing.normalize`, to the last bit.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, values 0..255, static width.
        preprocessing: Gives scale, mean, std and the order of the channels.

    Returns:
        float32 of the same shape.
    """
    if preprocessing.channel_order == "bgr":
        images = tf.gather(images, preprocessing.channel_indices, axis=-1)
    width, channels = images.shape[-2:]
    of_lines = dataclasses.replace(
        preprocessing,
        mean=preprocessing.mean * width,
        std=preprocessing.std * width,
        channel_order="rgb",
    )
    lines = tf.reshape(images, (-1, width * channels))
    return tf.reshape(of_lines.normalize(lines), tf.shape(images))


def _resize_height(images, height, interpolation):
    *batch, _, width, channels = tf.unstack(tf.shape(images))
    lines = tf.reshape(images, (*batch, -1, 1, width * channels))
    lines = tf.image.resize(lines, (height, 1), interpolation, antialias=True)
    return tf.reshape(lines, (*batch, height, width, channels))


def _transpose(images):
    order = [*range(len(images.shape))]
    order[-3], order[-2] = order[-2], order[-3]
    return tf.transpose(images, order)
