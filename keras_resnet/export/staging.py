"""Files appear whole or not at all, and the converters' chatter stays off the console."""

import contextlib
import errno
import logging
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterator

SAVED_MODEL_PARTS = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}
TFLITE_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of the flatbuffer
_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


class WriteError(OSError, ValueError):
    """An export could not be written; what stood in its place is still there."""


@contextlib.contextmanager
def staged(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place if the body succeeds.

    The body may write a file or a folder. If it raises, what it wrote is removed, folders that were
    made for it as well, and what stood at `path` stays. A file is replaced atomically; a folder by
    two renames, undone on failure.

    Raises:
        WriteError: If the disk does not take it.
    """
    new_folders = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True
        ) as workshop:
            made = pathlib.Path(workshop, path.name)
            yield made
            _take_place(made, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for folder in new_folders:
                folder.rmdir()
        # TensorFlow's errors are no OSErrors, and tell a full disk by words alone.
        if isinstance(error, OSError) or any(words in str(error) for words in _FULL):
            raise WriteError(
                "The export cannot be written. Expected a folder with room for it, and permission. "
                f"Received: {error} (path='{path}'). Free some space or choose another path."
            ) from error
        raise


def _take_place(made, path):
    if not path.is_dir():
        made.replace(path)
        return
    previous = made.with_name("previous")
    path.rename(previous)
    try:
        made.rename(path)
    except BaseException:
        previous.rename(path)
        raise


def check_replaceable(path: pathlib.Path, kind: str, is_ours: bool):
    """Raises `ValueError` if something other than an earlier export stands at `path`."""
    if path.exists() and not is_ours:
        article = "an" if kind[0] in "AEIOU" else "a"
        raise ValueError(
            f"The output exists and is not {article} {kind}, so it is not replaced. "
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
