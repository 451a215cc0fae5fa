"""What the command line prints, in a console of ordinary width."""

import io

from rich.console import Console

from keras_resnet.export import ExportReport
from training import tables


def test_exports_fit_into_80_columns():
    report = ExportReport(
        format="saved_model_bfloat16",
        path="saved_model",
        bytes=209_131_400,
        examples=10_000,
        max_probability_difference=0.0025,
        mean_probability_difference=0.001,
        top1_agreement=0.9999,
        accuracy=0.9163,
        keras_accuracy=0.9162,
        milliseconds=112.0,
        keras_milliseconds=123.01,
    )
    console = Console(width=80, file=io.StringIO())
    console.print(tables.exports([report]))
    *_, row, _ = console.file.getvalue().splitlines()
    cells = "saved_model_bfloat16 91.63% 99.99% 0.0025 209,131,400 112.00"
    assert row.split() == cells.split()
