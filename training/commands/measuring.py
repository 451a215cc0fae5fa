"""Commands that measure speed; the measuring itself is in `benchmarks/`."""

import pathlib
from typing import Annotated

import typer

from training.commands import DataDir, app

benchmark = typer.Typer(no_args_is_help=True)
app.add_typer(benchmark, name="benchmark", help="Measure speed on this machine.")


@benchmark.command("input")
def benchmark_input(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="Compare its pipeline with its training step."),
    ] = None,
    folder: Annotated[
        pathlib.Path | None,
        typer.Option(help="Compare with a plain tf.data pipeline on the JPEG files of a folder."),
    ] = None,
    data_dir: DataDir = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per batch.", show_default="the recipe's, or 64"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches per turn.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 5,
):
    """Show whether the images come as fast as the network trains."""
    from benchmarks import input
    from training import recipes

    if (recipe is None) == (folder is None):
        raise ValueError(
            "There is nothing to measure, or too much. Expected a RECIPE or --folder PATH. "
            f"Received: recipe={recipe}, folder={folder}."
        )
    if folder is not None:
        input.of_folder(folder, batch_size=batch_size or 64, steps=steps, rounds=rounds)
    else:
        chosen = recipes.get_recipe(recipe)
        if batch_size is not None:
            chosen = chosen.with_batch_size(batch_size)
        input.of_recipe(chosen, data_dir=data_dir, steps=steps, rounds=rounds)


@benchmark.command("train")
def benchmark_train(
    network: Annotated[str, typer.Argument(metavar="NETWORK")] = "cifar_resnet20",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Steps per turn.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 7,
):
    """Compare the training step with stock Keras, and with PyTorch where it is installed."""
    from benchmarks import train_step

    train_step.compare(network, batch_size=batch_size, steps=steps, rounds=rounds)


@benchmark.command("inference")
def benchmark_inference(
    network: Annotated[str, typer.Argument(metavar="[NETWORK]")] = "resnet50",
    steps: Annotated[int, typer.Option(min=1, help="Calls per turn.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 9,
):
    """Compare the exports of a network with each other and with their peers."""
    from benchmarks import inference

    inference.compare(network, steps=steps, rounds=rounds)
