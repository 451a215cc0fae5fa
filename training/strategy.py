"""Which devices share a batch, in one process or in many, and how they stay one model."""

import contextlib
import faulthandler
import signal

import keras
import tensorflow as tf

from training.cluster import Cluster, wait_for_workers

_DAY = 86_400.0  # seconds


class DataParallelStrategy:
    """`keras.distribution.DataParallel` for the JAX backend, with the names of `tf.distribute`.

    Here a batch is one array over all devices. Batch normalisation sees the whole batch, and there
    is one set of moving statistics.

    Args:
        distribution: Keras's distribution over the devices.
    """

    def __init__(self, distribution: keras.distribution.DataParallel):
        self._distribution = distribution
        self.num_replicas_in_sync = distribution.num_model_replicas

    def scope(self) -> contextlib.AbstractContextManager:
        """Where the model is made."""
        return self._distribution.scope()


Strategy = tf.distribute.Strategy | DataParallelStrategy


def make_strategy(
    replicas: int | None = None, *, cluster: Cluster | None = None, tpu: str | None = None
) -> Strategy:
    """A strategy over all local GPUs or logical devices of the CPU, a cluster, or a TPU.

    Without a GPU the CPU is divided into `replicas` logical devices, which is for trying out
    what happens on several devices: it costs no accuracy and gains hardly any speed. TensorFlow
    divides it once, so this comes before any other use of TensorFlow in the process.

    Under the JAX backend the devices are JAX's; `XLA_FLAGS` divides a CPU there. In the scope of a
    strategy the answer is that strategy.

    Args:
        replicas: Number of devices of this process. `None`: all GPUs, or one CPU device.
        cluster: The processes to train with, one strategy for all of them.
        tpu: Name or address of a TPU, `"local"` on its own machine. Never run on a real one.

    Returns:
        The strategy; `strategy.num_replicas_in_sync` tells the number of devices.

    Raises:
        ValueError: If there are fewer devices, TensorFlow already runs with fewer, or a worker
            does not start.
    """
    if replicas is not None and replicas < 1:
        raise ValueError(
            "A strategy needs at least one device. Expected `replicas` >= 1. "
            f"Received: replicas={replicas}"
        )
    _check_backend(cluster, tpu)
    if tpu is not None and replicas is not None:
        raise ValueError(
            "A TPU is trained on as a whole. Expected no number of replicas beside it. Received: "
            f"replicas={replicas}, tpu={tpu!r}."
        )
    if keras.backend.backend() == "jax":
        return _jax_strategy(replicas)
    if tf.distribute.has_strategy():
        return tf.distribute.get_strategy()
    if tpu is not None:
        return _tpu_strategy(tpu)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and replicas is not None and replicas > len(gpus):
        raise ValueError(
            f"There are not enough GPUs. Expected `replicas` <= {len(gpus)}. "
            f"Received: replicas={replicas}. Hide the GPUs with CUDA_VISIBLE_DEVICES= to divide "
            "the CPU instead."
        )
    if cluster is not None:
        return _cluster_strategy(cluster, gpus, replicas)
    if not gpus:
        return _cpu_strategy(replicas or 1)
    return tf.distribute.MirroredStrategy([f"GPU:{n}" for n in range(replicas or len(gpus))])


def _check_backend(cluster, tpu):
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise ValueError(
            "Training does not run on this Keras backend. Expected 'tensorflow' or 'jax'. "
            f"Received: {backend!r}. Set KERAS_BACKEND."
        )
    data_format = keras.config.image_data_format()
    if data_format != "channels_last":
        raise ValueError(
            "The images that training reads have their channels last. Expected Keras's "
            f"image_data_format 'channels_last'. Received: {data_format!r}. Change it in "
            "~/.keras/keras.json, or by keras.config.set_image_data_format."
        )
    if backend == "jax" and (cluster or tpu):
        raise ValueError(
            "On the JAX backend one process trains on its own devices. Expected neither a cluster "
            f"nor a TPU by name. Received: {tpu or ', '.join(cluster.workers)}. Choose "
            "KERAS_BACKEND=tensorflow for several machines."
        )
    if cluster and tpu:
        raise ValueError(
            "A run has a cluster or a TPU. Expected one of them. "
            f"Received: {', '.join(cluster.workers)} and {tpu!r}"
        )


