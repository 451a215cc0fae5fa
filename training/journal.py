"""What a search has found out: its executions, in one file that is always whole, and its trials."""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training import files

JOURNAL = "search.json"
TRIALS, PLOT, BEST = "trials.csv", "trials.png", "best_recipe.json"  # what is made of it


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of one set of values.

    Args:
        number: From 1, in the order of the trials.
        values: Field -> value.
        steps: Number of steps of each execution.
        accuracies: For each execution the share of the validation images that its last weights got
            right, in [0, 1]; 0 if it could not be trained.
        seconds: Duration of all executions together.
        note: Why an execution could not be trained, or empty.
    """

    number: int
    values: Mapping[str, Any]
    steps: int
    accuracies: tuple[float, ...]
    seconds: float
    note: str = ""

    @property
    def texts(self) -> dict[str, str]:
        """Field -> value, as a person reads it."""
        return {
            name: f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in self.values.items()
        }

    @property
    def accuracy(self) -> float:
        """The score: the mean over the executions."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the executions; `None` for a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @classmethod
    def of(cls, number: int, executions: Sequence[Mapping[str, Any]]) -> "Trial":
        """The trial that executions with the same values make.

        Args:
            number: From 1, in the order of the trials.
            executions: As a journal holds them.
        """
        notes = [execution["note"] for execution in executions if execution["note"]]
        return cls(
            number=number,
            values=executions[0]["values"],
            steps=executions[0]["steps"],
            accuracies=tuple(execution["accuracy"] for execution in executions),
            seconds=round(sum(execution["seconds"] for execution in executions), 2),
            note=notes[0] if notes else "",
        )


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The trials, best first; of equals the earlier.

    Args:
        trials: Trials of one search.
    """
    return sorted(trials, key=lambda trial: (-trial.accuracy, trial.number))


class Journal:
    """What a search has found out so far.

    Args:
        folder: Its directory.
        settings: What decides the search, as plain JSON types. An execution that stands in the
            file was made with the same.

    Raises:
        ValueError: If the file belongs to another search, or is damaged.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))  # as it will be read: without tuples
        self._executions = []
        if (folder / JOURNAL).exists():
            found = _read(folder / JOURNAL)
            _check_same_search(found["settings"], self._settings, folder)
            self._executions = found["executions"]
        else:
            self._write()

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """An execution that has ended, or `None`.

        Args:
            key: The fields that tell it from all others.
        """
        for execution in self._executions:
            if all(execution[name] == value for name, value in key.items()):
                return execution
        return None

    def add(self, execution: Mapping[str, Any]) -> None:
        """Keeps an execution, on the disk, before anything else happens.

        Args:
            execution: Its key and its results, as plain JSON types.
        """
        self._executions.append(execution)
        self._write()

    def _write(self):
        content = {"settings": self._settings, "executions": self._executions}
        files.write_json(self.folder / JOURNAL, content)


@contextlib.contextmanager
def opened(
    folder: str | os.PathLike, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Journal]:
    """The journal of a directory, which no other process gets until the block ends.

    Args:
        folder: New or empty directory, or that of the same search.
        settings: What decides the search, as plain JSON types.
        overwrite: Whether the search in the directory is thrown away.

    Yields:
        The journal.

    Raises:
        ValueError: If the directory holds something else, another search, or one that another
            process works on.
    """
    folder = pathlib.Path(folder)
    _check_free(folder)
    with files.locked(folder, what="search", option="--output"):
        if overwrite:
            for name in (JOURNAL, TRIALS, PLOT, BEST):
                (folder / name).unlink(missing_ok=True)
        yield Journal(folder, settings)


def _check_free(folder):
    if (folder / JOURNAL).exists() or files.is_unused(folder):
        return
    raise ValueError(
        "The directory holds something else than a search. Expected a new or an empty one. "
        f"Received: {str(folder)!r}. Choose another --output."
    )


def _read(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not content.keys() >= {"settings", "executions"}:
            raise ValueError("fields are missing")
        return content
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"The search cannot be continued. Expected the {JOURNAL} that `tune` wrote. Received: "
            f"{str(path)!r} ({error}). Start anew with --overwrite, or choose another --output."
        ) from error


def _check_same_search(found, wanted, folder):
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        expected, received = (
            ", ".join(f"{name}={settings.get(name)!r}" for name in differing)
            for settings in (found, wanted)
        )
        raise ValueError(
            f"{str(folder)!r} holds another search. Expected {expected}. Received: {received}. "
            "Repeat the options it was started with, start anew with --overwrite, or choose "
            "another --output."
        )
