"""One split of a dataset: how its images are found, shuffled and read, and how it is carved.

Sources differ in how they hold images: decoded in memory, as files, or as one long stream of
records. A `Split` hides that.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from training import image_files

HELD_OUT_SHARE = 0.1  # of train, for each split that has to be carved from it,
MOST_HELD_OUT = 10_000  # and at most so many images
PARALLEL_CALLS = os.cpu_count()  # images that are decoded at once
SHUFFLE_WINDOW = 8192  # compressed images that a stream holds to shuffle them


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled images, in two steps: a key is cheap to shuffle, and `fetch` turns it into pixels.

    Args:
        num_examples: How many.
        keys: tf.data.Dataset of the keys, in their fixed order.
        shuffled_keys: Function from an integer seed of shape `(2,)` to a tf.data.Dataset of the
            same keys in an order that depends on the seed alone.
        fetch: Function from a key to `(image, label)`: uint8 of shape `image_shape`, int64. With
            `box=`, a function from height and width to `(top, left, height, width)` in pixels, only
            that part of the image, and no more of it is decoded than that.
        in_memory: Whether `fetch` also takes a batch of keys at once.
    """

    num_examples: int
    keys: tf.data.Dataset
    shuffled_keys: Callable[[tf.Tensor], tf.data.Dataset]
    fetch: Callable[[Any], tuple[tf.Tensor, tf.Tensor]]
    in_memory: bool

    def examples(self) -> tf.data.Dataset:
        """Single `(image, label)` pairs in their fixed order, decoded when they are read."""
        return self.keys.map(self.fetch, num_parallel_calls=PARALLEL_CALLS)


def held_in_memory(images, labels):
    """Keys are indices into one array.

    Args:
        images: uint8 array of shape `(num_examples, height, width, channels)`.
        labels: Integers, `num_examples` of them.
    """
    with tf.device("CPU"):  # tf.data reads there; a GPU has better uses for its memory
        images = tf.constant(images)
    return _indexed(
        labels,
        lambda index, box: image_files.cut_out(tf.gather(images, index), box),
        in_memory=True,
    )


def held_decoded(encoded, labels, sizes):
    """Keys are indices into the pixels of images of varied sizes, one image behind the other.

    Args:
        encoded: The bytes of each file.
        labels: One integer per file.
        sizes: Height and width of each image in pixels.
    """
    with tf.device("CPU"), ThreadPoolExecutor(os.cpu_count()) as threads:
        images = threads.map(image_files.decode, encoded)
        pixels = tf.concat(
            [tf.zeros(0, tf.uint8), *(tf.reshape(image, [-1]) for image in images)], axis=0
        )
        sizes = tf.reshape(tf.constant(sizes, tf.int64), (-1, 2))
        ends = tf.cumsum(3 * tf.reduce_prod(sizes, axis=1))

    def read(index, box):
        end, (height, width) = tf.gather(ends, index), tf.unstack(tf.gather(sizes, index))
        image = tf.reshape(pixels[end - 3 * height * width : end], (height, width, 3))
        return image_files.cut_out(image, box)

    return _indexed(labels, read, in_memory=False)


def held_encoded(encoded, labels, sizes=None, image_shape=(None, None, 3)):
    """Keys are indices into the bytes of files; pixels are decoded when they are needed.

    Args:
        encoded: The bytes of each file.
        labels: One integer per file.
        sizes: Height and width of each image in pixels, where they are known.
        image_shape: `(height, width, channels)`, None where it varies.
    """
    with tf.device("CPU"):
        encoded = tf.constant(encoded, tf.string)
    return _decoded_late(lambda index: tf.gather(encoded, index), labels, sizes, image_shape)


def read_from_files(root, names, labels, sizes=None):
    """Keys are indices into a list of files.

    Args:
        root: Directory.
        names: File names relative to it.
        labels: One integer per file.
        sizes: Height and width of each image in pixels, where they are known.
    """
    with tf.device("CPU"):
        paths = tf.constant([os.fsencode(root / name) for name in names], tf.string)
    return _decoded_late(lambda index: tf.io.read_file(tf.gather(paths, index)), labels, sizes)


def _decoded_late(read, labels, sizes, image_shape=(None, None, 3)):
    if sizes is not None:
        with tf.device("CPU"):
            sizes = tf.reshape(tf.constant(sizes, tf.int32), (-1, 2))

    def decode(index, box):
        size = None if sizes is None else tf.gather(sizes, index)
        return _decode(read(index), image_shape, box, size)

    return _indexed(labels, decode, in_memory=False)


def _decode(encoded, image_shape, box, size=None):
    image = image_files.decode(encoded, box, size)
    return tf.ensure_shape(image, (*image_shape[:2], 3) if box is None else (None, None, 3))


