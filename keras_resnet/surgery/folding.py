"""Batch normalisation becomes part of the convolution before it."""

import keras
import numpy as np
from keras import layers

from keras_resnet.surgery.graph import BATCH_NORMS, CONVOLUTIONS_2D, Edit, Graph, rewrite

_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
# Exactly these: a subclass may do something else with its kernel.
_CONVOLUTIONS = (
    layers.Conv1D,
    *CONVOLUTIONS_2D,
    layers.Conv3D,
    *_DEPTHWISE,
    *_SEPARABLE,
    *_TRANSPOSED,
    layers.Dense,
)


def batch_norm_folds(model: keras.Model) -> dict[str, str | None]:
    """What `fold_batch_norm` will do with every batch normalisation.

    Args:
        model: Functional or built Sequential model.

    Returns:
        From the name of each batch normalisation to that of the layer it is folded into; `None`
        where it stays. Layers of a model inside the model are called `"backbone/stem_bn"`.

    Raises:
        ValueError: If the model has no graph.

    >>> import keras_resnet
    >>> folds = batch_norm_folds(keras_resnet.CifarResNet20())
    >>> len(folds), folds["stage1_block1_bn2"]
    (19, 'stage1_block1_conv2')
    """
    graph = Graph(model)
    pairs = find_folds(graph)
    names = {}
    for path, inner in graph.models.items():
        for layer in inner.layers:
            if isinstance(layer, layers.BatchNormalization):
                names[path + layer.name] = path + pairs[layer].name if layer in pairs else None
    return names


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Folds every batch normalisation that follows a convolution into it, for inference.

    W' = W s and b' = beta + (b - mean) s, with s = gamma / sqrt(variance + epsilon) in float64.
    Convolutions of any kind (grouped, dilated, depthwise, separable, transposed) and dense layers
    take part, where the batch normalisation is their only consumer and no activation stands
    between. It stays where it follows something else, e.g. an addition in pre-activation networks:
    the ReLU and the padding behind it do not let it through. `batch_norm_folds` tells before.

    Args:
        model: Functional or built Sequential model, of this package or not, with models inside it
            or not.

    Returns:
        A copy, not compiled, whose outputs at inference are those of `model` up to rounding. Its
        convolutions have a bias. A `ResNet` stays one; its `variant` names the network it was.

    Raises:
        ValueError: If the model has no graph.

    Example:
        small = keras_resnet.surgery.fold_batch_norm(model)
    """
    folds = find_folds(Graph(model))
    edits = {
        conv: Edit({"use_bias": True}, _folded_weights(conv, norm)) for norm, conv in folds.items()
    }
    return rewrite(model, edits, dict.fromkeys(folds, passed))


def find_folds(graph: Graph) -> dict:
    """From each batch normalisation that can be folded to the layer it can be folded into."""
    folds = {}
    for node in graph.nodes:
        norm = node.operation
        if type(norm) not in BATCH_NORMS:
            continue
        before = graph.producer(node.input_tensors[0])
        if not before or not graph.is_private(before) or not graph.is_called_once(node):
            continue
        conv = before.operation
        uses_statistics_of_batch = node.arguments.kwargs.get("training")
        if uses_statistics_of_batch or type(conv) not in _CONVOLUTIONS:
            continue
        if _is_linear(conv) and _same_axis(conv, node):
            folds[norm] = conv
    return folds


def passed(layer, x, **kwargs):
    """In place of the call of a layer: its input."""
    return x


def _is_linear(conv):
    """Whether nothing but kernel and bias makes the output (no activation, LoRA, int8)."""
    kernels = 2 if isinstance(conv, _SEPARABLE) else 1
    has_plain_weights = len(conv.weights) == kernels + conv.use_bias
    return has_plain_weights and conv.activation is keras.activations.linear


def _same_axis(conv, norm_node):
    rank = len(norm_node.input_tensors[0].shape)
    channels_first = getattr(conv, "data_format", None) == "channels_first"
    return norm_node.operation.axis % rank == (1 if channels_first else rank - 1)


def scale_and_bias(norm: layers.BatchNormalization):
    """What a batch normalisation does at inference, x scale + bias, in float64."""
    mean, variance = np.float64(norm.moving_mean), np.float64(norm.moving_variance)
    gamma = np.float64(norm.gamma) if norm.scale else 1.0
    beta = np.float64(norm.beta) if norm.center else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def _folded_weights(conv, norm):
    weights = [np.float64(weight) for weight in conv.get_weights()]
    scale, shift = scale_and_bias(norm)
    bias = weights.pop() * scale if conv.use_bias else 0.0
    *kernels, kernel = weights  # the last of a separable convolution is the pointwise one
    # A depthwise kernel ends in (channels, multiplier), a transposed one in (filters, channels).
    if isinstance(conv, _DEPTHWISE):
        scale = scale.reshape(kernel.shape[-2:])
    elif isinstance(conv, _TRANSPOSED):
        scale = scale[:, None]
    return [*kernels, kernel * scale, shift + bias]
