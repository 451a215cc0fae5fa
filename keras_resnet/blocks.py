"""A block is `merge(shortcut(x), residual(x))`; this module draws it.

Its axes are independent tables: which convolutions make the residual (`RESIDUALS`), where batch
normalisation and ReLU stand (`ACTIVATION_ORDERS`), which shortcut (`SHORTCUTS`), which stem
(`STEMS`). Every function takes and returns Keras tensors and reads the resolved `Variant`.
"""

import collections
import dataclasses

import keras
from keras import layers

from keras_resnet.layers import BatchNormalization, StochasticDepth, ZeroPadShortcut

# Those of Caffe and torch (whose momentum=0.1 is 1 - ours); Keras's own are 1e-3 and 0.99.
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Residual:
    """The convolutions of a residual: their kernel sizes, and output width over inner width."""

    kernels: tuple[int, ...]
    expansion: int = 1


RESIDUALS = {
    "basic": Residual(kernels=(3, 3)),
    "bottleneck": Residual(kernels=(1, 3, 1), expansion=4),
}


@dataclasses.dataclass(frozen=True)
class ActivationOrder:
    """What stands before the first convolution of a block, between two, after the last, and after
    the addition: space-separated `bn` and `relu`.
    """

    first: str
    between: str
    last: str
    merged: str

    @property
    def stem(self) -> str:
        """What follows the stem's convolution: all that the first block does not do itself."""
        return "bn relu".removesuffix(self.first).strip()

    @property
    def head(self) -> str:
        """What precedes the head: the activation that a following block would have begun with."""
        return self.first


# He et al. 2016, figure 4 (a) to (e).
ACTIVATION_ORDERS = {
    "original": ActivationOrder("", "bn relu", "bn", "relu"),
    "bn_after_addition": ActivationOrder("", "bn relu", "", "bn relu"),
    "relu_before_addition": ActivationOrder("", "bn relu", "bn relu", ""),
    "relu_pre_activation": ActivationOrder("relu", "bn relu", "bn", ""),
    "full_pre_activation": ActivationOrder("bn relu", "bn relu", "", ""),
}


class Names:
    """Names the layers of one part of a network: `names("conv")` is `stage1_block2_conv1`."""

    def __init__(self, prefix: str):
        self.prefix = prefix
        self._counts = collections.Counter()

    def __call__(self, kind: str) -> str:
        self._counts[kind] += 1
        return f"{self.prefix}_{kind}{self._counts[kind]}"


def channel_axis() -> int:
    """The axis of the channels in a batch of images."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def conv(x, filters, kernel_size, *, strides=1, dilation=1, use_bias=False, name):
    """A convolution on the sampling grid of Caffe and torch.

    With a stride, `padding="same"` would pad (0, 1) on even sizes and shift the grid by a pixel;
    so the padding is explicit and symmetric there. Initial weights: He et al. 2015b, fan-out.
    """
    if strides > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        dilation_rate=dilation,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
    )(x)


def batch_norm(x, *, name, zero_gamma=False):
    """Batch normalisation with the constants of the paper's implementation."""
    return BatchNormalization(
        axis=channel_axis(),
        momentum=BN_MOMENTUM,
        epsilon=BN_EPSILON,
        gamma_initializer="zeros" if zero_gamma else "ones",
        name=name,
    )(x)


def activate(x, order, names, *, last_name=None, zero_gamma=False):
    """Applies the `bn` and `relu` of `order` to `x`; the last of them is called `last_name`."""
    kinds = order.split()
    for position, kind in enumerate(kinds):
        is_last = last_name is not None and position == len(kinds) - 1
        name = last_name if is_last else names(kind)
        if kind == "bn":
            x = batch_norm(x, name=name, zero_gamma=zero_gamma)
        else:
            x = layers.ReLU(name=name)(x)
    return x


def _imagenet_stem(x, variant):
    """7x7 convolution of stride 2 and 3x3 max-pool of stride 2. (He et al. 2015, table 1)"""
    x = conv(x, variant.filters[0], 7, strides=2, use_bias=variant.conv_bias, name="stem_conv")
    x = _stem_activation(x, variant)
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    return layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)


def _cifar_stem(x, variant):
    """One 3x3 convolution at full resolution. (He et al. 2015, section 4.2)"""
    x = conv(x, variant.filters[0], 3, use_bias=variant.conv_bias, name="stem_conv")
    return _stem_activation(x, variant)


def _stem_activation(x, variant):
    for kind in ACTIVATION_ORDERS[variant.activation_order].stem.split():
        x = activate(x, kind, None, last_name=f"stem_{kind}")
    return x


