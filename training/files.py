"""Files that are whole or not there at all."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

LOCK = "lock"  # held by the process that works in the folder
PARTIAL = ".partial-"  # how the names of files begin that are not whole yet
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of folders on some network file systems
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
        # What is no UTF-8 in a file's name is a surrogate: Python escapes it as JSON does.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def locked(folder: pathlib.Path, *, what: str, option: str) -> Iterator[None]:
    """Keeps a folder for one process, until the block ends or the process does.

    What a killed process has left half written in it is removed.

    Args:
        folder: It is made if it is not there.
        what: What goes on in it, for the error.
        option: The option that chooses another folder.

    Raises:
        ValueError: If another process has it, or that cannot be known.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process loses it
        except BlockingIOError:
            raise ValueError(
                f"Another process works on this {what}. Expected a {what} directory of its own for "
                f"each process. Received: {str(folder)!r}. Wait for the other one to end, or "
                f"choose another {option}."
            ) from None
        except OSError as error:
            raise ValueError(
                f"The {what} directory cannot be kept for one process. Expected a file system that "
                f"locks files. Received: {error} ({str(folder)!r}). Mount it so that it does, or "
                f"choose another {option}."
            ) from error
        for partial in folder.glob(f"{PARTIAL}*"):
            partial.unlink()
        yield


def is_unused(folder: pathlib.Path) -> bool:
    """Whether a folder is empty, or holds no more than a killed process left before its first file.

    Args:
        folder: There or not.
    """
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = (path.name for path in folder.iterdir())
    return all(name == LOCK or name.startswith(PARTIAL) for name in names)


def _reach_disk(path):
    """Waits until a file, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
