"""Examples become batches: tf.data from a split to what `fit` and `evaluate` take.

Which images a training step sees, and how they are augmented, depends on the seed and the number
of the step alone. A run that stopped at step 1,234 continues with `start_step=1234` as if it had
never stopped.
"""

from collections.abc import Mapping

import tensorflow as tf

from keras_resnet.preprocessing import Preprocessing
from training import augment
from training.datasets import Dataset
from training.splits import Split


def training_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    augmentation: Mapping[str, Mapping],
    preprocessing: Preprocessing,
    seed: int,
    split: str = "train",
    start_step: int = 0,
) -> tf.data.Dataset:
    """Shuffled, augmented, normalised batches without end.

    Epochs follow each other without a seam: each holds every example exactly once, in its own
    order, and a batch may hold the end of one and the start of the next. So all batches are full,
    which replicas need (one with an empty batch turns weights into NaN), and no image is dropped.

    Args:
        dataset: Where the images come from.
        batch_size: Images per batch over all replicas together, at least 1.
        augmentation: Names of `training.augment.AUGMENTATIONS` in order, each with keywords.
        preprocessing: Size and normalisation of the network's input.
        seed: Decides the order and the augmentation.
        split: Name of the split.
        start_step: The first batch is the one of this step.

    Returns:
        Dataset of `(images, labels)`: float32 of shape `(batch_size, *size, channels)`, and int32
        of shape `(batch_size,)`. It has no end: pass `steps_per_epoch` to `fit`.

    Raises:
        ValueError: If the augmentation is not known, or the split is empty.
    """
    examples = dataset.splits[split]
    _check(examples, batch_size, f"{split!r} of {dataset.name!r}")
    change, takes_batches = augment.chain(augmentation, preprocessing)

    def prepare(number, key):
        images, labels = examples.fetch(key)
        images = change(images, tf.stack([tf.constant(seed, tf.int64), number]))
        return resize(images, preprocessing), labels

    keys = _endless_keys(examples, seed, start=start_step * batch_size)
    if examples.in_memory and takes_batches:
        batches = keys.batch(batch_size, drop_remainder=True).enumerate(start_step)
        batches = _parallel_map(batches, prepare)
    else:
        singles = _parallel_map(keys.enumerate(start_step * batch_size), prepare)
        batches = singles.batch(batch_size, drop_remainder=True)

    def normalize(images, labels):
        return preprocessing.normalize(images), tf.cast(labels, tf.int32)

    return _finish(_parallel_map(batches, normalize))


def evaluation_batches(
    split: Split, *, batch_size: int, preprocessing: Preprocessing
) -> tf.data.Dataset:
    """Every example exactly once, in order, in full batches.

    The last batch is filled up with examples of weight 0, so that no replica gets an empty one and
    weighted metrics are those of the split.

    Args:
        split: The examples.
        batch_size: Images per batch over all replicas together, at least 1.
        preprocessing: Size and normalisation of the network's input.

    Returns:
        Dataset of `(images, labels, weights)`: float32 of shape `(batch_size, *size, channels)`,
        int32 and float32 of shape `(batch_size,)`. The weights sum to `split.num_examples`.

    Raises:
        ValueError: If the split is empty.
    """
    _check(split, batch_size, "to be evaluated")
    steps = -(-split.num_examples // batch_size)
    keys = split.keys.repeat().take(steps * batch_size).enumerate()

    def prepare(position, key):
        images, labels = split.fetch(key)
        return resize(images, preprocessing), labels, position < split.num_examples

    if split.in_memory:
        batches = _parallel_map(keys.batch(batch_size, drop_remainder=True), prepare)
    else:
        batches = _parallel_map(keys, prepare).batch(batch_size, drop_remainder=True)

    def normalize(images, labels, weights):
        images = preprocessing.normalize(images)
        return images, tf.cast(labels, tf.int32), tf.cast(weights, tf.float32)

    return _finish(
        _parallel_map(batches, normalize).apply(tf.data.experimental.assert_cardinality(steps))
    )


def resize(images, preprocessing: Preprocessing):
    """`Preprocessing.resize` for images whose size is known only when they are read.

    In TensorFlow under every Keras backend, as tf.data wants it.

    Args:
        images: Tensor of shape `([batch,] height, width, channels)`, values 0..255.
        preprocessing: Gives `size`, `resize_size` and the interpolation.

    Returns:
        Tensor of shape `([batch,] *size, channels)`: float32, or the images themselves where their
        static size fits.
    """
    size = tf.constant(preprocessing.size)
    if images.shape[-3:-1] == preprocessing.size:
        return images
    sides = size
    if preprocessing.resize_size is not None:
        given = tf.shape(images)[-3:-1]
        ratio = preprocessing.resize_size / tf.cast(tf.reduce_min(given), tf.float64)
        sides = tf.cast(tf.round(tf.cast(given, tf.float64) * ratio), tf.int32)
        sides = tf.where(tf.reduce_all(given == size), size, tf.maximum(sides, size))
    images = tf.image.resize(
        images, sides, preprocessing.interpolation, antialias=preprocessing.antialias
    )
    images = tf.clip_by_value(images, 0.0, 255.0)  # bicubic overshoots
    top, left = tf.unstack((sides - size) // 2)
    return tf.image.crop_to_bounding_box(images, top, left, *preprocessing.size)


def _endless_keys(split, seed, start):
    """Keys from position `start` on; epoch after epoch, each in its own order."""
    first_epoch, done = divmod(start, split.num_examples)

    def epoch(number):
        # Negative, so that no order shares its random numbers with an image.
        return split.shuffled_keys(tf.stack([tf.constant(seed, tf.int64), -1 - number]))

    return tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(epoch).skip(done)


def _parallel_map(dataset, function):
    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _finish(batches):
    options = tf.data.Options()
    options.deterministic = True
    # There may be fewer files than workers: each takes its share of the examples.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _check(split, batch_size, name):
    if batch_size < 1:
        raise ValueError(
            f"A batch needs an image. Expected batch_size >= 1. Received: {batch_size}."
        )
    if not split.num_examples:
        raise ValueError(
            f"The split {name} is empty. Expected at least one example. Received: 0. "
            "Give the dataset more images per class, or folders of its own for this split."
        )
