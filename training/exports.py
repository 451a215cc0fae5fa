"""From a run to files that run elsewhere, each compared with the Keras model on test images."""

import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

import keras_resnet
from keras_resnet.errors import unknown_name
from keras_resnet.export import ExportReport
from training import datasets, evaluate, files, pipeline, records

# Name of the format -> name of the file, and the quantization of a TFLite file.
FORMATS = {
    "saved_model": ("saved_model", None),
    "tflite": ("model.tflite", None),
    "tflite_float16": ("model_float16.tflite", "float16"),
    "tflite_int8": ("model_int8.tflite", "int8"),
}
DEFAULT_FORMATS = ("saved_model", "tflite", "tflite_int8")


def export_run(
    run_dir: str | os.PathLike,
    output: str | os.PathLike,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    data_dir: str | os.PathLike | None = None,
    images: int = 1000,
) -> list[ExportReport]:
    """Exports the best weights of a run, and keeps the comparison in `record.json`.

    Args:
        run_dir: The run's directory.
        output: Folder for the exports; earlier exports in it are replaced.
        formats: Names of `FORMATS`.
        data_dir: Where the images are, see `datasets.load`.
        images: Number of test images to compare on, at most.

    Returns:
        One report per format.

    Raises:
        ValueError: If there is no finished run, or a format is not known.
        keras_resnet.export.ExportMismatch: If an export disagrees with the model.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("export format", name, FORMATS)
    record, model = records.read(run_dir), evaluate.load_model(run_dir)
    dataset = records.load_dataset(record, data_dir)
    evaluate.check_fits(model, dataset)
    raw, labels = test_images(dataset, images)
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    reports = [_export(name, model, output, dataset, raw, labels) for name in formats]
    files.write_json(
        output / records.RECORD,
        {
            "run": record.to_dict(),
            "exports": [
                report.to_dict() | {"path": pathlib.Path(report.path).name} for report in reports
            ],
        },
    )
    return reports


def test_images(dataset: datasets.Dataset, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Images of the test split as they are before any preprocessing, always the same ones.

    Args:
        dataset: Where they come from.
        count: How many, at most.

    Returns:
        Batches, uint8 of shape `(batch, height, width, channels)`, and the labels of all images
        in order, of shape `(images,)`.
    """
    split = dataset.splits["test"]
    keys = split.shuffled_keys(tf.constant([0, 0], tf.int64)).take(count)  # folders are in order
    batch_size = 1 if None in dataset.image_shape else 32
    batches = list(keys.map(split.fetch).batch(batch_size).as_numpy_iterator())
    return [images for images, _ in batches], np.concatenate([labels for _, labels in batches])


def _export(name: str, model: keras.Model, output, dataset, raw, labels) -> ExportReport:
    file_name, quantization = FORMATS[name]
    if name == "saved_model":
        return keras_resnet.export.saved_model(
            model, output / file_name, examples=raw, labels=labels
        )
    return keras_resnet.export.tflite(
        model,
        output / file_name,
        quantization=quantization,
        representative_data=_calibration(model, dataset) if quantization == "int8" else None,
        examples=[np.asarray(model.preprocessing(batch)) for batch in raw],
        labels=labels,
    )


def _calibration(model, dataset):
    """Training images as the model gets them, without augmentation; as many as are wanted."""
    return pipeline.training_batches(
        dataset, batch_size=32, augmentation={}, preprocessing=model.preprocessing, seed=0
    )
