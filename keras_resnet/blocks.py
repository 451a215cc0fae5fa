"""A block is `merge(shortcut(x), residual(x))`; this module draws it."""

import dataclasses

from keras import layers

from keras_resnet.layers import StochasticDepth
from keras_resnet.parts import ACTIVATION_ORDERS, Names, activate, channel_axis, conv
from keras_resnet.shortcuts import SHORTCUTS
from keras_resnet.variants import RESIDUALS

SE_REDUCTION = 16  # Hu et al. 2018, section 6.1


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a block stands: its width, what it does to the resolution, and how it is dilated.

    Args:
        filters: Width of the 3x3 convolutions.
        strides: 2 in the first block of a down-sampling stage, else 1.
        dilation: Dilation once the block has applied its stride.
        dilation_before: Dilation up to there; differs from `dilation` where a stride was replaced.
        is_first: Whether it is the first block of the network.
        survival_probability: Probability with which the residual is kept in training.
    """

    filters: int
    strides: int = 1
    dilation: int = 1
    dilation_before: int = 1
    is_first: bool = False
    survival_probability: float = 1.0


def residual_block(x, variant, geometry, name):
    """One block of a network.

    Args:
        x: Keras tensor of shape `(batch, height, width, channels)`, or channels first.
        variant: The resolved `Variant`, whose axes say what is drawn.
        geometry: The block's `Geometry`.
        name: Prefix of the layers' names, e.g. `"stage3_block6"`.

    Returns:
        Keras tensor; the layer that makes it is `{name}_out`.
    """
    order = ACTIVATION_ORDERS[variant.activation_order]
    shortcut = SHORTCUTS[variant.shortcut]
    names = Names(name)
    filters = geometry.filters * RESIDUALS[variant.block][-1][1]
    # A stride that became dilation still counts: the weights are those of the strided network.
    strided = geometry.strides > 1 or geometry.dilation != geometry.dilation_before
    widens = x.shape[channel_axis()] != filters
    subsamples = variant.stride_in_last_block and strided and not widens
    changes = (strided and not subsamples) or widens

    activated = activate(x, order.first, names)
    residual = _residual(activated, variant, geometry, names)
    # Where the shortcut cannot be the identity anyway, and at the stem, it starts behind the
    # activation: He et al. 2016, appendix.
    if shortcut.pre_activated and (changes or geometry.is_first):
        x = activated
    if subsamples:
        x = layers.MaxPooling2D(1, strides=geometry.strides, name=f"{name}_shortcut_pool")(x)
    if changes or shortcut.always:
        x = shortcut.reshape(x, variant, geometry.strides, filters, f"{name}_shortcut")

    merged_name = f"{name}_add" if order.merged else f"{name}_out"
    if x is not None:
        x = shortcut.merge(x, residual, variant, name, merged_name)
    else:
        x = residual if order.merged else layers.Identity(name=merged_name)(residual)
    return activate(x, order.merged, names, last_name=f"{name}_out")


def _residual(x, variant, geometry, names):
    """F(x): the convolutions, with batch normalisation and ReLU between and after them."""
    order = ACTIVATION_ORDERS[variant.activation_order]
    convolutions = RESIDUALS[variant.block]
    kernel_sizes = [kernel_size for kernel_size, _ in convolutions]
    strided = 0 if variant.stride_in_1x1 else kernel_sizes.index(3)
    last, last_3x3 = len(convolutions) - 1, len(convolutions) - 1 - kernel_sizes[::-1].index(3)
    is_dense = variant.shortcut == "concatenation"
    for position, (kernel_size, width) in enumerate(convolutions):
        if variant.dropout_rate and position == last_3x3 and not is_dense:
            x = layers.Dropout(variant.dropout_rate, name=names("dropout"))(x)
        x = conv(
            x,
            geometry.filters * width * (variant.inner_width if position < last else 1),
            kernel_size,
            variant,
            strides=geometry.strides if position == strided else 1,
            dilation=geometry.dilation_before if position <= strided else geometry.dilation,
            groups=variant.groups if kernel_size == 3 else 1,
            name=names("conv"),
        )
        if variant.dropout_rate and is_dense:
            x = layers.Dropout(variant.dropout_rate, name=names("dropout"))(x)
        if position < last:
            x = activate(x, order.between, names)
    x = activate(x, order.last, names, zero_gamma=variant.zero_init_residual)
    x = ATTENTIONS[variant.attention](x, names.prefix)
    if geometry.survival_probability < 1:
        x = StochasticDepth(
            geometry.survival_probability, variant.survival_per_image, name=f"{names.prefix}_drop"
        )(x)
    return x


def _squeeze_and_excitation(x, name):
    """Scales each channel by a gate computed from the means of all. (Hu et al. 2018)"""
    channels = x.shape[channel_axis()]
    weights = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_squeeze")(x)
    for suffix, filters, activation in (
        ("reduce", channels // SE_REDUCTION, "relu"),
        ("expand", channels, "sigmoid"),
    ):
        weights = layers.Conv2D(filters, 1, activation=activation, name=f"{name}_se_{suffix}")(
            weights
        )
    return layers.Multiply(name=f"{name}_se_scale")([x, weights])


ATTENTIONS = {"none": lambda x, name: x, "se": _squeeze_and_excitation}
