"""Weights in files: whole, into the right network, or an error that says what does not fit."""

import hashlib
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from families import small

import keras_resnet
from keras_resnet.weights import (
    WEIGHT_SETS,
    fetch,
    load_weights,
    read_metadata,
    save_torch,
    save_weights,
)
from training import datasets, evaluate

SMALL = {"depth": 8, "input_shape": (8, 8, 3)}
SHIPPED = [row for row in WEIGHT_SETS if pathlib.Path(row.sources[0].address).is_absolute()]


@pytest.fixture
def model():
    return keras_resnet.CifarResNet(**SMALL)


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(model, path, {"record": "how it came about"})
    return path


def equal(first, second):
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_weights_come_back(model, saved):
    other = keras_resnet.CifarResNet(**SMALL)
    assert not equal(other, model)
    load_weights(other, saved)
    assert equal(other, model)
    assert read_metadata(saved)["record"] == "how it came about"


def test_the_same_weights_are_the_same_bytes(model, tmp_path):
    for name in "abcd":
        save_weights(model, tmp_path / f"{name}.safetensors", {"record": 'an "ü"', "more": "1"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert read_metadata(tmp_path / "a.safetensors")["record"] == 'an "ü"'


def test_they_move_to_a_network_with_stochastic_depth_and_projections(tmp_path):
    """Keras's own weights files go by the order of layers, which that changes."""
    first = keras_resnet.CifarResNet(**SMALL, shortcut="projection")
    save_weights(first, tmp_path / "first.safetensors")
    second = keras_resnet.CifarResNet(**SMALL, shortcut="projection", survival_probability=0.5)
    load_weights(second, tmp_path / "first.safetensors")
    for layer in first.layers:
        for old, new in zip(layer.weights, second.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(new.numpy(), old.numpy())


@pytest.mark.parametrize("suffix", ["safetensors", "keras"])
@pytest.mark.parametrize(
    ("field", "there", "here"),
    [("stride_in_1x1", True, False), ("activation_order", "relu_before_addition", "original")],
)
def test_a_file_of_another_graph_is_refused(field, there, here, suffix, tmp_path):
    """Strides and the order of layers have no weights: nothing else would notice."""
    row = small("resnet50")
    source = keras_resnet.build(row, **{field: there})
    if suffix == "keras":
        source.save(tmp_path / "there.keras")
    else:
        save_weights(source, tmp_path / "there.safetensors")
    path = tmp_path / f"there.{suffix}"
    other = keras_resnet.build(row, **{field: here})
    weights = other.get_weights()
    with pytest.raises(
        ValueError, match=rf"another graph.* Build the network with {field}={there!r}"
    ):
        load_weights(other, path)
    assert all(map(np.array_equal, other.get_weights(), weights))
    load_weights(keras_resnet.build(row, **{field: there}), path)


@pytest.mark.parametrize("graph", ["{", "[]", "3"])
def test_a_graph_that_cannot_be_read_is_an_error(graph, model, tmp_path):
    save_weights(model, tmp_path / "odd.safetensors", {"graph": graph})
    with pytest.raises(ValueError, match="The file's graph cannot be read"):
        load_weights(model, tmp_path / "odd.safetensors")


def test_a_backbone_takes_all_but_the_head(model, saved):
    backbone = keras_resnet.CifarResNet(**SMALL, include_top=False)
    load_weights(backbone, saved, head=False)
    assert equal(backbone, keras_resnet.ResNet(model.inputs, model.get_layer("head_pool").output))


def test_another_head_stays_as_it_is(model, saved):
    other = keras_resnet.CifarResNet(**SMALL, classes=3)
    kernel = other.get_layer("predictions").kernel.numpy()
    load_weights(other, saved, head=False)
    np.testing.assert_array_equal(other.get_layer("predictions").kernel.numpy(), kernel)
    stem = model.get_layer("stem_conv").kernel.numpy()
    np.testing.assert_array_equal(other.get_layer("stem_conv").kernel.numpy(), stem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 3}, r"predictions/kernel \(64, 10\) for \(64, 3\).* by head=False.$"),
        ({"conv_bias": True}, r"only the network has: stem_conv/bias.* shape: nothing.$"),
        ({"include_top": False}, r"only the file has: predictions/.* by head=False.$"),
    ],
)
def test_both_sides_are_named_and_nothing_is_changed(saved, options, message):
    other = keras_resnet.CifarResNet(**SMALL, **options)
    before = other.get_weights()
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(other, saved)
    assert len(caught.value.report.missing) == (7 if "conv_bias" in options else 0)
    for old, new in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_members_of_an_ensemble_are_not_lost(model, saved, tmp_path):
    both, path = keras_resnet.ensemble([model, model]), tmp_path / "both.safetensors"
    for act in (lambda: save_weights(both, path), lambda: load_weights(both, saved)):
        with pytest.raises(ValueError, match=r"'ensemble', twice: stem_conv/kernel.*one by one"):
            act()
    assert not path.exists()


