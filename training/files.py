"""Files that are whole or not there at all."""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

PARTIAL = ".partial-"  # how the names of files begin that are not whole yet
_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


class WriteError(ValueError):
    """A file could not be written; what stood in its place is still there."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Says in one message what is wrong with a disk.

    Args:
        path: What is written inside the block.

    Raises:
        WriteError: In the place of what the system says.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        # TensorFlow's errors are no OSErrors, and tell a full disk from full memory by words alone.
        if not isinstance(error, OSError) and not any(words in str(error) for words in _FULL):
            raise
        raise WriteError(
            f"A file cannot be written. Expected room for it, and permission. Received: {error} "
            f"({os.fspath(path)!r}). Free some space or choose another folder."
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A path to write to, which takes the place of a file when the block ends.

    Nobody ever sees half of the file, whenever the process is killed, the disk is full or the
    power fails: it has reached the disk before it gets its name.

    Args:
        path: The file, there already or not; its folder is made.

    Yields:
        A path in the same folder, with the same ending.

    Raises:
        WriteError: If the disk does not take the file. The one before is still there.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _reach_disk(partial)
            os.replace(partial, path)
            _reach_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
        path: Where.
        content: Plain JSON types.

    Raises:
        WriteError: If the disk does not take it.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partial(folder: pathlib.Path) -> None:
    """Removes what a killed process has left half written.

    Args:
        folder: A folder that no other process writes to.
    """
    for partial in folder.glob(f"{PARTIAL}*"):
        partial.unlink()


def _reach_disk(path):
    """Waits until a file, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
