"""Pictures of a run: its curves, and what a model answers."""

import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from training.journal import Trial, ranked

_TRAINING, _VALIDATION, _RATE = "#4c72b0", "#dd8452", "#55a868"
_RIGHT, _WRONG = "#2e7d32", "#c62828"
MANY_CLASSES = 20  # more are no table a person reads


def training_curves(
    history: Mapping[str, Sequence[float]], path: str | os.PathLike, *, title: str
) -> None:
    """Draws cross-entropy, accuracy and learning rate over the epochs.

    Args:
        history: One value per epoch of `cross_entropy`, `accuracy`, both again with `val_`, and
            `learning_rate`.
        path: Where the PNG goes.
        title: Name of the run.
    """
    epochs = np.arange(1, len(history["accuracy"]) + 1)
    marker = "o" if len(epochs) <= 10 else None  # a line needs two points
    figure = Figure(figsize=(13, 3.8), dpi=120, layout="constrained")
    figure.suptitle(_plain(title), fontweight="bold")
    loss, accuracy, rate = figure.subplots(1, 3)
    for axes, metric in ((loss, "cross_entropy"), (accuracy, "accuracy")):
        for key, label, colour in (
            (metric, "training", _TRAINING),
            (f"val_{metric}", "validation", _VALIDATION),
        ):
            axes.plot(epochs, history[key], color=colour, label=label, marker=marker, markersize=4)
        axes.legend(frameon=False)
    loss.set(ylabel="cross-entropy (nats)", yscale="log")
    accuracy.set(ylabel="accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    rate.step(epochs, history["learning_rate"], color=_RATE, where="mid", marker=marker)
    rate.set(ylabel="learning rate", yscale="log")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def prediction_grid(
    images,
    labels,
    probabilities,
    class_names: Sequence[str],
    path: str | os.PathLike,
    *,
    title: str,
    columns: int = 8,
) -> None:
    """Draws images with the class a model finds most probable; wrong answers are red.

    Args:
        images: uint8 of shape `(images, height, width, channels)`, 1 or 3 channels.
        labels: Integers of shape `(images,)`.
        probabilities: Array of shape `(images, classes)`.
        class_names: One name per class.
        path: Where the PNG goes.
        title: What is shown.
        columns: Images per row.
    """
    class_names = [*map(_plain, class_names)]
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.85 * rows), dpi=120, layout="constrained")
    figure.suptitle(_plain(title), fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, label, row in zip(grid.flat, images, labels, probabilities):
        answer = int(np.argmax(row))
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray")
        text = f"{class_names[answer]}  {row[answer]:.0%}"
        if answer != label:
            text += f"\nis {class_names[label]}"
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=_WRONG, linewidth=3)
        axes.set_title(text, fontsize=9, color=_RIGHT if answer == label else _WRONG)
    figure.savefig(path)


def confusion_matrix(
    confusion, class_names: Sequence[str], path: str | os.PathLike, *, title: str
) -> None:
    """Draws which classes are taken for which; up to 20 classes with their names and counts.

    Args:
        confusion: Integers of shape `(classes, classes)`: images by label (row) and by answer.
        class_names: One name per class.
        path: Where the PNG goes.
        title: What was evaluated on what.
    """
    class_names = [*map(_plain, class_names)]
    confusion = np.asarray(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    few = len(class_names) <= MANY_CLASSES
    side = 3 + 0.55 * len(class_names) if few else 10
    figure = Figure(figsize=(side + 1.2, side), dpi=120, layout="constrained")
    figure.suptitle(_plain(title), fontweight="bold")
    axes = figure.subplots()
    # The square root shows the mistakes, which are few, beside what is right.
    drawn = axes.imshow(
        shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="none"
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, format=PercentFormatter(1))
    bar.set_label("share of the label's images")
    axes.set(xlabel="answer", ylabel="label")
    if few:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, class_names)
        for (row, column), count in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.4 else "black"
            axes.text(column, row, count or "", ha="center", va="center", fontsize=8, color=colour)
    figure.savefig(path, bbox_inches="tight")  # or long names are cut off


def trials(
    trials: Sequence[Trial],
    path: str | os.PathLike,
    *,
    logarithmic: Collection[str] = (),
    title: str,
    columns: int = 4,
) -> None:
    """Draws the validation accuracy of the trials of a search against each field.

    The best trial is a star, a bar shows the spread of its executions, and a cross at the bottom
    is a trial that could not be trained. The fewer steps of Hyperband a trial had, the paler it is.

    Args:
        trials: At least one.
        path: Where the PNG goes.
        logarithmic: Names of the fields with a logarithmic axis.
        title: Name of the search.
        columns: Fields per row.
    """
    best, most_steps = ranked(trials)[0], max(trial.steps for trial in trials)
    names = list(best.values)
    rows = -(-len(names) // columns)
    size = (4.2 * min(columns, len(names)), 0.5 + 3.4 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.suptitle(_plain(title), fontweight="bold")
    grid = figure.subplots(rows, min(columns, len(names)), squeeze=False, sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, names):
        numeric = all(type(trial.values[name]) in (int, float) for trial in trials)
        for trial in trials:
            x = trial.values[name] if numeric else str(trial.values[name])
            if trial.note:
                axes.plot(x, 0.03, "x", color=_WRONG, transform=axes.get_xaxis_transform())
                continue
            shape = {"marker": "*", "markersize": 13} if trial is best else {"marker": "o"}
            axes.errorbar(
                x,
                trial.accuracy,
                yerr=trial.spread,
                color=_VALIDATION if trial is best else _TRAINING,
                alpha=0.3 + 0.7 * trial.steps / most_steps,
                **shape,
            )
        if name in logarithmic:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        elif not numeric:
            axes.margins(x=0.3)  # the words are wide
        elif all(type(trial.values[name]) is int for trial in trials):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(name)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("validation accuracy")
    figure.savefig(path)


def _plain(name):
    """A name as it is: between two dollars matplotlib reads a formula."""
    return name.replace("$", r"\$")
