"""What every network is drawn with: convolution, batch normalisation, activation, and their order.

The functions take and return Keras tensors of shape `(batch, height, width, channels)`, or channels
first by Keras's setting.
"""

import collections
import dataclasses

import keras
from keras import layers

from keras_resnet.layers import BatchNormalization, GroupedConv2D

# Those of Caffe and torch (whose momentum=0.1 is 1 - ours); Keras's own are 1e-3 and 0.99.
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class ActivationOrder:
    """What stands before the first convolution of a block, between two, after the last, and after
    the merge: space-separated `bn` and `relu`.
    """

    first: str
    between: str
    last: str
    merged: str

    @property
    def stem(self) -> str:
        """What follows the stem's convolution: all that the first block does not begin with."""
        return self.between.removesuffix(self.first).strip()

    @property
    def head(self) -> str:
        """What precedes the head: the activation that a following block would have begun with."""
        return self.first


# He et al. 2016, figure 4 (a) to (e); highway networks are older than batch normalisation.
ACTIVATION_ORDERS = {
    "original": ActivationOrder("", "bn relu", "bn", "relu"),
    "bn_after_addition": ActivationOrder("", "bn relu", "", "bn relu"),
    "relu_before_addition": ActivationOrder("", "bn relu", "bn relu", ""),
    "relu_pre_activation": ActivationOrder("relu", "bn relu", "bn", ""),
    "full_pre_activation": ActivationOrder("bn relu", "bn relu", "", ""),
    "no_normalization": ActivationOrder("", "relu", "relu", ""),
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


def conv(x, filters, kernel_size, variant, *, strides=1, dilation=1, groups=1, name):
    """A convolution on the sampling grid of Caffe and torch.

    With a stride, `padding="same"` would pad (0, 1) on even sizes and shift the grid by a pixel;
    so the padding is explicit and symmetric there. Initial weights: He et al. 2015b, fan-out.
    """
    if strides > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    convolution = layers.Conv2D if groups == 1 else GroupedConv2D
    return convolution(
        filters,
        kernel_size,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        dilation_rate=dilation,
        groups=groups,
        use_bias=variant.conv_bias,
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


def activate(x, kinds: str, names, *, last_name=None, zero_gamma=False):
    """Applies the `bn` and `relu` of `kinds` to `x`; the last of them is called `last_name`."""
    kinds = kinds.split()
    for position, kind in enumerate(kinds):
        is_last = position == len(kinds) - 1
        name = last_name if last_name and is_last else names(kind)
        if kind == "bn":
            x = batch_norm(x, name=name, zero_gamma=zero_gamma)
        else:
            x = layers.ReLU(name=name)(x)
    return x


def activate_part(x, kinds: str, part: str):
    """`activate` where each kind occurs once, so that names need no count: `stem_bn`."""
    return activate(x, kinds, lambda kind: f"{part}_{kind}")