def _indexed(labels, read, in_memory):
    """Keys are indices."""
    with tf.device("CPU"):
        labels = tf.constant(labels, tf.int64)

    def shuffled_keys(seed):
        indices = tf.range(len(labels), dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices(
            # Not `index_shuffle`, which needs no list: neighbours stay together too often.
            tf.random.experimental.stateless_shuffle(indices, seed)
        )

    return Split(
        num_examples=len(labels),
        keys=tf.data.Dataset.range(len(labels)),
        shuffled_keys=shuffled_keys,
        fetch=lambda index, box=None: (read(index, box), tf.gather(labels, index)),
        in_memory=in_memory,
    )


def streamed(pairs, num_examples, image_shape):
    """Keys are records with the bytes of an image, shuffled within windows.

    Args:
        pairs: tf.data.Dataset of `(bytes, label)`.
        num_examples: How many.
        image_shape: `(height, width, channels)`, None where it varies.
    """
    records = pairs.map(lambda image, label: {"image": image, "label": label})

    def shuffled_keys(seed):
        # The windows begin elsewhere in every epoch.
        start = tf.random.stateless_uniform((), seed, 0, SHUFFLE_WINDOW, tf.int64)
        windows = records.skip(start).concatenate(records.take(start)).batch(SHUFFLE_WINDOW)

        def permute(number, window):
            indices = tf.range(tf.size(window["label"]))
            order = tf.random.experimental.stateless_shuffle(
                indices, tf.random.fold_in(seed, number)
            )
            return {name: tf.gather(values, order) for name, values in window.items()}

        return windows.enumerate().map(permute).prefetch(1).unbatch()

    def fetch(record, box=None):
        return _decode(record["image"], image_shape, box), record["label"]

    return Split(
        num_examples=num_examples,
        keys=records,
        shuffled_keys=shuffled_keys,
        fetch=fetch,
        in_memory=False,
    )


def carve(parts, validation_examples):
    """Completes the splits of a source: what it lacks is held out of train.

    Args:
        parts: Dict of splits, at least "train", each with two arrays: the examples, or their file
            names, and the labels.
        validation_examples: How many to hold out for validation. Defaults to a tenth.

    Returns:
        The dict with "train", "validation" and "test".
    """
    parts = dict(parts)
    if "test" not in parts:
        parts["train"], parts["test"] = hold_out(*parts["train"])
    _check_validation_examples(validation_examples, "validation" in parts)
    if "validation" not in parts:
        parts["train"], parts["validation"] = hold_out(*parts["train"], validation_examples)
    return parts


def hold_out(examples, labels, count=None):
    """Parts examples in two: `(kept, held)`.

    Every class gives the same share, at least one image unless `count` is smaller, and keeps at
    least one. Which ones is decided by a hash of the image, or of its file name.

    Args:
        examples: Array of images or of file names.
        labels: One integer per example.
        count: How many to hold out. Defaults to a tenth.

    Raises:
        ValueError: If so many cannot be spared.
    """
    digests = [
        hashlib.blake2b(
            os.fsencode(example) if isinstance(example, str) else example.tobytes(), digest_size=8
        ).digest()
        for example in examples
    ]
    digests = np.frombuffer(b"".join(digests), np.uint64)
    class_sizes = np.bincount(labels)
    order = np.lexsort((digests, labels))
    rank = np.empty(len(labels), np.int64)  # of an example within its class
    rank[order] = np.arange(len(labels)) - (np.cumsum(class_sizes) - class_sizes)[labels[order]]
    size = class_sizes[labels]
    spare = np.flatnonzero(rank < size - 1)
    if count is None:
        count = min(len(spare), max(_default_count(len(labels)), np.sum(class_sizes > 1)))
    if count > len(spare):
        raise _too_many_held_out(len(spare), count)
    held = np.zeros(len(labels), bool)
    held[spare[np.lexsort((digests[spare], rank[spare] / size[spare]))[:count]]] = True
    return (examples[~held], labels[~held]), (examples[held], labels[held])


def _default_count(num_examples):
    return min(round(HELD_OUT_SHARE * num_examples), MOST_HELD_OUT)


def carve_slices(builder, sources, validation_examples):
    """`carve` for streams: slices of train, whose order TFDS shuffled when it wrote them.

    Args:
        builder: A prepared TFDS builder.
        sources: Dict of splits, at least "train", with the TFDS names.
        validation_examples: How many to hold out for validation. Defaults to a tenth.

    Returns:
        The dict with "train", "validation" and "test", and TFDS names or slices.

    Raises:
        ValueError: If TFDS has not shuffled them, or so many cannot be spared.
    """
    _check_validation_examples(validation_examples, "validation" in sources)
    num_examples = builder.info.splits["train"].num_examples
    counts = dict.fromkeys(("test", "validation"), _default_count(num_examples))
    if validation_examples is not None:
        counts["validation"] = validation_examples
    missing = [split for split in counts if split not in sources]
    if missing and builder.info.disable_shuffling:
        raise ValueError(
            f"The images of {builder.name!r} stand in an order of their own, so that a slice of "
            f"them is no sample. Expected shuffled ones, or splits of its own for "
            f"{' and '.join(missing)}. Received: disable_shuffling=True. Prepare the dataset "
            "without it, or with these splits."
        )
    start = 0
    for split in missing:
        end = start + counts[split]
        sources = sources | {split: f"train[{start}:{end}]"}
        start = end
    if start >= num_examples:
        raise _too_many_held_out(num_examples - 1, start)
    return sources | {"train": f"train[{start}:]"}


def _too_many_held_out(most, received):
    return ValueError(
        f"Too few images to hold out so many. Expected at most {most}, so that every class keeps "
        f"one to train on. Received: {received}. Choose a smaller validation_examples."
    )


def _check_validation_examples(count, has_its_own):
    if count is not None and (has_its_own or count < 0):
        raise ValueError(
            "The size of the validation split cannot be chosen. Expected "
            + ("None, because the dataset brings its own" if has_its_own else "0 or more")
            + f". Received: validation_examples={count}."
        )
