"""One table of all formats, and several of them at once: one folder, one record."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_resnet.errors import unknown_name
from keras_resnet.export.examples import check_raw, read_examples
from keras_resnet.export.onnx import onnx
from keras_resnet.export.openvino import openvino
from keras_resnet.export.report import ExportReport
from keras_resnet.export.saved_model import saved_model
from keras_resnet.export.staging import staged
from keras_resnet.export.tflite import tflite
from keras_resnet.preprocessing import model_preprocessing

RECORD = "record.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """What a model can be exported to.

    Args:
        file_name: Name of the file or folder.
        export: Function that makes it, of a model and a path.
        options: Its keywords.
        is_calibrated: Whether it wants `representative_data`.
    """

    file_name: str
    export: Callable[..., ExportReport]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_calibrated: bool = False


FORMATS = {
    "saved_model": Format("saved_model", saved_model),
    "saved_model_bfloat16": Format("saved_model_bfloat16", saved_model, {"precision": "bfloat16"}),
    "tflite": Format("model.tflite", tflite),
    "tflite_float16": Format("model_float16.tflite", tflite, {"quantization": "float16"}),
    "tflite_dynamic": Format("model_dynamic.tflite", tflite, {"quantization": "dynamic"}),
    "tflite_int8": Format("model_int8.tflite", tflite, {"quantization": "int8"}, True),
    "tflite_int16x8": Format("model_int16x8.tflite", tflite, {"quantization": "int16x8"}, True),
    "onnx": Format("model.onnx", onnx),
    "openvino": Format("openvino", openvino),
}
DEFAULT_FORMATS = ("saved_model", "tflite", "tflite_int8")


class ExportsFailed(ValueError):
    """Some formats could not be exported; the others are in their place.

    Attributes:
        reports: Those of the exports that succeeded.
        failures: What was raised, by the name of the format.
    """

    def __init__(self, reports: Sequence[ExportReport], failures: Mapping[str, Exception]):
        self.reports, self.failures = reports, failures
        lines = [f"\n{name}: {error}" for name, error in failures.items()]
        super().__init__(
            f"Not every format was exported. Expected {len(reports) + len(failures)}. "
            f"Received: {len(reports)}. What failed:{''.join(lines)}"
        )


def export_formats(
    model,
    output,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    examples: Sequence[np.ndarray],
    labels=None,
    class_names: Sequence[str] | None = None,
    representative_data: Sequence[np.ndarray] | None = None,
    include_preprocessing: bool = False,
    about: Mapping[str, Any] | None = None,
) -> list[ExportReport]:
    """Exports a model to several formats, and keeps the comparison in `record.json`.

    One that fails does not keep the others from being made: it is told at the end. Entries of the
    record that an earlier call has made of the same model stay. It is kept from file to file, so
    that a call that is killed leaves none about another model.

    Args:
        model: The trained Keras model, with its `preprocessing`.
        output: Folder for the files; earlier exports in it are replaced.
        formats: Names of `FORMATS`.
        examples: Batches of raw uint8 images, `(batch, height, width, channels)`, to compare on.
        labels: Their classes, `(images,)`.
        class_names: One name per class, for the files that can hold them.
        representative_data: Batches of raw images to calibrate integer formats on, of the training
            data. Default: the examples.
        include_preprocessing: Whether TFLite, ONNX and OpenVINO files take raw uint8 images of the
            model's input size and normalise them themselves. (SavedModels always do.)
        about: What the record says of the model besides, plain JSON types.

    Returns:
        One report per format.

    Raises:
        ValueError: If a format is not known, the model has no preprocessing, or the images are no
            raw ones.
        ExportsFailed: If some were not made.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("export format", name, FORMATS)
    formats = list(dict.fromkeys(formats))
    preprocessing, output = model_preprocessing(model), pathlib.Path(output)
    examples = _raw(examples, "examples", labels)
    if representative_data is not None:
        representative_data = _raw(representative_data, "representative_data")
    about = json.loads(json.dumps(about or {}))  # as it will be read again
    earlier = _earlier_exports(output / RECORD, about)

    def prepared(batches):
        if not include_preprocessing:
            return [np.asarray(preprocessing(batch)) for batch in batches]
        resized = (np.asarray(preprocessing.resize(batch)) for batch in batches)
        return [batch.round().astype("uint8") for batch in resized]

    reports, failures = [], {}

    def keep_record():
        made = [report.to_dict() | {"path": pathlib.Path(report.path).name} for report in reports]
        exports = {entry["format"]: entry for entry in (*earlier, *made)}
        record = {**about, "exports": sorted(exports.values(), key=_place)}
        if failures:
            record["failures"] = {name: str(error) for name, error in failures.items()}
        with staged(output / RECORD) as partial:
            text = json.dumps(record, indent=2, ensure_ascii=False)
            partial.write_text(f"{text}\n", "utf-8")

    keep_record()  # also between two files it speaks of those that are there
    for name in formats:
        row = FORMATS[name]
        options = dict(row.options, examples=examples)
        if row.export is not saved_model:  # that takes images of any size
            options["examples"] = prepared(examples)
            options["include_preprocessing"] = include_preprocessing
        if row.is_calibrated:
            options["representative_data"] = prepared(representative_data or examples)
        try:
            report = row.export(
                model,
                output / row.file_name,
                labels=labels,
                class_names=class_names,
                **options,
            )
        except Exception as error:  # whatever a converter raises: the others are still to come
            failures[name] = error
        else:
            reports.append(report)
        keep_record()
    if failures:
        raise ExportsFailed(reports, failures)
    return reports


def _place(entry):
    return list(FORMATS).index(entry["format"])


def _raw(batches, argument, labels=None):
    """The batches, which must be raw: after the preprocessing nobody could tell."""
    raw = read_examples(batches, labels, shape=(None, None, None), argument=argument)
    check_raw(raw, argument, "An export to several formats")
    return raw.batches


def _earlier_exports(path, about):
    """What a record says of exports of the same model that are still there."""
    if not path.exists():
        return []
    try:
        earlier = json.loads(path.read_text("utf-8"))
        entries = [entry for entry in earlier["exports"] if (path.parent / entry["path"]).exists()]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            "The folder has a record of something else, which is not replaced. Expected a new "
            f"folder, or one of earlier exports. Received: '{path}' ({error!r})"
        ) from error
    same = about and {name: earlier.get(name) for name in about} == about
    return entries if same else []
