"""Checkpoints: what is saved comes back bit for bit, and what is damaged is noticed."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnet
from training import checkpoints, files
from training.callbacks import NonFiniteLoss, SaveCheckpoints
from training.checkpoints import Progress
from training.interruption import Signals
from training.strategy import make_strategy

ARRAYS = {
    "conv/kernel": np.random.default_rng(0).normal(size=(3, 3, 1, 8)).astype("float32"),
    "optimizer/0/iteration": np.array(7, "int64"),
    "seed_generator_state/0": np.array([2**32 - 1, 5], "uint32"),
}
PROGRESS = Progress(7, seconds=1.25, history={"loss": [0.1, 1 / 3], "val_accuracy": [0.5, 0.75]})


def names(folder):
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir())


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a bit in the data": lambda path: flip(path, path.stat().st_size // 3),
    "a bit in the first byte": lambda path: flip(path, 0),
    "a bit in the last byte": lambda path: flip(path, -1),
    "unreadable": lambda path: (path.unlink(), path.symlink_to(path)),
}


def test_what_is_saved_comes_back(tmp_path):
    checkpoints.save(tmp_path / "checkpoints", PROGRESS, ARRAYS)
    progress, arrays = checkpoints.load_newest(tmp_path / "checkpoints")
    assert progress == PROGRESS
    assert progress.epochs == 2
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_a_checkpoint_is_a_numpy_file_that_others_can_read(tmp_path):
    checkpoints.save(tmp_path, PROGRESS, ARRAYS)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        np.testing.assert_array_equal(file["conv/kernel"], ARRAYS["conv/kernel"])
        assert json.loads(str(file["progress"]))["history"]["loss"] == [0.1, 1 / 3]


def test_without_a_checkpoint_the_run_begins(tmp_path):
    assert checkpoints.load_newest(tmp_path / "checkpoints") == (Progress(), {})
    assert Progress().epochs == 0


def test_the_two_newest_are_kept(tmp_path):
    for step in (5, 90, 100, 1000):
        checkpoints.save(tmp_path, Progress(step), ARRAYS)
    assert names(tmp_path) == ["step-000000100", "step-000001000"]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, damage, caplog):
    checkpoints.save(tmp_path, Progress(10), ARRAYS)
    checkpoints.save(tmp_path, Progress(20), ARRAYS)
    newest = max(tmp_path.iterdir())
    damage(newest)
    progress, arrays = checkpoints.load_newest(tmp_path)
    assert progress.step == 10
    np.testing.assert_array_equal(arrays["conv/kernel"], ARRAYS["conv/kernel"])
    assert f"The checkpoint {newest} is damaged; the one before it is used." in caplog.text
    checkpoints.save(tmp_path, Progress(15), ARRAYS)
    assert names(tmp_path) == ["step-000000010", "step-000000015"]


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path):
    checkpoints.save(tmp_path, Progress(10), ARRAYS)
    damaged = [tmp_path / f"step-000000020-{digit * 16}.npz" for digit in "0f"]
    for path in damaged:
        path.touch()
    checkpoints.save(tmp_path, Progress(20), ARRAYS)
    assert names(tmp_path) == ["step-000000010", "step-000000020"]
    assert not any(path.exists() for path in damaged)


def test_with_all_damaged_the_run_is_not_begun_again(tmp_path, caplog):
    for step in (10, 20):
        checkpoints.save(tmp_path, Progress(step), ARRAYS)
    older, newer = sorted(tmp_path.iterdir())
    DAMAGES["half"](older)
    DAMAGES["empty"](newer)
    with pytest.raises(ValueError, match="cannot be continued") as error:
        checkpoints.load_newest(tmp_path)
    assert str(error.value) == (
        "The run cannot be continued. Expected a checkpoint that is not damaged. Received: "
        f"{newer.name}, {older.name} in {str(tmp_path)!r}, all damaged. Begin anew in another "
        "--run-dir; or remove that folder, and --resume replaces this run from its first step on, "
        "its best weights too."
    )
    assert "the one before it is used" not in caplog.text


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch, fails):
    checkpoints.save(tmp_path, Progress(10), ARRAYS)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(files.WriteError, match="cannot be written") as error:
        checkpoints.save(tmp_path, Progress(20), ARRAYS)
    assert "Received: [Errno 28] No space left on device" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / f"{files.PARTIAL}99-step-000000003-0.npz").write_bytes(b"half")
    assert checkpoints.load_newest(tmp_path) == (Progress(), {})
    checkpoints.save(tmp_path, Progress(10), ARRAYS)
    assert names(tmp_path) == ["step-000000010"]


def network(replicas):
    """A network with every kind of state: momentum, moving statistics, a seed, metrics."""
    keras.utils.set_random_seed(0)
    with make_strategy(replicas).scope():
        model = keras_resnet.build(
            "cifar_resnet8", input_shape=(8, 8, 1), classes=4, survival_probability=0.5
        )
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            "sparse_categorical_crossentropy",
            weighted_metrics=["accuracy"],
        )
    return model


def batches(start):
    random = np.random.default_rng(0)
    images = random.normal(size=(96, 8, 8, 1)).astype("float32")
    labels = random.integers(4, size=96)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16, drop_remainder=True)
    return data.skip(start)


class Middle(keras.callbacks.Callback):
    """Captures a model after its third step, or gives it what was captured."""

    def __init__(self, arrays=None):
        super().__init__()
        self.arrays = arrays

    def on_epoch_begin(self, epoch, logs=None):
        if self.arrays:
            checkpoints.restore(self.model, self.arrays)

    def on_train_batch_end(self, batch, logs=None):
        if not self.arrays and batch == 2:
            self.arrays = checkpoints.capture(self.model)


@pytest.mark.parametrize("replicas", [1, 2], ids=["one_replica", "two_replicas"])
def test_a_model_goes_on_as_if_it_had_never_stopped(replicas):
    """Six steps, and the last three of them again from the middle."""
    whole, second, middle = network(replicas), network(replicas), Middle()
    whole.fit(batches(0), verbose=0, shuffle=False, callbacks=[middle])
    second.fit(batches(3), verbose=0, shuffle=False, callbacks=[Middle(middle.arrays)])
    expected, found = checkpoints.capture(whole), checkpoints.capture(second)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {name.split("/")[0] for name in found} > {"optimizer", "seed_generator_state", "loss"}
    assert second.history.history == whole.history.history
    assert np.abs(expected["stem_conv/kernel"] - middle.arrays["stem_conv/kernel"]).max() > 1e-4


def test_what_replicas_keep_apart_is_kept_apart():
    with make_strategy(2).scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="bn")])
        model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    mean = model.layers[0].moving_mean.value
    for copy, value in zip(mean.values, (1.0, 2.0)):
        copy.assign([value] * 3)
    arrays = checkpoints.capture(model)
    name = next(name for name in arrays if name.endswith("moving_mean"))
    np.testing.assert_array_equal(arrays[name], [[1.0] * 3, [2.0] * 3])
    assert arrays[name.replace("moving_mean", "gamma")].shape == (3,)
    mean.assign([0.0] * 3)
    checkpoints.restore(model, arrays)
    for copy, value in zip(mean.values, (1.0, 2.0)):
        np.testing.assert_array_equal(copy.numpy(), [value] * 3)


def test_a_checkpoint_of_another_network_is_refused():
    model = keras_resnet.build("cifar_resnet8", input_shape=(8, 8, 1), classes=4)
    model.compile("sgd")
    arrays = checkpoints.capture(model)
    arrays["head/kernel"] = arrays.pop("predictions/kernel")
    with pytest.raises(ValueError, match="not one of this network") as error:
        checkpoints.restore(model, arrays)
    assert str(error.value) == (
        "The checkpoint is not one of this network. Expected "
        f"{len(arrays)} variables of its names and shapes. Received: 2 that differ, first "
        "'head/kernel'. Continue with the code and the number of replicas that the run was started "
        "with."
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, value):
    """Also where the loss has not shown it yet."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
    model.compile("sgd", "mse")
    save = SaveCheckpoints(Progress(12), {}, tmp_path, every_seconds=0, signals=Signals())
    save.set_model(model)
    save.on_epoch_end(0)
    assert names(tmp_path) == ["step-000000012"]
    save.progress.step = 13
    model.layers[0].kernel.assign([[1.0, value], [0.0, 0.0]])
    with pytest.raises(NonFiniteLoss, match="at step 13"):
        save.on_epoch_end(1)
    assert names(tmp_path) == ["step-000000012"]


