"""Which parts of a trained network learn on."""

import re

import keras

from keras_resnet.errors import unknown_name

_PART = re.compile(r"(stem|stage(\d+)|head)_")


def freeze(
    model: keras.Model, up_to: str | None = None, *, batch_norm: bool | str = True
) -> keras.Model:
    """Makes the beginning of a network keep what it has learnt, for fine-tuning.

    Frozen batch normalisation normalises with its moving statistics and does not change them, also
    in `fit`. What is frozen stays so in saved models. Compile after it. `unfreeze` takes it back.

    Args:
        model: A model of this package, or one with layers of the same names, also in models
            inside it; it is changed in place.
        up_to: The last part that is frozen: `"stem"`, `"stage1"`, ..., or `"head"` for all but the
            classifier. `None`: no part, which is for `batch_norm="all"` alone.
        batch_norm: Whether the batch normalisation of those parts is frozen with them; `False`
            lets it learn on and follow the new images. `"all"` freezes it in the whole network,
            for small batches.

    Returns:
        The same model.

    Raises:
        ValueError: If the model has no such part, or nothing would be frozen.
    """
    if batch_norm not in (True, False, "all"):
        raise ValueError(
            f"Unknown `batch_norm`. Expected True, False or 'all'. Received: {batch_norm!r}."
        )
    if up_to is None and batch_norm != "all":
        raise ValueError(
            "Nothing would be frozen. Expected `up_to`, e.g. freeze(model, up_to='stage3'), or "
            f"batch_norm='all'. Received: up_to=None, batch_norm={batch_norm!r}."
        )
    layers = model._flatten_layers(include_self=False)  # also of a network inside another model
    positions = {layer: _position(layer.name) for layer in layers}
    parts = {_PART.match(layer.name).group(1): p for layer, p in positions.items() if p is not None}
    if up_to is not None and up_to not in parts:
        raise unknown_name(f"part of {model.name}", up_to, sorted(parts, key=parts.get))
    frozen = []
    for layer, position in positions.items():
        is_before = up_to is not None and position is not None and position <= parts[up_to]
        if isinstance(layer, keras.layers.BatchNormalization):
            is_frozen = batch_norm == "all" or (is_before and batch_norm)
        else:
            is_frozen = is_before
        if is_frozen:
            frozen.append(layer)
    if not frozen:
        raise ValueError(
            "Nothing would be frozen. Expected a model with batch normalisation for "
            f"batch_norm='all'. Received: {model.name!r}, which has none."
        )
    for layer in frozen:
        layer.trainable = False
    return model


def unfreeze(model: keras.Model) -> keras.Model:
    """Makes the whole network learn again; compile after it.

    `model.trainable = True` does nothing on TensorFlow where single layers are frozen, since that
    attribute of the model is `True` already.

    Args:
        model: Any Keras model; it is changed in place.

    Returns:
        The same model.
    """
    for layer in model._flatten_layers():
        layer.trainable = True
    return model


def _position(name):
    """Where the part stands that a layer belongs to; `None` for the input and the classifier."""
    part = _PART.match(name)
    if part is None:
        return None
    return {"stem": 0, "head": float("inf")}.get(part.group(1), int(part.group(2) or 0))
