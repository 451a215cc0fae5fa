"""The model that every export starts from: a plain copy that returns probabilities."""

import functools
import inspect
from collections.abc import Callable, Sequence

import keras
from keras import layers

from keras_resnet.layers import GroupedConv2D
from keras_resnet.surgery.classifying import gives_logits
from keras_resnet.surgery.graph import CONVOLUTIONS_2D, Graph, copy_weights, functional

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)
# Means over many values, logits and probabilities.
_FLOAT32 = (
    layers.Average,
    layers.Dense,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.Softmax,
)


def inference_model(model: keras.Model) -> keras.Model:
    """Copies a trained classifier into the form that leaves the house.

    The copy computes in float32 whatever the dtype policy, and as at inference however it is
    called; it holds its variables on one device even if `model` was built under a distribution
    strategy, and ends in a softmax if `model` ends in logits (in a sigmoid if it has one output).

    Args:
        model: Functional or built Sequential model from `(batch, height, width, channels)` to
            `(batch, classes)`.

    Returns:
        A new model of the same input shape, from one tensor to one tensor.

    Raises:
        ValueError: If the model cannot be copied or is not an image classifier.
    """
    check_classifier(model)
    copy = _copy(model, lambda layer: "float32")
    (images,), (outputs,) = copy.inputs, copy.outputs
    if gives_logits(copy):
        several = outputs.shape[-1] > 1
        squash = layers.Softmax if several else functools.partial(layers.Activation, "sigmoid")
        outputs = squash(dtype="float32")(outputs)
    is_plain = copy.input is images and copy.output is outputs
    return copy if is_plain else keras.Model(images, outputs, name=copy.name)


def bfloat16_model(model: keras.Model) -> keras.Model:
    """Copies an inference model into one whose convolutions compute in bfloat16.

    Their weights are stored in bfloat16 as well. What stands between them computes in bfloat16 on
    float32 weights, of which there are few; global pooling, dense layers and probabilities stay in
    float32.

    Args:
        model: What `inference_model` returns, with its batch normalisation folded or not.

    Returns:
        A new model of the same input shape.
    """

    def policy(layer):
        if isinstance(layer, _CONVOLUTIONS):
            return "bfloat16"
        is_last = layer is model.layers[-1]
        return "float32" if is_last or isinstance(layer, _FLOAT32) else "mixed_bfloat16"

    return _copy(model, policy)


def classifier_input(model: keras.Model):
    """The Keras tensor of features that the last dense layer of a model reads.

    Args:
        model: A Functional classifier.

    Returns:
        A tensor of shape `(batch, features)`, or `None` where the model does not end in a dense
        layer, e.g. an ensemble.
    """
    graph = Graph(model)
    node = graph.producer(model.outputs[0])
    while node and isinstance(node.operation, (layers.Softmax, layers.Activation)):
        node = graph.producer(node.input_tensors[0])
    return node.input_tensors[0] if node and isinstance(node.operation, layers.Dense) else None


def check_class_names(class_names: Sequence[str] | None, model: keras.Model) -> None:
    """Raises `ValueError` if there are names, but not one line of text for each class."""
    classes = model.output_shape[-1]
    for name in () if class_names is None else class_names:
        if not isinstance(name, str) or name.splitlines() not in ([name], []):
            raise ValueError(
                "A name is a line of text. Expected strings of one line in `class_names`. "
                f"Received: {name!r}"
            )
    if class_names is not None and len(class_names) != classes:
        raise ValueError(
            f"The names do not fit the classes. Expected {classes} names in `class_names`. "
            f"Received: {len(class_names)}"
        )


def _copy(model, policy: Callable[[keras.Layer], str]) -> keras.Model:
    """Copies layers and weights; each layer gets the dtype policy that `policy` names."""

    def copy_of(layer):
        try:
            if getattr(layer, "quantization_mode", None) is not None:
                raise ValueError(f"its weights are of {layer.quantization_mode} already")
            config = layer.get_config()
            if isinstance(layer, keras.Layer):  # a bare operation has no dtype
                config["dtype"] = policy(layer)
            if type(layer) in CONVOLUTIONS_2D and layer.groups > 1:
                return GroupedConv2D.from_config(config | {"differentiable": False})
            return layer.__class__.from_config(config)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                "A layer cannot be copied. Expected layers that `from_config(get_config())` makes "
                f"anew. Received: {type(layer).__name__} {layer.name!r}: {error}"
            ) from error

    def call(layer, *args, **kwargs):
        if "training" in inspect.signature(layer.call).parameters:
            kwargs["training"] = False  # layers that augment images do so unless they are told
        return layer(*args, **kwargs)

    def input_like(tensor):
        dtype = "float32" if "float" in tensor.dtype else tensor.dtype
        return keras.Input(batch_shape=tensor.shape, dtype=dtype, name=tensor.name)

    graph = functional(model)
    copy = keras.models.clone_model(
        graph,
        input_tensors=keras.tree.map_structure(input_like, graph.input),
        clone_function=copy_of,
        call_function=call,
        recursive=True,
    )
    copy_weights(model, copy)
    return copy


def check_classifier(model: keras.Model) -> None:
    """Raises `ValueError` if a model is no classifier of images that can be exported from here."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Exports are written by TensorFlow. Expected the Keras backend 'tensorflow'. "
            f"Received: {keras.backend.backend()!r}. Save the model, then load and export it with "
            "KERAS_BACKEND=tensorflow."
        )
    import tensorflow as tf

    if tf.distribute.has_strategy():
        raise ValueError(
            "An export runs on one device. Expected a call outside of `strategy.scope()`. "
            f"Received: a call inside the scope of {type(tf.distribute.get_strategy()).__name__}. "
            "The model itself may come from the scope."
        )
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs:
        raise ValueError(
            "The model has no graph. Expected a Functional model, or a Sequential one that is "
            f"built. Received: {type(model).__name__} {getattr(model, 'name', model)!r}"
        )
    shapes = [tuple(tensor.shape) for tensor in (*inputs, *outputs)]
    if [len(shape) for shape in shapes] != [4, 2]:
        raise ValueError(
            "The model is not an image classifier. Expected one input of shape (batch, height, "
            "width, channels) and one output of shape (batch, classes). "
            f"Received: {', '.join(map(str, shapes))}"
        )
    for layer in model._flatten_layers():
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                "The exports run on CPUs and phones, which want channels last. "
                f"Expected data_format='channels_last'. Received: 'channels_first' in layer "
                f"{layer.name!r}. Build the model with channels last and `set_weights` of this "
                "one: the shapes of the weights are the same."
            )


def write_saved_model(path, signatures, model: keras.Model):
    """Writes functions over the weights of `model` as a SavedModel, each weight once.

    Keras's own `model.export` stores every weight twice: as the model's and as the archive's.

    Args:
        path: Folder to write.
        signatures: `tf.function`s by name, each with an `input_signature`.
        model: The Keras model whose weights they use.
    """
    import tensorflow as tf

    module = tf.Module()
    module.weights = [variable.value for variable in model.weights]
    tf.saved_model.save(module, str(path), signatures=signatures)
