"""Files appear whole or not at all, and the converters' chatter stays off the console."""

import contextlib
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator

SAVED_MODEL_PARTS = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}
TFLITE_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of the flatbuffer


@contextlib.contextmanager
def staged(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place if the body succeeds.

    The body may write a file or a folder. If it raises, what it wrote is removed and what stood at
    `path` stays. A file is replaced atomically; a folder by two renames, undone on failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        made = workshop / path.name
        yield made
        if path.is_dir():
            previous = workshop / "previous"
            path.rename(previous)
            try:
                made.rename(path)
            except BaseException:
                previous.rename(path)
                raise
        else:
            made.replace(path)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def check_replaceable(path: pathlib.Path, kind: str, is_ours: bool):
    """Raises `ValueError` if something other than an earlier export stands at `path`."""
    if path.exists() and not is_ours:
        raise ValueError(
            f"The output exists and is not a {kind}, so it is not replaced. "
            f"Expected a new path or an earlier {kind}. Received: path='{path}'"
        )


def is_saved_model(path: pathlib.Path) -> bool:
    """Whether a folder holds a SavedModel, or nothing, and no file of anybody else."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or ("saved_model.pb" in names and names <= SAVED_MODEL_PARTS)


def is_tflite(path: pathlib.Path) -> bool:
    """Whether a file says of itself that it is a TFLite model."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == TFLITE_IDENTIFIER


@contextlib.contextmanager
def quiet_console() -> Iterator[None]:
    """Keeps what TensorFlow's converters and LiteRT print off the console, unless they fail.

    C++ writes to the file descriptors, so these are redirected, for the whole process; Python's
    warnings and TensorFlow's logger are held back as well.
    """
    logger = logging.getLogger("tensorflow")
    level = logger.level
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with tempfile.TemporaryFile() as chatter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        for descriptor in saved:
            os.dup2(chatter.fileno(), descriptor)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)
            logger.setLevel(level)
            if failed:
                chatter.seek(0)
                sys.stderr.write(chatter.read().decode(errors="replace"))
