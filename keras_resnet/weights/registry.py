"""Every published set of weights is one row of one table."""

import dataclasses
import pathlib

from keras_resnet.errors import unknown_name
from keras_resnet.preprocessing import CIFAR10, Preprocessing

SHIPPED = pathlib.Path(__file__).parent / "shipped"


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """One set of weights: for which network, from where, and what it is good for.

    Args:
        variant: Name of the network, one of `keras_resnet.list_variants()`.
        tag: What `weights=` takes.
        file: Name of the file that comes with this package.
        sha256: Hash of the file.
        licence: Name of the licence of the weights.
        preprocessing: What its images went through.
        classes: Number of classes.
        accuracy: Top-1 accuracy on the official test split of single, central views, in [0, 1].
        source: How it was made.
    """

    variant: str
    tag: str
    file: str
    sha256: str
    licence: str
    preprocessing: Preprocessing
    classes: int
    accuracy: float
    source: str

    @property
    def path(self) -> pathlib.Path:
        """Where the file is."""
        return SHIPPED / self.file


WEIGHT_SETS: tuple[WeightSet, ...] = (
    WeightSet(
        variant="cifar_resnet20",
        tag="cifar10",
        file="cifar_resnet20.cifar10.safetensors",
        sha256="b80e71f61387632ca257824c0d04ad05809b9f6484236845ca2461eb5f1f5cdc",
        licence="Apache-2.0",
        preprocessing=CIFAR10,
        classes=10,
        accuracy=0.9108,
        source="python -m training train cifar10-resnet20-fast",
    ),
)


def list_weights(variant: str | None = None) -> list[WeightSet]:
    """The sets of weights there are.

    Args:
        variant: Name of a network; default: all.
    """
    return [row for row in WEIGHT_SETS if variant in (None, row.variant)]


def get_weight_set(variant: str, tag: str) -> WeightSet:
    """The set of a network with a tag.

    Args:
        variant: Name of the network.
        tag: Name of the set.

    Raises:
        ValueError: If there is no such set.
    """
    rows = {row.tag: row for row in list_weights(variant)}
    if tag not in rows:
        raise unknown_name(f"weights of {variant}", tag, [*rows, "None", "the path of a file"])
    return rows[tag]
