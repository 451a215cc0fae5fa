"""Channels of one magnitude: the same function, and fewer errors in 8 bits."""

import dataclasses
import importlib

import keras
import numpy as np
import pytest
from families import SMALL
from keras import layers
from trained import images, look_trained, outputs

import keras_resnet
from keras_resnet import export
from keras_resnet.surgery import equalize_channels, fold_batch_norm

# The function of this module hides the module itself behind its name.
tflite_module = importlib.import_module("keras_resnet.export.tflite")

STREAMS = ("dense", "dense_bottleneck")


def make_model(family):
    """A network whose concatenations have channels between 0.01 and 10."""
    network = keras_resnet.build(SMALL[family], input_shape=(16, 16, 3), classifier_activation=None)
    network = look_trained(network)
    rng = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D) and not layer.use_bias:
            scale = 10.0 ** rng.uniform(-2, 1, layer.filters)
            layer.kernel.assign(layer.kernel * scale)
    network(images(network, 64), training=True)
    for norm in network.layers:  # the statistics that training leaves
        if isinstance(norm, layers.BatchNormalization):
            norm.momentum = 0.0
    network(images(network, 64), training=True)
    return network


@pytest.fixture(scope="module", params=STREAMS)
def model(request):
    return fold_batch_norm(make_model(request.param))


def read_by_norms(model):
    """The batch normalisations that stay, and what each reads."""
    return {
        layer.name: layer.input
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization)
    }


def test_the_function_stays(model):
    x = images(model, 8)
    expected = outputs(model, x)
    difference = np.abs(outputs(equalize_channels(model), x) - expected).max()
    assert difference < 1e-4 * np.abs(expected).max()


def test_what_norms_read_gets_one_magnitude(model):
    """Measured on images: the range of the largest channel over that of the typical one."""

    def spreads(network):
        names = read_by_norms(network)
        tensors = keras.Model(network.inputs, list(names.values())).predict(
            images(network, 64), verbose=0
        )
        ranges = [np.abs(tensor).max(axis=(0, 1, 2)) for tensor in tensors]
        return dict(zip(names, (sizes.max() / np.median(sizes) for sizes in ranges)))

    before, after = spreads(model), spreads(equalize_channels(model))
    assert after.keys() == before.keys() != {}
    assert max(before.values()) > 5
    # All but the first of a network, which may read the activation of the stem.
    assert sorted(after.values())[-2] < 2.5


def test_eight_bits_lose_less(tmp_path, monkeypatch):
    network = make_model("dense")
    request = {
        "quantization": "int8",
        "representative_data": images(network, 128, seed=2),
        "tolerance": export.Tolerance(),
    }
    equal = export.tflite(network, tmp_path / "equal.tflite", **request)
    monkeypatch.setattr(tflite_module, "equalize_channels", lambda model: model)
    unequal = export.tflite(network, tmp_path / "unequal.tflite", **request)
    assert equal.max_probability_difference < 0.5 * unequal.max_probability_difference
    assert equal.operations == unequal.operations


@pytest.mark.parametrize("family", ["resnet_d", "se", "exclusive_gating", "pre_activation_cifar"])
def test_what_convolutions_read_or_is_added_stays_as_it_is(family):
    model = fold_batch_norm(look_trained(keras_resnet.build(SMALL[family])))
    equalized = equalize_channels(model)
    for before, after in zip(model.weights, equalized.weights, strict=True):
        np.testing.assert_array_equal(before, after)


def test_readers_of_other_kinds_hold_their_channels():
    """Here the last channel of four is read by a norm alone, the others by a convolution too."""
    x = keras.Input((6, 6, 3))
    free = layers.Conv2D(1, 3, name="free")(x)
    held = layers.Conv2D(3, 3, name="held")(x)
    joined = layers.Concatenate()([held, free])
    normal = layers.ReLU()(layers.BatchNormalization(name="norm")(joined))
    also = layers.Conv2D(4, 1, name="also")(held)
    pooled = layers.GlobalAveragePooling2D()(layers.Add()([normal, also]))
    model = look_trained(keras.Model(x, layers.Dense(2)(pooled)))
    equalized = equalize_channels(model)
    changed = {
        layer.name
        for layer in model.layers
        for before, after in zip(layer.weights, equalized.get_layer(layer.name).weights)
        if not np.array_equal(before, after)
    }
    assert changed == {"free", "norm"}
    norm, before = equalized.get_layer("norm"), model.get_layer("norm")
    np.testing.assert_array_equal(norm.gamma[:3], before.gamma[:3])
    np.testing.assert_allclose(
        outputs(equalized, images(model)), outputs(model, images(model)), rtol=1e-5
    )


def test_layers_called_twice_and_dead_channels_do_no_harm():
    x = keras.Input((6, 6, 4))
    shared = layers.Conv2D(4, 3, padding="same")
    first = layers.BatchNormalization()(shared(x))
    second = layers.BatchNormalization()(layers.Conv2D(4, 3, name="own")(shared(first)))
    model = look_trained(keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(second))))
    dead = model.layers[-3]
    dead.moving_variance.assign([1.0, 0.0, 2.0, 0.0])
    dead.moving_mean.assign([0.3, 0.0, 0.1, 0.0])
    equalized = equalize_channels(model)
    np.testing.assert_array_equal(equalized.layers[1].kernel, shared.kernel)
    assert not np.array_equal(equalized.get_layer("own").kernel, model.get_layer("own").kernel)
    assert all(np.isfinite(weight).all() for weight in equalized.get_weights())
    x = images(model)
    np.testing.assert_allclose(outputs(equalized, x), outputs(model, x), rtol=1e-4)


def test_channels_first_stay_as_they_are():
    """A network of another backend, say: its weights lie as those of channels last."""
    keras.config.set_image_data_format("channels_first")
    model = look_trained(keras_resnet.build(SMALL["dense"], input_shape=(3, 16, 16)))
    for old, new in zip(model.get_weights(), equalize_channels(model).get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_resnet_stays_one():
    variant = dataclasses.replace(SMALL["pre_activation_cifar"], blocks=(1, 1))
    model = keras_resnet.build(variant, input_shape=(16, 16, 3))
    equalized = equalize_channels(model)
    assert (type(equalized), equalized.variant) == (keras_resnet.ResNet, variant)
