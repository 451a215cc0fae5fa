"""Finding the residual blocks in a graph: additions of a chain of convolutions and a shortcut.

A block is recognised by its layers alone, not by their names. Each path from the block's source to
the addition is spelled with one letter per layer, and the spelling must match a regular expression.
"""

import dataclasses
import itertools
import math
import re

import keras
import numpy as np
from keras import layers

from keras_resnet.layers import StochasticDepth, ZeroPadShortcut
from keras_resnet.surgery.graph import BATCH_NORMS, CONVOLUTIONS_2D

# One-layer, two-layer and bottleneck residuals, with or without pre-activation.
_RESIDUAL = re.compile(r"(b?r)?(p?c)(rp?c)*s?")
_SHORTCUT = re.compile(r"z?|c")
NOTHING_AT_INFERENCE = (layers.Dropout, layers.SpatialDropout2D, layers.Identity)
_KEEPS_SIGN = (
    *NOTHING_AT_INFERENCE,
    StochasticDepth,
    ZeroPadShortcut,
    layers.ZeroPadding2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
)


@dataclasses.dataclass(frozen=True)
class Link:
    """A convolution of a residual.

    Args:
        layer: The convolution; or the layer in front of the first one (batch normalisation or
            ReLU) where a 1x1 convolution has to be put.
        kernel_size: `(height, width)`.
        channels: `(in, out)`.
        tap: The tap of the kernel that sees the pixel which a 1x1 convolution of the same strides
            would see.
        positions: How often the kernel is applied to one image; `None` where sizes are open.
    """

    layer: keras.Layer
    kernel_size: tuple[int, int]
    channels: tuple[int, int]
    tap: tuple[int, int]
    positions: int | None


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block.

    Args:
        addition: The layer that adds.
        residual_input: Which of the addition's inputs is the residual: 0 or 1.
        links: The residual's convolutions, first to last.
        shortcut: `None` (identity), a `ZeroPadShortcut`, or a 1x1 convolution.
        signed: Whether the source may be negative.
        drop: The `StochasticDepth` that scales the residual, or `None`.
    """

    addition: keras.Layer
    residual_input: int
    links: tuple[Link, ...]
    shortcut: keras.Layer | None
    signed: bool
    drop: StochasticDepth | None


def is_relu(layer) -> bool:
    """Whether a layer is max(x, 0), no more and no less."""
    if isinstance(layer, layers.ReLU):
        return layer.max_value is None and layer.negative_slope == 0 and layer.threshold == 0
    return isinstance(layer, layers.Activation) and layer.activation is keras.activations.relu


def ends_in_relu(layer) -> bool:
    """Whether a layer is ReLU, or a convolution that has it as its activation."""
    is_convolution = type(layer) in CONVOLUTIONS_2D
    return is_relu(layer) or (is_convolution and layer.activation is keras.activations.relu)


def is_addition(node) -> bool:
    """Whether a call adds tensors: `layers.Add`, or the operation that `x + y` makes."""
    adds = isinstance(node.operation, layers.Add) or type(node.operation).__name__ == "Add"
    return adds and len(node.input_tensors) > 1


def find_blocks(graph, folds=()) -> tuple[list[Block], list[str]]:
    """The residual blocks of a graph.

    Args:
        graph: A `Graph`.
        folds: Batch normalisations to be overlooked, because they will be folded.

    Returns:
        The blocks, and the names of the additions that are none.
    """
    blocks, others, non_negative = [], [], non_negative_tensors(graph)
    for node in graph.nodes:
        if is_addition(node):
            block = _block(graph, node, folds, non_negative)
            if block:
                blocks.append(block)
            else:
                others.append(node.operation.name)
    return blocks, others


def non_negative_tensors(graph) -> set[int]:
    """The ids of the tensors that cannot be negative, as far as that is plain to see."""
    known = set()
    for node in graph.nodes:
        keeps = isinstance(node.operation, _KEEPS_SIGN) or is_addition(node)
        if ends_in_relu(node.operation) or (
            keeps and known.issuperset(map(id, node.input_tensors))
        ):
            known.update(map(id, node.outputs))
    return known


def _block(graph, addition, folds, non_negative):
    """The block that ends in an addition, or `None`."""
    shapes = {tuple(tensor.shape) for tensor in addition.input_tensors}
    if len(addition.input_tensors) != 2 or len(shapes) > 1 or not graph.is_called_once(addition):
        return None
    ways = [_way_back(graph, tensor) for tensor in addition.input_tensors]
    shared = set(map(id, ways[1]))
    source = next((tensor for tensor in ways[0] if id(tensor) in shared), None)
    if source is None:
        return None
    paths = []
    for way in ways:
        way = itertools.takewhile(lambda tensor: tensor is not source, way)
        paths.append([graph.producer(tensor) for tensor in way][::-1])
    residual_input = max((0, 1), key=lambda i: _reach(paths[i]))
    residual, shortcut = (
        [node for node in paths[i] if _letter(node, folds)]
        for i in (residual_input, 1 - residual_input)
    )
    if not all(graph.is_private(node) for path in paths for node in path):
        return None
    spellings = ("".join(_letter(node, folds) for node in path) for path in (residual, shortcut))
    if not all(map(re.fullmatch, (_RESIDUAL, _SHORTCUT), spellings)):
        return None
    if _reach(shortcut)[1] > 1 or _strides(shortcut) != _strides(residual):
        return None
    links = _links(residual, folds)
    if any(link.tap is None for link in links):
        return None
    last = residual[-1].operation
    return Block(
        addition=addition.operation,
        residual_input=residual_input,
        links=links,
        shortcut=shortcut[0].operation if shortcut else None,
        signed=id(source) not in non_negative,
        drop=last if isinstance(last, StochasticDepth) else None,
    )


def _way_back(graph, tensor):
    """The tensors that lead to a tensor, last first, as long as there is one way."""
    way = [tensor]
    while (node := graph.producer(way[-1])) and len(node.input_tensors) == 1:
        way.append(node.input_tensors[0])
    return way


def _reach(path):
    """How much a path convolves: the residual is the one that does more."""
    sizes = [node.operation.kernel_size for node in path if _is_convolution(node.operation)]
    return len(sizes), sum(map(math.prod, sizes))


def _strides(path):
    """Rows and columns of a path's input between two pixels of its output."""
    strides = [np.broadcast_to(getattr(node.operation, "strides", 1), 2) for node in path]
    return np.prod([(1, 1), *strides], axis=0).tolist()


