"""Several trained models as one."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_resnet.models import ResNet
from keras_resnet.surgery.classifying import gives_logits
from keras_resnet.surgery.graph import copy_weights, functional


def ensemble(models: Sequence[keras.Model], name: str = "ensemble") -> ResNet:
    """A model whose output is the mean of its members' probabilities.

    The members are copied, so that they may have any names, also the same one, and may be trained
    on without changing the ensemble. A member that ends in logits gets a softmax. The ensemble
    saves, loads and exports like any other model.

    Args:
        models: At least two classifiers, Functional or Sequential, with the same input shape,
            number of classes and preprocessing.
        name: Name of the new model; the members are called `{name}_member1` and so on.

    Returns:
        A Functional model from `(batch, height, width, channels)` to `(batch, classes)`.

    Raises:
        ValueError: If there are fewer than two members, or they do not fit together.

    Reference: He et al. 2015, table 5.

    >>> import keras_resnet
    >>> pair = ensemble([keras_resnet.CifarResNet20(), keras_resnet.CifarResNet20()])
    >>> pair.output_shape
    (None, 10)
    """
    models = [models] if isinstance(models, keras.Model) else list(models)
    if len(models) < 2:
        raise ValueError(
            "An ensemble needs at least two members. Expected a list of models. "
            f"Received: {len(models)} of them"
        )
    for model in models:
        functional(model)  # or an error that says what is wrong
    for what in ("input_shape", "output_shape", "preprocessing"):
        values = [getattr(model, what, None) for model in models]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"The members do not fit together. Expected the same `{what}` of all. "
                f"Received: {', '.join(f'{m.name}: {v}' for m, v in zip(models, values))}"
            )
    inputs = layers.Input(models[0].input_shape[1:], name="image")
    outputs = [
        _probabilities(_copy(model, f"{name}_member{position}"), inputs)
        for position, model in enumerate(models, start=1)
    ]
    return ResNet(
        inputs,
        layers.Average(name="mean_probabilities", dtype="float32")(outputs),
        name,
        preprocessing=getattr(models[0], "preprocessing", None),
    )


def _copy(model, name):
    copy = type(model).from_config(model.get_config() | {"name": name})
    copy_weights(model, copy)
    return copy


def _probabilities(member, inputs):
    outputs = member(inputs)
    if gives_logits(member):
        outputs = layers.Softmax(name=f"{member.name}_softmax", dtype="float32")(outputs)
    return outputs
