"""From a recipe to a compiled network: what the recipe says is what is trained."""

import dataclasses

import keras
import numpy as np
import pytest

from training import datasets
from training.compilation import compiled_model, wants_one_hot
from training.recipes import get_recipe

RECIPE = dataclasses.replace(get_recipe("digits-resnet20"), variant="cifar_resnet8")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def batch(one_hot):
    random = np.random.default_rng(0)
    images = random.normal(size=(8, 8, 8, 1)).astype("float32")
    labels = random.integers(0, 10, 8)
    return images, np.eye(10, dtype="float32")[labels] if one_hot else labels


@pytest.mark.parametrize(
    ("changes", "one_hot"),
    [
        ({}, False),
        ({"label_smoothing": 0.1}, True),
        ({"loss": "binary_crossentropy"}, True),
        ({"augmentation": {"mixup": {}}}, True),
        ({"augmentation": {"random_erasing": {}}}, False),
    ],
)
def test_labels_are_vectors_where_they_must_be(digits, changes, one_hot):
    recipe = RECIPE.changed(changes)
    assert wants_one_hot(recipe) == one_hot
    model = compiled_model(recipe, digits)
    logs = model.train_on_batch(*batch(one_hot), return_dict=True)
    assert set(logs) == {"loss", "accuracy", "cross_entropy"}
    assert np.isfinite(list(logs.values())).all()


def test_the_smoothed_loss_is_that_of_numpy(digits):
    recipe = RECIPE.changed({"label_smoothing": 0.2})
    model = compiled_model(recipe, digits)
    images, labels = batch(one_hot=True)
    probabilities = model.predict(images, verbose=0).astype("float64")
    expected = -((0.8 * labels + 0.02) * np.log(probabilities)).sum(axis=1).mean()
    assert model.evaluate(images, labels, verbose=0)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.2, None), (0.2, 0.3)])
def test_binary_cross_entropy_is_that_of_numpy_and_of_every_class_on_its_own(
    digits, smoothing, threshold
):
    changes = {"loss": "binary_crossentropy", "label_smoothing": smoothing}
    model = compiled_model(RECIPE.changed({**changes, "target_threshold": threshold}), digits)
    images, labels = batch(one_hot=True)
    labels = 0.6 * labels + 0.4 * labels[::-1]  # as mixed images have them
    shares = model.predict(images, verbose=0).astype("float64")
    assert not np.allclose(shares.sum(axis=1), 1)
    counted = labels if threshold is None else (labels > threshold).astype("float64")
    labels_spread = (1 - smoothing) * counted + smoothing / 10  # as timm spreads them
    wrong = (1 - labels_spread) * np.log(1 - shares)
    expected = -(labels_spread * np.log(shares) + wrong).mean()
    loss = keras.losses.deserialize(keras.losses.serialize(model.loss))
    assert float(loss(labels, shares)) == pytest.approx(expected, rel=1e-4)
    assert model.evaluate(images, labels, verbose=0)[0] == pytest.approx(expected, rel=1e-4)


def test_precision_holds_for_the_network_alone(digits):
    model = compiled_model(RECIPE.changed({"precision": "mixed_bfloat16"}), digits)
    assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_float16_scales_its_loss(digits):
    model = compiled_model(RECIPE.changed({"precision": "mixed_float16"}), digits)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_growing_images_get_a_network_for_every_size(digits):
    recipe = RECIPE.changed({"image_sizes": ((0, 8), (0.5, 12))})
    model = compiled_model(recipe, digits)
    assert model.input_shape == (None, None, None, 1)
    for side in (8, 12):
        assert model.predict(np.zeros((1, side, side, 1)), verbose=0).shape == (1, 10)


def test_options_preprocessing_and_statistics_follow_the_recipe(digits):
    changes = {"preprocessing.size": (16, 16), "options.shortcut": "projection"}
    recipe = RECIPE.changed({**changes, "synchronized_batch_norm": True})
    model = compiled_model(recipe, digits)
    assert model.preprocessing == dataclasses.replace(digits.preprocessing, size=(16, 16))
    assert model.input_shape == (None, 16, 16, 1)
    assert model.get_layer("stem_bn").synchronized
    assert model.variant.shortcut == "projection"


def test_other_backends_refuse_parts(digits, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="Received: 2 on 'jax'"):
        compiled_model(RECIPE, digits, accumulation_steps=2)
