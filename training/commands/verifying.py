"""The command that scores published weights."""

from typing import Annotated

import typer

from training.commands import DataDir, Replicas, app, console


@app.command()
def verify(
    network: Annotated[str, typer.Argument(help="Name of a network; `list` shows them.")],
    weights: Annotated[
        str, typer.Argument(help="A tag of `python -m keras_resnet.weights NETWORK`.")
    ] = "imagenet",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Test images: any TFDS name, or `folder:PATH`.",
            show_default="imagenet2012, or cifar10",
        ),
    ] = None,
    data_dir: DataDir = None,
    batch_size: Annotated[int, typer.Option(help="Images per step over all replicas.")] = 250,
    replicas: Replicas = None,
):
    """Score published weights on the test images, and compare with what is said of them."""
    from training import verification

    row, scores = verification.verify(
        network,
        weights,
        dataset=dataset,
        data_dir=data_dir,
        batch_size=batch_size,
        replicas=replicas,
    )
    published = "not known" if row.accuracy is None else f"{row.accuracy:.2%}"
    console.print(
        f"{row.variant} {row.tag}: published {published}, measured {scores.top1:.2%} on "
        f"{scores.count:,} images.",
        soft_wrap=True,
    )
    if row.accuracy is not None and abs(scores.top1 - row.accuracy) > verification.TOLERANCE:
        raise typer.Exit(1)
