"""What was taken for what: the confusion matrix, and the mistakes a model was surest of."""

import csv
import os
import pathlib

import numpy as np
import tensorflow as tf

from training import plots
from training.evaluate import Answers

CONFUSION, MATRIX, WORST = "confusion.csv", "confusion.png", "mistakes.png"
PICTURES = 40


def write(answers: Answers, output: str | os.PathLike, *, title: str) -> list[pathlib.Path]:
    """Writes the confusion matrix as picture and CSV, and a picture of the worst mistakes.

    Files of these names that are already there are replaced.

    Args:
        answers: What a run, or an ensemble of them, answers.
        output: Folder for the files; it is made if need be.
        title: What was evaluated on what.

    Returns:
        The files: `confusion.csv`, `confusion.png` and, unless there was no mistake,
        `mistakes.png`.
    """
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    names, confusion = answers.dataset.class_names, answers.evaluation.confusion
    with open(output / CONFUSION, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["label", *names])
        rows.writerows([name, *row] for name, row in zip(names, confusion.tolist()))
    plots.confusion_matrix(confusion, names, output / MATRIX, title=title)
    worst = worst_mistakes(answers.probabilities, answers.labels)
    (output / WORST).unlink(missing_ok=True)
    if not len(worst):
        return [output / CONFUSION, output / MATRIX]
    wrong = answers.evaluation.count - confusion.trace()
    plots.prediction_grid(
        _images(answers.dataset.splits[answers.split], worst),
        answers.labels[worst],
        answers.probabilities[worst],
        names,
        output / WORST,
        title=f"{title}: the {len(worst)} surest of {wrong:,} mistakes",
    )
    return [output / CONFUSION, output / MATRIX, output / WORST]


def worst_mistakes(probabilities, labels, count: int = PICTURES) -> np.ndarray:
    """The images a model was surest of and wrong.

    Args:
        probabilities: Array of shape `(images, classes)`.
        labels: Integers of shape `(images,)`.
        count: How many, at most.

    Returns:
        Their positions, the highest probability of a wrong class first.
    """
    probabilities = np.asarray(probabilities)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order][:count]


def _images(split, positions):
    """The images at some positions of a split; no others are decoded."""
    wanted = tf.constant(positions, tf.int64)
    found = (
        split.keys.enumerate()
        .filter(lambda position, key: tf.reduce_any(position == wanted))
        .map(lambda position, key: (position, split.fetch(key)[0]))
    )
    images = {int(position): image for position, image in found.as_numpy_iterator()}
    return [images[position] for position in positions]
