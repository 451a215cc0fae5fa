"""Channels of one tensor share the steps of 8 bits: here they are given one magnitude."""

import collections
import itertools

import keras
import numpy as np
from keras import layers

from keras_resnet.layers import StochasticDepth, ZeroPadShortcut
from keras_resnet.surgery.graph import Edit, Graph, rewrite
from keras_resnet.surgery.pattern import NOTHING_AT_INFERENCE, is_relu

_DEVIATIONS = 6.0  # from the mean, within which nearly all values are
_SMALLEST = 1e-3  # magnitude of a channel that still counts, as a share of the largest
_EACH_CHANNEL_BY_ITSELF = (
    *NOTHING_AT_INFERENCE,
    layers.AveragePooling2D,
    layers.MaxPooling2D,
    layers.ZeroPadding2D,
    StochasticDepth,
)


def equalize_channels(model: keras.Model) -> keras.Model:
    """Gives the channels that only batch normalisations read one magnitude.

    Pre-activation and densely connected networks carry sums and concatenations past every layer,
    whose channels may differ in size by orders of magnitude; with one scale for all of them the
    small ones drown in 8 bits, and the batch normalisation behind makes them large again, with
    their errors. A channel can be multiplied where it is written, in the convolution's kernel and
    bias, and divided again in the batch normalisations that read it; sums, concatenations, pooling,
    padding and ReLU let a positive factor through. How large a channel is, its readers' moving
    statistics say. Channels that anything else reads or writes stay as they are.

    Args:
        model: Functional or built Sequential model, channels last, best with its batch
            normalisation folded where it can be.

    Returns:
        A copy, not compiled, whose outputs at inference are those of `model` up to rounding.

    Raises:
        ValueError: If the model has no graph.

    Reference: cross-layer equalisation, and ranges without data, by Nagel et al. 2019, "Data-free
        quantization through weight equalization and bias correction", equations 8 to 11.
    """
    channels = _Channels(Graph(model))
    factors = channels.factors()
    edits = {}
    for layer, numbers in channels.writers.items():
        factor = factors[numbers]
        edits[layer] = Edit(weights=[weight * factor for weight in layer.get_weights()])
    for norm, numbers in channels.readers.items():
        factor = factors[numbers]
        gamma, *beta, mean, variance = norm.get_weights()
        edits[norm] = Edit(weights=[gamma / factor, *beta, mean * factor, variance])
    return rewrite(model, edits, {})


class _Channels:
    """Which channels of a graph are the same, who writes and who reads them.

    Attributes:
        writers: From each convolution whose output may be scaled to the numbers of its channels.
        readers: From each batch normalisation that may undo it to those of its input.
    """

    def __init__(self, graph):
        self.writers, self.readers = {}, {}
        self._graph, self._of, self._count = graph, {}, itertools.count()
        self._same, self._fixed = collections.defaultdict(set), set()
        for node in graph.nodes:
            self._visit(node)
        for inner in graph.models.values():
            for tensor in (*inner.inputs, *inner.outputs):
                self._fix(tensor)

    def _visit(self, node):
        layer, inputs, (output,) = node.operation, node.input_tensors, node.outputs
        once = self._graph.is_called_once(node)
        if once and _writes(layer):
            self._fix(*inputs)
            self.writers[layer] = self._numbers(output)
        elif once and _reads(layer):
            self.readers[layer] = self._numbers(*inputs)
            self._fix(output)
        elif isinstance(layer, layers.Concatenate) and layer.axis in (-1, 3):
            self._of[id(output)] = np.concatenate([self._numbers(tensor) for tensor in inputs])
        elif isinstance(layer, layers.Add) and len({tensor.shape for tensor in inputs}) == 1:
            for tensor in inputs:
                self._join(self._numbers(tensor), self._numbers(output))
        elif isinstance(layer, ZeroPadShortcut):
            numbers = self._numbers(*inputs)
            self._of[id(output)] = np.append(numbers, self._new(layer.filters - len(numbers)))
        elif is_relu(layer) or isinstance(layer, _EACH_CHANNEL_BY_ITSELF):
            self._of[id(output)] = self._numbers(*inputs)
        else:
            self._fix(*inputs, output)

    def _numbers(self, tensor):
        """The numbers of a tensor's channels."""
        if id(tensor) not in self._of:
            self._of[id(tensor)] = self._new(tensor.shape[-1] or 0)
        return self._of[id(tensor)]

    def _new(self, size):
        return np.fromiter(itertools.islice(self._count, size), int, size)

    def _join(self, ones, others):
        for one, other in zip(ones, others):
            self._same[one].add(other)
            self._same[other].add(one)

    def _fix(self, *tensors):
        self._fixed.update(*(self._numbers(tensor) for tensor in tensors))

    def factors(self):
        """What each channel is to be multiplied by: those that are the same by the same."""
        sizes = np.zeros(next(self._count))
        for norm, numbers in self.readers.items():
            mean, variance = norm.get_weights()[-2:]
            size = np.abs(mean) + _DEVIATIONS * np.sqrt(variance)
            np.maximum.at(sizes, numbers, size)
        factors, done = np.ones(len(sizes), "float32"), set()
        largest = sizes.max(initial=0.0)
        for number in range(len(sizes)):
            if number in done:
                continue
            group = self._group(number)
            done |= group
            if group.isdisjoint(self._fixed) and largest:
                size = max(sizes[member] for member in group)
                factors[list(group)] = 1 / max(size, _SMALLEST * largest)
        return factors

    def _group(self, number):
        """The channels that are the same as one."""
        group, left = set(), [number]
        while left:
            member = left.pop()
            if member not in group:
                group.add(member)
                left.extend(self._same[member])
        return group


def _writes(layer):
    is_plain = type(layer) is layers.Conv2D and layer.activation is keras.activations.linear
    return is_plain and len(layer.get_weights()) == 1 + layer.use_bias


def _reads(layer):
    return isinstance(layer, layers.BatchNormalization) and layer.scale and layer.axis in (-1, 3)
