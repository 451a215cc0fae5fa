"""The same recipe under the JAX backend: the same images, and the weights of TensorFlow."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_resnet  # noqa: F401  registers the layers of saved networks
from training import datasets, loop, pipeline, records
from training.compilation import compiled_model
from training.recipes import get_recipe, write_recipe

pytest.importorskip("jax", reason="needs JAX: make parity")
pytestmark = pytest.mark.parity

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
TINY = dataclasses.replace(
    get_recipe("digits-resnet20"),
    name="tiny",
    variant="cifar_resnet8",
    batch_size=32,
    steps=4,
    learning_rate=0.01,
    milestones=(),
)
FAST = "--xla_backend_optimization_level=0"  # compiles in a third of the time


def on_jax(*arguments, cwd, devices=2):
    variables = {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {FAST}",
        "PYTHONPATH": str(CHECKOUT),
        "COLUMNS": "200",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def fit(model, dataset):
    """The steps of the recipe, without validation."""
    batches = pipeline.training_batches(
        dataset,
        batch_size=TINY.batch_size,
        augmentation=TINY.augmentation,
        preprocessing=dataset.preprocessing,
        seed=0,
    )
    model.fit(batches, steps_per_epoch=TINY.steps, shuffle=False, verbose=0)


SCRIPT = """
import sys
import keras
sys.path.insert(0, sys.argv[1])
from test_jax_training import TINY, compiled_model, datasets, fit
from training.strategy import make_strategy, strategy_of

strategy = make_strategy()
assert keras.backend.backend() == "jax" and strategy.num_replicas_in_sync == 2
digits = datasets.load("digits")
with strategy.scope():
    model = compiled_model(TINY, digits)
assert strategy_of(model).num_replicas_in_sync == 2
model.load_weights("before.weights.h5")
fit(model, digits)
model.save_weights("after.weights.h5")
"""


def test_two_devices_learn_what_tensorflow_learns_on_one(tmp_path):
    """From the same weights; statistics are those of the whole batch in both."""
    digits = datasets.load("digits")
    model = compiled_model(TINY, digits)
    model.save_weights(tmp_path / "before.weights.h5")
    answer = on_jax("-c", SCRIPT, str(CHECKOUT / "tests"), cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    before = model.get_weights()
    fit(model, digits)
    expected = model.get_weights()
    model.load_weights(tmp_path / "after.weights.h5")
    assert max(np.abs(new - old).max() for new, old in zip(expected, before)) > 0.01
    for variable, value in zip(model.variables, expected):
        np.testing.assert_allclose(variable, value, atol=1e-4, err_msg=variable.path)


def test_too_few_devices_are_refused(tmp_path):
    answer = on_jax("-m", "training", "train", "digits-resnet20", "--replicas", "3", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.strip().endswith(
        "Error: JAX has too few devices. Expected `replicas` <= 2. Received: replicas=3. To divide "
        "the CPU, set XLA_FLAGS=--xla_force_host_platform_device_count=3"
    )
    assert not list(tmp_path.iterdir())


def test_one_and_four_devices_leave_the_same_run(tmp_path):
    """Also where the test split is scored, in batches of 250 that four do not share evenly."""
    write_recipe(TINY, tmp_path / "recipe.json")
    for replicas in ("1", "4"):
        train = ("-m", "training", "train", "recipe.json", "--replicas", replicas)
        answer = on_jax(*train, "--run-dir", replicas, cwd=tmp_path, devices=4)
        assert answer.returncode == 0, answer.stderr
    one, four = (keras.saving.load_model(tmp_path / name / records.LAST) for name in "14")
    for variable, other in zip(one.variables, four.variables):
        np.testing.assert_allclose(variable, other, atol=1e-4, err_msg=variable.path)
    one, four = (records.read(tmp_path / name) for name in "14")
    assert (one.replicas, four.replicas) == (1, 4)
    assert one.results["test"]["confusion"] == four.results["test"]["confusion"]
    # The same as on TensorFlow, but for the first weights.
    expected = loop.train(TINY, run_dir=tmp_path / "expected", verbose=0)
    assert one.data == expected.data
    assert one.recipe == expected.recipe
