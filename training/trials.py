"""Trains the trials of a search: a recipe with other values, scored on validation images."""

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from training import evaluate, pipeline
from training.averaging import SwapAverages
from training.compilation import compiled_model, preprocessing_of, wants_one_hot
from training.datasets import Dataset
from training.recipe import Recipe
from training.space import with_values
from training.strategy import Strategy, check_batch_size


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains a recipe with other values, for a share of its length.

    Args:
        recipe: The recipe.
        dataset: Its images. They need no test split.
        strategy: The devices.
        length: Steps of a whole trial over those of the recipe.
        verbose: 0 (silent) or 1 (progress bar).
    """

    recipe: Recipe
    dataset: Dataset
    strategy: Strategy
    length: float
    verbose: int

    def prepare(self, values: Mapping[str, Any], share: float = 1.0, seed: int = 0) -> tuple:
        """What a training takes.

        Args:
            values: Field -> value.
            share: Share of a whole trial, in (0, 1].
            seed: Seed of the order and the augmentation.

        Returns:
            The recipe as it is followed, its compiled model, and its batches.

        Raises:
            ValueError: If the values do not fit, or not together.
        """
        recipe = with_values(self.recipe, values)
        recipe = recipe.scaled(max(1, round(recipe.steps * self.length * share)))
        check_batch_size(recipe.batch_size, self.strategy)
        with self.strategy.scope():
            model = compiled_model(recipe, self.dataset)
        batches = pipeline.training_batches(
            self.dataset,
            batch_size=recipe.batch_size,
            augmentation=recipe.augmentation,
            preprocessing=preprocessing_of(recipe, self.dataset),
            seed=seed,
            repeats=recipe.repeats,
            one_hot=wants_one_hot(recipe),
            image_sizes=recipe.image_sizes,
            steps=recipe.steps,
        )
        return recipe, model, batches

    def execute(
        self, values: Mapping[str, Any], share: float, seed: int, after_step: Callable[[], None]
    ) -> dict[str, Any]:
        """Trains once; a training that fails has accuracy 0.

        Args:
            values: Field -> value.
            share: Share of a whole trial, in (0, 1].
            seed: Seed of the initialisation, the order and the augmentation.
            after_step: Called after each step; it may raise, to stop the training.

        Returns:
            `steps`, `accuracy`, `seconds` and `note`, as plain JSON types.
        """
        gc.collect()  # the model before is full of cycles, and holds the memory of its device
        start = time.perf_counter()
        keras.utils.set_random_seed(seed)
        steps, accuracy, note = 0, 0.0, ""
        try:
            recipe, model, batches = self.prepare(values, share, seed)
            steps = recipe.steps
            accuracy = self._fit(recipe, model, batches, after_step)
        except Exception as error:
            if not isinstance(error, ValueError) and not _is_out_of_memory(error):
                raise
            note = str(error)
        seconds = round(time.perf_counter() - start, 2)
        return {"steps": steps, "accuracy": accuracy, "seconds": seconds, "note": note}

    def _fit(self, recipe, model, batches, after_step):
        """Validation accuracy after the last step; the rate has fallen to its end there."""
        momentum = recipe.ema_momentum
        swap = [] if momentum is None else [SwapAverages({}, momentum)]
        history = model.fit(
            batches,
            steps_per_epoch=recipe.steps,
            shuffle=False,  # the pipeline has done it
            callbacks=[
                keras.callbacks.TerminateOnNaN(),
                keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: after_step()),
                *swap,
            ],
            verbose=self.verbose,
        )
        scores = evaluate.evaluate(
            model,
            self.dataset.splits["validation"],
            batch_size=recipe.batch_size,
            preprocessing=model.preprocessing,
        )
        if not math.isfinite(history.history["loss"][-1] + scores.cross_entropy):
            raise ValueError("diverged")
        return scores.top1


def _is_out_of_memory(error):
    """JAX's error of a full device is known by its words alone."""
    return isinstance(error, tf.errors.ResourceExhaustedError) or (
        isinstance(error, RuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED")
    )
