"""The command line: `python -m training --help`."""

import logging
import os
import sys

from rich.console import Console

from training.commands import app, measuring, running, using, verifying

__all__ = ["app", "main", "measuring", "running", "using", "verifying"]

# TensorFlow's own messages about missing GPUs are no errors of the user's.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main():
    """Runs a command; what a user can mend ends in one message and exit code 2."""
    try:
        app(prog_name="python -m training")
    except ValueError as error:
        Console(stderr=True).print(
            f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)


if __name__ == "__main__":
    log = logging.getLogger("keras_resnet")  # says whether XLA compiles the step, and why
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    main()