def _is_convolution(layer):
    is_plain = type(layer) is layers.Conv2D and layer.groups == 1
    return is_plain and layer.activation is keras.activations.linear


def _letter(node, folds):
    layer = node.operation
    if layer in folds or isinstance(layer, NOTHING_AT_INFERENCE):
        return ""
    if type(layer) in BATCH_NORMS:
        return "?" if node.arguments.kwargs.get("training") else "b"
    for letter, applies in (
        ("r", is_relu(layer)),
        ("c", _is_convolution(layer)),
        ("p", isinstance(layer, layers.ZeroPadding2D)),
        ("z", isinstance(layer, ZeroPadShortcut)),
        ("s", isinstance(layer, StochasticDepth)),
    ):
        if applies:
            return letter
    return "?"


def _links(residual, folds):
    """The links of a residual whose spelling is right."""
    links, padding = [], (0, 0)
    first = residual[0]
    if _letter(first, folds) in "br":
        convolution = next(n.operation for n in residual if _is_convolution(n.operation))
        channels = convolution.kernel.shape[-2]
        positions = _positions(first, convolution.data_format)
        links.append(Link(first.operation, (1, 1), (channels, channels), (0, 0), positions))
    for node in residual:
        layer = node.operation
        if isinstance(layer, layers.ZeroPadding2D):
            padding = tuple(before for before, _ in layer.padding)
        elif _is_convolution(layer):
            tap, positions = convolution_tap(node, padding), _positions(node, layer.data_format)
            channels = tuple(layer.kernel.shape[-2:])
            links.append(Link(layer, layer.kernel_size, channels, tap, positions))
            padding = (0, 0)
    return tuple(links)


def convolution_tap(node, padding=(0, 0)) -> tuple[int, int] | None:
    """The tap of a convolution that sees the pixel a 1x1 convolution of its strides would see.

    Args:
        node: The call of a Conv2D.
        padding: Rows and columns of zeros that were put before its input.

    Returns:
        Row and column in the kernel. `None` if no tap does, or if it depends on an open size: with
        a stride, `padding="same"` pads even and odd sizes differently.
    """
    conv, tap = node.operation, []
    sizes = _spatial(node.input_tensors[0].shape, conv.data_format)
    for axis, size in enumerate(sizes):
        dilation, stride = conv.dilation_rate[axis], conv.strides[axis]
        reach = (conv.kernel_size[axis] - 1) * dilation
        before = padding[axis]
        if conv.padding == "same" and stride == 1:
            before += reach // 2
        elif conv.padding == "same":
            if size is None:
                return None
            before += max((-(-size // stride) - 1) * stride + reach + 1 - size, 0) // 2
        if before % dilation or before > reach:
            return None
        tap.append(before // dilation)
    return tuple(tap)


def _spatial(shape, data_format):
    return shape[2:] if data_format == "channels_first" else shape[1:-1]


def _positions(node, data_format):
    sizes = _spatial(node.outputs[0].shape, data_format)
    return None if None in sizes else math.prod(sizes)
