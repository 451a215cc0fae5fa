"""The whole road in two minutes: train on the digits, export, verify, show."""

import dataclasses
import pathlib
import shutil

import keras
import numpy as np

from keras_resnet.export import ExportReport
from training import datasets, evaluate, exports, files, loop, plots, records
from training.recipes import get_recipe

RECIPE = "digits-resnet20"
REQUIRED_ACCURACY = 0.98
PICTURES = 40


@dataclasses.dataclass(frozen=True)
class Demo:
    """What the demo made.

    Args:
        record: Record of the training.
        reports: One report per export.
        output: Folder of the exports, the curves and the predictions.
    """

    record: records.Record
    reports: list[ExportReport]
    output: pathlib.Path


def run(
    *, run_dir: pathlib.Path = pathlib.Path("runs/demo"), output: pathlib.Path, replicas: int = 2
) -> Demo:
    """Trains on handwritten digits, exports, compares, and draws what came out.

    What an earlier demo left in `run_dir` and `output` is replaced.

    Args:
        run_dir: Directory of the run.
        output: Folder for the exports, `curves.png` and `predictions.png`.
        replicas: Number of devices that share each batch.

    Raises:
        ValueError: If `run_dir` holds anything but a demo, another process works in it, or Keras's
            backend is not TensorFlow.
        keras_resnet.export.ExportsFailed: If an export disagrees with the model.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "The demo ends in exports, which TensorFlow writes. Expected the Keras backend "
            f"'tensorflow'. Received: {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow, "
            f"or train alone with: python -m training train {RECIPE}"
        )
    if (run_dir / records.RECORD).exists() and records.read(run_dir).recipe.name == RECIPE:
        with files.locked(run_dir, what="demo", option="working directory"):
            shutil.rmtree(run_dir)
    record = loop.train(get_recipe(RECIPE), run_dir=run_dir, replicas=replicas)
    reports = exports.export_run(run_dir, output)
    shutil.copy(run_dir / "curves.png", output / "curves.png")
    draw_predictions(run_dir, output / "predictions.png")
    return Demo(record, reports, output)


def draw_predictions(run_dir: pathlib.Path, path: pathlib.Path) -> None:
    """Draws test images with the answers of a run's model, the wrong ones first.

    Args:
        run_dir: The run's directory.
        path: Where the PNG goes.
    """
    dataset, model = datasets.load("digits"), evaluate.load_model(run_dir)
    batches, labels = exports.test_images(dataset, dataset.splits["test"].num_examples)
    images = np.concatenate(batches)
    probabilities = model.predict(model.preprocessing(images), verbose=0)
    right = probabilities.argmax(axis=1) == labels
    shown = np.argsort(right, kind="stable")[:PICTURES]
    plots.prediction_grid(
        images[shown],
        labels[shown],
        probabilities[shown],
        dataset.class_names,
        path,
        title=f"The {np.sum(~right)} wrong of {len(labels)} test images, and some of the others",
    )


def check_accuracy(record: records.Record) -> None:
    """Raises a ValueError if a demo learnt less than it should.

    Args:
        record: Record of the training.
    """
    accuracy = record.results["test"]["top1"]
    if accuracy < REQUIRED_ACCURACY:
        raise ValueError(
            f"The demo did not learn enough. Expected at least {REQUIRED_ACCURACY:.0%} on the "
            f"test images. Received: {accuracy:.2%}"
        )
