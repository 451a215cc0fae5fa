"""From a plain network to an identical residual one: the way back, for blocks of one layer."""

import keras
import numpy as np
from keras import layers

from keras_resnet.surgery.folding import fold_batch_norm
from keras_resnet.surgery.graph import CONVOLUTIONS_2D, Edit, Graph, rewrite
from keras_resnet.surgery.pattern import convolution_tap, is_relu


def to_residual(model: keras.Model) -> keras.Model:
    """An identical network in which layers that keep the shape have become residual.

    Batch normalisation is folded first. Then every relu(conv(x)) that keeps the shape becomes
    relu(conv'(x) + x), where the kernel of conv' is that of conv less the identity. The addition is
    called `{convolution}_add`. `to_plain` leads back.

    Args:
        model: Functional or built Sequential model, of this package or not.

    Returns:
        A copy, not compiled, with as many parameters as `fold_batch_norm(model)`, whose outputs at
        inference are those of `model` up to rounding. A `ResNet` stays one; its `variant` names the
        network it was.

    Raises:
        ValueError: If the model has no graph, or no such layer.

    Reference: He et al. 2015, section 3.1: F(x) = H(x) - x.

    Example:
        residual = keras_resnet.surgery.to_residual(keras_resnet.CifarPlainNet20())
    """
    model = fold_batch_norm(model)
    graph = Graph(model)
    activated = {id(node.input_tensors[0]) for node in graph.nodes if is_relu(node.operation)}
    edits, calls = {}, {}
    for node in graph.nodes:
        if _keeps_shape(node) and graph.is_private(node) and id(node.outputs[0]) in activated:
            edits[node.operation] = Edit(weights=_without_identity(node))
            calls[node.operation] = _with_shortcut
    if not edits:
        raise ValueError(
            "The model has no layer that can become a residual block. Expected a Conv2D of stride "
            "1 and padding 'same' with as many filters as input channels, followed by (batch "
            f"normalisation and) ReLU. Received: {model.name!r}."
        )
    return rewrite(model, edits, calls)


def _keeps_shape(node):
    conv = node.operation
    if type(conv) not in CONVOLUTIONS_2D or conv.activation is not keras.activations.linear:
        return False
    inputs = conv.kernel.shape[-2] * conv.groups
    keeps = inputs == conv.filters and conv.padding == "same" and set(conv.strides) == {1}
    return keeps and convolution_tap(node) is not None


def _without_identity(node):
    conv = node.operation
    kernel, *bias = (np.float64(weight) for weight in conv.get_weights())
    filters = np.arange(conv.filters)
    kernel[convolution_tap(node)][filters % kernel.shape[-2], filters] -= 1.0
    return [kernel, *bias]


def _with_shortcut(conv, x, **kwargs):
    return layers.Add(name=f"{conv.name}_add")([x, conv(x)])
