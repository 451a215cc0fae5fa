"""Where a zero-padded shortcut puts the new channels, which no weight shows.

Networks that pad on both sides compute what those that pad behind compute, with the channels of
each stage in another order; so their weights are brought here by a permutation.
"""

import re

import keras
import numpy as np

from keras_resnet.layers import ZeroPadShortcut

METADATA = "shortcut_padding"
PADDINGS = ("behind", "both")
# Libraries whose networks may have such shortcuts.
_SCHEMES = ("torchvision", "cifar")


def is_padded(model: keras.Model) -> bool:
    """Whether a model has zero-padded shortcuts."""
    return any(isinstance(layer, ZeroPadShortcut) for layer in model.layers)


def check_padding(padding: str | None) -> None:
    """Raises a ValueError for another value than `None` and those of `PADDINGS`."""
    if padding not in (None, *PADDINGS):
        raise ValueError(
            f"Unknown `shortcut_padding`. Expected None, 'behind' or 'both'. Received: {padding!r}."
        )


def channel_orders(model: keras.Model, padding: str) -> dict[str, np.ndarray]:
    """In which order the channels stand in a network that pads as `padding` says.

    Args:
        model: A model of this package with zero-padded shortcuts.
        padding: `"behind"` or `"both"`.

    Returns:
        By the name of the block, `"stem"` first: integers of shape `(channels,)`. Channel `i` of
        the block's output here is channel `order[i]` there.
    """
    order = np.arange(model.get_layer("stem_conv").filters)
    orders = {"stem": order}
    for block, convolutions in _blocks(model).items():
        new = model.get_layer(convolutions[-1]).filters - len(order)
        before = new // 2 if padding == "both" else 0
        added = [*range(before), *range(before + len(order), len(order) + new)]
        order = orders[block] = np.array([*(order + before), *added], int)
    return orders


def absorb_padding(
    values: dict[str, np.ndarray],
    model: keras.Model,
    scheme: str,
    padding: str | None,
    stated: str | None,
    source,
) -> None:
    """Orders the channels of a file's values as they are here, in place.

    Args:
        values: Arrays by the path of their weight.
        model: The model they are for.
        scheme: Whose names the file has.
        padding: Where the file's network pads, as its user says; `None`: unsaid.
        stated: The same, as the file says.
        source: Path of the file, for errors.

    Raises:
        ValueError: If nobody says it, both say something else, or there is nothing to say.
    """
    check_padding(padding)
    if not (is_padded(model) and scheme in _SCHEMES):
        if padding is not None:
            raise ValueError(
                "`shortcut_padding` is for files of PyTorch and networks with zero-padded "
                f"shortcuts. Expected None. Received: {padding!r} for {model.name!r} and names of "
                f"{scheme}."
            )
        return
    stated = stated if stated in PADDINGS else None
    if padding and stated not in (None, padding):
        raise ValueError(
            f"The file says where its shortcuts are padded. Expected shortcut_padding={stated!r} "
            f"or None. Received: {padding!r} for {str(source)!r}."
        )
    if not (padding or stated):
        raise ValueError(
            "The names of the weights do not tell where the shortcuts of their network put the "
            "new, zero channels. Expected shortcut_padding='both' (half before and half behind, "
            "as the widely copied 6n+2 networks whose classifier is `linear`) or 'behind' (all "
            f"behind, as here). Received: neither for {str(source)!r}. Load it into the built "
            "network: keras_resnet.load_weights(model, path, shortcut_padding='both')."
        )
    if (padding or stated) == "both":
        _reorder(values, model)


def _reorder(values, model):
    orders = channel_orders(model, "both")
    order = orders["stem"]
    for block, convolutions in _blocks(model).items():
        last = len(convolutions)
        _take(values, f"{block}_conv1/kernel", order, axis=-2)
        order = orders[block]
        _take(values, f"{block}_se_reduce/kernel", order, axis=-2)
        writing = tuple(f"{block}_{name}/" for name in (f"conv{last}", f"bn{last}", "se_expand"))
        for path in [path for path in values if path.startswith(writing)]:
            _take(values, path, order, axis=-1)
    _take(values, "predictions/kernel", order, axis=0)


def _take(values, path, order, axis):
    if path in values:
        if values[path].shape[axis] != len(order):
            raise ValueError(
                "Padding on both sides cannot be absorbed by grouped convolutions. Expected "
                f"{len(order)} channels of {path}. Received: {values[path].shape[axis]}."
            )
        values[path] = np.take(values[path], order, axis=axis)


def _blocks(model):
    """The names of each block's convolutions, in their order, by the block's name."""
    blocks = {}
    for layer in model.layers:
        match = re.fullmatch(r"(stage(\d+)_block(\d+))_conv(\d+)", layer.name)
        if match:
            block, *numbers = match.groups()
            blocks.setdefault((*map(int, numbers[:2]), block), []).append(layer.name)
    return {block: sorted(names) for (*_, block), names in sorted(blocks.items())}
