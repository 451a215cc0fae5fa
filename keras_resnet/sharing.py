"""What Keras does for each replica alone, done for the batch that they share."""

import contextlib
import functools
import itertools
import math

import keras
import tensorflow as tf

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
_BOUNDS = ("clipnorm", "clipvalue", "global_clipnorm")


def spread_losses(compiled) -> None:
    """Makes of losses that give one number for all images such as give it for each of them.

    Keras takes the mean of either, but divides only the latter among the replicas: with two of
    them the gradient of the former is twice as large.

    Args:
        compiled: Keras's `CompileLoss`, changed in place before it is built; what a model saves is
            not. Or `None`.
    """
    if compiled is not None and not compiled.built:
        compiled._user_loss = keras.tree.map_structure(_spread, compiled._user_loss)


class _Spread(keras.losses.Loss):
    def __init__(self, loss):
        super().__init__(loss.name, loss.reduction, loss.dtype)
        self.call = _spread(loss.call)


def _spread(loss):
    """A loss with one value per image; losses that are sums stay as they are."""
    if isinstance(loss, type):
        loss = loss()
    if isinstance(loss, str) and loss.lower() not in ("crossentropy", "ce"):
        found = _spread(keras.losses.get(loss))
        if not isinstance(found, keras.losses.Loss):
            found.__name__ = loss  # in the names of what Keras logs
        return found
    if isinstance(loss, keras.losses.Loss):
        is_mean = loss.reduction in _MEANS and type(loss).__call__ is keras.losses.Loss.__call__
        return _Spread(loss) if is_mean else loss
    if not callable(loss):
        return loss

    @functools.wraps(loss)
    def spread(y_true, y_pred):
        values = keras.ops.convert_to_tensor(loss(y_true, y_pred))
        return values if values.shape.rank else tf.fill(tf.shape(y_pred)[:1], values)

    return spread


@contextlib.contextmanager
def counted(compiled, images):
    """Inside, the loss of each output weighs in the logs as many images as it comes from.

    Keras takes its number of images from the shape, and 1 where that is open.

    Args:
        compiled: Keras's `CompileLoss`, or `None`.
        images: Number of images.
    """
    metrics = compiled.metrics if compiled is not None else []
    for metric in metrics:
        metric.update_state = functools.partial(_update_mean, metric, images)
    try:
        yield
    finally:
        for metric in metrics:
            del metric.update_state


def _update_mean(metric, images, values, sample_weight):
    keras.metrics.Mean.update_state(metric, values, sample_weight=images)


def check_parts(losses, parts: int) -> None:
    """Raises a ValueError if a batch cannot be done in parts, whose gradients are averaged.

    Args:
        losses: What `compile` took.
        parts: How many.
    """
    if "sum" in _reductions(losses):
        raise ValueError(
            "A sum over the images of a batch is not the mean of its parts. Expected losses with "
            "another reduction, or accumulation_steps=1. Received: reduction='sum' with "
            f"accumulation_steps={parts}."
        )


def divided(data, parts: int):
    """Tensors in their structure, with an axis for the parts in front of that for the images.

    Args:
        data: The tensors of a replica's share of a batch, the images first; `None` stays.
        parts: How many.
    """
    divides = tf.debugging.assert_equal(
        count(data) % parts,
        0,
        "A replica's share of a batch does not divide into parts. Expected a multiple of "
        f"accumulation_steps={parts} images on each replica, of the last batch as well: "
        "drop_remainder=True.",
    )

    def divide(batch):
        if batch is None:
            return None
        # Images that grow have their size in the step alone.
        shape = tf.concat([[parts, -1], tf.shape(batch)[1:]], axis=0)
        return tf.ensure_shape(tf.reshape(batch, shape), [parts, None, *batch.shape[1:]])

    with tf.control_dependencies([divides]):
        return keras.tree.map_structure(divide, data)


def count(data):
    """Number of images of a batch: an int where all replicas have as many, otherwise a tensor.

    Args:
        data: Tensors whose first axis counts the images.
    """
    first = keras.tree.flatten(data)[0]
    return (not tf.executing_eagerly() and first.shape[0]) or tf.shape(first)[0]


