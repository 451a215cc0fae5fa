"""The model that every export starts from: a plain float32 copy that returns probabilities."""

import keras


def inference_model(model: keras.Model) -> keras.Model:
    """Copies a trained classifier into the form that leaves the house.

    The copy computes in float32 whatever the dtype policy, holds its variables on one device even
    if `model` was built under a distribution strategy, and ends in a softmax if `model` ends in
    logits.

    Args:
        model: Functional or built Sequential model from `(batch, height, width, channels)` to
            `(batch, classes)`.

    Returns:
        A new model of the same input shape.

    Raises:
        ValueError: If the model cannot be copied or is not an image classifier.
    """
    _check_classifier(model)
    copy = keras.models.clone_model(model, clone_function=_float32_layer, recursive=True)
    copy.set_weights(model.get_weights())
    if getattr(model.layers[-1], "activation", None) is keras.activations.linear:
        copy = keras.Model(copy.inputs, keras.layers.Softmax(dtype="float32")(copy.outputs[0]))
    return copy


def _float32_layer(layer):
    config = layer.get_config()
    if isinstance(layer, keras.Layer):  # a bare operation has no dtype
        config["dtype"] = "float32"
    return layer.__class__.from_config(config)


def _check_classifier(model):
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
            f"built. Received: {type(model).__name__} {model.name!r}"
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
