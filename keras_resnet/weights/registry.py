"""Which set of weights is meant: by its tag, its address, or the path of its file."""

import dataclasses
import os
import sys

from keras_resnet.errors import unknown_name
from keras_resnet.variants import VARIANTS, Variant, get_variant
from keras_resnet.weights import store
from keras_resnet.weights.files import describe
from keras_resnet.weights.published import WEIGHT_SETS, timm_name
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
        The row of the table, also for the address or a file of it; else what the repository (those
        of timm and transformers) or the file (of `save_weights` and Keras) says of its classes and
        its preprocessing. `None` for `None`.

    Raises:
        ValueError: If there is no such set, file or repository, or it is for another network.
    """
    if weights is None:
        return None
    if not isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            "Unknown `weights`. Expected None, a tag, the path of a file or an address "
            f"{HUB}OWNER/NAME. Received: {weights!r}. `weights='imagenet'` takes the best."
        )
    if not isinstance(variant, Variant):
        variant = get_variant(variant)
    name, rows = os.fspath(weights), _of(variant.name)
    for row in rows:
        if any(source.address == name for source in row.sources):
            return row
    if name.startswith(HUB):
        return _of_repository(variant, name)
    is_tag = any(name in (row.tag, "imagenet") for row in rows)
    if os.path.isfile(name) and not is_tag:
        return _of_file(variant, name)
    if os.path.dirname(name) or os.path.splitext(name)[1] in _SUFFIXES:
        raise ValueError(
            f"There is no such file of weights. Expected a file. Received: {name!r}"
            f"{', a folder' if os.path.isdir(name) else ''}."
        )
    return get_weight_set(variant.name, name)


# What is the path of a file, not a tag that is not known.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".h5", ".keras", ".caffemodel")


def _of_repository(variant, address):
    about = store.read_repository(address)
    # Networks that differ in what has no weights, as in their pools, have the same names there.
    theirs = about.architecture
    if variant.name in VARIANTS and theirs not in (None, timm_name(variant.name)):
        raise ValueError(
            f"The repository is for another network. Expected {timm_name(variant.name)!r}. "
            f"Received: {theirs!r} of {address!r}."
        )
    return _described(variant, address, Source(address, store.file_of(address)), about)


def _of_file(variant, path):
    for row in _of(variant.name):
        for source in row.sources:
            if source.file == os.path.basename(path):
                local = dataclasses.replace(source, address=path)
                return dataclasses.replace(row, sources=(local,))
    about = describe(path)
    usual = variant.preprocessing.adapted(channels=about.channels)
    return _described(variant, path, Source(path, os.path.basename(path)), about, usual)


def _described(variant, tag, source, about, usual=None):
    """A set by what its repository or file says of itself."""
    if about.preprocessing is None:
        print(
            f"{tag} does not say how its images are preprocessed: as for {variant.name}, "
            "unless you set `model.preprocessing`.",
            file=sys.stderr,
        )
    preprocessing = about.preprocessing or usual or variant.preprocessing
    return WeightSet(variant.name, tag, (source,), None, preprocessing, classes=about.classes)