def weight_of_loss(images, losses, sample_weight=None):
    """How many images the loss of a replica stands for, among those of the other replicas.

    Args:
        images: Number of images that it has: an integer where all replicas have as many, otherwise
            a tensor.
        losses: What `compile` took.
        sample_weight: Weights of the images, or `None`.

    Returns:
        As many for means over the images, those of an even share for sums.

    Raises:
        ValueError: If shares may be uneven, and some losses are sums and others means; for means
            over the weights; or for losses that are not reduced.
    """
    reductions = _reductions(losses)
    if not reductions.isdisjoint((None, "none")):
        raise ValueError(
            "Losses of single images have no weight among those of other shares. Expected "
            "reduction='sum' or 'sum_over_batch_size', or one replica without parts. Received: "
            "reduction=None."
        )
    if sample_weight is not None and "mean_with_sample_weight" in reductions:
        raise ValueError(
            "A mean over the weights of a batch is not that of the means of its shares. Expected "
            "reduction='sum_over_batch_size', one replica without parts, or no sample weights. "
            "Received: reduction='mean_with_sample_weight'."
        )
    if isinstance(images, int) or "sum" not in reductions:
        return images
    if reductions != {"sum"}:
        raise ValueError(
            "Shares of a batch that may be uneven weigh differently in sums and in means over "
            "images. Expected one reduction for all losses, or drop_remainder=True. Received: "
            "reduction='sum' and others."
        )
    return even_share(images)


def even_share(images):
    """How many images each replica would have if all had as many: a float32 tensor.

    Args:
        images: Number of images that this replica has: a tensor.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return _summed(tf.cast(images, tf.float32)) / replicas


def check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises a ValueError if an optimizer cannot work on several replicas.

    Args:
        optimizer: An optimizer, one that scales the loss of another, or one made of several. Or
            `None`.
    """
    if optimizer is None:
        return
    optimizer = _without_loss_scale(optimizer)
    remedies = {
        "gradient_accumulation_steps": "Set `model.accumulation_steps` instead.",
        "ema_overwrite_frequency": "Use the callback `keras.callbacks.SwapEMAWeights` instead.",
    }
    _check_options([optimizer], remedies)
    clipping = dict.fromkeys(_BOUNDS, "A `MultiOptimizer` would clip each replica's gradient.")
    _check_options(getattr(optimizer, "optimizers", []), remedies | clipping)


def _check_options(optimizers, remedies):
    for optimizer, (option, remedy) in itertools.product(optimizers, remedies.items()):
        value = getattr(optimizer, option)
        if value is not None:
            raise ValueError(
                "Keras's optimizers do some steps only on one device. Expected "
                f"{option}=None on several replicas. Received: {option}={value}. {remedy}"
            )


def together(gradients: list, optimizer: keras.optimizers.Optimizer) -> list:
    """The gradients of one replica, such that the optimizer does with them what it does with all.

    It skips a step where those of any replica overflow, and clips the gradient of the whole batch.

    Args:
        gradients: Those of the replica in whose context this is called.
        optimizer: The optimizer that they are for.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return gradients
    check_optimizer(optimizer)  # again: a `MultiOptimizer` may have made its own since
    return _clipped_together(_finite_together(gradients, optimizer), optimizer)


def _finite_together(gradients, optimizer):
    """The gradients, or NaN for the first where those of any replica are infinite or NaN.

    To skip a step that overflows, Keras's loss scaling looks at those of the first replica.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return gradients
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in gradients])
    overflows = _summed(tf.where(finite, 0.0, 1.0))
    first, *others = gradients
    return [tf.where(overflows > 0, tf.cast(math.nan, first.dtype), first), *others]


def _clipped_together(gradients, optimizer):
    """The gradients, such that their sum over the replicas is what the optimizer clips it to.

    Keras clips the part of each replica and then adds them up, to as many times the bound. An
    optimizer with `clips_the_sum` does so itself.
    """
    inner = _without_loss_scale(optimizer)
    bounded = any(getattr(inner, bound) is not None for bound in _BOUNDS)
    if not bounded or getattr(inner, "clips_the_sum", False):
        return gradients
    scale = optimizer.scale_loss(tf.constant(1.0))
    clipped = inner._clip_gradients(
        [each / tf.cast(scale, each.dtype) for each in _summed(gradients)]
    )
    # Each replica gives an equal part, which is within the bound.
    part = scale / tf.distribute.get_strategy().num_replicas_in_sync
    return [each * tf.cast(part, each.dtype) for each in clipped]


def _reductions(losses):
    """Of losses that say one; functions and names stand for means."""
    present = [loss for loss in keras.tree.flatten(losses) if loss is not None]
    return {getattr(loss, "reduction", "mean") for loss in present}


def _summed(values):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def _without_loss_scale(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)
