"""How a block's input meets its output: brought to the same shape first, then merged."""

import dataclasses
import functools
from collections.abc import Callable

import keras
from keras import layers

from keras_resnet.layers import GatedAdd, ZeroPadShortcut
from keras_resnet.parts import ACTIVATION_ORDERS, batch_norm, channel_axis, conv


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """One kind of shortcut.

    Args:
        reshape: Function of (tensor, variant, strides, filters, name) that brings the block's
            input to the shape of the residual; `None` as its result: the block has no shortcut.
        merge: Function of (shortcut, residual, variant, block's name, name of the result).
        always: Whether `reshape` is called in every block, or only where the shape changes.
        pre_activated: Whether a reshaped shortcut starts behind the pre-activation, as He et al.
            2016 have it.
    """

    reshape: Callable
    merge: Callable
    always: bool = False
    pre_activated: bool = True


def _nothing(x, variant, strides, filters, name):
    return None


def _same(x, variant, strides, filters, name):
    return x


def _zero_padding(x, variant, strides, filters, name):
    return ZeroPadShortcut(filters, strides, name=name)(x)


def _average_pool_zero_padding(x, variant, strides, filters, name):
    return _zero_padding(_average_pool(x, strides, name), variant, 1, filters, name)


def _projection(x, variant, strides, filters, name):
    x = conv(x, filters, 1, variant, strides=strides, name=f"{name}_conv")
    # As the residual ends, so does the projection: with BN, or without in pre-activated nets.
    normalised = "bn" in ACTIVATION_ORDERS[variant.activation_order].last
    return batch_norm(x, name=f"{name}_bn") if normalised else x


def _average_pool_projection(x, variant, strides, filters, name):
    return _projection(_average_pool(x, strides, name), variant, 1, filters, name)


def _average_pool(x, strides, name):
    # "same" averages over the pixels that exist at an odd border.
    pool = layers.AveragePooling2D(strides, padding="same", name=f"{name}_pool")
    return pool(x) if strides > 1 else x


def _add(shortcut, residual, variant, block, name):
    # The shortcut first: Keras walks the graph along the first input, and so recurses along the
    # short path.
    return layers.Add(name=name)([shortcut, residual])


def _concatenate(shortcut, residual, variant, block, name):
    return layers.Concatenate(axis=channel_axis(), name=name)([shortcut, residual])


def _scaled_add(shortcut, residual, variant, block, name):
    halves = (
        layers.Rescaling(0.5, name=f"{block}_{path}_scale")(tensor)
        for path, tensor in (("shortcut", shortcut), ("residual", residual))
    )
    return layers.Add(name=name)(list(halves))


def _dropped_add(shortcut, residual, variant, block, name):
    shortcut = layers.Dropout(0.5, name=f"{block}_shortcut_dropout")(shortcut)
    return layers.Add(name=name)([shortcut, residual])


def _gated_add(shortcut, residual, variant, block, name, *, kernel_size=1, exclusive=True):
    gate = layers.Conv2D(
        shortcut.shape[channel_axis()],
        kernel_size,
        padding="same",
        activation="sigmoid",
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        bias_initializer=keras.initializers.Constant(variant.gate_bias),
        name=f"{block}_gate",
    )(shortcut)
    return GatedAdd(exclusive, name=name)([shortcut, residual, gate])


SHORTCUTS = {
    # He et al. 2015, section 4.1: the options A, B and C, and the plain network.
    "zero_padding": Shortcut(_zero_padding, _add),
    "projection": Shortcut(_projection, _add),
    "projection_all": Shortcut(_projection, _add, always=True),
    "none": Shortcut(_nothing, _add, always=True),
    # He et al. 2016, table 1, where the shape is kept; zero-padded where it changes.
    "constant_scaling": Shortcut(_zero_padding, _scaled_add),
    "exclusive_gating": Shortcut(_zero_padding, _gated_add),
    "shortcut_only_gating": Shortcut(_zero_padding, functools.partial(_gated_add, exclusive=False)),
    "dropout": Shortcut(_zero_padding, _dropped_add),
    # Srivastava et al. 2015: gates as large as the layers, plain layers where the shape changes.
    "highway": Shortcut(_nothing, functools.partial(_gated_add, kernel_size=3)),
    # Huang et al. 2016; He et al. 2019, "ResNet-D"; Huang et al. 2017.
    "average_pool_zero_padding": Shortcut(_average_pool_zero_padding, _add),
    "average_pool": Shortcut(_average_pool_projection, _add),
    "concatenation": Shortcut(_same, _concatenate, always=True, pre_activated=False),
}