def test_outside_of_the_main_thread_signals_are_left_alone():
    def enter():
        with Signals() as signals:
            return signals.received

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(enter).result() is None


ON_JAX = """
import pathlib, sys
import keras, numpy as np
from training import callbacks, checkpoints, interruption

random = np.random.default_rng(0)
x = random.normal(size=(16, 16, 6)).astype("float32")
y = (x.sum(-1) > 0).astype("int32")

class Stop(keras.callbacks.Callback):
    def __init__(self, progress, step, signals):
        super().__init__()
        self.progress, self.step, self.signals = progress, step, signals

    def on_train_batch_end(self, batch, logs=None):
        if self.progress.step == self.step:
            self.signals.received = 15

def run(folder, stop=None):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((6,)),
        layers.Dense(8, name="first"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.3, name="drop", seed=1),
        layers.Dense(2, activation="softmax", name="last"),
    ], name="network")
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9),
        "sparse_categorical_crossentropy",
        weighted_metrics=["accuracy"],
    )
    progress, arrays = checkpoints.load_newest(folder / "checkpoints")
    signals = interruption.Signals()
    usual = callbacks.in_order(
        folder, progress, arrays, steps=15, steps_per_epoch=8, validation_share=1, ema_momentum=0.9,
        checkpoint_every=1000, signals=signals,
    )
    usual.insert(-1, Stop(progress, stop, signals))
    try:
        model.fit(
            ((x[step], y[step]) for step in range(progress.step, 16)),
            initial_epoch=progress.epochs, epochs=2, steps_per_epoch=8, shuffle=False,
            validation_data=(x[0], y[0]), callbacks=usual, verbose=0,
        )
    except interruption.Interrupted:
        print("stopped after", progress.step)

keras.utils.set_random_seed(0)
run(pathlib.Path(sys.argv[1]))
keras.utils.set_random_seed(0)
run(pathlib.Path(sys.argv[2]), stop=11)
run(pathlib.Path(sys.argv[2]))
"""


@pytest.mark.parity
def test_a_run_on_jax_goes_on_as_if_it_had_never_stopped(tmp_path):
    pytest.importorskip("jax", reason="needs JAX: make parity")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    answer = subprocess.run(
        [sys.executable, "-c", ON_JAX, str(whole), str(parts)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout == "stopped after 11\n"
    expected, arrays = checkpoints.load_newest(whole / "checkpoints")
    found, again = checkpoints.load_newest(parts / "checkpoints")
    assert (expected.step, found.step) == (15, 15)
    assert found.history == expected.history
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
