"""What happens during `fit`: steps are counted, progress is saved, mishaps are noticed."""

import csv
import math
import pathlib
import time
from collections.abc import Mapping

import keras
import numpy as np

from training import averaging, checkpoints, files, records
from training.checkpoints import Progress
from training.interruption import Interrupted, Signals
from training.workers import StayTogether


class NonFiniteLoss(ValueError):
    """The loss or the weights of a run have become infinite or NaN."""


def in_order(
    run_dir: pathlib.Path,
    progress: Progress,
    arrays: Mapping[str, np.ndarray],
    *,
    steps: int,
    steps_per_epoch: int,
    validation_share: float,
    ema_momentum: float | None,
    checkpoint_every: float,
    signals: Signals,
) -> list[keras.callbacks.Callback]:
    """The callbacks of a run; each builds on what those before it have done.

    Args:
        run_dir: The run's directory.
        progress: How far the run has come.
        arrays: The values it had then.
        steps: Number of steps of the whole run.
        steps_per_epoch: The same of an epoch.
        validation_share: Share of the validation batches that does not only fill up the last.
        ema_momentum: Of the average of the weights over the steps, if there is one.
        checkpoint_every: Seconds between two checkpoints.
        signals: What may stop the run.
    """
    averages = {name: arrays[name] for name in arrays if name.startswith(averaging.PREFIX)}
    swap = [] if ema_momentum is None else [averaging.SwapAverages(averages, ema_momentum)]
    return [
        Continue({name: arrays[name] for name in arrays if name not in averages}),
        StayTogether(),
        CountSteps(progress, steps=steps, steps_per_epoch=steps_per_epoch),
        StopIfNotFinite(progress),
        LogHistory(progress, run_dir / "metrics.csv", validation_share),
        keras.callbacks.TensorBoard(run_dir / "tensorboard", write_graph=False),
        KeepBest(progress, run_dir / records.BEST),
        # Validated and kept is the average; with this callback later, it still stands in the model.
        *swap,
        SaveCheckpoints(
            progress,
            averages,
            run_dir / checkpoints.FOLDER,
            every_seconds=checkpoint_every,
            signals=signals,
        ),
    ]


