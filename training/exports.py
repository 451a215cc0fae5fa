"""From a run to files that run elsewhere, each compared with the Keras model on test images."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.export import DEFAULT_FORMATS, FORMATS, ExportReport, export_formats
from training import datasets, evaluate, records, verification
from training.crops import with_size

CALIBRATION_IMAGES = 500  # of the training split


def export_run(
    run: str | os.PathLike,
    output: str | os.PathLike,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    data_dir: str | os.PathLike | None = None,
    images: int = 1000,
    include_preprocessing: bool = False,
) -> list[ExportReport]:
    """Exports the best weights of a run, and keeps the comparison in `record.json`.

    Args:
        run: The run's directory; or published weights, as `"NETWORK:TAG"`.
        output: Folder for the exports; earlier exports in it are replaced.
        formats: Names of `keras_resnet.export.FORMATS`.
        data_dir: Where the images are, see `datasets.load`.
        images: Number of test images to compare on, at most.
        include_preprocessing: Whether TFLite and ONNX files take raw images of the model's size.

    Returns:
        One report per format.

    Raises:
        ValueError: If there is no finished run, no such weights, or a format is not known.
        keras_resnet.export.ExportsFailed: If formats could not be made, or disagree with the
            model; the others are there.
    """
    is_published = ":" in os.fspath(run) and not os.path.exists(run)
    model, dataset, about = (_published if is_published else _trained)(run, data_dir)
    examples, labels = test_images(dataset, images)
    calibrated = {name for name, row in FORMATS.items() if row.is_calibrated}
    calibration = None
    if calibrated.intersection(formats):
        calibration, _ = raw_images(dataset, "train", CALIBRATION_IMAGES)
    return export_formats(
        model,
        output,
        formats,
        examples=examples,
        labels=labels,
        class_names=dataset.class_names,
        representative_data=calibration,
        include_preprocessing=include_preprocessing,
        about=about,
    )


def _trained(run_dir, data_dir):
    """Model, dataset and record of a run."""
    record = records.read(run_dir)
    about = {"run": record.to_dict()}
    model = evaluate.load_model(run_dir)
    if None in model.input_shape[1:3]:  # it learned from images that grew
        model = with_size(model, model.preprocessing.size)
    dataset = records.load_dataset(record, data_dir)
    evaluate.check_fits(model, dataset, record.data["class_names"])
    return model, dataset, about


def _published(name, data_dir):
    """Model, dataset and origin of published weights."""
    variant, _, tag = os.fspath(name).partition(":")
    row, model, dataset = verification.load(variant, tag, data_dir=data_dir)
    evaluate.check_fits(model, dataset)
    weights = {"network": row.variant, "tag": row.tag, "hash": row.sources[0].hash}
    return model, dataset, {"weights": weights}


def test_images(dataset: datasets.Dataset, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """`raw_images` of the test split."""
    return raw_images(dataset, "test", count)


def raw_images(
    dataset: datasets.Dataset, split: str, count: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Images as they are before any preprocessing, always the same ones.

    Args:
        dataset: Where they come from.
        split: Name of the split.
        count: How many, at most.

    Returns:
        Batches, uint8 of shape `(batch, height, width, channels)`, and the labels of all images
        in order, of shape `(images,)`.
    """
    split = dataset.splits[split]
    keys = split.shuffled_keys(tf.constant([0, 0], tf.int64)).take(count)  # folders are in order
    batch_size = 1 if None in dataset.image_shape else 32
    batches = list(keys.map(split.fetch).batch(batch_size).as_numpy_iterator())
    return [images for images, _ in batches], np.concatenate([labels for _, labels in batches])
