"""Weights in files: whole, into the right network, or an error that says what does not fit."""

import hashlib

import numpy as np
import pytest

import keras_resnet
from keras_resnet.weights import load_weights, read_metadata, save_weights

SMALL = {"depth": 8, "input_shape": (8, 8, 3)}


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
    assert read_metadata(saved) == {"record": "how it came about"}


def test_they_move_to_a_network_with_stochastic_depth_and_projections(tmp_path):
    """Keras's own weights files go by the order of layers, which that changes."""
    first = keras_resnet.CifarResNet(**SMALL, shortcut="projection")
    save_weights(first, tmp_path / "first.safetensors")
    second = keras_resnet.CifarResNet(**SMALL, shortcut="projection", survival_probability=0.5)
    load_weights(second, tmp_path / "first.safetensors")
    for layer in first.layers:
        for old, new in zip(layer.weights, second.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(new.numpy(), old.numpy())


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
        ({"classes": 3}, r"of another shape: predictions/kernel \(64, 10\) for \(64, 3\)"),
        ({"conv_bias": True}, "only the network has: stem_conv/bias"),
        ({"include_top": False}, "only the file has: predictions/"),
    ],
)
def test_both_sides_are_named_and_nothing_is_changed(saved, options, message):
    other = keras_resnet.CifarResNet(**SMALL, **options)
    before = other.get_weights()
    with pytest.raises(ValueError, match=message):
        load_weights(other, saved)
    for old, new in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 64, None])
def test_a_damaged_file_is_an_error(model, saved, damage):
    saved.write_bytes(saved.read_bytes()[:-1] if damage is None else damage)
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(model, saved)


def test_a_changed_file_is_noticed_by_its_hash(model, saved):
    sha256 = hashlib.sha256(saved.read_bytes()).hexdigest()
    load_weights(model, saved, sha256=sha256)
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected sha256 {sha256}"):
        load_weights(model, saved, sha256=sha256)
