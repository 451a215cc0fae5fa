"""Resizing with Pillow's arithmetic: the images that published networks were trained and scored on.

Kernels of other libraries differ in the last bits, and their bicubic overshoots between the two
passes, by up to 14 of 255 grey levels on photographs. Here one pass is a matrix product for every
few rows of the result, with the rows of the image that they cover.
"""

import types

import keras
import numpy as np
from keras import ops

# Half the width of each kernel, in pixels of the result; bicubic is Keys's with a = -0.5.
SUPPORT = {"bilinear": 1, "bicubic": 2}
_PRECISION = 2.0**22  # Pillow's weights are integers over this
_NEIGHBOURS = 16  # pixels of the result in one matrix product


def resize(images, size, interpolation="bilinear"):
    """Resizes as Pillow 13 does an 8-bit image: columns, then rows, each rounded.

    Rows come first where they shrink by more than twice as many pixels as the columns (Pillow
    before 13 always began with the columns). NumPy arrays, PyTorch and TensorFlow compute in
    float64, which is exact; JAX in float32, where a value halfway between two grey levels may go
    to the other one.

    Args:
        images: Array, or tensor of Keras's backend, of shape `([batch,] height, width, channels)`
            with values 0..255. TensorFlow's, as tf.data has them beside every backend, may have
            unknown sizes.
        size: Height and width in pixels: two integers, or scalar tensors of TensorFlow.
        interpolation: `"bilinear"` or `"bicubic"`.

    Returns:
        float32 of shape `([batch,] *size, channels)`, whole numbers in 0..255.
    """
    xp = _namespace(images, *size)
    given_height, given_width = xp.shape(images)[-3:-1]
    height, width = size
    lost = given_height - height
    rows_first = (lost > 0) & (lost > 2 * (given_width - width))

    def rows(images):
        return _resize_rows(xp, images, height, interpolation)

    def columns(images):
        turned = _resize_rows(xp, xp.swapaxes(images, -3, -2), width, interpolation)
        return xp.swapaxes(turned, -3, -2)

    if xp is np or isinstance(rows_first, bool):
        return columns(rows(images)) if rows_first else rows(columns(images))
    return xp.cond(rows_first, lambda: columns(rows(images)), lambda: rows(columns(images)))


def resize_and_crop(images, preprocessing, *, keep_fitting: bool = True):
    """`Preprocessing.resize` for TensorFlow's images, whose size is known only when they arrive.

    Args:
        images: Tensor of shape `([batch,] height, width, channels)`, values 0..255.
        preprocessing: To what size, and how.
        keep_fitting: Whether images of that size stay as they are.

    Returns:
        float32 of shape `([batch,] *preprocessing.size, channels)`.
    """
    import tensorflow as tf

    size = tf.constant(preprocessing.size)
    given = tf.shape(images)[-3:-1]
    crops = preprocessing.resize_size is not None

    def resized():
        target = size
        if crops:
            target = tf.stack(preprocessing.sides_before_crop(*tf.unstack(given), tf.maximum))
        scaled = preprocessing.resize_to(images, tf.unstack(target))
        margin = tf.cast(target - size, tf.float64) / 2
        top, left = tf.unstack(tf.cast(tf.round(margin), tf.int32))  # a half to the even side
        return scaled[..., top : top + size[0], left : left + size[1], :]

    fits = tf.reduce_all(given == size) & (keep_fitting or not crops)
    fitted = tf.cond(fits, lambda: tf.cast(images, "float32"), resized)
    return tf.ensure_shape(fitted, (*images.shape[:-3], *preprocessing.size, images.shape[-1]))


def is_of_tensorflow(value) -> bool:
    """Whether it is a tensor of TensorFlow, as tf.data hands over beside every backend."""
    return type(value).__module__.startswith("tensorflow.")


def _resize_rows(xp, images, wanted, interpolation):
    *batch, given, width, channels = xp.shape(images)
    is_known = isinstance(given, int) and isinstance(wanted, int)
    pixels, kernel = _kernel(np if is_known else xp, given, wanted, interpolation)
    rows = xp.take(xp.reshape(images, (*batch, given, width * channels)), pixels, axis=-2)
    if xp is not np:
        dtype = "float32" if xp is ops and keras.backend.backend() == "jax" else "float64"
        kernel, rows = xp.cast(kernel, dtype), xp.cast(rows, dtype)
    # Keras's `matmul` and `floor` are of float32 on PyTorch; whole numbers are cut off instead.
    values = xp.clip(kernel @ rows + 0.5, 0, 255)
    values = values.astype("uint8") if xp is np else xp.cast(values, "uint8")
    values = values.astype("float32") if xp is np else xp.cast(values, "float32")
    return xp.reshape(values, (*batch, -1, width, channels))[..., :wanted, :, :]


def _namespace(*values):
    """NumPy, the operations of Keras, or the same of TensorFlow where that is not its backend."""
    if all(isinstance(value, (np.ndarray, np.integer, int)) for value in values):
        return np
    if keras.backend.backend() == "tensorflow" or not any(map(is_of_tensorflow, values)):
        return ops
    import tensorflow as tf

    def shape(images):
        sizes = zip(images.shape, tf.unstack(tf.shape(images)))
        return tuple(size if known is None else known for known, size in sizes)

    others = {"shape": shape, "arange": tf.range, "cast": tf.cast, "cond": tf.cond}
    return types.SimpleNamespace(**vars(tf.experimental.numpy) | others)


def _kernel(xp, given, wanted, interpolation):
    """How much of each pixel goes into each of the result, for few neighbours at a time.

    Returns:
        Which pixels those neighbours are made of, of shape `(blocks, covered)`, and their weights,
        of shape `(blocks, neighbours, covered)`.
    """
    covered = _NEIGHBOURS * given // wanted + 2 * SUPPORT[interpolation] * -(-given // wanted) + 2
    blocks = -(-wanted // _NEIGHBOURS)
    if xp is not np:
        given, wanted = (xp.cast(size, "float64") for size in (given, wanted))
    scale = given / wanted
    stretch = xp.maximum(scale, 1.0)  # a shrinking resize averages over all pixels it covers
    support = SUPPORT[interpolation] * stretch
    numbers = xp.minimum(xp.arange(blocks * _NEIGHBOURS, dtype="float64"), wanted - 1)
    centres = xp.reshape((numbers + 0.5) * scale, (blocks, _NEIGHBOURS, 1))
    first = xp.floor(xp.maximum(centres - support + 0.5, 0.0))
    pixels = first[:, :1] + xp.arange(covered, dtype="float64")
    counts = (pixels >= first) & (pixels < xp.floor(centres + support + 0.5)) & (pixels < given)
    distance = xp.abs((pixels + 0.5 - centres) / stretch)
    weights = xp.where(counts, _CURVES[interpolation](xp, distance), 0.0)
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    # Rounds halves away from zero.
    weights = xp.sign(weights) * xp.floor(xp.abs(weights) * _PRECISION + 0.5) / _PRECISION
    pixels = xp.minimum(pixels, given - 1)[:, 0]
    return pixels.astype("int32") if xp is np else xp.cast(pixels, "int32"), weights


def _bilinear(xp, x):
    return xp.maximum(1.0 - x, 0.0)


def _bicubic(xp, x):
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
    return xp.where(x < 1.0, near, xp.where(x < 2.0, far, 0.0))


_CURVES = {"bilinear": _bilinear, "bicubic": _bicubic}