class Continue(keras.callbacks.Callback):
    """Begins with the values of a checkpoint.

    Args:
        arrays: Those of `checkpoints.capture`; none for a run that starts.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        super().__init__()
        self.arrays = arrays

    def on_train_begin(self, logs=None):
        """After `fit` has made all variables."""
        if self.arrays:
            checkpoints.restore(self.model, self.arrays)

    def on_epoch_begin(self, epoch, logs=None):
        """Again for the first epoch: Keras has just reset its metrics."""
        self.on_train_begin()
        self.arrays = {}


class CountSteps(keras.callbacks.Callback):
    """Counts the steps and their time, and ends epochs and the run.

    Keras can continue a run with an epoch, but not in the middle of one: the epoch that a
    checkpoint was saved in ends early, so that all others are where they were.

    Args:
        progress: What is counted, from where the run stands.
        steps: Number of steps of the whole run.
        steps_per_epoch: The same of an epoch; the last may be shorter.
    """

    def __init__(self, progress: Progress, *, steps: int, steps_per_epoch: int):
        super().__init__()
        self.progress, self.steps, self.steps_per_epoch = progress, steps, steps_per_epoch

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._before = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        """The step that this epoch ends after."""
        self._end = min((self.progress.epochs + 1) * self.steps_per_epoch, self.steps)

    def on_train_batch_end(self, batch, logs=None):
        """Keras leaves the epoch when it is told to stop training."""
        self.progress.step += self.model.steps_per_execution
        self._read_clock()
        self.model.stop_training = self.progress.step >= self._end

    def on_epoch_end(self, epoch, logs=None):
        """And goes on with the next when it is not."""
        self._read_clock()
        self.model.stop_training = self.progress.step >= self.steps

    def _read_clock(self):
        now = time.perf_counter()
        self.progress.seconds += now - self._before
        self._before = now


class StopIfNotFinite(keras.callbacks.Callback):
    """Ends a run at the step whose loss is infinite or NaN.

    Keras's `TerminateOnNaN` lets the callbacks for the end of an epoch save what is left. Where a
    loss is looked at here, Keras has brought it to the host anyway.

    Args:
        progress: Tells the step.
    """

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress = progress

    def on_train_batch_end(self, batch, logs=None):
        """After each execution; the loss is the mean of the epoch up to here."""
        self._check(logs["loss"])

    def on_test_end(self, logs=None):
        """The last step of an epoch shows in the validation."""
        self._check(logs["loss"])

    def _check(self, loss):
        if not math.isfinite(loss):
            raise diverged(self.progress.step, f"loss={loss}")


def diverged(step: int, received: str) -> NonFiniteLoss:
    """The error of a run that has left the finite numbers.

    Args:
        step: The step at which it was noticed.
        received: What was found.
    """
    return NonFiniteLoss(
        f"The training has diverged. Expected a finite loss and finite weights. Received: "
        f"{received} at step {step}. The last checkpoint and the best weights before are kept. "
        "Start another run with a smaller `learning_rate`, a longer warm-up or a `clip_norm`."
    )


class LogHistory(keras.callbacks.Callback):
    """Collects the metrics of each epoch, with its learning rate, and writes them as CSV.

    The file is written anew after each epoch: Keras's `CSVLogger` appends, and cannot take back
    the epochs that a killed run does again.

    Args:
        progress: Whose history it is.
        path: The file, with one row per epoch.
        validation_share: Share of the validation batches that does not only fill up the last.
    """

    def __init__(self, progress: Progress, path: pathlib.Path, validation_share: float):
        super().__init__()
        self.progress, self.path, self.validation_share = progress, path, validation_share

    def on_epoch_end(self, epoch, logs=None):
        """Comes before the callbacks that log."""
        # Keras divides by the number of images, those of weight 0 included.
        logs["val_loss"] /= self.validation_share
        logs["learning_rate"] = float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        )
        history = self.progress.history
        for name, value in logs.items():
            history.setdefault(name, []).append(value)
        with files.replacing(self.path) as partial, open(partial, "w", newline="") as file:
            names = sorted(history)
            table = csv.writer(file)
            table.writerow(["epoch", *names])
            table.writerows(zip(range(epoch + 1), *(history[name] for name in names)))


class KeepBest(keras.callbacks.Callback):
    """Saves the model whenever its validation accuracy is the highest so far; of equals the later.

    Keras's `ModelCheckpoint` writes over the best model before: a full disk would lose both.

    Args:
        progress: Knows the accuracies so far.
        path: Where, ending in `.keras`.
    """

    def __init__(self, progress: Progress, path: pathlib.Path):
        super().__init__()
        self.progress, self.path = progress, path

    def on_test_end(self, logs=None):
        """While the weights are those that were validated."""
        if logs["accuracy"] >= max(self.progress.history.get("val_accuracy", [0.0])):
            with files.replacing(self.path) as partial:
                self.model.save(partial)


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves a checkpoint after each epoch, in between from time to time, and when interrupted.

    Comes last, so that what the others do at the end of an epoch is in it.

    Args:
        progress: How far the run has come.
        averages: What is averaged over the steps beside the model, by name.
        folder: Where.
        every_seconds: Time from one to the next within an epoch, not negative; 0: every step.
        signals: Tells whether the run is to stop.
    """

    def __init__(
        self,
        progress: Progress,
        averages: Mapping[str, np.ndarray],
        folder: pathlib.Path,
        *,
        every_seconds: float,
        signals: Signals,
    ):
        super().__init__()
        self.progress, self.averages, self.folder = progress, averages, folder
        self.every_seconds, self.signals = every_seconds, signals

    def on_train_begin(self, logs=None):
        """Starts the clock, and lets signals wait for the end of a step."""
        self._saved = time.perf_counter()
        self.signals.waits = True

    def on_train_batch_end(self, batch, logs=None):
        """Not after the last step of an epoch: its validation belongs to it."""
        due = time.perf_counter() - self._saved >= self.every_seconds
        if (due or self.signals.received) and not self.model.stop_training:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        """With the epoch's row in the history, and no longer in the metrics."""
        self.model.reset_metrics()
        self._save()

    def on_train_end(self, logs=None):
        """From here on there is nothing to wait for."""
        self.signals.waits = False
        self._stop_if_told()

    def _save(self):
        arrays = {**checkpoints.capture(self.model), **self.averages}
        if not checkpoints.is_finite(arrays):
            raise diverged(self.progress.step, "weights that are infinite or NaN")
        checkpoints.save(self.folder, self.progress, arrays)
        self._saved = time.perf_counter()
        self._stop_if_told()

    def _stop_if_told(self):
        if self.signals.received:
            raise Interrupted(self.signals.received)
