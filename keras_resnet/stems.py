"""How networks begin, and what may stand between their stages."""

import dataclasses
import functools
from collections.abc import Callable

from keras import layers

from keras_resnet.parts import (
    ACTIVATION_ORDERS,
    Names,
    activate,
    activate_part,
    channel_axis,
    conv,
)


@dataclasses.dataclass(frozen=True)
class Stem:
    """How a network begins: a function of (tensor, variant, filters), and the stride it has."""

    draw: Callable
    strides: int


def _imagenet(x, variant, filters, *, activation=None, padding=None):
    """7x7 convolution of stride 2 and 3x3 max-pool of stride 2. (He et al. 2015, table 1)"""
    activation = activation or _activation(variant)
    x = conv(x, filters, 7, variant, strides=2, name="stem_conv")
    return _pool(activate_part(x, activation, "stem"), activation, padding)


def _deep(x, variant, filters):
    """Three 3x3 convolutions instead of the 7x7. (He et al. 2019, "ResNet-C")"""
    between = ACTIVATION_ORDERS[variant.activation_order].between
    names = Names("stem")
    x = conv(x, filters // 2, 3, variant, strides=2, name=names("conv"))
    x = activate(x, between, names)
    x = conv(x, filters // 2, 3, variant, name=names("conv"))
    x = activate(x, between, names)
    x = conv(x, filters, 3, variant, name=names("conv"))
    return _pool(activate(x, _activation(variant), names), _activation(variant))


def _cifar(x, variant, filters):
    """One 3x3 convolution at full resolution. (He et al. 2015, section 4.2)"""
    x = conv(x, filters, 3, variant, name="stem_conv")
    return activate_part(x, _activation(variant), "stem")


def _activation(variant):
    return ACTIVATION_ORDERS[variant.activation_order].stem


def _pool(x, activation, padding=None):
    if padding is None and not activation.endswith("relu"):
        # Behind no ReLU, zeros around the image would win over its negative values. The pool of
        # stride 1 pads symmetrically by what never wins; every second of its outputs is kept.
        x = layers.MaxPooling2D(3, strides=1, padding="same", name="stem_pool_window")(x)
        return layers.MaxPooling2D(1, strides=2, name="stem_pool")(x)
    x = layers.ZeroPadding2D(padding or 1, name="stem_pool_pad")(x)
    return layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)


STEMS = {
    "imagenet": Stem(_imagenet, 4),
    # As above, but with the pool of He's Caffe networks, which begins at the first pixel, and that
    # of keras.applications' pre-activation networks, where padded zeros compete.
    "imagenet_caffe": Stem(functools.partial(_imagenet, padding=((0, 1), (0, 1))), 4),
    "imagenet_zero_padded": Stem(functools.partial(_imagenet, padding=1), 4),
    # DenseNet activates before the pool, and again in each of its blocks.
    "imagenet_activated": Stem(functools.partial(_imagenet, activation="bn relu"), 4),
    "deep": Stem(_deep, 4),
    "cifar": Stem(_cifar, 1),
}


def _pool_transition(x, variant, strides, name):
    """BN, ReLU, 1x1 convolution that compresses, 2x2 average pooling. (Huang et al. 2017)"""
    x = activate_part(x, ACTIVATION_ORDERS[variant.activation_order].first, name)
    filters = int(x.shape[channel_axis()] * variant.compression)
    x = conv(x, filters, 1, variant, name=f"{name}_conv")
    return layers.AveragePooling2D(strides, name=f"{name}_pool")(x) if strides > 1 else x


# What stands before a stage that is not the first; `None`: its first block down-samples.
TRANSITIONS = {"stride": None, "pool": _pool_transition}
