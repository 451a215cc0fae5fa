"""Copying a block so that the copy is the identity."""

import keras
import numpy as np
from keras import layers

from keras_resnet.layers import StochasticDepth
from keras_resnet.surgery.graph import BATCH_NORMS, CONVOLUTIONS_2D, Graph, copy_layer, replay
from keras_resnet.surgery.pattern import (
    NOTHING_AT_INFERENCE,
    ends_in_relu,
    is_relu,
    non_negative_tensors,
)

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)


class Template:
    """A block of a model, to be copied as the identity of its output's shape.

    The way from the end of the block back to its input must become the identity: convolutions
    become deltas, batch normalisation undoes itself. Where two ways are added, that with fewer
    convolutions is the shortcut, and the other is silenced.

    Args:
        graph: The `Graph` of the model.
        stage: Name of the stage.
        number: Number of the block.
        end: The call of the layer that ends it.

    Raises:
        ValueError: If the block cannot be the identity.
    """

    def __init__(self, graph: Graph, stage: str, number: int, end):
        self.prefix, self.number = f"{stage}_block", number
        self._graph = graph
        self._end = end.outputs[0]
        self._settings = {}
        source = self._find_source(end)
        self._starts = {id(source)}  # in whose place the copy's input comes
        self._walk_back(source)
        leading = self._leading_to(self._end)
        self._nodes = [node for node in graph.nodes if node in leading]

    def insert(self, x, position: int):
        """Calls a copy of the block, the `position`-th to follow it, on a tensor."""
        copies = {}

        def call(operation):
            if isinstance(operation, layers.ZeroPadding2D):
                return lambda x: x
            if operation not in copies:
                rest = operation.name.removeprefix(f"{self.prefix}{self.number}_")
                config = {"name": f"{self.prefix}{self.number + position}_{rest}"}
                if isinstance(operation, _CONVOLUTIONS):
                    config |= {"strides": 1, "padding": "same"}
                copies[operation] = copy_layer(operation, **config)
            return copies[operation]

        tensors = dict.fromkeys(self._starts, x)
        replay(self._nodes, tensors, call)
        for layer, setting in self._settings.items():
            setting(copies[layer])
        return tensors[id(self._end)]

    def _find_source(self, end):
        name = f"{self.prefix}{self.number}_"
        nodes = [node for node in self._graph.nodes if node.operation.name.startswith(name)]
        made = {id(tensor) for node in nodes for tensor in node.outputs}
        sources = {id(x): x for node in nodes for x in node.input_tensors if id(x) not in made}
        if len(sources) != 1:
            raise self._error(end.operation)
        return next(iter(sources.values()))

    def _walk_back(self, source):
        tensor = self._end
        # Copies see what the block puts out: that must be what ReLU does not change.
        takes_relu = id(self._end) in non_negative_tensors(self._graph)
        while id(tensor) not in self._starts:
            node = self._graph.producer(tensor)
            layer, tensor = node.operation, node.input_tensors[0]
            if isinstance(layer, layers.Add) and len(node.input_tensors) == 2:
                tensor, residual = sorted(node.input_tensors, key=self._convolutions)
                self._silence(residual, layer)
                if source.shape != self._end.shape:  # where nothing changes, nothing is needed
                    self._starts.add(id(tensor))
            elif type(layer) in BATCH_NORMS:
                self._settings[layer] = _undo
            elif type(layer) in CONVOLUTIONS_2D and layer.filters == self._channels(layer):
                self._settings[layer] = _make_delta
                passes = _is_linear(layer) or (takes_relu and ends_in_relu(layer))
                if not (passes and _has_centre(layer)):
                    raise self._error(layer)
            elif is_relu(layer):
                if not takes_relu:
                    raise self._error(layer)
            elif not isinstance(layer, (*NOTHING_AT_INFERENCE, layers.ZeroPadding2D)):
                raise self._error(layer)

    def _silence(self, tensor, layer):
        """Finds the layer that can make a residual 0 and still let it learn."""
        while id(tensor) not in self._starts:
            node = self._graph.producer(tensor)
            layer = node.operation
            if isinstance(layer, layers.Multiply):  # past the gate, which is smaller
                shape = node.outputs[0].shape
                tensor = next(x for x in node.input_tensors if x.shape == shape)
            elif isinstance(layer, (*NOTHING_AT_INFERENCE, StochasticDepth)):
                tensor = node.input_tensors[0]
            elif _can_vanish(layer):
                self._settings[layer] = _make_zero
                return
            else:
                break
        raise self._error(layer)

    def _leading_to(self, tensor):
        """The calls that lead from the block's input to a tensor."""
        found, waiting = set(), [tensor]
        while waiting:
            tensor = waiting.pop()
            node = None if id(tensor) in self._starts else self._graph.producer(tensor)
            if node and node not in found:
                found.add(node)
                waiting.extend(node.input_tensors)
        return found

    def _convolutions(self, tensor):
        nodes = self._leading_to(tensor)
        return sum(isinstance(node.operation, _CONVOLUTIONS) for node in nodes)

    def _channels(self, conv):
        return self._end.shape[1 if conv.data_format == "channels_first" else -1]

    def _error(self, layer):
        return ValueError(
            f"A block like {self.prefix}{self.number} cannot be the identity and learn. Expected "
            "residuals that end in batch normalisation or a convolution, added to an unchanged "
            "shortcut; or plain convolutions of one width behind a ReLU. "
            f"Received: layer {layer.name!r} ({type(layer).__name__})."
        )


def _is_linear(conv):
    return conv.activation is keras.activations.linear


def _has_centre(conv):
    """Whether a tap sees the pixel that is written: of an even size, dilated, none does."""
    taps = zip(conv.kernel_size, conv.dilation_rate)
    return all(size % 2 or dilation == 1 for size, dilation in taps)


def _can_vanish(layer):
    """Whether a layer gives 0 at weights of 0, and a gradient."""
    if isinstance(layer, _CONVOLUTIONS):
        return _is_linear(layer)
    return getattr(layer, "gamma", None) is not None


def _make_zero(layer):
    """Sets gamma and beta, or kernel and bias, to 0."""
    is_norm = isinstance(layer, layers.BatchNormalization)
    for weight in layer.weights[: -2 if is_norm else None]:
        weight.assign(np.zeros(weight.shape))


def _make_delta(conv):
    """Sets kernel and bias so that the output is the input."""
    kernel, *bias = (np.zeros(weight.shape) for weight in conv.weights)
    centre = tuple((size - 1) // 2 for size in conv.kernel_size)
    filters = np.arange(conv.filters)
    kernel[centre][filters % kernel.shape[-2], filters] = 1.0
    conv.set_weights([kernel, *bias])


def _undo(norm):
    """Sets statistics whose variance and epsilon add up to 1 exactly, and gamma 1."""
    zeros = np.zeros(norm.moving_mean.shape)
    for weight, value in (
        (norm.gamma, zeros + 1.0),
        (norm.beta, zeros),
        (norm.moving_mean, zeros),
        (norm.moving_variance, zeros + 1.0 - norm.epsilon),
    ):
        if weight is not None:
            weight.assign(value)
