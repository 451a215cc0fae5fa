"""Whether the images come fast enough: the input pipeline, on this machine.

    python -m training benchmark input RECIPE [--batch-size 128] [--steps 40] [--rounds 5]
    python -m training benchmark input --folder PATH [--batch-size 64] [--steps 20] [--rounds 5]

For a recipe: the pipeline alone, the training step alone on a fixed batch, and both together. For a
folder of JPEG files: this pipeline against the one of a few lines that TensorFlow's guides teach.
All candidates alternate in one process; each turn starts a pipeline anew and pays for its start.
"""

import dataclasses
import pathlib
import time

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from benchmarks.alternation import spread
from keras_resnet.preprocessing import IMAGENET
from training import datasets, image_files, pipeline, splits
from training.compilation import compiled_model, preprocessing_of, wants_one_hot
from training.recipe import Recipe

_CROP = {"inception_crop": {}, "flip": {}}


def of_recipe(recipe: Recipe, *, data_dir=None, steps: int, rounds: int) -> None:
    """Prints how fast a recipe's images come, how fast it trains, and how fast both together.

    Args:
        recipe: The recipe.
        data_dir: Where the images are, see `datasets.load`.
        steps: Batches of each turn.
        rounds: Turns of each candidate.
    """
    dataset = datasets.load(recipe.dataset, data_dir=data_dir)
    model = compiled_model(recipe, dataset)
    batches = pipeline.training_batches(
        dataset,
        batch_size=recipe.batch_size,
        augmentation=recipe.augmentation,
        preprocessing=preprocessing_of(recipe, dataset),
        seed=0,
        repeats=recipe.repeats,
        one_hot=wants_one_hot(recipe),
        image_sizes=recipe.image_sizes,
        steps=recipe.steps,
    )
    fixed = pipeline.ready(tf.data.Dataset.from_tensors(next(iter(batches))).repeat())

    def train(data):
        model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)

    candidates = {
        "pipeline alone": lambda: _read(batches, steps),
        "step alone": lambda: train(fixed),
        "both together": lambda: train(batches),
    }
    rates, cores = alternate(candidates, images=steps * recipe.batch_size, rounds=rounds)
    alone, step, both = rates.values()
    title = f"{recipe.name}, batch {recipe.batch_size}"
    print_table(title, rates, cores, compared_with="step alone")
    to_slower = [b / min(a, s) for a, s, b in zip(alone, step, both)]
    to_shared = [b * (1 / a + 1 / s) for a, s, b in zip(alone, step, both)]
    print(f"together, to the slower of the two: {spread(to_slower, 3)}")
    print(f"together, to 1/(1/pipeline + 1/step), what shared cores allow: {spread(to_shared, 3)}")


def of_folder(folder, *, batch_size: int, steps: int, rounds: int) -> None:
    """Prints how fast random crops of JPEG files come, from this pipeline and from a plain one.

    Args:
        folder: Directory with class folders of JPEG files.
        batch_size: Images per batch.
        steps: Batches of each turn.
        rounds: Turns of each candidate.
    """
    parts, class_names, _, sizes = image_files.find_images(folder, skip_corrupt=False)
    names, labels = (np.concatenate(columns) for columns in zip(*parts.values()))
    paths, sizes = [str(folder / name) for name in names], [sizes[name] for name in names]
    encoded = [pathlib.Path(path).read_bytes() for path in paths]
    held = {
        "files read each time": splits.read_from_files(folder, names, labels, sizes),
        "files in memory": splits.held_encoded(encoded, labels, sizes),
        "pixels in memory": splits.held_decoded(encoded, labels, sizes),
    }
    candidates = {
        "plain": plain_batches(paths, batch_size),
        "plain, the same work": plain_batches(paths, batch_size, IMAGENET),
    }
    for name, split in held.items():
        images = datasets.Dataset(name, class_names, (None, None, 3), {"train": split}, IMAGENET)
        for antialias in (True, False):
            candidates[name + ("" if antialias else ", no antialias")] = pipeline.training_batches(
                images,
                batch_size=batch_size,
                augmentation=_CROP,
                preprocessing=dataclasses.replace(IMAGENET, antialias=antialias),
                seed=0,
            )
    rates, cores = alternate(
        {name: lambda data=data: _read(data, steps) for name, data in candidates.items()},
        images=steps * batch_size,
        rounds=rounds,
    )
    title = f"{len(paths)} files, crops of {IMAGENET.size}, batch {batch_size}"
    print_table(title, rates, cores, compared_with="plain")


def plain_batches(paths, batch_size: int, preprocessing=None) -> tf.data.Dataset:
    """What one writes: read, decode, crop at random, resize, batch, prefetch; on all cores.

    Args:
        paths: JPEG files.
        batch_size: Images per batch.
        preprocessing: With it, resizing is antialiased, half of the images are mirrored, and all
            are normalised, as our pipeline does it.
    """

    def load(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        corner, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros((0, 0, 4)),
            min_object_covered=0.0,
            area_range=(0.08, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.slice(image, corner, size)
        image = tf.image.resize(image, (224, 224), antialias=preprocessing is not None)
        image = tf.ensure_shape(image, (224, 224, 3))
        if preprocessing is None:
            return image
        return preprocessing.normalize(tf.image.random_flip_left_right(image))

    files = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    images = files.map(load, num_parallel_calls=splits.PARALLEL_CALLS)
    return pipeline.ready(images.batch(batch_size, drop_remainder=True))


def alternate(candidates, *, images: int, rounds: int):
    """Images per second of each candidate's turns, and the cores that it kept busy.

    Args:
        candidates: Functions by name, each of which works through so many images; a first round
            warms them up.
        images: How many.
        rounds: How often each has its turn.

    Returns:
        Two dicts by name, of lists with one number for each round.
    """
    rates, cores = {}, {}
    for turn in range(rounds + 1):
        for name, work in candidates.items():
            start, busy = time.perf_counter(), time.process_time()
            work()
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            if turn:
                rates.setdefault(name, []).append(images / seconds)
                cores.setdefault(name, []).append(1000 * busy / images)
    return rates, cores


def print_table(title: str, rates, cores, *, compared_with: str) -> None:
    """Medians, with the smallest and largest; ratios are taken round by round.

    Args:
        title: What was measured.
        rates: Images per second by name, one for each round.
        cores: Milliseconds of one core for each image, likewise.
        compared_with: Name of the candidate that the others' rates are divided by.
    """
    table = Table("", "images/s", "core ms/image", f"to {compared_with}", title=title)
    for name in rates:
        ratios = [mine / theirs for mine, theirs in zip(rates[name], rates[compared_with])]
        table.add_row(name, spread(rates[name], 0), spread(cores[name], 2), spread(ratios, 2))
    Console(width=110).print(table)


def _read(batches, steps):
    for _ in batches.take(steps):
        pass
