"""Stochastic depth that saves the work: on TensorFlow a dropped residual is not computed.

`StochasticDepth` alone multiplies a computed residual by 0. In training on TensorFlow a model of
this package runs its graph with a condition around each block's residual instead.
"""

import itertools

import keras
import tensorflow as tf
from keras import layers
from tensorflow.python.ops import control_flow_util

from keras_resnet.layers import StochasticDepth


def find_residuals(model) -> dict:
    """What the conditions go around.

    Args:
        model: A Functional model.

    Returns:
        For each addition of two, one of them a `StochasticDepth` per batch that serves nothing
        else: the nodes of its residual in the order of execution, the one of the
        `StochasticDepth` last; none whose layers have activity regularisers. Empty if there are
        none.
    """
    nodes = _nodes(model)
    consumers = {}
    for node in nodes:
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node)
    kept = {id(tensor) for tensor in model.outputs}

    def serves_only(node, users):
        uses = [user for tensor in node.outputs for user in consumers.get(id(tensor), [])]
        is_output = any(id(tensor) in kept for tensor in node.outputs)
        return uses and not is_output and not node.is_input and users.issuperset(uses)

    residuals = {}
    for addition in nodes:
        if not isinstance(addition.operation, layers.Add) or len(addition.input_tensors) != 2:
            continue
        drops = [node for node in addition.parent_nodes if _drops_batch(node.operation)]
        if len(drops) != 1 or not serves_only(drops[0], {addition}):
            continue
        residual = {drops[0]}
        # Everything before the drop that serves nothing else: consumers come before producers.
        for node in reversed(nodes[: nodes.index(drops[0])]):
            if serves_only(node, residual):
                residual.add(node)
        # A condition gives back its result alone, not the losses that layers add inside.
        if not any(getattr(node.operation, "activity_regularizer", None) for node in residual):
            residuals[addition] = [node for node in nodes if node in residual]
    return residuals


def is_differentiable(inputs: list) -> bool:
    """Whether what `run` makes of these tensors has a gradient.

    XLA cannot differentiate a condition around tensors of open sizes (TensorFlow 2.21), whether it
    compiles the step of this model or of one around it.
    """
    for_xla = control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
    return not for_xla or all(tensor.shape.is_fully_defined() for tensor in inputs)


def run(model, inputs, residuals: dict):
    """Runs a Functional model in training, without the residuals that are dropped.

    Args:
        model: The model.
        inputs: The list of its input tensors.
        residuals: Those of `find_residuals(model)`.

    Returns:
        The model's output, or outputs in their structure.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs)}
    inside = {node for nodes in residuals.values() for node in nodes}
    for node in _nodes(model):
        if node.is_input or node in inside:
            continue
        if node in residuals:
            _run_addition(node, residuals[node], values)
        else:
            _run_node(node, values)
    outputs = keras.tree.pack_sequence_as(
        model._outputs_struct, [values[id(tensor)] for tensor in model.outputs]
    )
    return without_list(outputs)


def without_list(outputs):
    """A list or tuple of one output as its tensor, as it comes out of any Functional model."""
    is_single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
    return outputs[0] if is_single else outputs


def _run_addition(addition, residual, values):
    drop = residual[-1]
    (shortcut,) = (x for x in addition.input_tensors if x is not drop.outputs[0])
    shortcut = values[id(shortcut)]

    def add():
        inner = dict(values)
        for node in residual[:-1]:
            _run_node(node, inner)
        return shortcut + inner[id(drop.input_tensors[0])]

    def skip():
        if not tf.executing_eagerly():
            return tf.identity(shortcut)
        # A bare operation, as `2 * x` makes it, has no weights.
        parts = [getattr(node.operation, "trainable_weights", ()) for node in residual]
        weights = itertools.chain(*parts)
        return _with_zero_gradients(shortcut, *(weight.value for weight in weights))

    values[id(addition.outputs[0])] = tf.cond(drop.operation.draw(), add, skip)


@tf.custom_gradient
def _with_zero_gradients(x, *weights):
    """The identity on `x`, that gives `weights` gradients of 0.

    In a graph a condition does so. Weights without a gradient would miss their momentum.
    """
    zeros = [tf.zeros(weight.shape, weight.dtype) for weight in weights]
    return tf.identity(x), lambda upstream: (upstream, *zeros)


def _run_node(node, values):
    args, kwargs = node.arguments.fill_in(values)
    if getattr(node.operation, "_call_has_training_arg", False):
        kwargs["training"] = True
    outputs = node.operation(*args, **kwargs)
    for tensor, value in zip(node.outputs, tf.nest.flatten(outputs)):
        values[id(tensor)] = value


def _nodes(model):
    """The calls of a model's layers, in an order in which they can be executed."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _drops_batch(operation):
    return isinstance(operation, StochasticDepth) and not operation.per_image
