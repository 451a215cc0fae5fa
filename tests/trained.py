"""Networks whose weights look trained, for the tests of surgery."""

import dataclasses

import keras
import numpy as np

import keras_resnet


def look_trained(model, seed=0):
    """Gives batch normalisation statistics, gammas of both signs and betas; biases as well."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = weight.shape
        if weight.name == "gamma":
            weight.assign(rng.uniform(0.5, 1.2, shape) * rng.choice([-1, 1, 1], shape))
        elif weight.name == "moving_variance":
            weight.assign(rng.uniform(0.5, 2.0, shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0.0, 0.3, shape))
    return model


def network(name, blocks=(2, 2), input_shape=(12, 12, 3), **changes):
    """A shortened row of the table that ends in logits and looks trained."""
    row = keras_resnet.VARIANTS[name]
    changes = {"filters": row.filters[: len(blocks)], **changes}
    variant = dataclasses.replace(row, blocks=tuple(blocks), **changes)
    model = keras_resnet.build(variant, input_shape=input_shape, classifier_activation=None)
    return look_trained(model)


def images(model, count=3, seed=1):
    """Random images of the model's input shape; 12x12 where it is open."""
    shape = [side or 12 for side in model.input_shape[1:]]
    # A Functional model casts its inputs to float32, whatever its policy.
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x))
