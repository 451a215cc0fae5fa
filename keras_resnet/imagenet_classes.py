"""The 1,000 classes of ImageNet-1k, in the order in which every published network has them."""

import functools
import pathlib


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and English name of each class, by label.

    The order is that of the WordNet ids (that of the folders of the data set). Each name is the
    class's own: the two cranes are "crane" and "crane bird".

    Returns:
        1,000 pairs `(id, name)`.

    Reference: Russakovsky et al. 2015; the names are those torchvision gives to its weights.

    >>> imagenet_classes()[0]
    ('n01440764', 'tench')
    """
    lines = pathlib.Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    return tuple(tuple(line.split(" ", maxsplit=1)) for line in lines)
