"""One training run: from a recipe to a directory with weights, curves and a record."""

import math
import os
import pathlib
import sys
import time

import keras
import numpy as np

import keras_resnet
from training import datasets, evaluate, pipeline, plots, records
from training.optimizers import make_optimizer
from training.recipe import Recipe
from training.records import Record
from training.strategy import AverageMovingStatistics, check_batch_size, make_strategy


def train(
    recipe: Recipe,
    *,
    run_dir: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    replicas: int | None = None,
    seed: int = 0,
    skip_corrupt: bool = False,
    verbose: int | None = None,
) -> Record:
    """Follows a recipe and keeps the run.

    The directory then holds `record.json`, `best.keras` (the epoch with the highest validation
    accuracy, the last of equals), `last.keras`, `metrics.csv`, `curves.png` and `tensorboard/`.
    The test split is scored once, after the training, with the best weights. The splits are the
    same for every seed.

    Args:
        recipe: The recipe.
        run_dir: New or empty directory. Default: `runs/<recipe>-seed<seed>`.
        data_dir: Where the images are, see `datasets.load`.
        steps: Number of steps instead of the recipe's; milestones and warm-up are scaled.
        epochs: The same in passes over the training split.
        batch_size: Images per step over all replicas, instead of the recipe's. The number of
            images seen stays the same, and so does the learning rate.
        replicas: Number of devices, see `make_strategy`.
        seed: Seed of the initialisation, the order of the images and the augmentation.
        skip_corrupt: Whether damaged files are counted and left out, instead of being an error.
        verbose: 0 (silent), 1 (progress bar) or 2 (one line per epoch). Default: 1 on a terminal,
            2 elsewhere.

    Returns:
        The record that was written.

    Raises:
        ValueError: If anything does not fit together; before the run directory is made.
    """
    strategy = make_strategy(replicas)
    keras.utils.set_random_seed(seed)
    dataset = datasets.load(recipe.dataset, data_dir=data_dir, skip_corrupt=skip_corrupt)
    check_complete(dataset)
    recipe = fit_to_data(recipe, dataset, steps=steps, epochs=epochs, batch_size=batch_size)
    check_batch_size(recipe.batch_size, strategy)
    with strategy.scope():
        model = compiled_model(recipe, dataset)
    batches = _batches(recipe, dataset, seed)

    run_dir = records.claim(run_dir or default_run_dir(recipe, seed))
    record = records.new_record(
        recipe,
        seed=seed,
        replicas=strategy.num_replicas_in_sync,
        data=_describe(dataset, skip_corrupt),
    )
    records.write(run_dir, record)

    started = time.perf_counter()
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    epoch = min(steps_per_epoch(recipe, dataset), recipe.steps)
    history = _fit(model, batches, recipe.steps, epoch, run_dir=run_dir, verbose=verbose)
    seconds = time.perf_counter() - started
    plots.training_curves(history, run_dir / "curves.png", title=recipe.name)

    record = record.finished(seconds, _results(model, dataset, history, run_dir))
    records.write(run_dir, record)
    return record


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


def fit_to_data(recipe: Recipe, dataset, *, steps=None, epochs=None, batch_size=None) -> Recipe:
    """The recipe with the changes a user asked for.

    Args:
        recipe: The recipe.
        dataset: What it is trained on; its size turns epochs into steps.
        steps: Number of steps, or `None`.
        epochs: Number of epochs, or `None`.
        batch_size: Images per step, or `None`.

    Raises:
        ValueError: If both steps and epochs are given, or one is not positive.
    """
    if steps is not None and epochs is not None:
        raise ValueError(
            "The length of a run is given twice. Expected `steps` or `epochs`. "
            f"Received: steps={steps}, epochs={epochs}"
        )
    if batch_size is not None:
        recipe = recipe.with_batch_size(batch_size)
    if epochs is not None:
        steps = epochs * steps_per_epoch(recipe, dataset)
    return recipe if steps is None else recipe.scaled(steps)


def compiled_model(recipe: Recipe, dataset) -> keras.Model:
    """The recipe's network for a dataset, ready to be trained; call it in a strategy's scope.

    Args:
        recipe: The recipe.
        dataset: Its images give the input shape, its labels the classes.
    """
    model = keras_resnet.build(
        recipe.variant,
        input_shape=(*dataset.preprocessing.size, dataset.image_shape[-1]),
        classes=len(dataset.class_names),
        **recipe.options,
    )
    model.preprocessing = dataset.preprocessing  # the exports carry it along
    model.compile(
        make_optimizer(recipe),
        loss="sparse_categorical_crossentropy",
        # Weighted: the images that fill up the last validation batch weigh nothing. The loss
        # itself is a mean over batches, so the exact mean over images is a metric.
        weighted_metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy"),
        ],
        jit_compile=False,
    )
    return model


def _batches(recipe, dataset, seed):
    """What `fit` learns from without end, and what it is validated on."""
    training = pipeline.training_batches(
        dataset,
        batch_size=recipe.batch_size,
        augmentation=recipe.augmentation,
        preprocessing=dataset.preprocessing,
        seed=seed,
    )
    validation = pipeline.evaluation_batches(
        dataset.splits["validation"],
        batch_size=recipe.batch_size,
        preprocessing=dataset.preprocessing,
    )
    return training, validation


def _fit(model, batches, steps, steps_per_epoch, *, run_dir, verbose):
    training, validation = batches
    best = keras.callbacks.ModelCheckpoint(
        run_dir / records.BEST, monitor="val_accuracy", mode="max", save_best_only=True
    )
    best.monitor_op = np.greater_equal  # of equals the later: it has trained longer
    history = model.fit(
        training,
        epochs=math.ceil(steps / steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        shuffle=False,  # the pipeline has done it
        validation_data=validation,
        callbacks=[
            AverageMovingStatistics(),
            StopAfter(steps),
            LogLearningRate(),
            best,
            keras.callbacks.CSVLogger(run_dir / "metrics.csv"),
            keras.callbacks.TensorBoard(run_dir / "tensorboard", write_graph=False),
        ],
        verbose=verbose,
    )
    model.save(run_dir / records.LAST)
    return history.history


def _results(model, dataset, history, run_dir):
    """What the run reached: the validation split's curve, and the test split scored once."""
    accuracies = np.asarray(history["val_accuracy"])
    best_epoch = int(np.flatnonzero(accuracies == accuracies.max())[-1])
    model.load_weights(run_dir / records.BEST)
    test = evaluate.evaluate(model, dataset.splits["test"], preprocessing=dataset.preprocessing)
    return {
        "best_epoch": 1 + best_epoch,
        "epochs": len(accuracies),
        "train_accuracy": history["accuracy"][-1],
        "validation_accuracy": float(accuracies[best_epoch]),
        "test": test.to_dict(),
    }


def _describe(dataset, skip_corrupt):
    return {
        "images": {name: split.num_examples for name, split in dataset.splits.items()},
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "skip_corrupt": skip_corrupt,
        "skipped": list(dataset.skipped),
    }


class StopAfter(keras.callbacks.Callback):
    """Ends the training after a number of steps, also in the middle of an epoch.

    Args:
        steps: Number of steps.
    """

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps
        self.done = 0

    def on_train_batch_end(self, batch, logs=None):
        """Counts the step."""
        self.done += 1
        if self.done >= self.steps:
            self.model.stop_training = True


class LogLearningRate(keras.callbacks.Callback):
    """Puts the learning rate at the end of each epoch among the metrics that are logged."""

    def on_epoch_end(self, epoch, logs=None):
        """Comes before the callbacks that log."""
        logs["learning_rate"] = float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        )
