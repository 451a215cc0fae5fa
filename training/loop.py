"""One training run: from a recipe to a directory with weights, curves and a record."""

import math
import os
import pathlib
import shutil
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training import callbacks, checkpoints, datasets, evaluate, files, pipeline, plots, records
from training.compilation import compiled_model, preprocessing_of, wants_one_hot
from training.interruption import Signals
from training.recipe import Recipe
from training.records import Record
from training.strategy import check_batch_size, make_strategy


def train(
    recipe: Recipe,
    *,
    run_dir: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    scale_learning_rate: bool = False,
    replicas: int | None = None,
    xla: bool | str = "auto",
    accumulation_steps: int = 1,
    seed: int = 0,
    skip_corrupt: bool = False,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    verbose: int | None = None,
) -> Record:
    """Follows a recipe and keeps the run.

    The directory then holds `record.json`, `best.keras` (the epoch with the highest validation
    accuracy, the last of equals), `last.keras`, `metrics.csv`, `curves.png` and `tensorboard/`.
    The test split is scored once, after the training, with the best weights. The splits are the
    same for every seed.

    A run that was stopped, at whatever moment, is continued with `resume`: with the same images in
    the same order, to the same weights. Until the end `checkpoints/` holds what that takes.

    Args:
        recipe: The recipe.
        run_dir: New or empty directory, or with `resume` that of the run. Default:
            `runs/<recipe>-seed<seed>`.
        data_dir: Where the images are, see `datasets.load`.
        steps: Number of steps instead of the recipe's; milestones and warm-up are scaled.
        epochs: The same in passes over the training split.
        batch_size: Images per step over all replicas, instead of the recipe's. The number of
            images seen stays the same.
        scale_learning_rate: Whether the learning rate grows with that batch size, or stays.
        replicas: Number of devices, see `make_strategy`.
        xla: Whether XLA compiles the training step of each replica; `"auto"`: on accelerators.
        accumulation_steps: In how many parts each replica does its share of a batch, to need the
            memory of a smaller one.
        seed: Seed of the initialisation, the order of the images and the augmentation.
        skip_corrupt: Whether damaged files are counted and left out, instead of being an error.
        resume: Whether a run that is there is continued; if there is none, one starts, and a
            finished one stays as it is.
        checkpoint_every: Seconds between two checkpoints within an epoch; each epoch ends with
            one anyway.
        verbose: 0 (silent), 1 (progress bar) or 2 (one line per epoch). Default: 1 on a terminal,
            2 elsewhere.

    Returns:
        The record that was written.

    Raises:
        ValueError: If anything does not fit together; before the run directory is made. Or if the
            training diverges, or a file cannot be written; the checkpoint before is kept.
        Interrupted: On SIGTERM and Ctrl-C, once a checkpoint is saved.
    """
    strategy = make_strategy(replicas)
    keras.utils.set_random_seed(seed)
    dataset = datasets.load(
        recipe.dataset,
        data_dir=data_dir,
        validation_examples=recipe.validation_examples,
        skip_corrupt=skip_corrupt,
    )
    check_complete(dataset)
    recipe = fit_to_data(
        recipe,
        dataset,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        scale_learning_rate=scale_learning_rate,
    )
    check_batch_size(recipe.batch_size, strategy, accumulation_steps)
    with strategy.scope():
        model = compiled_model(recipe, dataset, xla=xla, accumulation_steps=accumulation_steps)
    batches = _batches(recipe, dataset, seed)  # what is wrong with them is said now
    record = records.new_record(
        recipe,
        seed=seed,
        replicas=strategy.num_replicas_in_sync,
        data=describe(dataset, skip_corrupt),
        accumulation_steps=accumulation_steps,
        xla=bool(model.jit_compile),
    )
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    run_dir = run_dir or default_run_dir(recipe, seed)
    with (
        records.claimed(run_dir, resume=resume) as run_dir,
        files.writing(run_dir),
        Signals() as signals,
    ):
        start = checkpoints.load_newest(run_dir / checkpoints.FOLDER)  # or nothing is continued
        record = records.begin(run_dir, record)
        if record.results:
            if verbose:
                print(f"The run in {run_dir} has finished already.")
            return record
        progress = _fit(
            run_dir, record, model, dataset, batches, start, signals, checkpoint_every, verbose
        )
        return _finish(run_dir, record, progress, model, dataset)


def default_run_dir(recipe: Recipe, seed: int) -> pathlib.Path:
    """`runs/<recipe>-seed<seed>`, below the working directory."""
    return pathlib.Path("runs") / f"{recipe.name}-seed{seed}"


def check_complete(dataset) -> None:
    """Raises a ValueError if a split is empty, before hours are spent on the others.

    Args:
        dataset: A `training.datasets.Dataset`.
    """
    images = {name: split.num_examples for name, split in dataset.splits.items()}
    empty = [name for name, count in images.items() if not count]
    if empty:
        raise ValueError(
            f"{dataset.name!r} has no images for {' and '.join(empty)}. Expected at least one in "
            f"each split. Received: {', '.join(f'{n} {c}' for n, c in images.items())}. Add "
            "images to each class, or give the splits folders of their own."
        )


def steps_per_epoch(recipe: Recipe, dataset) -> int:
    """The whole number of steps that comes nearest to one pass over the training split.

    Args:
        recipe: The recipe.
        dataset: What it is trained on.
    """
    return max(1, round(dataset.splits["train"].num_examples / recipe.batch_size))


