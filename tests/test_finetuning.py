"""Recipes that begin with published weights."""

import dataclasses
import json
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest

import keras_resnet
from training import datasets, verification
from training.commands import verifying
from training.compilation import compiled_model, preprocessing_of
from training.finetuning import RECIPES
from training.recipes import get_recipe

FINETUNE = get_recipe("finetune-cifar-resnet20")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def test_the_network_begins_with_the_weights_and_their_preprocessing(digits):
    """Grey digits of 8x8 pixels, for a network that has learnt from RGB of 32x32."""
    trained = keras_resnet.CifarResNet20(weights="cifar10")
    model = compiled_model(FINETUNE, digits)
    assert model.input_shape == (None, 32, 32, 1)
    expected = trained.get_layer("stem_conv").kernel.numpy().sum(axis=2, keepdims=True)
    np.testing.assert_allclose(model.get_layer("stem_conv").kernel, expected, atol=1e-6)
    for old, new in zip(
        trained.get_layer("stage3_block3_conv2").weights,
        model.get_layer("stage3_block3_conv2").weights,
        strict=True,
    ):
        np.testing.assert_array_equal(new, old)
    assert model.preprocessing == trained.preprocessing.adapted(channels=1)
    assert model.preprocessing == preprocessing_of(FINETUNE, digits)


def test_what_the_recipe_freezes_does_not_learn(digits):
    model = compiled_model(FINETUNE.changed({"freeze": "stage2"}), digits)
    learning = {weight.path.split("_")[0] for weight in model.trainable_weights}
    assert learning == {"stage3", "predictions/kernel", "predictions/bias"}


def test_the_recipes_preprocessing_is_on_top_of_the_weights(digits):
    recipe = FINETUNE.changed({"preprocessing.size": [16, 16]})
    assert preprocessing_of(recipe, digits).size == (16, 16)
    without = FINETUNE.changed({"weights": None})
    assert preprocessing_of(without, digits) == digits.preprocessing


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_name_weights_and_parts_that_exist(recipe):
    row = keras_resnet.weights.find_weights(recipe.variant, recipe.weights)
    assert row.variant == recipe.variant
    assert recipe.freeze in {"stem", "stage1", "stage2", "stage3", "stage4"}


@pytest.mark.slow
def test_fine_tuning_reads_digits_in_a_hundred_steps(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "training", "train", FINETUNE.name, "--run-dir", str(run)]
    subprocess.run(command, check=True, capture_output=True)
    record = json.loads((run / "record.json").read_text())
    assert record["results"]["test"]["top1"] > 0.95
    loaded = keras.saving.load_model(run / "best.keras")
    assert not loaded.get_layer("stem_bn").trainable


# Published weights are scored


@pytest.mark.cifar10
@pytest.mark.slow
def test_the_command_measures_what_is_published(capsys):
    verifying.verify("cifar_resnet20", "cifar10", dataset=None, data_dir=None, batch_size=500)
    assert "published 91.62%, measured 91." in capsys.readouterr().out


def test_weights_are_scored_on_images_of_the_size_that_is_published(monkeypatch):
    """By any number of replicas, whatever the batch size."""
    row = keras_resnet.list_weights("cifar_resnet20")[0]
    larger = dataclasses.replace(row, evaluation=row.preprocessing.adapted(size=(40, 40)))
    monkeypatch.setattr(keras_resnet.weights, "find_weights", lambda variant, tag: larger)
    monkeypatch.setattr(verification.datasets, "load", lambda *_, **__: mock.MagicMock())
    monkeypatch.setattr(verification.evaluate, "check_fits", lambda *_: None)
    monkeypatch.setattr(
        verification.evaluate, "evaluate", lambda model, *_, **given: (model, given)
    )
    _, (model, given) = verification.verify("cifar_resnet20", "cifar10", replicas=4)
    assert model.input_shape == (None, 40, 40, 3)
    assert given["preprocessing"] == larger.evaluation


def test_weights_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="does not fit the images of 'digits'"):
        verification.verify("cifar_resnet20", "cifar10", dataset="digits")
