"""Examples become batches: tf.data from a split to what `fit` and `evaluate` take.

Which images a training step sees, and how they are augmented, depends on the seed and the number
of the step alone. A run that stopped at step 1,234 continues with `start_step=1234` as if it had
never stopped.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from keras_resnet.preprocessing import Preprocessing
from training import augment, pixels
from training.datasets import Dataset
from training.splits import PARALLEL_CALLS, Split


def training_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    augmentation: Mapping[str, Mapping],
    preprocessing: Preprocessing,
    seed: int,
    split: str = "train",
    start_step: int = 0,
    repeats: int = 1,
    one_hot: bool = False,
    image_sizes: Sequence[tuple[float, int]] = (),
    steps: int | None = None,
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
        repeats: How often each image that is drawn stands in a batch, each time augmented anew;
            the last ones once less where the batch does not divide.
            Then as many steps as one epoch has see one in `repeats` of the images. The copies
            stand far apart, so that replicas share them. (timm starts a new order at every epoch;
            here the order goes on until all images have been seen.)
        one_hot: Whether labels are vectors of shares. They are if the augmentation mixes images.
        image_sizes: Side of the images in pixels as the run goes on, as pairs of the share of
            `steps` that is done and the side. Empty: `preprocessing.size`.
        steps: Number of steps of the run, for `image_sizes`.

    Returns:
        Dataset of `(images, labels)`: float32 of shape `(batch_size, *size, channels)`, where
        height and width are None if they vary, and int32 of shape `(batch_size,)` or float32 of
        shape `(batch_size, classes)`. It has no end: pass `steps_per_epoch` to `fit`.

    Raises:
        ValueError: If the augmentation is not known, or the split is empty.

    Reference: Hoffer et al. 2020, "Augment your batch", for `repeats`; Tan and Le 2021,
    "EfficientNetV2", section 4, for `image_sizes`.
    """
    examples = dataset.splits[split]
    _check(examples, batch_size, f"{split!r} of {dataset.name!r}")
    drawn = -(-batch_size // repeats)

    def part(preprocessing, first_step, end_step):
        """The batches of one image size."""
        chain = augment.chain(augmentation, preprocessing)
        step = max(first_step, start_step)
        keys = _endless_keys(examples, seed, start=step * drawn)
        if repeats > 1:
            copies = functools.partial(_copies, count=repeats, batch_size=batch_size)
            keys = keys.batch(drawn).map(copies).unbatch()
        batches = _augmented(
            examples, keys, chain, preprocessing, batch_size=batch_size, seed=seed, step=step
        )

        def finish(step, batch):
            images, labels = batch
            images = pixels.normalize(images, preprocessing)
            if not (one_hot or chain.mix):
                return images, tf.cast(labels, tf.int32)
            labels = tf.one_hot(labels, len(dataset.class_names))
            if chain.mix:
                # Mixing commutes with normalisation, and on floats it rounds nothing.
                images, labels = chain.mix(images, labels, _seed(seed, step))
            return images, labels

        batches = _parallel_map(batches.enumerate(step), finish)
        return batches if end_step is None else batches.take(max(0, end_step - step))

    # Sizes that are over are parts without batches: they keep the type what it is.
    parts = [part(*stage) for stage in _stages(preprocessing, image_sizes, steps)]
    return ready(functools.reduce(tf.data.Dataset.concatenate, parts))


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
        return pixels.fit(images, preprocessing), labels, position < split.num_examples

    if split.in_memory:
        batches = _parallel_map(keys.batch(batch_size, drop_remainder=True), prepare)
    else:
        batches = _parallel_map(keys, prepare).batch(batch_size, drop_remainder=True)

    def normalize(images, labels, weights):
        images = pixels.normalize(images, preprocessing)
        return images, tf.cast(labels, tf.int32), tf.cast(weights, tf.float32)

    return ready(
        _parallel_map(batches, normalize).apply(tf.data.experimental.assert_cardinality(steps))
    )


def _stages(preprocessing, image_sizes, steps):
    """For each image size `(preprocessing, first step, step after the last)`."""
    if not image_sizes:
        return [(preprocessing, 0, None)]
    if steps is None:
        raise ValueError(
            "The image sizes change at shares of a run of unknown length. Expected the number of "
            f"its `steps`. Received: steps=None, image_sizes={image_sizes}."
        )
    starts = [round(share * steps) for share, _ in image_sizes]
    stages = []
    for (_, side), start, end in zip(image_sizes, starts, [*starts[1:], None]):
        resized = preprocessing.resize_size
        if resized is not None:  # the same part of the image at every size
            resized = round(resized * side / min(preprocessing.size))
        fields = {"size": (side, side), "resize_size": resized}
        stages.append((dataclasses.replace(preprocessing, **fields), start, end))
    return stages


def _augmented(split, keys, chain, preprocessing, *, batch_size, seed, step):
    """Batches of images of the right size, from a step on."""
    size, interpolation = preprocessing.size, preprocessing.interpolation

    def prepare(number, key):
        own = _seed(seed, number)
        if chain.crop:
            images, labels = split.fetch(key, lambda *sides: chain.crop(*sides, own, size))
            images = pixels.resize(images, size, interpolation, preprocessing.antialias)
            images = pixels.to_uint8(images)
        else:
            images, labels = split.fetch(key)
            if None in images.shape:
                images = pixels.to_uint8(pixels.fit(images, preprocessing))
        return pixels.fit(chain.change(images, own), preprocessing), labels

    if split.in_memory and chain.takes_batches and chain.crop is None:
        batches = keys.batch(batch_size, drop_remainder=True).enumerate(step)
        return _parallel_map(batches, prepare)
    singles = _parallel_map(keys.enumerate(step * batch_size), prepare)
    return singles.batch(batch_size, drop_remainder=True)


def _seed(seed, number):
    return tf.stack([tf.constant(seed, tf.int64), number])


def _copies(keys, count, batch_size):
    """All keys, and all again: a replica's share holds different images."""
    return tf.nest.map_structure(
        lambda values: tf.concat([values] * count, axis=0)[:batch_size], keys
    )


def _endless_keys(split, seed, start):
    """Keys from position `start` on; epoch after epoch, each in its own order."""
    first_epoch, done = divmod(start, split.num_examples)

    def epoch(number):
        # Negative, so that no order shares its random numbers with an image.
        return split.shuffled_keys(_seed(seed, -1 - number))

    return tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(epoch).skip(done)


def _parallel_map(dataset, function):
    # It is made of operations of TensorFlow already: AutoGraph would take its time for nothing.
    function = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(function, num_parallel_calls=PARALLEL_CALLS, deterministic=True)


def ready(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Batches in their order, two of them made ahead."""
    options = tf.data.Options()
    options.deterministic = True
    # Every other iterator that is tuned waits at its end for up to as long as it ran, a minute at
    # most: TensorFlow 2.21 wakes what tunes it before it says that it is to stop.
    options.autotune.enabled = False
    # There may be fewer files than workers: each takes its share of the examples.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.prefetch(2).with_options(options)


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
