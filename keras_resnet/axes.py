"""Where a network stands on each axis: which options there are, and which go together."""

import dataclasses
import numbers

from keras_resnet.blocks import ATTENTIONS, SE_REDUCTION
from keras_resnet.errors import unknown_name
from keras_resnet.parts import ACTIVATION_ORDERS
from keras_resnet.shortcuts import SHORTCUTS
from keras_resnet.stems import STEMS, TRANSITIONS
from keras_resnet.variants import RESIDUALS, Variant, get_variant

# What may be replaced in a row; the rest of it says which network it is.
OPTIONS = (
    "shortcut",
    "activation_order",
    "stem",
    "attention",
    "dropout_rate",
    "gate_bias",
    "stride_in_1x1",
    "stride_in_last_block",
    "output_stride",
    "survival_probability",
    "survival_schedule",
    "survival_per_image",
    "zero_init_residual",
    "conv_bias",
)

SURVIVAL_SCHEDULES = {
    # Huang et al. 2016, equation 4, and its alternative: of block `position` among `total`.
    "linear": lambda last, position, total: 1 - position / total * (1 - last),
    "uniform": lambda last, position, total: last,
}

# The axes of a `Variant` that are named, and the tables that know the names.
AXES = {
    "block": RESIDUALS,
    "stem": STEMS,
    "shortcut": SHORTCUTS,
    "activation_order": ACTIVATION_ORDERS,
    "transition": TRANSITIONS,
    "attention": ATTENTIONS,
    "survival_schedule": SURVIVAL_SCHEDULES,
}


def resolve(variant, options) -> Variant:
    """The row of the table with `options` put in, checked.

    Args:
        variant: A name of the table, or a `Variant`.
        options: Fields to replace, of `OPTIONS`.

    Raises:
        ValueError: If a name or a value is not known.
        TypeError: If an option does not exist.
    """
    if not isinstance(variant, Variant):
        variant = get_variant(variant)
    for option in options:
        if option not in OPTIONS:
            raise TypeError(str(unknown_name("option", option, OPTIONS)))
    _check_kinds(options)
    variant = dataclasses.replace(variant, **options)
    for axis, table in AXES.items():
        if getattr(variant, axis) not in table:
            raise unknown_name(axis, getattr(variant, axis), table)
    if not len(variant.blocks) == len(variant.filters) > 0:
        raise ValueError(
            "A stage has a number of blocks and one of filters. Expected `blocks` and `filters` of "
            f"the same length. Received: blocks={variant.blocks}, filters={variant.filters}"
        )
    if not 0 < variant.survival_probability <= 1:
        raise ValueError(
            "A survival probability lies in (0, 1]. "
            f"Received: survival_probability={variant.survival_probability}"
        )
    _check_identity_start(variant)
    _check_block(variant)
    return variant


def _check_kinds(options):
    """Words such as "False" count as true, and are no numbers."""
    for option, value in options.items():
        default = getattr(Variant, option)
        if isinstance(default, bool) and value not in (True, False):
            expected = "True or False"
        elif isinstance(default, float) and not isinstance(value, numbers.Real):
            expected = "a number"
        else:
            continue
        raise ValueError(
            f"`{option}` is of another kind. Expected {expected}. Received: {option}={value!r}"
        )


def _check_block(variant):
    """What a block is made of must fit together."""
    is_dense = variant.block.startswith("dense")
    if is_dense != (variant.shortcut == "concatenation"):
        raise ValueError(
            "Dense blocks concatenate, and no others do. Expected a shortcut "
            f"{'of' if is_dense else 'other than'} 'concatenation' on {variant.block} blocks. "
            f"Received: shortcut={variant.shortcut!r}"
        )
    if not 0 <= variant.dropout_rate < 1:
        raise ValueError(
            f"A dropout rate lies in [0, 1). Received: dropout_rate={variant.dropout_rate}"
        )
    last_kernel, last_width = RESIDUALS[variant.block][-1]
    inner = 1 if last_kernel == 3 else variant.inner_width
    widths = [filters * inner for filters in variant.filters]
    if variant.groups < 1 or any(width % variant.groups for width in widths):
        raise ValueError(
            "The groups do not divide the 3x3 convolutions. Expected a divisor of "
            f"{', '.join(map(str, widths))}. Received: groups={variant.groups}"
        )
    channels = min(variant.filters) * last_width
    if variant.attention == "se" and channels < SE_REDUCTION:
        raise ValueError(
            f"Squeeze-and-excitation keeps one channel in {SE_REDUCTION}. Expected residuals of at "
            f"least {SE_REDUCTION} channels. Received: attention='se' on {channels} channels"
        )


def _check_identity_start(variant):
    """Residuals that vanish want a way around them, and a last gamma to vanish by."""
    vanishes = variant.zero_init_residual or variant.survival_probability < 1
    kind = {"none": "plain", "highway": "highway"}.get(variant.shortcut)
    if kind and vanishes:
        raise ValueError(
            f"A {kind} network has no way around a residual that is dropped or starts at zero. "
            "Expected survival_probability=1.0 and zero_init_residual=False. Received: "
            f"survival_probability={variant.survival_probability}, "
            f"zero_init_residual={variant.zero_init_residual}"
        )
    orders = [name for name, order in ACTIVATION_ORDERS.items() if order.last == "bn"]
    if variant.zero_init_residual and variant.activation_order not in orders:
        raise ValueError(
            "`zero_init_residual` needs residuals that end in batch normalisation. Expected an "
            f"activation_order of {', '.join(orders)}. Received: {variant.activation_order!r}"
        )
