"""Commands for what there is: networks, recipes and trained runs."""

import pathlib
from typing import Annotated

import typer
from rich.console import Console

from training.commands import DataDir, Replicas, Run, app, console


@app.command()
def evaluate(
    runs: Annotated[
        list[pathlib.Path],
        typer.Argument(metavar="RUN", help="Finished runs; several make an ensemble."),
    ],
    data_dir: DataDir = None,
    split: Annotated[str, typer.Option(help="`train`, `validation` or `test`.")] = "test",
    dataset: Annotated[
        str | None,
        typer.Option(help="Evaluate on other images.", show_default="the run's"),
    ] = None,
    crops: Annotated[
        str,
        typer.Option(
            help="What is scored of each image, and averaged: `single`, `ten` (corners and centre, "
            "mirrored too) or `multi_scale` (the whole image at several scales)."
        ),
    ] = "single",
    scales: Annotated[
        str,
        typer.Option(
            help="Comma-separated lengths in pixels of the shorter side, for `multi_scale`.",
            show_default="224,256,384,480,640 for a network of 224; 28,32,36,40 for one of 32",
        ),
    ] = "",
    mirror: Annotated[
        bool, typer.Option(help="Whether crops and scales are scored mirrored as well.")
    ] = True,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for the confusion matrix and the worst mistakes."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step; changes the speed only.")] = 250,
    replicas: Replicas = None,
):
    """Score the best weights of a run or of an ensemble of runs, every image once."""
    from training import evaluate, mistakes, tables
    from training.crops import Crops
    from training.files import writing

    chosen = Crops(crops, tuple(scales.split(",")) if scales else (), mirror)
    answers = evaluate.answer(
        runs,
        split=split,
        dataset=dataset,
        data_dir=data_dir,
        batch_size=batch_size,
        replicas=replicas,
        crops=chosen,
    )
    where = f"{answers.dataset.name}, {split}, {chosen}"
    who = str(runs[0]) if len(runs) == 1 else f"ensemble of {len(runs)}"
    scores = answers.evaluation
    console.print(tables.evaluation(scores, answers.dataset.class_names, f"{who} on {where}"))
    if len(runs) > 1:
        names = [str(run) for run in runs]
        console.print(tables.ensemble(answers.evaluations, scores, names, f"Members on {where}"))
    if output is not None:
        with writing(output):
            files = mistakes.write(answers, output, title=f"{who} on {where}")
        console.print(f"Written: {', '.join(map(str, files))}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Directory of a finished run; or published weights, e.g. "
            "`cifar_resnet20:cifar10`.",
        ),
    ],
    output: Annotated[
        pathlib.Path, typer.Option(help="Folder for the exports, e.g. `saved_models/NAME`.")
    ],
    data_dir: DataDir = None,
    formats: Annotated[
        str,
        typer.Option(
            help="Comma-separated, of `saved_model`, `saved_model_bfloat16`, `tflite`, "
            "`tflite_float16`, `tflite_dynamic`, `tflite_int8`, `tflite_int16x8`, `onnx`, "
            "`openvino`."
        ),
    ] = "saved_model,tflite,tflite_int8",
    images: Annotated[int, typer.Option(min=1, help="Test images to compare on, at most.")] = 1000,
    include_preprocessing: Annotated[
        bool,
        typer.Option(
            "--include-preprocessing",
            help="TFLite and ONNX files take raw images of the network's size (SavedModels always "
            "take raw images, of any size).",
        ),
    ] = False,
):
    """Export a run or published weights, each file proven against Keras on test images."""
    from keras_resnet.export import ExportsFailed
    from training import exports, tables

    try:
        reports = exports.export_run(
            run,
            output,
            formats=[name.strip() for name in formats.split(",")],
            data_dir=data_dir,
            images=images,
            include_preprocessing=include_preprocessing,
        )
    except ExportsFailed as failed:
        if failed.reports:
            console.print(tables.exports(failed.reports))
        Console(stderr=True).print(
            f"Error: {failed}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from failed
    console.print(tables.exports(reports))
    console.print(f"Written to {output}, with record.json.", soft_wrap=True)


@app.command()
def publish(
    run: Run,
    output: Annotated[
        pathlib.Path, typer.Option(help="File of the weights, ending in `.safetensors`.")
    ],
    data_dir: DataDir = None,
    images: Annotated[int, typer.Option(min=1, help="Test images to compare on, at most.")] = 1000,
):
    """Write the best weights of a run, with its record, as one file for others to load."""
    from training.publish import publish

    sha256 = publish(run, output, data_dir=data_dir, images=images)
    console.print(f"{output}: sha256 {sha256}", soft_wrap=True)


@app.command("list")
def list_(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Names to show, e.g. `'*resnet20'`.")
    ] = "*",
    count: Annotated[
        bool,
        typer.Option(
            "--count",
            help="Count parameters and multiply-adds; half a minute for all networks.",
        ),
    ] = False,
):
    """Show the networks and the recipes."""
    from keras_resnet import VARIANTS
    from keras_resnet.errors import unknown_name
    from training import recipes, tables

    found = tables.variants(pattern, counted=count), tables.recipes(pattern)
    if not any(table.row_count for table in found):
        raise unknown_name("network or recipe", pattern, [*VARIANTS, *recipes.RECIPES])
    for table in found:
        if table.row_count:
            console.print(table)


@app.command()
def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the exports.")] = pathlib.Path(
        "saved_models/demo"
    ),
    replicas: Annotated[int, typer.Option(help="Devices that share each batch.")] = 2,
):
    """Train on handwritten digits, export, verify and show: a minute or two, no download."""
    from training import demo, tables

    result = demo.run(output=output, replicas=replicas)
    console.print(tables.results(result.record))
    console.print(tables.exports(result.reports))
    console.print(f"Pictures: {output}/curves.png, {output}/predictions.png", soft_wrap=True)
    demo.check_accuracy(result.record)
