"""What is kept of a run: one directory, and in it one `record.json` that says how it came about."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

import keras_resnet
from training import datasets, files
from training.recipe import Recipe

RECORD = "record.json"
BEST = "best.keras"  # the weights that were best on the validation split
LAST = "last.keras"  # the weights after the last step
# What a recipe says about itself does not change what comes of it.
_REMARKS = ("reference", "measured_accuracy")
_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Record:
    """How a run was made, and what came of it.

    Args:
        recipe: The recipe as it was followed, after all changes on the command line.
        seed: Seed of the initialisation, the order of the images and the augmentation.
        replicas: Number of devices that shared each batch.
        data: What was read: number of images of each split, class names, whether damaged files
            were skipped.
        versions: Version of Python and of each package that decides the result.
        commit: Git commit of the checkout, `-dirty` if files differ from it; `None` outside git.
        hardware: CPU model, cores, names of the GPUs.
        started: Time of the start, UTC, ISO 8601.
        seconds: Duration of the training, with validation, over all its parts; what was lost and
            done again counts once. `None` until it has ended.
        images_per_second: Training images per second of that duration.
        results: What was measured after the training. Empty until it has ended.
        resumed: How many times the run was continued after it had been stopped.
        accumulation_steps: In how many parts each device did its share of a batch.
        xla: Whether XLA compiled the step. `None` in records of before this was kept.
    """

    recipe: Recipe
    seed: int
    replicas: int
    data: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    hardware: dict[str, Any]
    started: str
    seconds: float | None = None
    images_per_second: float | None = None
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    resumed: int = 0
    accumulation_steps: int = 1
    xla: bool | None = None

    def finished(self, seconds: float, results: dict[str, Any]) -> "Record":
        """The record of the run after its end.

        Args:
            seconds: Duration of the training.
            results: What was measured.
        """
        return dataclasses.replace(
            self,
            seconds=round(seconds, 2),
            images_per_second=round(self.recipe.images / seconds, 1),
            results=results,
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return dataclasses.asdict(self)


def new_record(
    recipe: Recipe, *, seed: int, replicas: int, data: dict[str, Any], **how: int | bool
) -> Record:
    """The record of a run that starts now, on this machine, from this checkout.

    Args:
        recipe: The recipe that is followed.
        seed: The run's seed.
        replicas: Number of devices.
        data: What is read.
        **how: `accumulation_steps` and `xla`, as in `Record`.
    """
    return Record(
        recipe=recipe,
        seed=seed,
        replicas=replicas,
        data=data,
        versions=versions(),
        commit=commit(),
        hardware=hardware(),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **how,
    )


@contextlib.contextmanager
def claimed(run_dir: str | os.PathLike, *, resume: bool = False) -> Iterator[pathlib.Path]:
    """Keeps a directory for one run and one process, until the block ends or the process does.

    Args:
        run_dir: A path that does not exist yet, or an empty directory.
        resume: Whether it may also be the directory of a run.

    Yields:
        The path of the directory; it exists.

    Raises:
        ValueError: If it holds anything else, so that no run ever overwrites another, or if
            another process works on it.
    """
    run_dir = pathlib.Path(run_dir)
    _check_free(run_dir, resume)
    with files.locked(run_dir, what="run", option="--run-dir"):
        yield run_dir


def _check_free(run_dir, resume):
    is_run = (run_dir / RECORD).exists()
    if (resume and is_run) or files.is_unused(run_dir):
        return
    content, remedy = (
        ("another run", "Continue it with --resume, choose")
        if is_run
        else ("something else", "Choose")
    )
    raise ValueError(
        f"The run directory already holds {content}. Expected a new or an empty directory. "
        f"Received: run_dir={str(run_dir)!r}. {remedy} another one with --run-dir, another "
        "--seed, or delete it."
    )


def begin(run_dir: pathlib.Path, record: Record) -> Record:
    """Writes the record of a run that starts or goes on.

    Args:
        run_dir: The run's directory.
        record: The record of a run that starts.

    Returns:
        The record of the run in the directory. One with results has finished and stays as it is.

    Raises:
        ValueError: If the run in the directory is another one.
    """
    if (run_dir / RECORD).exists():
        found = read(run_dir)
        check_same_run(found, record)
        if found.results:
            return found
        record = dataclasses.replace(found, resumed=found.resumed + 1)
    write(run_dir, record)
    return record


def load_dataset(record: Record, data_dir: str | os.PathLike | None = None) -> datasets.Dataset:
    """The images of a run, split as they were for it.

    Args:
        record: The run's record.
        data_dir: Where the images are, see `datasets.load`.
    """
    return datasets.load(
        record.recipe.dataset,
        data_dir=data_dir,
        validation_examples=record.recipe.validation_examples,
        skip_corrupt=record.data["skip_corrupt"],
    )


def check_same_run(found: Record, wanted: Record) -> None:
    """Raises a ValueError if a run would be continued in another way than it was begun.

    Args:
        found: The record in the run's directory.
        wanted: The record that the run would have now.
    """
    before, now = _decisive(found), _decisive(wanted)
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        expected, received = (
            ", ".join(f"{name}={fields.get(name)!r}" for name in differing)
            for fields in (before, now)
        )
        raise ValueError(
            f"The run directory holds a run that was started differently. Expected {expected}. "
            f"Received: {received}. Repeat the options it was started with, or choose another "
            "directory with --run-dir."
        )


def _decisive(record):
    """What decides a run, by name, as JSON has it: without tuples."""
    fields = json.loads(json.dumps(record.to_dict()))
    recipe = {name: value for name, value in fields["recipe"].items() if name not in _REMARKS}
    # Batch statistics are those of a part.
    deciding = {name: fields[name] for name in ("seed", "replicas", "accumulation_steps")}
    deciding["xla"] = bool(fields["xla"])
    # Each backend draws other random numbers.
    deciding["backend"] = "jax" if "jax" in fields["versions"] else "tensorflow"
    return {**recipe, **deciding, **fields["data"]}


def write(run_dir: str | os.PathLike, record: Record) -> None:
    """Writes `record.json`, whole or not at all.

    Args:
        run_dir: The run's directory.
        record: The record.
    """
    files.write_json(pathlib.Path(run_dir) / RECORD, record.to_dict())


def read(run_dir: str | os.PathLike) -> Record:
    """Reads the record of a run.

    Args:
        run_dir: The run's directory.

    Raises:
        ValueError: If there is no run, or its record is damaged.
    """
    path = pathlib.Path(run_dir) / RECORD
    if not path.is_file():
        raise ValueError(
            f"There is no run. Expected a directory with a {RECORD}, as `train` makes it. "
            f"Received: {str(run_dir)!r}"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{**fields, "recipe": Recipe(**fields["recipe"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"The record of a run cannot be read. Expected the {RECORD} that `train` wrote. "
            f"Received: {str(path)!r} ({type(error).__name__}: {error}). Restore the file, or "
            "choose another run."
        ) from error


def versions() -> dict[str, str]:
    """Version of Python, of this package and of the packages that decide a result."""
    packages = ["keras", "tensorflow", "tensorflow-datasets", "numpy"]
    if keras.backend.backend() == "jax":
        packages.append("jax")
    return {
        "python": platform.python_version(),
        "keras-resnet-zoo": keras_resnet.__version__,
        **{package: importlib.metadata.version(package) for package in packages},
    }


def commit() -> str | None:
    """Git commit of this checkout, `-dirty` if tracked files differ; `None` outside git."""
    # Above the checkout lies somebody else's repository, if any.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(_CHECKOUT.parent)}
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=_CHECKOUT, env=environment, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def hardware() -> dict[str, Any]:
    """CPU model, number of cores this process may use, names of the backend's GPUs."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    return {
        "cpu": _cpu_model(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "gpus": _gpus(),
    }


def _gpus():
    if keras.backend.backend() == "jax":  # TensorFlow may be one for CPUs
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform == "gpu"]
    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in gpus]


def _cpu_model():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
