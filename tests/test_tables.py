"""What the command line prints, in a console of ordinary width."""

import io

from rich.console import Console

from keras_resnet.export import ExportReport
from training import tables
from training.recipes import RECIPES


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


def test_recipes_fit_into_80_columns_and_say_what_they_cost():
    console = Console(width=80, file=io.StringIO())
    console.print(tables.recipes("*"))
    lines = console.file.getvalue().splitlines()
    for name, recipe in RECIPES.items():
        (row,) = (line.split() for line in lines if line.split()[:1] == [name])
        assert row[1:4] == [f"{recipe.steps:,}", "x", str(recipe.batch_size)]
    (row,) = (line for line in lines if " imagenet-resnet50-a1 " in line)
    assert "763 M" in row  # 600 epochs of 1,271,167 images
