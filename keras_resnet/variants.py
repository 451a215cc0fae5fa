"""Every named network is one row of one table.

A row says along which axes a network differs: how many blocks of which kind and width, which stem,
which shortcut, which order of activations. `build` takes any row, and its options replace fields
of it.
"""

import dataclasses
import fnmatch

from keras_resnet import preprocessing
from keras_resnet.errors import unknown_name
from keras_resnet.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Variant:
    """One residual (or plain) network.

    Args:
        name: Name in the table, and of the models built from it.
        blocks: Number of blocks of each stage.
        filters: Width of the 3x3 convolutions of each stage.
        block: `"basic"` (3x3, 3x3) or `"bottleneck"` (1x1, 3x3, 1x1 to 4 times the width).
        stem: `"imagenet"` (7x7/2 and max-pool, stride 4) or `"cifar"` (3x3, stride 1).
        shortcut: `"zero_padding"`, `"projection"` or `"projection_all"`, the options A, B and C of
            He et al. 2015, section 4.1; `"none"` makes a plain network.
        activation_order: Where batch normalisation and ReLU stand in a block; a key of
            `blocks.ACTIVATION_ORDERS` (He et al. 2016, figure 4).
        stride_in_1x1: Whether a down-sampling bottleneck has its stride in the first 1x1
            convolution (the paper) or in the 3x3 ("v1.5", torchvision).
        output_stride: Input size divided by the size of the last feature map; smaller values
            replace the strides of the last stages by dilation. `None`: no dilation.
        survival_probability: Probability with which the last block is kept in training; it falls
            linearly from 1 with the depth (Huang et al. 2016). 1 keeps every block.
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
    shortcut: str = "projection"
    activation_order: str = "original"
    stride_in_1x1: bool = False
    output_stride: int | None = None
    survival_probability: float = 1.0
    zero_init_residual: bool = False
    conv_bias: bool = False
    classes: int = 1000
    preprocessing: Preprocessing = preprocessing.IMAGENET
    reference: str = "He et al. 2015, table 1"

    @property
    def depth(self) -> int:
        """Number of weighted layers, without projections: stem, residuals and classifier."""
        return sum(self.blocks) * {"basic": 2, "bottleneck": 3}[self.block] + 2


def _imagenet(name, block, blocks, shortcut="projection"):
    return Variant(name, blocks, (64, 128, 256, 512), block=block, shortcut=shortcut)


def cifar_variant(depth: int, plain: bool = False) -> Variant:
    """The CIFAR network of a depth: three stages of (depth - 2) / 6 basic blocks.

    Args:
        depth: Number of weighted layers, 6n+2 with n >= 1.
        plain: Whether to leave out the shortcuts.

    Raises:
        ValueError: If the depth is not 6n+2.

    Reference: He et al. 2015, section 4.2. Shortcuts are zero-padded ("option A") throughout.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
        raise ValueError(
            "A CIFAR ResNet has 6n+2 layers with n >= 1. Expected `depth` to be one of 8, 14, 20, "
            f"26, 32, ..., 110, ..., 1202, .... Received: {depth!r}."
            + (f" The nearest are {_nearest_depths(depth)}." if isinstance(depth, int) else "")
        )
    return Variant(
        name=f"cifar_{'plainnet' if plain else 'resnet'}{depth}",
        blocks=((depth - 2) // 6,) * 3,
        filters=(16, 32, 64),
        stem="cifar",
        shortcut="none" if plain else "zero_padding",
        classes=10,
        preprocessing=preprocessing.CIFAR10,
        reference="He et al. 2015, section 4.2",
    )


def _nearest_depths(depth):
    below = max(depth - (depth - 2) % 6, 8)
    return f"{below} and {below + 6}"


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _imagenet("resnet18", "basic", (2, 2, 2, 2)),
        _imagenet("resnet34", "basic", (3, 4, 6, 3)),
        _imagenet("resnet50", "bottleneck", (3, 4, 6, 3)),
        _imagenet("resnet101", "bottleneck", (3, 4, 23, 3)),
        _imagenet("resnet152", "bottleneck", (3, 8, 36, 3)),
        _imagenet("plainnet18", "basic", (2, 2, 2, 2), shortcut="none"),
        _imagenet("plainnet34", "basic", (3, 4, 6, 3), shortcut="none"),
        *(cifar_variant(depth) for depth in (20, 32, 44, 56, 110, 1202)),
        *(cifar_variant(depth, plain=True) for depth in (20, 32, 44, 56, 110)),
    )
}


def list_variants(pattern: str = "*") -> list[str]:
    """The names that `build` knows.

    Args:
        pattern: Shell-style pattern, e.g. `"cifar_*"`.

    Returns:
        Names in the order of the table.

    >>> list_variants("resnet*")
    ['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152']
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