def test_there_must_be_weights(tmp_path):
    with pytest.raises(ValueError, match=r"no weights.*Received: 'unbuilt'"):
        save_weights(
            keras.Sequential([keras.layers.Dense(2)], name="unbuilt"), tmp_path / "a.safetensors"
        )


def test_integers_are_not_lost(model, saved, tmp_path):
    path = tmp_path / "quantised.safetensors"
    model.quantize("int8")
    for act in (lambda: save_weights(model, path), lambda: load_weights(model, saved)):
        with pytest.raises(ValueError, match=r"quantised in {'predictions': 'int8'}.*model\.save"):
            act()
    assert not path.exists()


@pytest.mark.parametrize("save", [save_weights, save_torch])
def test_another_ending_is_refused(model, tmp_path, save):
    """`torch.load` of such a file fails without saying why."""
    with pytest.raises(
        ValueError, match=r"wrong ending.*'.*m\.pth'. Did you mean .*m\.safetensors"
    ):
        save(model, tmp_path / "m.pth")
    assert not (tmp_path / "m.pth").exists()


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 64, None])
def test_a_damaged_file_is_an_error(model, saved, damage):
    saved.write_bytes(saved.read_bytes()[:-1] if damage is None else damage)
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(model, saved)


def test_what_is_no_path_is_named(model):
    with pytest.raises(
        TypeError, match=r"read from a file.*Received: dict\. A `state_dict` becomes"
    ):
        load_weights(model, {"conv1.weight": np.zeros((3, 3))})


@pytest.mark.parametrize("source", ["tv_in1k", "hf://timm/resnet50.a1_in1k", "."])
def test_what_is_no_file_points_to_where_tags_go(model, source):
    with pytest.raises(FileNotFoundError, match=rf"'{source}'. Tags .* weights="):
        load_weights(model, source)


def test_a_changed_file_is_noticed_by_its_hash(model, saved):
    sha256 = hashlib.sha256(saved.read_bytes()).hexdigest()
    load_weights(model, saved, sha256=sha256)
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected sha256 {sha256}"):
        load_weights(model, saved, sha256=sha256)


@pytest.mark.parametrize("row", SHIPPED, ids=lambda row: f"{row.variant}-{row.tag}")
def test_shipped_weights_carry_the_record_of_their_run(row):
    record = json.loads(read_metadata(fetch(row))["record"])
    assert record["recipe"]["variant"] == row.variant
    assert record["results"]["test"]["top1"] == row.accuracy
    assert record["results"]["test"]["count"] == 10_000
    assert row.made_by.split()[-1] == record["recipe"]["name"]
    assert row in keras_resnet.list_weights(row.variant)


@pytest.mark.cifar10
@pytest.mark.parametrize("row", SHIPPED, ids=lambda row: f"{row.variant}-{row.tag}")
def test_shipped_weights_reach_their_accuracy_on_the_real_test_split(row):
    model = keras_resnet.build(row.variant, weights=row.tag)
    assert model.preprocessing == row.preprocessing
    test = datasets.load("cifar10").splits["test"]
    scores = evaluate.evaluate(model, test, preprocessing=model.preprocessing)
    assert scores.count == 10_000
    assert scores.top1 == pytest.approx(row.accuracy, abs=5e-4)  # rounding differs by machine


def test_weights_by_tag_fit_other_heads_and_sizes():
    model = keras_resnet.CifarResNet20(weights="cifar10")
    backbone = keras_resnet.CifarResNet20(
        weights="cifar10", include_top=False, pooling="avg", input_shape=(48, 40, 3)
    )
    assert backbone.output_shape == (None, 64)
    assert backbone.preprocessing.mean == model.preprocessing.mean
    for layer in ("stem_conv", "stage3_block3_bn2"):
        first, second = (each.get_layer(layer).weights for each in (model, backbone))
        for old, new in zip(first, second, strict=True):
            np.testing.assert_array_equal(new.numpy(), old.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "imagenet"}, "Expected one of cifar10, None, hf://OWNER/NAME, the path of a"),
        ({"shortcut": "projection"}, "only the network has: stage2_block1_shortcut"),
        ({"shortcut": "none"}, "another graph.* Build the network with shortcut='zero_padding'"),
        ({"activation_order": "relu_before_addition"}, "with activation_order='original'"),
    ],
)
def test_weights_by_tag_refuse_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_resnet.CifarResNet20(**({"weights": "cifar10"} | arguments))


@pytest.mark.slow
def test_publishing_gives_the_run_back(tmp_path):
    train = [sys.executable, "-m", "training"]
    run, file = tmp_path / "run", tmp_path / "digits.safetensors"
    commands = [
        [*train, "train", "digits-resnet20", "--steps", "5", "--run-dir", str(run)],
        [*train, "publish", str(run), "--output", str(file)],
    ]
    for command in commands:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in answer.stdout
    model = keras_resnet.CifarResNet20(input_shape=(8, 8, 1))
    load_weights(model, file)
    assert json.loads(read_metadata(file)["record"])["recipe"]["name"] == "digits-resnet20"
    again = subprocess.run(commands[-1], capture_output=True, text=True, check=False)
    assert (again.returncode, "not replaced" in again.stderr) == (2, True)
