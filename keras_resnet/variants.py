"""Every named network is one row of one table.

A row says where a network stands on each axis: how many blocks of which kind and width, which stem,
which shortcut, which order of activations. `build` takes any row, and its options replace fields
of it.
"""

import dataclasses
import fnmatch
import numbers
import re

from keras_resnet import preprocessing
from keras_resnet.errors import unknown_name
from keras_resnet.preprocessing import Preprocessing

# The convolutions of a residual: (kernel size, width over the stage's filters) of each.
RESIDUALS = {
    "basic": ((3, 1), (3, 1)),
    "bottleneck": ((1, 1), (3, 1), (1, 4)),
    "single": ((3, 1),),
    "dense": ((3, 1),),
    "dense_bottleneck": ((1, 4), (3, 1)),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network of the family.

    Args:
        name: Name in the table, and of the models built from it.
        blocks: Number of blocks of each stage.
        filters: Width of the 3x3 convolutions of each stage; in dense blocks the growth rate.
        block: Which convolutions make a residual; a key of `RESIDUALS`.
        stem: How the network begins; a key of `stems.STEMS`.
        stem_filters: Width of the stem. `None`: that of the first stage.
        shortcut: How a block's input joins its output; a key of `shortcuts.SHORTCUTS`. The options
            A, B and C of He et al. 2015 are `"zero_padding"`, `"projection"` and
            `"projection_all"`; `"none"` makes a plain network.
        activation_order: Where batch normalisation and ReLU stand in a block; a key of
            `parts.ACTIVATION_ORDERS` (He et al. 2016, figure 4).
        transition: What stands between two stages: `"stride"` (the first block of a stage
            down-samples) or `"pool"` (1x1 convolution and average pooling, Huang et al. 2017).
        compression: Share of the channels that a `"pool"` transition keeps, in (0, 1].
        inner_width: Factor on the width inside a residual, all but its last convolution.
        groups: Groups of the 3x3 convolutions (Xie et al. 2017).
        attention: What re-weighs a residual's channels: `"none"` or `"se"` (Hu et al. 2018).
        dropout_rate: Of the dropout before the last 3x3 convolution of a residual; in dense
            blocks behind each convolution. 0: none.
        gate_bias: Initial bias of the gates of gated shortcuts; the lower, the more is carried.
        stride_in_1x1: Whether a down-sampling bottleneck has its stride in the first 1x1
            convolution (the paper) or in the 3x3 ("v1.5", torchvision).
        stride_in_last_block: Whether a stage ends in its down-sampling instead of beginning with
            it, as the pre-activation networks of keras.applications do; their shortcut there keeps
            every second pixel.
        output_stride: Input size divided by the size of the last feature map; smaller values
            replace the strides of the last stages by dilation. `None`: no dilation.
        survival_probability: Probability in (0, 1] with which the last block is kept in training
            (Huang et al. 2016). 1 keeps every block.
        survival_schedule: `"linear"` from 1 down to that of the last block, or `"uniform"`.
        survival_per_image: Whether each image draws for itself, instead of the batch as one.
        zero_init_residual: Whether the last BN of a residual starts at gamma 0, so that every
            block starts as the identity (Goyal et al. 2017).
        conv_bias: Whether convolutions have a bias, as in keras.applications.
        classes: Default number of classes.
        preprocessing: What the network expects its images to have gone through; its `size` is the
            default input size.
        reference: Where the network is defined.
    """

    name: str
    blocks: tuple[int, ...]
    filters: tuple[int, ...]
    block: str = "basic"
    stem: str = "imagenet"
    stem_filters: int | None = None
    shortcut: str = "projection"
    activation_order: str = "original"
    transition: str = "stride"
    compression: float = 1.0
    inner_width: int = 1
    groups: int = 1
    attention: str = "none"
    dropout_rate: float = 0.0
    gate_bias: float = -6.0
    stride_in_1x1: bool = False
    stride_in_last_block: bool = False
    output_stride: int | None = None
    survival_probability: float = 1.0
    survival_schedule: str = "linear"
    survival_per_image: bool = False
    zero_init_residual: bool = False
    conv_bias: bool = False
    classes: int = 1000
    preprocessing: Preprocessing = preprocessing.IMAGENET
    reference: str = "He et al. 2015, table 1"

    @property
    def depth(self) -> int:
        """Number of layers as its authors count them: the number in the name."""
        return int(re.search(r"\d+", self.name).group())


def _imagenet(name, blocks, block="bottleneck", **axes):
    return Variant(name, blocks, (64, 128, 256, 512), block=block, **axes)


def _cifar(name, blocks, filters=(16, 32, 64), **axes):
    axes = {"reference": "He et al. 2015, section 4.2"} | axes
    return Variant(
        name,
        (blocks,) * 3 if isinstance(blocks, int) else blocks,
        filters,
        stem="cifar",
        classes=10,
        preprocessing=preprocessing.CIFAR10,
        **axes,
    )


def cifar_variant(depth: int, plain: bool = False) -> Variant:
    """The CIFAR network of a depth: three stages of (depth - 2) / 6 basic blocks.

    Args:
        depth: Number of weighted layers, 6n+2 with n >= 1.
        plain: Whether to leave out the shortcuts.

    Raises:
        ValueError: If the depth is not 6n+2.

    Reference: He et al. 2015, section 4.2. Shortcuts are zero-padded ("option A") throughout.
    """
    is_integer = isinstance(depth, numbers.Integral) and not isinstance(depth, bool)
    if not is_integer or depth < 8 or depth % 6 != 2:
        raise ValueError(
            "A CIFAR ResNet has 6n+2 layers with n >= 1. Expected `depth` to be one of 8, 14, 20, "
            f"26, 32, ..., 110, ..., 1202, .... Received: {depth!r}."
            + (f" The nearest are {_nearest_depths(depth)}." if is_integer else "")
        )
    depth = int(depth)  # NumPy's integers cannot be saved
    return _cifar(
        f"cifar_{'plainnet' if plain else 'resnet'}{depth}",
        (depth - 2) // 6,
        shortcut="none" if plain else "zero_padding",
    )


def _nearest_depths(depth):
    below = max(depth - (depth - 2) % 6, 8)
    return f"{below} and {below + 6}"


def _cifar_v2(depth, **axes):
    return _cifar(
        f"cifar_resnet{depth}v2",
        (depth - 2) // (9 if axes.get("block") == "bottleneck" else 6),
        activation_order="full_pre_activation",
        stride_in_1x1=axes.get("block") == "bottleneck",
        reference="He et al. 2016, section 5",
        **axes,
    )


def _wide(depth, width):
    return _cifar(
        f"wide_resnet{depth}_{width}",
        (depth - 4) // 6,
        (16 * width, 32 * width, 64 * width),
        stem_filters=16,
        activation_order="full_pre_activation",
        reference="Zagoruyko & Komodakis 2016, table 1",
    )


def _dense(make, name, blocks, growth, stem_filters, block="dense_bottleneck", compression=0.5):
    return make(
        name,
        blocks,
        filters=(growth,) * (3 if isinstance(blocks, int) else len(blocks)),
        block=block,
        stem_filters=stem_filters,
        shortcut="concatenation",
        activation_order="full_pre_activation",
        transition="pool",
        compression=compression,
        reference="Huang et al. 2017, section 4",
    )


def _imagenet_dense(name, blocks, **axes):
    return Variant(name, blocks, stem="imagenet_activated", **axes)


def _dense_imagenet(depth, blocks):
    return _dense(_imagenet_dense, f"densenet{depth}", blocks, growth=32, stem_filters=64)


def _highway(depth, blocks, filters):
    # The paper prints depths and sizes (2.3M and 1.25M parameters), not every width.
    return _cifar(
        f"highwaynet{depth}",
        blocks,
        filters,
        block="single",
        shortcut="highway",
        activation_order="no_normalization",
        conv_bias=True,
        gate_bias=-2.0,
        reference="Srivastava et al. 2015, section 4",
    )


_V2 = {"activation_order": "full_pre_activation", "reference": "He et al. 2016, table 5"}
_WIDE = {"inner_width": 2, "reference": "Zagoruyko & Komodakis 2016, table 8"}
_RESNEXT = {"groups": 32, "reference": "Xie et al. 2017, table 1"}
_D = {"stem": "deep", "shortcut": "average_pool", "reference": "He et al. 2019, section 4"}
_SE = {"attention": "se", "reference": "Hu et al. 2018, table 1"}

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _imagenet("resnet18", (2, 2, 2, 2), "basic"),
        _imagenet("resnet34", (3, 4, 6, 3), "basic"),
        _imagenet("resnet50", (3, 4, 6, 3)),
        _imagenet("resnet101", (3, 4, 23, 3)),
        _imagenet("resnet152", (3, 8, 36, 3)),
        _imagenet("plainnet18", (2, 2, 2, 2), "basic", shortcut="none"),
        _imagenet("plainnet34", (3, 4, 6, 3), "basic", shortcut="none"),
        *(cifar_variant(depth) for depth in (20, 32, 44, 56, 110, 1202)),
        *(cifar_variant(depth, plain=True) for depth in (20, 32, 44, 56, 110)),
        _imagenet("resnet50v2", (3, 4, 6, 3), **_V2),
        _imagenet("resnet101v2", (3, 4, 23, 3), **_V2),
        _imagenet("resnet152v2", (3, 8, 36, 3), **_V2),
        _imagenet("resnet200v2", (3, 24, 36, 3), **_V2),
        _cifar_v2(110, shortcut="zero_padding"),
        _cifar_v2(164, block="bottleneck"),
        _cifar_v2(1001, block="bottleneck"),
        *(_wide(depth, width) for depth, width in ((16, 4), (16, 8), (16, 10), (22, 8))),
        *(_wide(depth, width) for depth, width in ((28, 10), (28, 12))),
        *(_wide(40, width) for width in (1, 2, 4, 8, 10)),
        _imagenet("wide_resnet50_2", (3, 4, 6, 3), **_WIDE),
        _imagenet("wide_resnet101_2", (3, 4, 23, 3), **_WIDE),
        _imagenet("resnext50_32x4d", (3, 4, 6, 3), inner_width=2, **_RESNEXT),
        _imagenet("resnext101_32x8d", (3, 4, 23, 3), inner_width=4, **_RESNEXT),
        _imagenet("resnet18d", (2, 2, 2, 2), "basic", **_D),
        _imagenet("resnet34d", (3, 4, 6, 3), "basic", **_D),
        _imagenet("resnet50d", (3, 4, 6, 3), **_D),
        _imagenet("resnet101d", (3, 4, 23, 3), **_D),
        _imagenet("resnet152d", (3, 8, 36, 3), **_D),
        _imagenet("se_resnet50", (3, 4, 6, 3), **_SE),
        _imagenet("se_resnet101", (3, 4, 23, 3), **_SE),
        _imagenet("se_resnet152", (3, 8, 36, 3), **_SE),
        _dense(_cifar, "densenet40_12", 12, 12, 16, block="dense", compression=1.0),
        _dense(_cifar, "densenet100_12", 32, 12, 16, block="dense", compression=1.0),
        _dense(_cifar, "densenet100_24", 32, 24, 16, block="dense", compression=1.0),
        *(_dense(_cifar, f"densenet_bc40_{k}", 6, k, 2 * k) for k in (36, 48, 60)),
        _dense(_cifar, "densenet_bc100_12", 16, 12, 24),
        _dense(_cifar, "densenet_bc250_24", 41, 24, 48),
        _dense(_cifar, "densenet_bc190_40", 31, 40, 80),
        _dense_imagenet(121, (6, 12, 24, 16)),
        _dense_imagenet(169, (6, 12, 32, 32)),
        _dense_imagenet(201, (6, 12, 48, 32)),
        _dense_imagenet(264, (6, 12, 64, 48)),
        _highway(19, (5, 6, 6), (48, 80, 128)),
        _highway(32, (10, 10, 10), (24, 40, 72)),
    )
}


def list_variants(pattern: str = "*") -> list[str]:
    """The names that `build` knows.

    Args:
        pattern: Shell-style pattern, e.g. `"cifar_*"`.

    Returns:
        Names in the order of the table.

    >>> list_variants("cifar_plainnet*")[:3]
    ['cifar_plainnet20', 'cifar_plainnet32', 'cifar_plainnet44']
    """
    return [name for name in VARIANTS if fnmatch.fnmatch(name, pattern)]


def get_variant(name: str) -> Variant:
    """The row of a name.

    Args:
        name: A name of `list_variants()`, or `cifar_resnet<depth>` / `cifar_plainnet<depth>` with
            any depth of 6n+2.

    Raises:
        ValueError: If the name is not known (the nearest one is named), or the depth is not 6n+2.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    for prefix, plain in (("cifar_resnet", False), ("cifar_plainnet", True)):
        depth = str(name).removeprefix(prefix)
        if depth != str(name) and depth.isdecimal():
            return cifar_variant(int(depth), plain)
    raise unknown_name("variant", name, VARIANTS)


def check_classes(classes):
    """Raises `ValueError` for a number of classes that no classifier has."""
    if not isinstance(classes, numbers.Integral) or classes < 1:  # also NumPy's integers
        raise ValueError(
            f"A classifier needs a whole number of classes, at least 1. Received: {classes=}"
        )