def _cpu_strategy(replicas):
    cpu = tf.config.list_physical_devices("CPU")[0]
    divided = len(tf.config.get_logical_device_configuration(cpu) or [cpu])
    if divided < replicas:
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
            )
        except RuntimeError:
            raise ValueError(
                "TensorFlow already runs and can no longer divide the CPU. Expected `replicas` <= "
                f"{divided}. Received: replicas={replicas}. Make the strategy before anything "
                "else, in a fresh process (in a notebook: restart the kernel)."
            ) from None
    # The default reduction breaks with several steps per execution, and when a second strategy
    # is made in the same process.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{n}" for n in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def _cluster_strategy(cluster, gpus, replicas):
    if not gpus and (replicas or 1) > 1:
        raise ValueError(
            "TensorFlow does not divide the CPU of a worker. Expected `replicas` <= 1 in a "
            f"cluster without GPUs. Received: replicas={replicas}. Start more workers instead."
        )
    if gpus and replicas is not None:
        tf.config.set_visible_devices(gpus[:replicas], "GPU")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": cluster.workers}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    wait_for_workers(cluster)
    # A worker that was lost just now leaves TensorFlow waiting, with the interpreter locked.
    patience = min(cluster.start_timeout_seconds, _DAY) + 60  # no timer takes infinity
    faulthandler.dump_traceback_later(patience, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    finally:
        faulthandler.cancel_dump_traceback_later()
        # TensorFlow has put its own handler there, which keeps the process from ending.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _tpu_strategy(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            "The TPU does not answer. Expected the name of a Cloud TPU, or 'local' on its own "
            f"machine. Received: {name!r} ({str(error).splitlines()[0]})"
        ) from error


def _jax_strategy(replicas):
    # JAX has them, and TensorFlow, which reads the images, would take their memory.
    tf.config.set_visible_devices([], "GPU")
    devices = len(keras.distribution.list_devices())
    if replicas is not None and replicas > devices:
        raise ValueError(
            f"JAX has too few devices. Expected `replicas` <= {devices}. Received: "
            f"replicas={replicas}. To divide the CPU, set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={replicas}"
        )
    distribution = keras.distribution.DataParallel(
        devices=keras.distribution.list_devices()[: replicas or devices]
    )
    keras.distribution.set_distribution(distribution)  # for `fit`, which is outside of the scope
    return DataParallelStrategy(distribution)


def strategy_of(model: keras.Model) -> Strategy:
    """The strategy that a model was made in, under either backend.

    Args:
        model: A model; one that was made outside of a scope has a strategy of one replica.
    """
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy
    here = keras.distribution.list_devices()[:1]
    return DataParallelStrategy(
        keras.distribution.distribution() or keras.distribution.DataParallel(devices=here)
    )


def check_batch_size(batch_size: int, strategy: Strategy, accumulation_steps: int = 1) -> None:
    """Raises a ValueError if the replicas cannot share the batch evenly.

    Uneven shares would weigh the images of a batch differently.

    Args:
        batch_size: Images per step over all replicas together.
        strategy: The strategy that shares them out.
        accumulation_steps: In how many parts each replica does its share.
    """
    if accumulation_steps < 1:
        raise ValueError(
            "A replica does its share in at least one part. Expected `accumulation_steps` >= 1. "
            f"Received: accumulation_steps={accumulation_steps}."
        )
    parts = strategy.num_replicas_in_sync * accumulation_steps
    if batch_size % parts:
        below = batch_size - batch_size % parts
        nearest = f"{below} or {below + parts}" if below else f"{parts}"
        who = f"{strategy.num_replicas_in_sync} replicas"
        if accumulation_steps > 1:
            who += f" in {accumulation_steps} parts each"
        raise ValueError(
            f"{who} cannot share the batch evenly. Expected a batch size that is a "
            f"multiple of {parts}. Received: batch_size={batch_size}. Use {nearest}."
        )
