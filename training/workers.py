"""One process among many that train a model together: what it does so that they stay together.

All of them run the same program in step. The chief's files are the run's; the others write theirs
to a folder that goes away, so that saving, too, is the same everywhere.
"""

import contextlib
import pathlib
import shutil
import signal
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.cluster import Cluster
from training.strategy import Strategy, make_strategy, strategy_of


@contextlib.contextmanager
def taking_part(
    cluster: Cluster | None,
    run_dir: pathlib.Path,
    *,
    resume: bool = False,
    replicas: int | None = None,
    tpu: str | None = None,
) -> Iterator[pathlib.Path]:
    """Inside, `make_strategy` gives the strategy over a cluster or a TPU.

    Args:
        cluster: The processes to train with. `None`: this one trains alone.
        run_dir: The run's directory. To resume a run all workers have to see it.
        resume: Whether a run that is there is continued.
        replicas: Number of devices of this process, see `make_strategy`.
        tpu: Name of a TPU, see `make_strategy`.

    Yields:
        The directory for this process to write to.

    Raises:
        ValueError: If the strategy cannot be made, or later if another worker is lost.
    """
    if cluster is None and tpu is None:
        yield run_dir
        return
    with _own_directory(cluster, run_dir, resume) as own_dir, _naming_lost_workers():
        strategy = make_strategy(replicas, cluster=cluster, tpu=tpu)
        if cluster and not cluster.is_chief:
            # The chief stops the training, when it has saved a checkpoint.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        with strategy.scope():
            yield own_dir


@contextlib.contextmanager
def _own_directory(cluster, run_dir, resume):
    """The run's directory for the chief, and for another worker a copy for the time being."""
    if cluster is None or cluster.is_chief:
        yield run_dir
        return
    with tempfile.TemporaryDirectory(prefix=f"worker-{cluster.index}-") as folder:
        own_dir = pathlib.Path(folder) / "run"
        if resume and run_dir.is_dir():  # before the chief goes on: it waits for all workers
            shutil.copytree(run_dir, own_dir)
        yield own_dir


@contextlib.contextmanager
def _naming_lost_workers():
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        lines = [line for line in str(error).splitlines() if "/job:worker" in line]
        raise ValueError(
            "Another worker was lost. Expected all of them to stay until the end. Received: "
            f"{(lines[0] if lines else error.message).rstrip('.')}. Start all of them again; with "
            "--resume they go on from the last checkpoint."
        ) from error


class StayTogether(keras.callbacks.Callback):
    """Keeps the workers of a cluster one model; without a cluster it does no harm.

    Each replica keeps its own moving mean and variance of the batches it saw, and only those of
    the chief's first one are saved. A network of this package averages those of one process by
    itself; the other workers have to be asked, and all of them at the same time.
    """

    def on_train_begin(self, logs=None):
        """After what a checkpoint held is back in the model."""
        check_agreement(
            strategy_of(self.model),
            step=int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)),
            epochs=self.params["epochs"],
            steps_per_epoch=self.params["steps"],
        )

    def on_test_begin(self, logs=None):
        """Before an evaluation; `fit` validates before its epoch ends, and saves after it."""
        average_moving_statistics(self.model)


def check_agreement(strategy: Strategy, **values: Any) -> None:
    """Raises a ValueError, on every worker, if the workers are about to do different things.

    They would wait for each other for ever, or mix up what they learn.

    Args:
        strategy: The strategy over all workers; with any other there is nothing to check.
        **values: What has to be the same everywhere, with a `repr` that tells it.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    mine = [zlib.crc32(repr(value).encode()) for value in values.values()]
    everyone = strategy.gather(tf.constant([mine], tf.int64), axis=0).numpy()
    index = strategy.cluster_resolver.task_id
    for name, column in zip(values, everyone.T):
        others = np.flatnonzero(column != column[index])
        if others.size:
            raise ValueError(
                f"The workers do not train the same. Expected one {name} for all of them. "
                f"Received: {values[name]} on worker {index}, and something else on "
                f"{', '.join(f'worker {n}' for n in others)}. Give all of them the same command, "
                "data, and run directory."
            )


def average_moving_statistics(model: keras.Model) -> None:
    """Sets every non-trainable float weight to its mean over the replicas of all workers.

    Every worker has to call it.

    Args:
        model: A model built in the scope of a strategy over several workers. Any other stays as it
            is: networks of this package average the replicas of one process by themselves.
    """
    strategy = strategy_of(model)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    weights = [
        weight.value for weight in model.non_trainable_variables if weight.value.dtype.is_floating
    ]
    if not weights:
        return

    def flattened():
        return tf.concat([tf.reshape(tf.cast(w, tf.float32), [-1]) for w in weights], axis=0)

    @tf.function(autograph=False)
    def mean():
        return strategy.reduce("MEAN", strategy.run(flattened), axis=None)

    parts = tf.split(mean(), [weight.shape.num_elements() for weight in weights])
    for weight, part in zip(weights, parts):
        weight.assign(tf.cast(tf.reshape(part, weight.shape), weight.dtype))
