"""Colours and geometry of training images changed at random, by the policies of the literature.

Keras has layers for much of this. They draw from a state of their own and take no seed, their
RandAugment computes every operation to keep two, and their operations and ranges are not those the
published accuracies were reached with. Here the operations are Pillow's, which were.
"""

import tensorflow as tf

from training.operations import (
    affine,
    auto_contrast,
    brightness,
    color,
    contrast,
    equalize,
    lines,
    posterize,
    rotate,
    sharpness,
    solarize,
    solarize_add,
    to_uint8,
)

# Of the RGB values of ImageNet in 0..1, as in fb.resnet.torch.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def colour_pca(images, seed, *, std=0.1):
    """Shifts the colour of every image along the principal components of ImageNet's colours.

    Args:
        images: uint8 of shape `([batch,] height, width, 3)`, RGB. Every image of a batch has its
            own shift.
        seed: Integer tensor of shape `(2,)`.
        std: Standard deviation of the shift, as a share of each component's eigenvalue.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: If the images have not three channels.

    Reference: Krizhevsky et al. 2012, section 4.1.
    """
    if images.shape[-1] != 3:
        raise ValueError(
            "Only colours have principal components. Expected images with 3 channels. "
            f"Received: shape {tuple(images.shape)}. Leave `colour_pca` out."
        )
    shape = tf.concat([tf.shape(images)[:-3], (1, 3)], axis=0)
    shares = tf.random.stateless_normal(shape, seed, stddev=std)
    shift = 255 * tf.tensordot(shares * _EIGENVALUES, tf.transpose(_EIGENVECTORS), 1)
    shift = tf.repeat(shift[..., None, :], tf.shape(images)[-2], axis=-2)
    shifted = tf.cast(lines(images), tf.float32) + (lines(shift) + 0.5)
    return tf.reshape(to_uint8(shifted), tf.shape(images))


def rand_augment(
    image, seed, *, layers=2, magnitude=7.0, magnitude_std=0.5, probability=0.5, fill=0
):
    """Some operations in a row, drawn with replacement, all of about the same magnitude.

    The operations, their ranges and the defaults are timm's `rand-m7-mstd0.5-inc1`, which "ResNet
    strikes back" uses. The paper applies every operation that is drawn (`probability=1`), at
    exactly the magnitude (`magnitude_std=0`), and has neither invert nor solarize_add.

    Args:
        image: uint8 of shape `(height, width, channels)`, 1 or 3 channels; the size may be unknown.
        seed: Integer tensor of shape `(2,)`.
        layers: How many operations are drawn, at least 1.
        magnitude: How strong they are, 0..10.
        magnitude_std: Standard deviation of the magnitude from operation to operation.
        probability: That an operation that was drawn is applied.
        fill: Colour of what comes in at the borders: one value for all channels or one per
            channel, 0..255.

    Returns:
        uint8 of the same shape.

    Reference: Cubuk et al. 2020; Wightman et al. 2021, table 2.
    """
    uniform_seed, normal_seed = tf.unstack(tf.random.split(seed))
    draws = tf.random.stateless_uniform((layers, 3), uniform_seed)
    levels = tf.random.stateless_normal((layers,), normal_seed, magnitude, magnitude_std)
    levels = tf.clip_by_value(levels / 10, 0, 1)
    for layer in range(layers):
        choice, sign, applied = tf.unstack(draws[layer])
        operations = rand_augment_operations(image, levels[layer], _sign(sign), fill)
        index = tf.cast(choice * len(operations), tf.int32)
        # One more branch does nothing.
        index = tf.where(applied < probability, index, len(operations))
        image = _one_of([*operations.values(), lambda image=image: image], index, image)
    return image


def trivial_augment(image, seed, *, bins=31, fill=0):
    """One operation, at a magnitude drawn from its whole range.

    TrivialAugmentWide as torchvision has it.

    Args:
        image: uint8 of shape `(height, width, channels)`, 1 or 3 channels; the size may be unknown.
        seed: Integer tensor of shape `(2,)`.
        bins: How many magnitudes there are, at least 2.
        fill: Colour of what comes in at the borders: one value for all channels or one per
            channel, 0..255.

    Returns:
        uint8 of the same shape.

    Reference: Müller and Hutter 2021, table 1.
    """
    choice, sign, level = tf.unstack(tf.random.stateless_uniform((3,), seed))
    level = tf.floor(level * bins) / (bins - 1)
    operations = trivial_augment_operations(image, level, _sign(sign), fill)
    return _one_of([*operations.values()], tf.cast(choice * len(operations), tf.int32), image)


def rand_augment_operations(image, level, sign, fill):
    """The operations of `rand_augment`.

    Args:
        image: uint8 of shape `(height, width, channels)`.
        level: Scalar, 0..1.
        sign: Scalar, 1 or -1: to which side an operation goes that has two.
        fill: Colour of what comes in at the borders.

    Returns:
        Names with functions without arguments that give the changed image.
    """
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    factor = tf.maximum(1 + 0.9 * sign * level, 0.1)
    signed = sign * level
    return {
        "auto_contrast": lambda: auto_contrast(image),
        "equalize": lambda: equalize(image),
        "invert": lambda: 255 - image,
        "rotate": lambda: rotate(image, 30 * signed, fill),
        "posterize": lambda: posterize(image, 4 - tf.cast(4 * level, tf.int32)),
        "solarize": lambda: solarize(image, 256 - tf.floor(256 * level)),
        "solarize_add": lambda: solarize_add(image, tf.cast(110 * level, tf.int32)),
        "color": lambda: color(image, factor),
        "contrast": lambda: contrast(image, factor),
        "brightness": lambda: brightness(image, factor),
        "sharpness": lambda: sharpness(image, factor),
        "shear_x": lambda: affine(image, (1, 0.3 * signed, 0, 0, 1, 0), fill),
        "shear_y": lambda: affine(image, (1, 0, 0, 0.3 * signed, 1, 0), fill),
        "translate_x": lambda: affine(image, (1, 0, 0.45 * signed * width, 0, 1, 0), fill),
        "translate_y": lambda: affine(image, (1, 0, 0, 0, 1, 0.45 * signed * height), fill),
    }


def trivial_augment_operations(image, level, sign, fill):
    """The operations of `trivial_augment`; arguments and result as `rand_augment_operations`."""
    signed = sign * level
    factor = 1 + 0.99 * signed
    pixels = tf.floor(32 * level) * sign
    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(image, (1, 0.99 * signed, 0, 0, 1, 0), fill),
        "shear_y": lambda: affine(image, (1, 0, 0, 0.99 * signed, 1, 0), fill),
        "translate_x": lambda: affine(image, (1, 0, pixels, 0, 1, 0), fill),
        "translate_y": lambda: affine(image, (1, 0, 0, 0, 1, pixels), fill),
        "rotate": lambda: rotate(image, 135 * signed, fill),
        "brightness": lambda: brightness(image, factor),
        "color": lambda: color(image, factor),
        "contrast": lambda: contrast(image, factor),
        "sharpness": lambda: sharpness(image, factor),
        "posterize": lambda: posterize(image, 8 - tf.cast(tf.round(6 * level), tf.int32)),
        "solarize": lambda: solarize(image, 255 * (1 - level)),
        "auto_contrast": lambda: auto_contrast(image),
        "equalize": lambda: equalize(image),
    }


def _sign(draw):
    return tf.where(draw < 0.5, -1.0, 1.0)


def _one_of(operations, index, image):
    # Only the operation that was drawn runs.
    return tf.ensure_shape(tf.switch_case(index, operations), image.shape)
