"""Random boxes in images: what is cropped out of them, and what is erased.

A crop is a function from the size of an image to a box and does not see the pixels, so that of a
JPEG file only the box has to be decoded.
"""

import math

import tensorflow as tf

from training.operations import line_of, lines, to_uint8

_PAPER_CROP = 224  # pixels, which the paper's scales are meant for
_ATTEMPTS = 10  # as in torchvision


def scale_crop(height, width, seed, size, *, shortest=(256, 480)):
    """The box that a random crop of the randomly resized image covers in the original.

    The paper resizes the whole image and crops; to crop this box and resize it is the same. It does
    not mirror: that is `flip`.

    Args:
        height: Of the image in pixels, integer scalar.
        width: Of the image in pixels, integer scalar.
        seed: Integer tensor of shape `(2,)`.
        size: Height and width in pixels to which the box will be resized.
        shortest: Smallest and largest length in pixels, at least 224, of the resized image's
            shorter side when a `size` of 224 is cropped from it; in proportion for others.

    Returns:
        int32 scalars `(top, left, box_height, box_width)`; the box lies inside the image.

    Reference: He et al. 2015, section 3.4.
    """
    low, high = shortest
    scale, top, left = tf.unstack(tf.random.stateless_uniform((3,), seed))
    shorter = low + tf.floor(scale * (high - low + 1))
    sides = tf.cast(tf.stack([height, width]), tf.float32)
    size = tf.cast(size, tf.float32)
    box = size / tf.reduce_max(size) * tf.reduce_min(sides) * (_PAPER_CROP / shorter)
    box = tf.maximum(tf.round(box), 1)
    corner = tf.floor((top, left) * (sides - box + 1))
    return tuple(tf.unstack(tf.cast(tf.concat([corner, box], axis=0), tf.int32)))


def inception_crop(height, width, seed, size, *, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3)):
    """A box with a random share of the image's area and a random aspect.

    If none of ten draws fits, it is the largest box of an allowed aspect in the centre, as in
    torchvision.

    Args:
        height: Of the image in pixels, integer scalar.
        width: Of the image in pixels, integer scalar.
        seed: Integer tensor of shape `(2,)`.
        size: Height and width in pixels to which the box will be resized; makes no difference.
        area: Smallest and largest share of the image's area, in (0, 1].
        aspect: Smallest and largest width per height, drawn uniformly in its logarithm.

    Returns:
        int32 scalars `(top, left, box_height, box_width)`; the box lies inside the image.

    Reference: Szegedy et al. 2015, section 6.
    """
    box, fits = _random_box(height, width, seed, area, aspect)
    sides = tf.cast(tf.stack([height, width]), tf.float32)
    low, high = aspect
    largest = tf.minimum(sides, tf.round((sides[1] / low, sides[0] * high)))
    centre = tf.cast(tf.concat([(sides - largest) // 2, largest], axis=0), tf.int32)
    return tuple(tf.unstack(tf.where(fits, box, centre)))


def random_erasing(
    images, seed, mean, std, *, probability=0.25, area=(0.02, 1 / 3), aspect=(0.3, 3.3), fill="mean"
):
    """Paints a random box of some images over.

    The paper paints with random values, torchvision with the mean colour, timm with normal noise.

    Args:
        images: uint8 of shape `([batch,] height, width, channels)`. Every image of a batch has its
            own box.
        seed: Integer tensor of shape `(2,)`.
        mean: Mean colour of the dataset, one value per channel, 0..255.
        std: Standard deviation of its channels, in the same unit.
        probability: That an image is changed, in [0, 1].
        area: Smallest and largest share of the image's area, in (0, 1].
        aspect: Smallest and largest height per width of the box, drawn uniformly in its logarithm.
        fill: `"mean"`, `"noise"` (normal, with the mean and the deviation of the dataset), or a
            colour: one value for all channels or one per channel, 0..255.

    Returns:
        uint8 of the same shape.

    Reference: Zhong et al. 2020, algorithm 1.
    """
    seeds = tf.unstack(tf.random.split(seed, 3))
    shape = tf.shape(images)
    batch, height, width, channels = shape[:-3], shape[-3], shape[-2], shape[-1]
    low, high = aspect
    box, fits = _random_box(height, width, seeds[0], area, (1 / high, 1 / low), batch)
    chosen = tf.random.stateless_uniform(tf.shape(fits), seeds[1]) < probability
    top, left, box_height, box_width = tf.unstack(box[..., None], axis=-2)
    rows, columns = tf.range(height), tf.range(width * channels) // channels
    inside_rows = (rows >= top) & (rows < top + box_height) & fits & chosen
    inside_columns = (columns >= left) & (columns < left + box_width)
    inside = inside_rows[..., :, None] & inside_columns[..., None, :]
    if fill == "noise":
        paint = lines(to_uint8(tf.random.stateless_normal(shape, seeds[2], mean, std) + 0.5))
    else:
        paint = line_of(mean if fill == "mean" else fill, images)
    return tf.reshape(tf.where(inside, paint, lines(images)), shape)


def _random_box(height, width, seed, area, aspect, batch=()):
    """Boxes of shape `(*batch, 4)`, and of shape `(*batch, 1)` whether the image has room."""
    sides = tf.cast(tf.stack([height, width]), tf.float32)
    shape = tf.concat([tf.cast(batch, tf.int32), (_ATTEMPTS, 4)], axis=0)
    share, ratio, *corner = tf.unstack(tf.random.stateless_uniform(shape, seed), axis=-1)
    share = (area[0] + share * (area[1] - area[0])) * tf.reduce_prod(sides)
    low, high = map(math.log, aspect)
    ratio = tf.exp(low + ratio * (high - low))
    box = tf.round(tf.sqrt(tf.stack([share / ratio, share * ratio], axis=-1)))
    fits = tf.reduce_all((box > 0) & (box <= sides), axis=-1)
    corner = tf.floor(tf.stack(corner, axis=-1) * (sides - box + 1))
    first = tf.argmax(tf.cast(fits, tf.int32), axis=-1)
    boxes = tf.cast(tf.concat([corner, box], axis=-1), tf.int32)
    box = tf.gather(boxes, first, axis=-2, batch_dims=first.shape.rank)
    return box, tf.reduce_any(fits, axis=-1, keepdims=True)
