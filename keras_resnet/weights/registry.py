"""Which set of weights is meant: by its tag, its address, or the path of its file."""

import dataclasses
import os

from keras_resnet.errors import unknown_name
from keras_resnet.variants import Variant, get_variant
from keras_resnet.weights import store
from keras_resnet.weights.published import WEIGHT_SETS
from keras_resnet.weights.sets import HUB, Source, WeightSet, WeightSets


def list_weights(variant: str | None = None) -> WeightSets:
    """The sets of weights there are.

    Args:
        variant: Name of a network; default: all.

    Returns:
        `WeightSet`s in the order of the table; printed, they are one. Networks that have none give
        an empty one.

    Raises:
        ValueError: If there is no such network.

    >>> print(list_weights("cifar_resnet20")[0].tag)
    cifar10
    """
    if variant is not None:
        variant = get_variant(variant).name
    return WEIGHT_SETS if variant is None else _of(variant)


def _of(name):
    """Those of a network, also of one that the table of variants does not have."""
    return WeightSets(row for row in WEIGHT_SETS if row.variant == name)


def get_weight_set(variant: str, tag: str) -> WeightSet:
    """The set of a network with a tag.

    Args:
        variant: Name of the network.
        tag: Name of the set; `"imagenet"`: that with the highest published accuracy on ImageNet.

    Raises:
        ValueError: If there is no such set.
    """
    rows = {row.tag: row for row in _of(variant)}
    of_imagenet = [row for row in rows.values() if row.classes == 1000]
    if of_imagenet:
        rows["imagenet"] = max(of_imagenet, key=lambda row: row.accuracy)
    if tag not in rows:
        others = ("None", f"{HUB}OWNER/NAME", "the path of a file")
        raise unknown_name(f"weights of {variant}", tag, [*rows, *others])
    return rows[tag]


def find_weights(variant: str | Variant, weights: str | os.PathLike | None) -> WeightSet | None:
    """What `weights=` means for a network.

    Args:
        variant: The network, or its name.
        weights: `None`; a tag of `list_weights(variant)`, or `"imagenet"`; `"hf://OWNER/NAME"`, a
            repository of the Hugging Face hub with a `model.safetensors`; or the path of a file.

    Returns:
        The row of the table, also for the address or a file of it; else what is known of the
        repository (timm's say how their images are preprocessed) or the file. `None` for `None`.

    Raises:
        ValueError: If there is no such set, file or repository.
    """
    if weights is None:
        return None
    if not isinstance(variant, Variant):
        variant = get_variant(variant)
    name, rows = os.fspath(weights), _of(variant.name)
    for row in rows:
        if any(source.address == name for source in row.sources):
            return row
    if name.startswith(HUB):
        return _of_repository(variant, name)
    is_tag = any(name in (row.tag, "imagenet") for row in rows)
    if is_tag or not os.path.isfile(name):
        return get_weight_set(variant.name, name)
    return _of_file(variant, name)


def _of_repository(variant, address):
    classes, preprocessing = store.read_timm_config(address)
    return WeightSet(
        variant.name,
        address,
        (Source(address, f"{address[len(HUB) :].replace('/', '.')}.safetensors"),),
        licence=None,
        preprocessing=preprocessing or variant.preprocessing,
        classes=classes,
    )


def _of_file(variant, path):
    for row in _of(variant.name):
        for source in row.sources:
            if source.file == os.path.basename(path):
                local = dataclasses.replace(source, address=path)
                return dataclasses.replace(row, sources=(local,))
    source = Source(path, os.path.basename(path))
    return WeightSet(variant.name, path, (source,), None, variant.preprocessing, classes=None)
