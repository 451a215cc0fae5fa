"""Reading the graph of a Functional model, and copying the model with changes.

Keras's `clone_model` copies too, but neither weights nor the record of a `ResNet`, and it cannot
change what is inside a Sequential model.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import keras

from keras_resnet.layers import BatchNormalization, GroupedConv2D
from keras_resnet.models import ResNet
from keras_resnet.variants import Variant

# By type: a subclass may do more than its parent.
CONVOLUTIONS_2D = (keras.layers.Conv2D, GroupedConv2D)
BATCH_NORMS = (keras.layers.BatchNormalization, BatchNormalization)


def functional(model) -> keras.Model:
    """The Functional model that holds the graph: a Sequential one has it inside.

    Raises:
        ValueError: If there is none.
    """
    graph = getattr(model, "_functional", model)
    if not hasattr(graph, "_nodes_by_depth"):
        raise ValueError(
            "The model has no graph. Expected a Functional model, or a Sequential one that is "
            f"built. Received: {type(model).__name__} {getattr(model, 'name', model)!r}. "
            "Subclassed models cannot be operated on; a Sequential one wants `model.build(shape)`."
        )
    return graph


def is_model(operation) -> bool:
    """Whether a layer is itself a model with a graph."""
    return hasattr(getattr(operation, "_functional", operation), "_nodes_by_depth")


def calls_in_order(model) -> list:
    """The calls of layers (Keras's nodes) from inputs to outputs, without the inputs."""
    by_depth = functional(model)._nodes_by_depth
    depths = sorted(by_depth, reverse=True)
    return [node for depth in depths for node in by_depth[depth] if not node.is_input]


class Graph:
    """Who feeds whom in a model and in all the models inside it.

    Attributes:
        nodes: The calls of layers, inputs before outputs within each model.
        models: The model and those inside it, by their path: `{"": model, "backbone/": ...}`.
    """

    def __init__(self, model):
        self.models = {}
        self._collect(model, "")
        self.nodes = list(
            dict.fromkeys(node for inner in self.models.values() for node in calls_in_order(inner))
        )
        self._calls = collections.Counter(node.operation for node in self.nodes)
        self._producers, self._consumers = {}, collections.Counter()
        for node in self.nodes:
            self._producers.update((id(tensor), node) for tensor in node.outputs)
            self._consumers.update(id(tensor) for tensor in node.input_tensors)
        for inner in self.models.values():
            self._consumers.update(id(tensor) for tensor in functional(inner).outputs)

    def _collect(self, model, path):
        self.models[path] = model
        for node in calls_in_order(model):
            if is_model(node.operation) and node.operation not in self.models.values():
                self._collect(node.operation, f"{path}{node.operation.name}/")

    def producer(self, tensor):
        """The call that makes a tensor; `None` for an input of a model."""
        return self._producers.get(id(tensor))

    def is_called_once(self, node) -> bool:
        """Whether the layer of a call has no other."""
        return self._calls[node.operation] == 1

    def is_private(self, node) -> bool:
        """Whether a layer is called once only, and its output goes to one place."""
        return self.is_called_once(node) and [self._consumers[id(x)] for x in node.outputs] == [1]


@dataclasses.dataclass(frozen=True)
class Edit:
    """What changes in the copy of a layer.

    Args:
        config: Entries of its config.
        weights: Its weights; `None`: those of the original.
    """

    config: Mapping = dataclasses.field(default_factory=dict)
    weights: Sequence | None = None


def copy_layer(layer, **config):
    """A new layer of the same config, up to the changes; not built."""
    return type(layer).from_config(layer.get_config() | config)


def copy_weights(original: keras.Layer, copy: keras.Layer) -> None:
    """Gives a copy of a layer or model the weights of the original, and what follows from them."""
    copy.set_weights(original.get_weights())
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with constants made of its weights


def replay(nodes: Iterable, tensors: dict, call: Callable):
    """Makes the calls of `nodes` anew.

    Args:
        nodes: Calls, inputs before outputs.
        tensors: From the id of each old tensor to the new one; what is made is added to it.
        call: Function of a layer of the graph that returns what is to be called in its place.
    """
    for node in nodes:
        args, kwargs = node.arguments.fill_in(tensors)
        outputs = call(node.operation)(*args, **kwargs)
        tensors.update(zip(map(id, node.outputs), keras.tree.flatten(outputs)))


def rewrite(
    model: keras.Model,
    edits: Mapping[object, Edit],
    calls: Mapping[object, Callable],
    change: Callable[[Variant], Variant] = lambda variant: variant,
) -> keras.Model:
    """Copies a model, layers and weights, with changes.

    Args:
        model: Functional or built Sequential; models inside it are copied in the same way.
        edits: Changes of single layers, by the layer of `model`.
        calls: What to do at the call of a layer of `model`, instead of calling its copy: a
            function of (copy, inputs...) that returns the outputs. What then leads to no output
            is left out of the result.
        change: What becomes of the variant of a `ResNet`.

    Returns:
        A `ResNet` for a `ResNet`, with its `variant` and `preprocessing`; else a `keras.Model`.
    """
    copies = {}

    def copy_of(operation):
        if operation not in copies:
            edit = edits.get(operation, Edit())
            copies[operation] = (
                copy_model(operation)
                if is_model(operation)
                else _Copy(operation, copy_layer(operation, **edit.config), edit.weights)
            )
        return copies[operation]

    def call(operation):
        copied = copy_of(operation)
        if operation in calls:
            return lambda *args, **kwargs: calls[operation](copied, *args, **kwargs)
        return copied

    def copy_model(model):
        graph = functional(model)
        inputs = keras.tree.map_structure(_input_like, graph._inputs_struct)
        tensors = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs)))
        replay(calls_in_order(model), tensors, call)
        outputs = keras.tree.map_structure(lambda x: tensors[id(x)], graph._outputs_struct)
        if not isinstance(model, ResNet):
            return keras.Model(inputs, outputs, name=model.name)
        return ResNet(
            inputs,
            outputs,
            model.name,
            variant=model.variant and change(model.variant),
            preprocessing=model.preprocessing,
            dtype=model.dtype_policy,
        )

    return copy_model(model)


class _Copy:
    """The copy of a layer, which gets its weights as soon as its first call has made them."""

    def __init__(self, original, layer, weights):
        self.original, self.layer, self.weights = original, layer, weights

    @property
    def name(self):
        return self.layer.name

    def __call__(self, *args, **kwargs):
        outputs = self.layer(*args, **kwargs)
        if self.weights is not None:
            self.layer.set_weights(self.weights)
        elif getattr(self.layer, "weights", None):
            copy_weights(self.original, self.layer)
        return outputs


def _input_like(tensor):
    name = tensor._keras_history.operation.name
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
