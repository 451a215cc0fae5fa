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
        preprocessing: What its images go through; its size is that of the network.
        classes: Number of classes. `None`: not known; 0: without a classifier.
        accuracy: Published top-1 accuracy of single, central views, in [0, 1]. `None`: not known.
        made_by: Who trained it and how.
        options: Options of `keras_resnet.build` that the network needs for them.
        evaluation: What the images went through when `accuracy` was measured. Default:
            `preprocessing`; another where the accuracy is published for larger images only.
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
    evaluation: Preprocessing | None = None

    def __post_init__(self):
        if self.evaluation is None:
            object.__setattr__(self, "evaluation", self.preprocessing)


class WeightSets(tuple):
    """Several `WeightSet`; printed, a Markdown table: "at" is the size of the images in pixels."""

    HEADINGS = ("network", "weights", "top-1", "at", "licence", "made by", "address", "hash")

    def __str__(self):
        lines = ["---:" if name in ("top-1", "at") else "---" for name in self.HEADINGS]
        rows = [self.HEADINGS, lines, *map(_cells, self)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    __repr__ = __str__


def _cells(row):
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}"
    source, size = row.sources[0], str(row.evaluation.size[0])
    by = (row.licence or "", row.made_by, source.url, source.hash or "not published")
    return (row.variant, row.tag, accuracy, size, *by)
