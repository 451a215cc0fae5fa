"""What ONNX and OpenVINO have in common: Keras's own exporter writes them."""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_resnet.export.calibration import check_range
from keras_resnet.export.examples import check_raw, read_examples
from keras_resnet.export.inference import check_class_names, inference_model
from keras_resnet.export.report import ExportReport, Tolerance, compare
from keras_resnet.export.staging import quiet_console, staged
from keras_resnet.preprocessing import Preprocessing, model_preprocessing
from keras_resnet.surgery import fold_batch_norm


def export_through_keras(
    model,
    path: pathlib.Path,
    *,
    format: str,
    write: Callable[[keras.Model, pathlib.Path, Mapping[str, str]], dict[str, int]],
    load: Callable[[pathlib.Path], Callable[[np.ndarray], np.ndarray]],
    examples,
    labels=None,
    class_names: Sequence[str] | None = None,
    include_preprocessing: bool = False,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Writes a classifier, loads it in its runtime and compares.

    Args:
        model: The trained Keras model.
        path: File or folder to write.
        format: What the report calls it.
        write: Writes a model at a path with properties, JSON by name, beside it; returns how many
            there are of each operation.
        load: From such a path to a function from images to probabilities.
        examples: As the exports take them, and what follows.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: If the model or the images do not fit, or the disk does not take it.
        ExportMismatch: If the export disagrees with the model. Nothing is written then.
    """
    keras_model = inference_model(model)
    check_class_names(class_names, keras_model)
    examples = read_examples(
        examples, labels, shape=keras_model.input_shape[1:], argument="examples"
    )
    properties = {"include_preprocessing": include_preprocessing}
    if class_names is not None:
        properties["class_names"] = list(class_names)
    if getattr(model, "preprocessing", None) is not None:
        properties["preprocessing"] = model.preprocessing.to_dict()
    exported, normalize = fold_batch_norm(keras_model), np.asarray
    if include_preprocessing:
        check_raw(examples, "examples", "A file with the preprocessing inside")
        normalize = model_preprocessing(model).normalize
        exported = _with_preprocessing(exported, normalize)
    elif isinstance(getattr(model, "preprocessing", None), Preprocessing):
        check_range(examples, model.preprocessing, "examples")
    with staged(path) as made:
        with quiet_console():
            texts = {name: json.dumps(content) for name, content in properties.items()}
            operations = write(exported, made, texts)
            run = load(made)
        return compare(
            format=format,
            path=path,
            written=made,
            export=run,
            model=keras_model,
            examples=examples,
            prepare=normalize,
            tolerance=tolerance or Tolerance(max_probability_difference=1e-4),
            operations=operations,
        )


def images_spec(model: keras.Model) -> keras.InputSpec:
    """Batches of any length for a model's input, under the name that all exports give it."""
    # Given, or Keras wants a model that has been called, and takes its name for the input.
    return keras.InputSpec(
        shape=(None, *model.input_shape[1:]), dtype=model.inputs[0].dtype, name="images"
    )


def check_packages(format: str, packages: Sequence[str]) -> None:
    """Raises `ImportError` with the command that installs what is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{format} needs packages that are not installed. Expected {', '.join(packages)}. "
            f"Received: no {', no '.join(missing)}. Try: pip install {' '.join(missing)}"
        )


def _with_preprocessing(model, normalize):
    images = keras.Input(model.input_shape[1:], dtype="uint8")
    return keras.Model(images, model(normalize(images)))
