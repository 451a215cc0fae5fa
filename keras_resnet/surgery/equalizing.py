"""Channels of one tensor share the steps of 8 bits: here they are given one magnitude."""

import itertools

import keras
import numpy as np
from keras import layers

from keras_resnet.surgery.graph import BATCH_NORMS, CONVOLUTIONS_2D, Edit, Graph, rewrite
from keras_resnet.surgery.pattern import NOTHING_AT_INFERENCE, is_relu

_DEVIATIONS = 6.0  # from the mean, within which nearly all values are
_SMALLEST = 1e-3  # magnitude of a channel that still counts, as a share of the largest
_EACH_CHANNEL_BY_ITSELF = (
    *NOTHING_AT_INFERENCE,
    layers.AveragePooling2D,
    layers.MaxPooling2D,
    layers.ZeroPadding2D,
)


def equalize_channels(model: keras.Model) -> keras.Model:
    """Gives the channels that only batch normalisations read one magnitude.

    Densely connected networks carry concatenations past every layer, whose channels may differ in
    size by orders of magnitude; with one scale for all of them the small ones drown in 8 bits, and
    the batch normalisation behind makes them large again, with their errors. A channel can be
    multiplied where it is written, in the convolution's kernel and bias, and divided again in the
    batch normalisations that read it; concatenation, pooling, padding and ReLU let a positive
    factor through. How large a channel is, its readers' moving statistics say. Channels that
    anything else reads or writes stay as they are. (Sums do as well: what is added at different
    depths would need one factor, and it grows at different rates.)

    Args:
        model: Functional or built Sequential model, best with its batch normalisation folded where
            it can be. What computes with channels first stays as it is.

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
    """The channels of a graph by number, and who writes and reads them.

    Attributes:
        writers: From each convolution whose output may be scaled to the numbers of its channels.
        readers: From each batch normalisation that may undo it to those of its input.
    """

    def __init__(self, graph):
        self.writers, self.readers = {}, {}
        self._graph, self._of, self._count, self._fixed = graph, {}, itertools.count(), set()
        for node in graph.nodes:
            self._visit(node)
        for inner in graph.models.values():
            self._fix(*inner.inputs, *inner.outputs)

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
        elif is_relu(layer) or isinstance(layer, _EACH_CHANNEL_BY_ITSELF):
            self._of[id(output)] = self._numbers(*inputs)
        else:
            self._fix(*inputs, output)

    def _numbers(self, tensor):
        """The numbers of a tensor's channels."""
        if id(tensor) not in self._of:
            size = tensor.shape[-1] or 0
            self._of[id(tensor)] = np.fromiter(itertools.islice(self._count, size), int, size)
        return self._of[id(tensor)]

    def _fix(self, *tensors):
        self._fixed.update(*(self._numbers(tensor) for tensor in tensors))

    def factors(self):
        """What each channel is to be multiplied by."""
        sizes = np.zeros(next(self._count))
        for norm, numbers in self.readers.items():
            mean, variance = norm.get_weights()[-2:]
            np.maximum.at(sizes, numbers, np.abs(mean) + _DEVIATIONS * np.sqrt(variance))
        factors = 1 / np.maximum(sizes, _SMALLEST * sizes.max(initial=0.0) or 1.0)
        factors[list(self._fixed)] = 1.0
        return factors.astype("float32")


def _writes(layer):
    if type(layer) not in CONVOLUTIONS_2D or layer.data_format == "channels_first":
        return False
    is_linear = layer.activation is keras.activations.linear
    return is_linear and len(layer.get_weights()) == 1 + layer.use_bias


def _reads(layer):
    is_plain = type(layer) in BATCH_NORMS and not layer.renorm
    return is_plain and layer.scale and layer.axis in (-1, 3)
