"""An ensemble is the mean of its members' probabilities, whatever they are called."""

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.ensemble import ensemble


@pytest.fixture(scope="module")
def members():
    return [keras_resnet.CifarResNet(depth=8, input_shape=(8, 8, 3)) for _ in range(3)]


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")


def test_mean_of_the_members(members, images):
    expected = np.mean([member.predict(images, verbose=0) for member in members], axis=0)
    np.testing.assert_allclose(
        ensemble(members).predict(images, verbose=0), expected, rtol=1e-5, atol=1e-7
    )


def test_members_of_other_networks_and_with_logits(members, images):
    logits = keras_resnet.CifarPlainNet(depth=14, input_shape=(8, 8, 3), classifier_activation=None)
    softmax = keras.ops.softmax(logits.predict(images, verbose=0))
    expected = (members[0].predict(images, verbose=0) + np.asarray(softmax)) / 2
    for wrap in (lambda model: model, inside_another, cast):
        pair = ensemble([wrap(members[0]), wrap(logits)])
        np.testing.assert_allclose(pair.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-7)


def inside_another(model):
    return keras.Sequential([keras.Input((8, 8, 3)), model])


def cast(model):
    """Behind a softmax, a layer without an activation: it gives no logits."""
    outputs = keras.layers.Activation("linear", dtype="float32")(model.output)
    return keras.Model(model.input, outputs)


def test_save_and_load(members, images, tmp_path):
    joined = ensemble(members)
    joined.save(tmp_path / "ensemble.keras")
    loaded = keras.models.load_model(tmp_path / "ensemble.keras")
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), joined.predict(images, verbose=0)
    )
    assert loaded.preprocessing == members[0].preprocessing


def test_export(members, images, tmp_path):
    report = keras_resnet.export.tflite(
        ensemble(members[:2]), tmp_path / "ensemble.tflite", examples=images
    )
    assert report.max_probability_difference < 1e-5


def test_members_are_copied(members, images):
    joined = ensemble(members)
    before = joined.predict(images, verbose=0)
    weights = members[0].get_weights()
    members[0].set_weights([np.zeros_like(weight) for weight in weights])
    np.testing.assert_array_equal(joined.predict(images, verbose=0), before)
    members[0].set_weights(weights)


def test_members_that_do_not_fit(members):
    for single in (members[:1], members[0]):
        with pytest.raises(ValueError) as error:
            ensemble(single)
        assert str(error.value) == (
            "An ensemble needs at least two members. Expected a list of models. Received: 1 of them"
        )
    with pytest.raises(ValueError, match=r"The model has no graph.*Received: str 'member\.keras'"):
        ensemble([members[0], "member.keras"])
    other = keras_resnet.CifarResNet(depth=8, input_shape=(8, 8, 3), classes=7)
    with pytest.raises(ValueError) as error:
        ensemble([members[0], other])
    assert str(error.value) == (
        "The members do not fit together. Expected the same `output_shape` of all. Received: "
        "cifar_resnet8: (None, 10), cifar_resnet8: (None, 7)"
    )
