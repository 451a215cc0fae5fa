"""The classifier of a trained network: another one, and what it gives."""

import keras
from keras import layers

from keras_resnet.surgery.graph import Edit, Graph, functional, is_model, rewrite
from keras_resnet.surgery.pattern import NOTHING_AT_INFERENCE
from keras_resnet.variants import check_classes

# Behind logits they give logits.
_HANDS_ON = (
    *NOTHING_AT_INFERENCE,
    layers.Average,
    layers.Flatten,
    layers.GlobalAveragePooling2D,
    layers.Reshape,
)


def new_classifier(model: keras.Model, classes: int) -> keras.Model:
    """Gives a trained classifier a new last layer, for other classes.

    Args:
        model: A model of this package that ends in its dense layer `predictions`.
        classes: Number of classes, at least 1.

    Returns:
        A copy of the model, not compiled, whose last layer begins anew; its activation is that of
        the old one. (What `enable_lora` and `quantize` did to the old one is not.)

    Raises:
        ValueError: If the model has no classifier, or there can be none of so many classes.
    """
    check_classes(classes)
    head = functional(model).layers[-1]
    if not isinstance(head, keras.layers.Dense):
        raise ValueError(
            "There is no classifier to replace. Expected a model that ends in a dense layer. "
            f"Received: {model.name!r}, which ends in {head.name!r}. Build it with `include_top`."
        )
    weights = [head.kernel_initializer((head.input_spec.axes[-1], classes))]
    if head.use_bias:
        weights.append(head.bias_initializer((classes,)))
    config = {"units": classes}
    if head.lora_rank:
        config["lora_rank"] = None
    if head.quantization_mode:  # whose policy is called "int8_from_float32"
        dtype = head.dtype_policy.name.rpartition("_from_")[2]
        config |= {"dtype": dtype, "quantization_config": None}
    return rewrite(model, {head: Edit(config, weights)}, calls={})


def gives_logits(model: keras.Model) -> bool:
    """Whether a classifier ends in logits: what computes last has the activation "linear".

    That may stand in a model inside the model. What only hands on does not count, as the
    `Activation("linear", dtype="float32")` behind a softmax in half precision.
    """
    graph = Graph(model)
    node = graph.producer(functional(model).outputs[0])
    while node:
        layer = node.operation
        if is_model(layer):
            return gives_logits(layer)
        is_linear = getattr(layer, "activation", None) is keras.activations.linear
        casts = is_linear and isinstance(layer, layers.Activation)
        if not casts and not isinstance(layer, _HANDS_ON):
            return is_linear
        node = graph.producer(node.input_tensors[0])
    return False
