"""Mixing the images of a batch, and their labels with them.

The Keras layers of these names draw from a state of their own and take no seed, so a run could not
continue as if it had never stopped.
"""

import tensorflow as tf

from training.operations import lines


def mixup(images, labels, seed, *, alpha=0.2):
    """Blends every image with another one of the batch, and their labels in the same proportion.

    Every pair has its own proportion, as in the paper's equation; its program draws one per batch.

    Args:
        images: uint8 or float of any range, shape `(batch, height, width, channels)`.
        labels: float, one-hot, shape `(batch, classes)`.
        seed: Integer tensor of shape `(2,)`.
        alpha: Proportions come from Beta(alpha, alpha): near 0 most images stay as they are, at 1
            all proportions are as likely.

    Returns:
        `(images, labels)` of the same shapes and dtypes.

    Reference: Zhang et al. 2018, section 2.
    """
    partner_seed, share_seed = tf.unstack(tf.random.split(seed))
    order = _partners(images, partner_seed)
    share = _beta(alpha, tf.shape(images)[:1], share_seed)
    return (
        _blend(images, tf.gather(images, order), share[:, None, None, None]),
        _blend(labels, tf.gather(labels, order), share[:, None]),
    )


def cutmix(images, labels, seed, *, alpha=1.0):
    """Replaces a box of every image by that of another one; labels follow the areas, exactly.

    Every pair has its own box; the paper's program draws one per batch.

    Args:
        images: uint8 or float of any range, shape `(batch, height, width, channels)`.
        labels: float, one-hot, shape `(batch, classes)`.
        seed: Integer tensor of shape `(2,)`.
        alpha: The share of the image that is kept comes from Beta(alpha, alpha), and grows where
            the box reaches beyond a border.

    Returns:
        `(images, labels)` of the same shapes and dtypes.

    Reference: Yun et al. 2019, section 3.1.
    """
    partner_seed, share_seed, place_seed = tf.unstack(tf.random.split(seed, 3))
    order = _partners(images, partner_seed)
    batch, height, width, channels = tf.unstack(tf.shape(images))
    sides = tf.cast([height, width], tf.float32)
    share = _beta(alpha, [batch], share_seed)
    half = tf.cast(sides * tf.sqrt(1 - share[:, None]), tf.int32) // 2
    centre = tf.random.stateless_uniform((batch, 2), place_seed) * sides
    centre = tf.cast(centre, tf.int32)
    top, left = tf.unstack(tf.maximum(centre - half, 0), axis=1)
    bottom, right = tf.unstack(tf.minimum(centre + half, [height, width]), axis=1)
    kept = 1 - tf.cast((bottom - top) * (right - left), tf.float32) / tf.reduce_prod(sides)
    rows = _between(tf.range(height), top, bottom)[:, :, None]
    columns = _between(tf.range(width * channels) // channels, left, right)[:, None, :]
    mixed = tf.where(rows & columns, lines(tf.gather(images, order)), lines(images))
    return (
        tf.reshape(mixed, tf.shape(images)),
        _blend(labels, tf.gather(labels, order), kept[:, None]),
    )


def chain(functions):
    """One function that draws one of several for every batch, all as likely.

    As timm does for mixup and cutmix, which would take each other's objects apart.

    Args:
        functions: Functions `(images, labels, seed) -> (images, labels)`, at least one.

    Returns:
        Such a function.
    """

    def mix(images, labels, seed):
        choice_seed, seed = tf.unstack(tf.random.split(seed))
        branches = [lambda mix=mix: mix(images, labels, seed) for mix in functions]
        choice = tf.random.stateless_uniform((), choice_seed, 0, len(branches), tf.int32)
        return tf.switch_case(choice, branches)

    return mix


def _partners(images, seed):
    """A random order, and not neighbours: copies of one image may stand side by side."""
    return tf.random.experimental.stateless_shuffle(tf.range(tf.shape(images)[0]), seed)


def _beta(alpha, shape, seed):
    """Beta(alpha, alpha) as `a / (a + b)` of two gammas, whose logarithms do not underflow.

    Most of Gamma(0.1) is too small for a float, but it is Gamma(1.1) times u^(1/0.1).
    """
    gamma_seed, power_seed = tf.unstack(tf.random.split(seed))
    shape = tf.concat([(2,), shape], axis=0)
    gamma = tf.random.stateless_gamma(shape, gamma_seed, alpha + 1.0)
    power = tf.random.stateless_uniform(shape, power_seed, minval=1e-30)
    first, second = tf.unstack(tf.math.log(gamma) + tf.math.log(power) / alpha)
    return tf.sigmoid(first - second)


def _blend(first, second, share):
    """`share` of the first and the rest of the second, in their dtype."""
    mixed = share * tf.cast(first, tf.float32) + (1 - share) * tf.cast(second, tf.float32)
    return tf.cast(mixed + 0.5 if first.dtype == tf.uint8 else mixed, first.dtype)


def _between(positions, start, stop):
    """Which of the positions are from `start` to below `stop`; shape `(batch, positions)`."""
    return (positions >= start[:, None]) & (positions < stop[:, None])