def fit_to_data(
    recipe: Recipe, dataset, *, steps=None, epochs=None, batch_size=None, scale_learning_rate=False
) -> Recipe:
    """The recipe with the changes a user asked for.

    Args:
        recipe: The recipe.
        dataset: What it is trained on; its size turns epochs into steps.
        steps: Number of steps, or `None`.
        epochs: Number of epochs, or `None`.
        batch_size: Images per step, or `None`.
        scale_learning_rate: Whether the learning rate grows with the batch size.

    Raises:
        ValueError: If both steps and epochs are given, or one is not positive, or the learning
            rate is to grow with a batch size that is not given.
    """
    if scale_learning_rate and batch_size is None:
        raise ValueError(
            "The learning rate is scaled with a batch size that is not given. Expected "
            f"`batch_size` with scale_learning_rate=True. Received: batch_size=None. Choose it "
            f"with --batch-size; the recipe's own is {recipe.batch_size}."
        )
    if steps is not None and epochs is not None:
        raise ValueError(
            "The length of a run is given twice. Expected `steps` or `epochs`. "
            f"Received: steps={steps}, epochs={epochs}"
        )
    if batch_size is not None:
        recipe = recipe.with_batch_size(batch_size, scale_learning_rate=scale_learning_rate)
    if epochs is not None:
        steps = epochs * steps_per_epoch(recipe, dataset)
    return recipe if steps is None else recipe.scaled(steps)


def _batches(recipe, dataset, seed, start_step=0):
    """What `fit` learns from without end, and what it is validated on."""
    preprocessing = preprocessing_of(recipe, dataset)
    one_hot = wants_one_hot(recipe)
    training = pipeline.training_batches(
        dataset,
        batch_size=recipe.batch_size,
        augmentation=recipe.augmentation,
        preprocessing=preprocessing,
        seed=seed,
        start_step=start_step,
        repeats=recipe.repeats,
        one_hot=one_hot,
        image_sizes=recipe.image_sizes,
        steps=recipe.steps,
    )
    validation = pipeline.evaluation_batches(
        dataset.splits["validation"], batch_size=recipe.batch_size, preprocessing=preprocessing
    )
    if one_hot:
        classes = len(dataset.class_names)
        validation = validation.map(
            lambda images, labels, weights: (images, tf.one_hot(labels, classes), weights)
        )
    return training, validation


def _fit(run_dir, record, model, dataset, batches, start, signals, checkpoint_every, verbose):
    """From where the run stands to its last step."""
    recipe, (progress, arrays) = record.recipe, start
    if progress.step:
        if verbose:
            print(f"Continuing after step {progress.step} of {recipe.steps}.")
        batches = _batches(recipe, dataset, record.seed, start_step=progress.step)
    training, validation = batches
    epoch_steps = min(steps_per_epoch(recipe, dataset), recipe.steps)
    validated = int(validation.cardinality()) * recipe.batch_size
    model.fit(
        training,
        initial_epoch=progress.epochs,
        epochs=math.ceil(recipe.steps / epoch_steps),
        steps_per_epoch=epoch_steps,
        shuffle=False,  # the pipeline has done it
        validation_data=validation,
        callbacks=callbacks.in_order(
            run_dir,
            progress,
            arrays,
            steps=recipe.steps,
            steps_per_epoch=epoch_steps,
            validation_share=dataset.splits["validation"].num_examples / validated,
            ema_momentum=recipe.ema_momentum,
            checkpoint_every=checkpoint_every,
            signals=signals,
        ),
        verbose=verbose,
    )
    return progress


def _finish(run_dir, record, progress, model, dataset):
    """What comes after the last step; a run that is stopped here does all of it again."""
    with files.replacing(run_dir / records.LAST) as path:
        model.save(path)
    with files.replacing(run_dir / "curves.png") as path:
        plots.training_curves(progress.history, path, title=record.recipe.name)
    results = _results(model, dataset, progress.history, run_dir)
    record = record.finished(progress.seconds, results)
    records.write(run_dir, record)
    shutil.rmtree(run_dir / checkpoints.FOLDER)
    return record


def _results(model, dataset, history, run_dir):
    """What the run reached: the validation split's curve, and the test split scored once."""
    accuracies = np.asarray(history["val_accuracy"])
    best_epoch = int(np.flatnonzero(accuracies == accuracies.max())[-1])
    model.load_weights(run_dir / records.BEST)
    test = evaluate.evaluate(model, dataset.splits["test"], preprocessing=model.preprocessing)
    return {
        "best_epoch": 1 + best_epoch,
        "epochs": len(accuracies),
        "train_accuracy": history["accuracy"][-1],
        "validation_accuracy": float(accuracies[best_epoch]),
        "test": test.to_dict(),
    }


def describe(dataset, skip_corrupt: bool) -> dict[str, Any]:
    """What is read: a run or a search goes on with the same alone.

    Args:
        dataset: A `training.datasets.Dataset`.
        skip_corrupt: Whether damaged files were left out.

    Returns:
        Plain JSON types.
    """
    return {
        "images": {name: split.num_examples for name, split in dataset.splits.items()},
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "skip_corrupt": skip_corrupt,
        "skipped": list(dataset.skipped),
    }
