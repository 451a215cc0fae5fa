"""What a run has reached, on disk: a run that is killed continues from its newest checkpoint.

Keras's own `BackupAndRestore` repeats the epoch it was killed in, and neither its two files nor its
history are written as one. A checkpoint here is one NumPy file that holds every variable by its
name, under any Keras backend, and the run's progress.
"""

import dataclasses
import hashlib
import io
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from training import files

FOLDER = "checkpoints"  # in the run's directory
KEPT = 2  # one more than is needed, if the newest is damaged
_PROGRESS = "progress"
logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    Args:
        step: Number of weight updates.
        seconds: Time they took, over all parts of the run, with validation.
        history: One value per finished epoch of every metric.
    """

    step: int = 0
    seconds: float = 0.0
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(next(iter(self.history.values()), ()))


def save(folder: pathlib.Path, progress: Progress, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint, whole or not at all, and keeps the one before.

    Args:
        folder: Where; nobody else writes there.
        progress: How far the run has come.
        arrays: Those of `capture`.

    Raises:
        WriteError: If the disk does not take it. The checkpoints before are still there.
    """
    content = io.BytesIO()
    np.savez(content, **{_PROGRESS: np.array(json.dumps(dataclasses.asdict(progress)))}, **arrays)
    checksum = _checksum(content.getbuffer())
    path = folder / f"step-{progress.step:09d}-{checksum}.npz"
    with files.replacing(path) as partial:
        partial.write_bytes(content.getbuffer())
    # Others of this step and later ones are damaged, or the run would have continued from there.
    first_of_step = f"step-{progress.step:09d}-"
    before = [old for old in sorted(folder.glob("step-*")) if old.name < first_of_step]
    for old in folder.iterdir():
        if old not in (*before[1 - KEPT :], path):
            old.unlink()


def load_newest(folder: pathlib.Path) -> tuple[Progress, dict[str, np.ndarray]]:
    """The newest checkpoint that is not damaged.

    Args:
        folder: Where the checkpoints are, if there are any.

    Returns:
        The progress, and the arrays of `capture`; a fresh progress and none if there is no
        checkpoint.

    Raises:
        ValueError: If all of them are damaged: to begin again would replace the best weights.
    """
    damaged = []
    for path in sorted(folder.glob("step-*.npz"), reverse=True):
        try:
            content = path.read_bytes()
        except OSError:  # a disk that fails
            content = b""
        if path.stem.endswith(f"-{_checksum(content)}"):
            for newer in damaged:
                logger.warning("The checkpoint %s is damaged; the one before it is used.", newer)
            with np.load(io.BytesIO(content)) as file:
                arrays = dict(file)
            return Progress(**json.loads(str(arrays.pop(_PROGRESS)))), arrays
        damaged.append(path)
    if damaged:
        raise ValueError(
            "The run cannot be continued. Expected a checkpoint that is not damaged. Received: "
            f"{', '.join(path.name for path in damaged)} in {str(folder)!r}, all damaged. Begin "
            "anew in another --run-dir; or remove that folder, and --resume replaces this run from "
            "its first step on, its best weights too."
        )
    return Progress(), {}


def capture(model: keras.Model) -> dict[str, np.ndarray]:
    """The value of everything that training changes in a compiled model.

    Args:
        model: A model that `fit` has built.

    Returns:
        Arrays by name: of the weights, of the optimizer, of the metrics and of the seed
        generators. What replicas keep apart has an axis for them in front.
    """
    if hasattr(model, "jax_state_sync"):  # within an epoch, JAX keeps the values elsewhere
        model.jax_state_sync()
    arrays = {}
    for name, copies in _variables(model):
        values = [keras.ops.convert_to_numpy(copy) for copy in copies]
        arrays[name] = values[0] if len(values) == 1 else np.stack(values)
    return arrays


def restore(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives a model the values of `capture`.

    Args:
        model: The same model, built by `fit`, on as many replicas.
        arrays: The values by name.

    Raises:
        ValueError: If they are those of another model.
    """
    variables = dict(_variables(model))
    shapes = {
        name: (len(copies),) * (len(copies) > 1) + tuple(copies[0].shape)
        for name, copies in variables.items()
    }
    other = sorted(
        name
        for name in {*shapes, *arrays}
        if name not in arrays or shapes.get(name) != arrays[name].shape
    )
    if other:
        raise ValueError(
            f"The checkpoint is not one of this network. Expected {len(shapes)} variables of its "
            f"names and shapes. Received: {len(other)} that differ, first {other[0]!r}. Continue "
            "with the code and the number of replicas that the run was started with."
        )
    for name, copies in variables.items():
        values = arrays[name] if len(copies) > 1 else [arrays[name]]
        for copy, value in zip(copies, values):
            copy.assign(value)


def is_finite(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether there is neither NaN nor infinity among the values.

    Args:
        arrays: Those of `capture`.
    """
    return all(np.isfinite(array).all() for array in arrays.values())


def _variables(model) -> Iterator[tuple[str, tuple]]:
    """Each variable's name, and its copies: those of the replicas where they may differ.

    Keras counts the optimizers and seed generators of the process; here they go by their order.
    """
    for variable in model.trainable_variables:
        yield variable.path, (variable,)
    for number, variable in enumerate(model.optimizer.variables):
        yield f"optimizer/{number}/{variable.name}", (variable,)
    seeds = 0
    for variable in [*model.non_trainable_variables, *model.metrics_variables]:
        name = variable.path
        if variable.name == "seed_generator_state":
            name, seeds = f"{variable.name}/{seeds}", seeds + 1
        # On TensorFlow a variable under a strategy has one value per replica.
        yield name, tuple(getattr(variable.value, "values", (variable,)))


def _checksum(content):
    return hashlib.sha256(content).hexdigest()[:16]
