"""Whatever a classifier looks like, what leaves the house returns probabilities, at inference."""

import keras
import numpy as np
import pytest
from exported import IMAGES, make_model
from keras import layers

from keras_resnet.export.inference import bfloat16_model, inference_model
from keras_resnet.surgery import fold_batch_norm


def network(head, classes=3):
    """From images to a dense layer without activation, and on through `head`."""
    images = keras.Input((16, 16, 3), name="image")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(images))
    return keras.Model(images, head(layers.Dense(classes)(pooled)))


def outputs(model):
    return keras.ops.convert_to_numpy(model(IMAGES[:8]))


@pytest.mark.parametrize(
    "head",
    [
        lambda x: x,
        layers.Activation("linear", dtype="float32"),
        lambda x: layers.Dropout(0.5)(layers.Reshape((3,))(x)),
    ],
)
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: keras.Sequential([model])])
def test_logits_become_probabilities_wherever_they_come_from(head, wrap):
    model = wrap(network(head))
    expected = keras.ops.softmax(outputs(model))
    np.testing.assert_allclose(outputs(inference_model(model)), expected, atol=1e-6)


def test_averaged_scores_of_a_convolution_are_logits():
    images = keras.Input((16, 16, 3))
    model = keras.Model(images, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(images)))
    expected = keras.ops.softmax(outputs(model))
    np.testing.assert_allclose(outputs(inference_model(model)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        layers.Softmax(),
        keras.ops.softmax,
        lambda x: layers.Activation("linear", dtype="float32")(layers.Activation("softmax")(x)),
        lambda x: {"probabilities": layers.Activation("sigmoid")(x)},
    ],
)
def test_probabilities_stay_what_they_are(head):
    model = network(head)
    (expected,) = keras.tree.flatten(model(IMAGES[:8]))
    np.testing.assert_allclose(outputs(inference_model(model)), expected, atol=1e-6)
    served = bfloat16_model(inference_model(model))
    assert served.output.dtype == "float32"


def test_one_logit_becomes_the_probability_of_the_second_class():
    model = network(lambda x: x, classes=1)
    expected = keras.ops.sigmoid(outputs(model))
    np.testing.assert_allclose(outputs(inference_model(model)), expected, atol=1e-6)


def test_images_are_not_augmented_however_the_model_is_called():
    augmented = keras.Sequential([layers.RandomFlip(), layers.RandomContrast(0.9), make_model()])
    augmented.build((None, 16, 16, 3))
    expected = outputs(augmented.layers[-1])
    copy = fold_batch_norm(inference_model(augmented))
    for _ in range(2):
        np.testing.assert_allclose(outputs(copy), expected, atol=1e-5)
    assert np.abs(outputs(augmented) - expected).max() > 1e-3  # Keras does, outside of `predict`


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_images_are_float32_whatever_keras_computes_in(dtype):
    keras.backend.set_floatx(dtype)
    try:
        model = network(layers.Softmax())
    finally:
        keras.backend.set_floatx("float32")
    assert model.inputs[0].dtype == dtype
    copy = inference_model(model)
    assert (copy.inputs[0].dtype, copy.outputs[0].dtype) == ("float32", "float32")
    np.testing.assert_allclose(outputs(copy), outputs(model), atol=1e-2)


def test_a_layer_that_is_quantised_already_is_named():
    model = network(layers.Dense(3, name="last"))
    model.get_layer("last").quantize("int8")
    with pytest.raises(ValueError, match="A layer cannot be copied") as error:
        inference_model(model)
    assert str(error.value).endswith("Received: Dense 'last': its weights are of int8 already")
