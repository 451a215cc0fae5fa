"""One process, many devices: which devices share a batch, and how they stay one model."""

import keras
import tensorflow as tf


def make_strategy(replicas: int | None = None) -> tf.distribute.MirroredStrategy:
    """A MirroredStrategy over all local GPUs, or over logical devices of the CPU.

    Without a GPU the CPU is divided into `replicas` logical devices, which is for trying out
    what happens on several devices: it costs no accuracy and gains no speed. TensorFlow divides
    it once, so this comes before any other use of TensorFlow in the process.

    Args:
        replicas: Number of devices. `None`: all GPUs, or one CPU device.

    Returns:
        The strategy; `strategy.num_replicas_in_sync` tells the number.

    Raises:
        ValueError: If there are fewer devices, or TensorFlow already runs with fewer.
    """
    if replicas is not None and replicas < 1:
        raise ValueError(
            "A strategy needs at least one device. Expected `replicas` >= 1. "
            f"Received: replicas={replicas}"
        )
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return _cpu_strategy(replicas or 1)
    if replicas is not None and replicas > len(gpus):
        raise ValueError(
            f"There are not enough GPUs. Expected `replicas` <= {len(gpus)}. "
            f"Received: replicas={replicas}. Hide the GPUs with CUDA_VISIBLE_DEVICES= to divide "
            "the CPU instead."
        )
    return tf.distribute.MirroredStrategy([f"GPU:{n}" for n in range(replicas or len(gpus))])


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


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Raises a ValueError if the replicas cannot share the batch evenly.

    Uneven shares would weigh the images of a batch differently.

    Args:
        batch_size: Images per step over all replicas together.
        strategy: The strategy that shares them out.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        below = batch_size - batch_size % replicas
        nearest = f"{below} or {below + replicas}" if below else f"{replicas}"
        raise ValueError(
            f"{replicas} replicas cannot share the batch evenly. Expected a batch size that is a "
            f"multiple of {replicas}. Received: batch_size={batch_size}. Use {nearest}."
        )


class AverageMovingStatistics(keras.callbacks.Callback):
    """Averages what the replicas learned apart, before every evaluation and save.

    Each replica of a MirroredStrategy keeps its own moving mean and variance of the batches it
    saw, and only those of the first one are evaluated on its images and saved. Their average
    makes the replicas equal, so that what is evaluated is what is saved.
    """

    def on_test_begin(self, logs=None):
        """Before an evaluation; `fit` validates before its epoch ends."""
        average_moving_statistics(self.model)

    def on_epoch_end(self, epoch, logs=None):
        """Before the callbacks that save; this one comes first in their list."""
        average_moving_statistics(self.model)


def average_moving_statistics(model: keras.Model) -> None:
    """Sets every non-trainable float weight to its mean over the replicas.

    Args:
        model: A model built in the scope of a strategy; any other model stays as it is.
    """
    for weight in model.non_trainable_variables:
        copies = getattr(weight.value, "values", ())
        if len(copies) > 1 and weight.value.dtype.is_floating:
            weight.value.assign(tf.add_n([tf.identity(copy) for copy in copies]) / len(copies))
