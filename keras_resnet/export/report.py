"""What an export is worth, in numbers: it is compared with its Keras model before it counts."""

import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from keras_resnet.export.examples import Examples

NEAR_TIE = 0.1  # two classes whose probabilities differ by less are nearly tied


class ExportMismatch(ValueError):
    """The export does not compute what the Keras model computes."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its Keras model; `None` means: not looked at.

    Args:
        max_probability_difference: Over all images and classes, 0..1.
        clear_disagreements: Share of the images, 0..1, that may get another class to which Keras
            gives at least 0.1 less probability than to its own: near ties do not count.
        accuracy_loss: In shares of 1, where labels are known; one image is always allowed.
    """

    max_probability_difference: float | None = None
    clear_disagreements: float | None = None
    accuracy_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was exported, how it compares with Keras, and how fast it is.

    Args:
        format: Name of the format, e.g. `"saved_model"` or `"tflite_int8"`.
        path: Where the export is.
        bytes: Size of all its files.
        examples: Number of images it was compared on.
        max_probability_difference: Over all images and classes.
        mean_probability_difference: Over all images and classes.
        top1_agreement: Share of the images that get the same class.
        accuracy: Of the export, where labels are known.
        keras_accuracy: Of the Keras model, in float32, where labels are known.
        milliseconds: Median time of one image; of a file that takes several at a time, its share.
        keras_milliseconds: The same of the Keras model as a `tf.function`.
        operations: Of a TFLite graph: how many there are of each.
        layer_errors: Of a quantised TFLite graph, by the names of the Keras layers: root mean
            square of the error of a layer's outputs, in shares of the root mean square of the
            outputs themselves, in float32 on the same images. 0.01 is a signal 40 dB above its
            noise. A layer that became part of the one behind it (a convolution before its ReLU)
            has none of its own.
    """

    format: str
    path: str
    bytes: int
    examples: int
    max_probability_difference: float
    mean_probability_difference: float
    top1_agreement: float
    accuracy: float | None
    keras_accuracy: float | None
    milliseconds: float
    keras_milliseconds: float
    operations: dict[str, int] = dataclasses.field(default_factory=dict)
    layer_errors: dict[str, float] = dataclasses.field(default_factory=dict, repr=False)

    def worst_layers(self, count: int = 10) -> list[tuple[str, float]]:
        """The layers with the largest errors, as `(name, error)`, worst first, NaN before all."""

        def badness(item):
            return math.inf if math.isnan(item[1]) else item[1]

        return sorted(self.layer_errors.items(), key=badness, reverse=True)[:count]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types; `ExportReport(**report.to_dict())` is the way back."""
        return dataclasses.asdict(self)


def compare(
    *,
    format: str,
    path: pathlib.Path,
    written: pathlib.Path,
    export: Callable,
    model,
    examples: Examples,
    tolerance: Tolerance,
    prepare: Callable = lambda images: images,
    batch_size: int = 1,
    operations: dict[str, int] | None = None,
    layer_errors: dict[str, float] | None = None,
    find_layer_errors: Callable[[], dict[str, float]] = dict,
) -> ExportReport:
    """Runs an export and its Keras model on the same images.

    Args:
        format: Name of the format.
        path: Where the export is going to be.
        written: Where it is now.
        export: Function from images to probabilities, NumPy to NumPy, in its real runtime.
        model: The Keras model in its inference form.
        examples: The images, as the export takes them.
        tolerance: What may be lost.
        prepare: Function from the export's images to the model's.
        batch_size: How many images the export takes at a time, for its milliseconds.
        operations: Of the export's graph, for the report.
        layer_errors: Of the export's graph, for the report.
        find_layer_errors: Gives them where there are none and an error has to name a layer.

    Returns:
        The report.

    Raises:
        ExportMismatch: If more is lost than `tolerance` permits.
    """
    import tensorflow as tf

    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    graph = tf.function(
        lambda images: model(images, training=False), input_signature=[spec], autograph=False
    )

    def reference(images):
        return graph(images).numpy()

    prepared = [np.asarray(prepare(batch), "float32") for batch in examples.batches]
    expected = _of_all_classes(np.concatenate([reference(batch) for batch in prepared]))
    received = _of_all_classes(np.concatenate([export(batch) for batch in examples.batches]))

    difference = np.abs(received - expected)
    kept, chosen = expected.argmax(axis=1), received.argmax(axis=1)
    labels, first = examples.labels, examples.batches[0][:1]
    report = ExportReport(
        format=format,
        path=str(path),
        bytes=_size(written),
        examples=len(examples),
        max_probability_difference=float(difference.max()),
        mean_probability_difference=float(difference.mean()),
        top1_agreement=float(np.mean(chosen == kept)),
        accuracy=None if labels is None else float(np.mean(chosen == labels)),
        keras_accuracy=None if labels is None else float(np.mean(kept == labels)),
        milliseconds=_milliseconds(export, first.repeat(batch_size, axis=0)) / batch_size,
        keras_milliseconds=_milliseconds(reference, prepared[0][:1]),
        operations=operations or {},
        layer_errors=layer_errors or {},
    )
    rows = np.arange(len(expected))
    lost = expected[rows, kept] - expected[rows, chosen]
    _check(report, float(np.mean(lost >= NEAR_TIE)), tolerance, find_layer_errors)
    return report


