"""Random changes of training images, as pure functions of the image and a seed.

The same seed gives the same image, eagerly and inside tf.data, today and after a restart. Images go
in and come out as uint8, so that augmentation knows nothing about how a network wants its input.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import tensorflow as tf

from keras_resnet.errors import unknown_name
from keras_resnet.preprocessing import Preprocessing
from training import boxes, mixing, photometric
from training.keywords import check_keywords
from training.operations import line_of, lines


def pad_crop_flip(images, seed, *, padding=4, fill=0, mode="constant"):
    """Pads all sides, crops the original size at random, and mirrors every second image.

    The paper pads with zeros after it has subtracted the mean. On raw images that is a border in
    the mean colour of the dataset: pass it as `fill`. The table below does.

    Args:
        images: uint8 of shape `([batch,] height, width, channels)`, static sizes. Every image of a
            batch is cropped and mirrored on its own.
        seed: Integer tensor of shape `(2,)`.
        padding: Width of the border in pixels, at least 0.
        fill: Colour of the border: one value for all channels or one per channel, 0..255.
        mode: `"constant"`, or `"reflect"` for a border that mirrors what is inside, as the program
            of Zagoruyko and Komodakis 2016 makes it.

    Returns:
        uint8 of the same shape.

    Reference: He et al. 2015, section 4.2.
    """
    return _crop_padded(images, seed, padding, fill, mode, mirror=True)


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
    return _crop_padded(images, seed, padding, fill=0, mode="constant", mirror=False)


def flip(images, seed, *, probability=0.5):
    """Mirrors images, left to right.

    Args:
        images: uint8 of shape `([batch,] height, width, channels)`. Every image of a batch has its
            own draw.
        seed: Integer tensor of shape `(2,)`.
        probability: That an image is mirrored, in [0, 1].

    Returns:
        uint8 of the same shape.
    """
    shape = tf.shape(images)
    mirrored = tf.random.stateless_uniform(shape[:-3], seed) < probability
    # Reversing rows with three axes and choosing whole images are many times faster than
    # `images[..., ::-1, :]` and choosing pixels.
    rows = tf.reshape(images, tf.concat([[-1], shape[-2:]], axis=0))
    both = tf.concat([rows, tf.reverse(rows, [1])], axis=0)
    both = tf.reshape(both, tf.concat([[-1], shape[-3:]], axis=0))
    count = tf.size(mirrored)
    chosen = tf.range(count) + tf.where(tf.reshape(mirrored, [-1]), count, 0)
    return tf.ensure_shape(tf.reshape(tf.gather(both, chosen), shape), images.shape)


def _crop_padded(images, seed, padding, fill, mode, mirror):
    *batch, height, width, channels = images.shape
    draws = tf.random.stateless_uniform((*batch, 3), seed)
    top, left, mirrored = tf.unstack(
        tf.cast(draws * (2 * padding + 1, 2 * padding + 1, 2), tf.int32), axis=-1
    )
    columns = tf.broadcast_to(tf.range(width), (*batch, width))
    if mirror:
        columns = tf.where(mirrored[..., None] == 1, columns[..., ::-1], columns)
    rows = top[..., None] + tf.range(height) - padding
    columns += left[..., None] - padding
    # Crop and mirror are one look-up of pixels, for the whole batch at once.
    pixels = (
        _reflected(rows, height)[..., :, None] * width + _reflected(columns, width)[..., None, :]
    )
    flat = tf.reshape(images, (*batch, -1, channels))
    crops = tf.gather(flat, pixels, axis=len(batch), batch_dims=len(batch))
    if mode == "reflect":
        return crops
    columns = tf.repeat(columns, channels, axis=-1)
    inside = ((rows >= 0) & (rows < height))[..., None]
    inside &= ((columns >= 0) & (columns < width))[..., None, :]
    return tf.reshape(tf.where(inside, lines(crops), line_of(fill, images)), images.shape)


def _reflected(positions, length):
    """Positions outside mirrored at the first and the last, which are not repeated."""
    last = length - 1
    return last - tf.abs(last - tf.math.floormod(positions, max(1, 2 * last)))


@dataclasses.dataclass(frozen=True)
class Chain:
    """What is done to training images, as functions for a pipeline to call in this order.

    All of them are TensorFlow, and all that is random about them follows from the seed, an int64
    tensor of shape `(2,)`; `crop` and `change` may get the same one. (From an int32 seed of the
    same value TensorFlow derives other seeds.)

    Args:
        crop: `crop(height, width, seed, size)`, from the size of one image and the size in pixels
            `(height, width)` it shall get, to the box that is cut out and resized to it: int32
            scalars `(top, left, box_height, box_width)` in pixels of the image. `None`: no crop.
        change: `change(images, seed)`, from uint8 of shape `([batch,] height, width, channels)` to
            the same. Without augmentations it returns the images.
        takes_batches: Whether `change` takes a whole batch at once, which is many times faster, or
            one image at a time. A crop takes one image at a time in any case.
        mix: `mix(images, labels, seed)`, from a batch, uint8 or float of any range, and its one-hot
            labels, float of shape `(batch, classes)`, to the same of mixed images. `None`: no
            mixing.
    """

    crop: Callable | None
    change: Callable
    takes_batches: bool
    mix: Callable | None


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One row of the table.

    Args:
        function: What is done. Its keyword-only arguments are what a recipe may give.
        kind: `"crop"`, `"change"` or `"mix"`; see `Chain` for what the function takes and returns.
        takes_batches: Of a change, whether it takes a whole batch at once.
        defaults: Arguments that follow from a `Preprocessing`.
    """

    function: Callable
    kind: str = "change"
    takes_batches: bool = True
    defaults: Callable[[Preprocessing], Mapping] = lambda preprocessing: {}


