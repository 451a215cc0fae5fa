"""The commands of `python -m training`, and what they share.

Heavy imports happen inside the commands, so that help is instant.
"""

import pathlib
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train, evaluate and export residual networks.",
)
console = Console(markup=False, emoji=False)  # names may hold [brackets] and :colons:

DataDir = Annotated[
    pathlib.Path | None,
    typer.Option(help="Where the prepared datasets are.", show_default="TFDS_DATA_DIR"),
]
Run = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")]
Replicas = Annotated[
    int | None,
    typer.Option(
        help="Devices that share each batch: GPUs, or logical devices of the CPU.",
        show_default="all GPUs, or 1",
    ),
]


def print_commands(*commands: str) -> None:
    """Shows what may be typed next.

    Args:
        *commands: Each without `python -m training`.
    """
    for command in commands:
        console.print(f"  python -m training {command}", style="bold", soft_wrap=True)
