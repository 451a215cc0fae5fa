"""What is known of a published set of weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.preprocessing import Preprocessing

HUB = "hf://"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a file of weights is to be had, and how it is told from others.

    Args:
        address: `https://...`, `hf://OWNER/NAME` for `model.safetensors` of a repository of the
            Hugging Face hub, or the path of a file.
        file: Name of the file on this machine.
        hash: `"sha256:..."` or `"md5:..."`, whole or its beginning. `None`: not published; files
            of the hub are checked against the hash that the hub has for them.
    """

    address: str
    file: str
    hash: str | None = None

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        if not self.address.startswith(HUB):
            return self.address
        return f"https://huggingface.co/{self.address[len(HUB) :]}/resolve/main/model.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """One set of weights: for which network, from where, and what it is good for.

    Args:
        variant: Name of the network, one of `keras_resnet.list_variants()`.
        tag: What `weights=` takes.
        sources: Where its file is, the best place first.
        licence: Name of the licence of the weights. `None`: not known.
        preprocessing: What its images go through.
        classes: Number of classes. `None`: not known.
        accuracy: Published top-1 accuracy of single, central views of `preprocessing.size`, in
            [0, 1]. `None`: not known.
        made_by: Who trained it and how.
        options: Options of `keras_resnet.build` that the network needs for them.
    """

    variant: str
    tag: str
    sources: tuple[Source, ...]
    licence: str | None
    preprocessing: Preprocessing
    classes: int | None = 1000
    accuracy: float | None = None
    made_by: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class WeightSets(tuple):
    """Several `WeightSet`; printed, a Markdown table."""

    HEADINGS = ("network", "weights", "top-1", "size", "licence", "made by")

    def __str__(self):
        rows = [self.HEADINGS, ("---", "---", "---:", "---:", "---", "---"), *map(_cells, self)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    __repr__ = __str__


def _cells(row):
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}"
    size = str(row.preprocessing.size[0])
    return (row.variant, row.tag, accuracy, size, row.licence or "", row.made_by)