def _colour(values, preprocessing):
    """A mean or deviation of the dataset, as a colour of raw RGB images."""
    in_rgb = (values[index] for index in preprocessing.channel_indices)
    return tuple(round(value / preprocessing.scale) for value in in_rgb)


def _mean_colour(preprocessing):
    return {"fill": _colour(preprocessing.mean, preprocessing)}


def _mean_and_deviation(preprocessing):
    return {key: _colour(getattr(preprocessing, key), preprocessing) for key in ("mean", "std")}


AUGMENTATIONS: dict[str, Augmentation] = {
    "scale_crop": Augmentation(boxes.scale_crop, "crop"),
    "inception_crop": Augmentation(boxes.inception_crop, "crop"),
    "pad_crop_flip": Augmentation(pad_crop_flip, defaults=_mean_colour),
    "shift": Augmentation(shift),
    "flip": Augmentation(flip),
    "colour_pca": Augmentation(photometric.colour_pca),
    "rand_augment": Augmentation(
        photometric.rand_augment, takes_batches=False, defaults=_mean_colour
    ),
    "trivial_augment": Augmentation(photometric.trivial_augment, takes_batches=False),
    "random_erasing": Augmentation(boxes.random_erasing, defaults=_mean_and_deviation),
    "mixup": Augmentation(mixing.mixup, "mix"),
    "cutmix": Augmentation(mixing.cutmix, "mix"),
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


def chain(augmentation: Mapping[str, Mapping], preprocessing: Preprocessing) -> Chain:
    """What the names say, in their order, as functions for a pipeline.

    Args:
        augmentation: Names of `AUGMENTATIONS`, each with keywords for its function: first at most
            one crop, then the changes, last what mixes batches. Of several mixings one is drawn
            for every batch.
        preprocessing: Says what the mean colour of the dataset is.

    Raises:
        ValueError: If a name or keyword is not known, a value is out of its range, or the names are
            out of order.
    """
    rows = [get_augmentation(name) for name in augmentation]
    _check_order(augmentation, [row.kind for row in rows])
    functions = {"crop": [], "change": [], "mix": []}
    for number, (name, row) in enumerate(zip(augmentation, rows, strict=True)):
        check_keywords(name, row.function, augmentation[name])
        keywords = {**row.defaults(preprocessing), **augmentation[name]}
        function = functools.partial(row.function, **keywords)
        functions[row.kind].append(_with_own_seed(function, number) if number else function)

    def change(images, seed):
        for function in functions["change"]:
            images = function(images, seed)
        return images

    return Chain(
        crop=functions["crop"][0] if functions["crop"] else None,
        change=change,
        takes_batches=all(row.takes_batches for row in rows),
        mix=mixing.chain(functions["mix"]) if functions["mix"] else None,
    )


def _with_own_seed(function, number):
    """No two rows share their random numbers; the seed is the last argument of all but crops."""

    def seeded(*arguments):
        *arguments, seed = arguments
        return function(*arguments, tf.random.fold_in(seed, number))

    return seeded


def _check_order(names, kinds):
    in_order = sorted(kinds, key=("crop", "change", "mix").index)
    if kinds != in_order or kinds.count("crop") > 1:
        raise ValueError(
            "The augmentation is out of order. Expected at most one crop, then changes, then what "
            f"mixes batches. Received: {', '.join(names)} ({', '.join(kinds)})."
        )