@dataclasses.dataclass(frozen=True)
class Stem:
    """How a network begins: a function of (tensor, variant), and the stride it has."""

    draw: collections.abc.Callable
    strides: int


STEMS = {"imagenet": Stem(_imagenet_stem, 4), "cifar": Stem(_cifar_stem, 1)}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a block stands: its width, what it does to the resolution, and how it is dilated.

    Args:
        filters: Width of the 3x3 convolutions.
        strides: 2 in the first block of a down-sampling stage, else 1.
        dilation: Dilation once the block has applied its stride.
        dilation_before: Dilation up to there; differs from `dilation` where a stride was replaced.
        is_first: Whether it is the first block of the network.
    """

    filters: int
    strides: int = 1
    dilation: int = 1
    dilation_before: int = 1
    is_first: bool = False


def residual_block(x, variant, geometry, *, survival_probability=1.0, name):
    """One block of a network.

    Args:
        x: Keras tensor of shape `(batch, height, width, channels)`, or channels first.
        variant: The resolved `Variant`, whose axes say what is drawn.
        geometry: The block's `Geometry`.
        survival_probability: Probability with which the residual is kept in training.
        name: Prefix of the layers' names, e.g. `"stage3_block6"`.

    Returns:
        Keras tensor with `filters * expansion` channels. The layer that makes it is `{name}_out`.
    """
    order = ACTIVATION_ORDERS[variant.activation_order]
    names = Names(name)
    filters = geometry.filters * RESIDUALS[variant.block].expansion
    changes = geometry.strides > 1 or x.shape[channel_axis()] != filters
    activated = activate(x, order.first, names)
    # Where the shortcut cannot be the identity anyway, and at the stem, it starts behind the
    # activation: He et al. 2016, appendix.
    source = activated if changes or geometry.is_first else x
    shortcut = SHORTCUTS[variant.shortcut](
        source, variant, geometry, filters=filters, changes=changes, name=f"{name}_shortcut"
    )
    x = _residual(activated, variant, geometry, names)
    if survival_probability < 1:
        x = StochasticDepth(survival_probability, name=f"{name}_drop")(x)
    if shortcut is not None:
        # The shortcut first: Keras walks the graph along the first input, and so recurses along
        # the short path.
        merged_name = f"{name}_add" if order.merged else f"{name}_out"
        x = layers.Add(name=merged_name)([shortcut, x])
    elif not order.merged:
        x = layers.Identity(name=f"{name}_out")(x)
    return activate(x, order.merged, names, last_name=f"{name}_out")


def _residual(x, variant, geometry, names):
    """F(x): the convolutions, with batch normalisation and ReLU between and after them."""
    residual = RESIDUALS[variant.block]
    order = ACTIVATION_ORDERS[variant.activation_order]
    last = len(residual.kernels) - 1
    strided = 0 if residual.kernels[0] == 3 or variant.stride_in_1x1 else 1
    for position, kernel_size in enumerate(residual.kernels):
        expansion = residual.expansion if position == last else 1
        x = conv(
            x,
            geometry.filters * expansion,
            kernel_size,
            strides=geometry.strides if position == strided else 1,
            dilation=geometry.dilation_before if position <= strided else geometry.dilation,
            use_bias=variant.conv_bias,
            name=names("conv"),
        )
        if position < last:
            x = activate(x, order.between, names)
    return activate(x, order.last, names, zero_gamma=variant.zero_init_residual)


def _projection(x, variant, geometry, *, filters, changes, name):
    """A 1x1 convolution where the shape changes, the identity elsewhere: option B."""
    if not changes:
        return x
    x = conv(
        x,
        filters,
        1,
        strides=geometry.strides,
        use_bias=variant.conv_bias,
        name=f"{name}_conv",
    )
    # As the residual ends, so does the projection: with BN, or without in pre-activated nets.
    normalised = "bn" in ACTIVATION_ORDERS[variant.activation_order].last
    return batch_norm(x, name=f"{name}_bn") if normalised else x


def _projection_all(x, variant, geometry, *, filters, changes, name):
    """A 1x1 convolution in every block: option C."""
    return _projection(x, variant, geometry, filters=filters, changes=True, name=name)


def _zero_padding(x, variant, geometry, *, filters, changes, name):
    """No parameters at all: option A."""
    return ZeroPadShortcut(filters, geometry.strides, name=name)(x) if changes else x


def _no_shortcut(x, variant, geometry, *, filters, changes, name):
    """None: the block of a plain network."""
    return None


# He et al. 2015, section 4.1, A, B and C.
SHORTCUTS = {
    "zero_padding": _zero_padding,
    "projection": _projection,
    "projection_all": _projection_all,
    "none": _no_shortcut,
}
