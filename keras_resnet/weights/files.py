"""Weights in a file: safetensors, each tensor by the path of its variable in the model.

Paths such as `stage1_block1_conv1/kernel` do not depend on the order of layers, so weights move
between networks that share layers: with and without stochastic depth, on another input size.
"""

import hashlib
import os
import pathlib

import keras
import safetensors
import safetensors.numpy


def save_weights(
    model: keras.Model, path: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Writes all weights of a model, without optimizer.

    Args:
        model: A built model.
        path: Where, ending in `.safetensors`.
        metadata: What the file shall say of itself.
    """
    tensors = {name: keras.ops.convert_to_numpy(weight) for name, weight in _weights(model).items()}
    pathlib.Path(path).write_bytes(safetensors.numpy.save(tensors, metadata))


def load_weights(
    model: keras.Model, path: str | os.PathLike, *, head: bool = True, sha256: str | None = None
) -> None:
    """Puts the weights of a file into a model; all of them, or none and an error.

    Args:
        model: A built model.
        path: A file of `save_weights`.
        head: Whether the file's classifier is used; without it, the model may lack one or have one
            of its own, which stays as it is.
        sha256: What the hash of the file must be.

    Raises:
        ValueError: If the file is damaged, or its weights are not those of the model.
    """
    content = _content(path, sha256)
    try:
        tensors = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(
            "The weights cannot be read. Expected an undamaged .safetensors file. "
            f"Received: {os.fspath(path)!r} ({error})."
        ) from error
    weights = _weights(model)
    if not head:
        tensors, weights = (_without_head(each) for each in (tensors, weights))
    _check_same(weights, tensors, path)
    for name, weight in weights.items():
        weight.assign(tensors[name])


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What a file says of itself.

    Args:
        path: A file of `save_weights`.
    """
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _content(path, sha256):
    content = pathlib.Path(path).read_bytes()
    received = hashlib.sha256(content).hexdigest()
    if sha256 is not None and received != sha256:
        raise ValueError(
            f"The weights file was changed. Expected sha256 {sha256}. Received: {received} of "
            f"{os.fspath(path)!r}. Install the package anew."
        )
    return content


def _weights(model):
    """The variables by path, without the states of random generators."""
    return {
        weight.path: weight
        for weight in model.weights
        if keras.backend.is_float_dtype(weight.dtype)
    }


def _without_head(entries):
    return {name: entry for name, entry in entries.items() if not name.startswith("predictions/")}


def _check_same(weights, tensors, path):
    missing = [name for name in weights if name not in tensors]
    unused = [name for name in tensors if name not in weights]
    different = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(weight.shape)}"
        for name, weight in weights.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(weight.shape)
    ]
    if missing or unused or different:
        raise ValueError(
            f"The weights of {os.fspath(path)!r} are not those of this network. Expected the same "
            f"names and shapes. Received: {_some('only the file has', unused)}; "
            f"{_some('only the network has', missing)}; {_some('of another shape', different)}."
        )


def _some(what, names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most]) or 'nothing'}{more}"