def _of_all_classes(probabilities):
    """Both classes where only the second has an output."""
    if probabilities.shape[1] > 1:
        return probabilities
    return np.hstack([1 - probabilities, probabilities])


def _check(report, clear_disagreements, tolerance, find_layer_errors):
    accuracy_loss = allowed_loss = None
    if report.accuracy is not None and tolerance.accuracy_loss is not None:
        accuracy_loss = report.keras_accuracy - report.accuracy
        allowed_loss = max(tolerance.accuracy_loss, 1 / report.examples)
    widest = tolerance.max_probability_difference
    if widest is None and np.isnan(report.max_probability_difference):
        widest = 1.0  # whatever else is permitted, they must be numbers
    measures = (
        ("probabilities that differ", report.max_probability_difference, widest),
        (
            "a share of images with a clearly different class",
            clear_disagreements,
            tolerance.clear_disagreements,
        ),
        ("a loss of accuracy", accuracy_loss, allowed_loss),
    )
    for what, received, allowed in measures:
        # Written so that NaN fails.
        if allowed is not None and not received <= allowed + 1e-9:
            layer_errors = report.layer_errors or find_layer_errors()
            report = dataclasses.replace(report, layer_errors=layer_errors)
            raise ExportMismatch(
                f"The {report.format} export disagrees with the Keras model. "
                f"Expected {what} by at most {allowed:.6g}. "
                f"Received: {received:.6g} on {report.examples} images.{_worst(report)} "
                f"'{report.path}' was not written; to accept this, pass a wider `tolerance`."
            )


def _worst(report):
    named = [
        f" The layer {name!r} is furthest from its float32 outputs: by {error:.2g} of their size."
        for name, error in report.worst_layers(1)
    ]
    return "".join(named)


def _size(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _milliseconds(call, image, repeats=30, budget_seconds=2.0):
    for _ in range(3):
        call(image)
    durations = []
    while len(durations) < repeats and sum(durations) < budget_seconds:
        start = time.perf_counter()
        call(image)
        durations.append(time.perf_counter() - start)
    return 1000 * statistics.median(durations)


def table_rows(reports: Iterable[ExportReport]) -> list[tuple[str, ...]]:
    """Several exports of one model as one table of strings: header, Keras, then the exports.

    Args:
        reports: At least one report, all of the same model and examples.
    """
    reports = list(reports)
    keras = reports[0]
    header = ("format", "accuracy", "agreement", "max difference", "bytes", "ms")
    first = ("keras", _share(keras.keras_accuracy), "", "", "", f"{keras.keras_milliseconds:.2f}")
    return [header, first] + [
        (
            report.format,
            _share(report.accuracy),
            _share(report.top1_agreement),
            f"{report.max_probability_difference:.2g}",
            f"{report.bytes:,}",
            f"{report.milliseconds:.2f}",
        )
        for report in reports
    ]


def format_table(reports: Iterable[ExportReport]) -> str:
    """`table_rows` as text of aligned columns."""
    rows = table_rows(reports)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if position else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def _share(value):
    return "" if value is None else f"{100 * value:.2f}%"
