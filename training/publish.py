"""From a run to one small file of weights that others can load, with its record inside."""

import hashlib
import json
import os
import pathlib

import numpy as np

import keras_resnet
from training import evaluate, exports, files, records
from training.compilation import network


def publish(
    run_dir: str | os.PathLike,
    output: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    images: int = 1000,
) -> str:
    """Writes the best weights of a run, and proves that a new network with them predicts the same.

    Args:
        run_dir: Directory of a finished run.
        output: Path of the file, ending in `.safetensors`. Its metadata hold the run's record. Its
            folder is made.
        data_dir: Where the images are, see `datasets.load`.
        images: Number of test images to compare on, at most.

    Returns:
        The sha256 of the file.

    Raises:
        ValueError: If there is no finished run, the file is there already or cannot be written, or
            the predictions differ.
    """
    output = pathlib.Path(output)
    if output.exists():
        raise ValueError(
            "Published weights are not replaced. Expected a new file. "
            f"Received: {str(output)!r}. Delete it first, or choose another name."
        )
    record, model = records.read(run_dir), evaluate.load_model(run_dir)
    dataset = records.load_dataset(record, data_dir)
    raw, _ = exports.test_images(dataset, images)
    inputs = np.concatenate([np.asarray(model.preprocessing(batch)) for batch in raw])
    about = {"record": json.dumps(record.to_dict(), ensure_ascii=False)}
    with files.replacing(output) as partial:
        keras_resnet.weights.save_weights(model, partial, about)
        _check_same(model, record, partial, inputs)
    return hashlib.sha256(output.read_bytes()).hexdigest()


def _check_same(model, record, path, inputs):
    again = network(
        record.recipe, input_shape=model.input_shape[1:], classes=model.output_shape[-1]
    )
    keras_resnet.weights.load_weights(again, path)
    expected, received = (each.predict(inputs, verbose=0) for each in (model, again))
    if not np.array_equal(expected, received):
        raise ValueError(
            "The file does not give the model back. Expected the same predictions from a new "
            f"network. Received: a difference of {np.abs(expected - received).max():.2g}."
        )
