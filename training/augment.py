"""Random changes of training images, as pure functions of the image and a seed.

The same seed gives the same image, eagerly and inside tf.data, today and after a restart. Images go
in and come out as uint8, so that augmentation knows nothing about how a network wants its input.
"""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.errors import unknown_name
from keras_resnet.preprocessing import Preprocessing


def pad_crop_flip(images, seed, *, padding=4, fill=0):
    """Pads all sides, crops the original size at random, and mirrors every second image.

    The paper pads with zeros after it has subtracted the mean. On raw images that is a border in
    the mean colour of the dataset: pass it as `fill`. The table below does.

    Args:
        images: uint8 of shape `([batch,] height, width, channels)`, static sizes. Every image of a
            batch is cropped and mirrored on its own.
        seed: Integer tensor of shape `(2,)`.
        padding: Width of the border in pixels, at least 0.
        fill: Colour of the border: one value for all channels or one per channel, 0..255.

    Returns:
        uint8 of the same shape.

    Reference: He et al. 2015, section 4.2.
    """
    return _crop_padded(images, seed, padding, fill, mirror=True)


def shift(images, seed, *, padding=1):
    """Moves the content by up to `padding` pixels each way; black comes in. No mirror.

    For digits, which stand on black and mean something else when they are mirrored.

    Args:
        images: uint8 of shape `([batch,] height, width, channels)`, static sizes.
        seed: Integer tensor of shape `(2,)`.
        padding: Largest move in pixels, at least 0.

    Returns:
        uint8 of the same shape.
    """
    return _crop_padded(images, seed, padding, fill=0, mirror=False)


def scale_crop(image, seed, *, size=(224, 224), shortest=(256, 480)):
    """Resizes to a random scale, crops at random, and mirrors every second image.

    Args:
        image: uint8 of shape `(height, width, channels)`; one image, its size may be unknown.
        seed: Integer tensor of shape `(2,)`.
        size: Height and width of the crop in pixels.
        shortest: Smallest and largest length in pixels of the resized image's shorter side.

    Returns:
        uint8 of shape `(*size, channels)`.

    Raises:
        ValueError: If the crop does not fit the smallest scale.

    Reference: He et al. 2015, section 3.4, without its colour augmentation.
    """
    low, high = shortest
    if not max(size) <= low <= high:
        raise ValueError(
            "The crop must fit the smallest scale. Expected max(size) <= shortest[0] <= "
            f"shortest[1]. Received: size={tuple(size)}, shortest={tuple(shortest)}."
        )
    scale, top, left, mirrored = tf.unstack(tf.random.stateless_uniform((4,), seed))
    shorter = tf.cast(low, tf.float32) + tf.floor(scale * (high - low + 1))
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    sides = tf.cast(tf.round(sides * (shorter / tf.reduce_min(sides))), tf.int32)
    image = tf.image.resize(image, sides, antialias=True)
    rows, columns = tf.unstack(tf.cast(sides - size + 1, tf.float32))  # where a crop may begin
    image = tf.image.crop_to_bounding_box(
        image, tf.cast(top * rows, tf.int32), tf.cast(left * columns, tf.int32), *size
    )
    image = tf.where(mirrored < 0.5, image[:, ::-1], image)
    return tf.cast(tf.round(image), tf.uint8)


def _crop_padded(images, seed, padding, fill, mirror):
    *batch, height, width, channels = images.shape
    fill = tf.cast(fill, tf.uint8)
    borders = [(0, 0)] * len(batch) + [(padding, padding), (padding, padding), (0, 0)]
    padded = tf.pad(images - fill, borders) + fill  # uint8 wraps around, there and back
    draws = tf.random.stateless_uniform((*batch, 3), seed)
    top, left, mirrored = tf.unstack(
        tf.cast(draws * (2 * padding + 1, 2 * padding + 1, 2), tf.int32), axis=-1
    )
    columns = tf.broadcast_to(tf.range(width), (*batch, width))
    if mirror:
        columns = tf.where(mirrored[..., None] == 1, columns[..., ::-1], columns)
    rows = top[..., None] + tf.range(height)
    columns += left[..., None]
    # Crop and mirror are one look-up of pixels, for the whole batch at once.
    pixels = rows[..., :, None] * (width + 2 * padding) + columns[..., None, :]
    padded = tf.reshape(padded, (*batch, -1, channels))
    return tf.gather(padded, pixels, axis=len(batch), batch_dims=len(batch))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One row of the table.

    Args:
        build: Makes the function `(images, seed) -> images` for a `Preprocessing`.
        takes_batches: Whether that function takes a whole batch at once, which is many times
            faster, or one image at a time.
    """

    build: Callable[[Preprocessing], Callable]
    takes_batches: bool = True


def _mean_colour(preprocessing):
    mean = preprocessing.mean
    if preprocessing.channel_order == "bgr":
        mean = mean[::-1]  # the images are RGB
    return tuple(round(value / preprocessing.scale) for value in mean)


def _paper_scales(preprocessing):
    """256 to 480 for a crop of 224, and in proportion for others."""
    return tuple(round(side * max(preprocessing.size) / 224) for side in (256, 480))


AUGMENTATIONS: dict[str, Augmentation] = {
    "pad_crop_flip": Augmentation(
        lambda preprocessing: functools.partial(pad_crop_flip, fill=_mean_colour(preprocessing))
    ),
    "shift": Augmentation(lambda preprocessing: shift),
    "scale_crop": Augmentation(
        lambda preprocessing: functools.partial(
            scale_crop, size=preprocessing.size, shortest=_paper_scales(preprocessing)
        ),
        takes_batches=False,
    ),
}


def get_augmentation(name: str) -> Augmentation:
    """The row of a name.

    Args:
        name: A name of the table `AUGMENTATIONS`.

    Raises:
        ValueError: If the name is not known; the nearest one is named.
    """
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def chain(augmentation, preprocessing):
    """One function that does what the names say, in their order.

    Args:
        augmentation: Names of `AUGMENTATIONS`, each with keywords for its function.
        preprocessing: A `Preprocessing`.

    Returns:
        The function `(images, seed) -> images`, and whether it takes whole batches.
    """
    rows = [get_augmentation(name) for name in augmentation]
    functions = [
        functools.partial(row.build(preprocessing), **keywords)
        for row, keywords in zip(rows, augmentation.values(), strict=True)
    ]

    def change(images, seed):
        for number, function in enumerate(functions):
            images = function(images, tf.random.fold_in(seed, number) if number else seed)
        return images

    return change, all(row.takes_batches for row in rows)
