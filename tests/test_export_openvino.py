"""OpenVINO: written by Keras's exporter and run by OpenVINO, as Keras computes."""

import importlib
import json
import os
import shutil
import sys

import keras
import numpy as np
import pytest
from families import SMALL
from trained import look_trained

import keras_resnet
from keras_resnet import export
from keras_resnet.export import ExportMismatch, Tolerance

openvino = pytest.importorskip("openvino", reason="needs OpenVINO: make parity")
pytestmark = pytest.mark.parity

exporter_module = importlib.import_module("keras_resnet.export.keras_exporter")

NAMES = ("cat", "dog", "Straßenbahn")
RAW = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype="uint8")
PREPROCESSING = keras_resnet.Preprocessing(
    size=(16, 16), mean=(0.45, 0.5, 0.55), std=(0.3, 0.25, 0.2), channel_order="bgr"
)
IMAGES = PREPROCESSING.normalize(RAW)
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    options = {"classes": 3, "input_shape": (16, 16, 3), "classifier_activation": None}
    model = look_trained(keras_resnet.CifarResNet(8, weights=None, **options))
    model.preprocessing = PREPROCESSING
    return model


@pytest.fixture(scope="module")
def expected(model):
    return keras.ops.convert_to_numpy(keras.ops.softmax(model.predict(IMAGES, verbose=0)))


def run(folder, images):
    compiled = openvino.compile_model(folder / "model.xml", "CPU", FLOAT32)
    return compiled({"images": images})["probabilities"]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The folder and the report of an export."""
    path = tmp_path_factory.mktemp("exports") / "m"
    return path, export.openvino(
        model, path, examples=IMAGES, labels=[0, 1, 2, 0, 1], class_names=NAMES
    )


def test_openvino_computes_what_keras_computes(model, expected, exported):
    path, report = exported
    assert sorted(os.listdir(path)) == ["model.bin", "model.xml"]
    size = sum(file.stat().st_size for file in path.iterdir())
    assert (report.format, report.examples, report.bytes) == ("openvino", 5, size)
    assert report.max_probability_difference < 1e-5
    assert report.accuracy == report.keras_accuracy
    assert report.operations["Convolution"] == 7
    assert report.operations.keys().isdisjoint({"Constant", "BatchNormInference"})
    for count in (5, 1):  # any batch
        np.testing.assert_allclose(run(path, IMAGES[:count]), expected[:count], atol=1e-5)
    weights = 4 * sum(np.prod(weight.shape) for weight in model.trainable_weights)
    assert (path / "model.bin").stat().st_size < 1.1 * weights  # once, and not halved
    graph = openvino.Core().read_model(path / "model.xml")
    info = {
        name: json.loads(graph.get_rt_info(["model_info", name]).value)
        for name in ("class_names", "preprocessing", "include_preprocessing")
    }
    assert info["class_names"] == list(NAMES)
    assert keras_resnet.Preprocessing(**info["preprocessing"]) == PREPROCESSING
    assert info["include_preprocessing"] is False


def test_raw_images_go_in_when_preprocessing_is_inside(model, expected, tmp_path):
    export.openvino(model, tmp_path / "m", examples=RAW, include_preprocessing=True)
    np.testing.assert_allclose(run(tmp_path / "m", RAW), expected, atol=1e-5)


def test_what_nothing_reads_is_no_output(model, expected, tmp_path):
    """Layers that augment images read their shape even where they do nothing with it."""
    augmented = keras.Sequential([keras.layers.RandomFlip(), keras.layers.RandomZoom(0.2), model])
    augmented.build((None, 16, 16, 3))
    export.openvino(augmented, tmp_path / "m", examples=IMAGES)
    np.testing.assert_allclose(run(tmp_path / "m", IMAGES), expected, atol=1e-5)
    assert len(openvino.Core().read_model(tmp_path / "m" / "model.xml").outputs) == 1


@pytest.mark.parametrize("family", SMALL)
def test_every_family_is_exported(tmp_path, family):
    model = look_trained(keras_resnet.build(SMALL[family], input_shape=(16, 16, 3)))
    report = export.openvino(model, tmp_path / "m", examples=IMAGES)
    assert report.max_probability_difference < 1e-4


def test_a_wrong_model_is_found_out_and_the_good_one_kept(
    model, expected, exported, tmp_path, monkeypatch
):
    path = shutil.copytree(exported[0], tmp_path / "m")

    def wrongly_folded(original):
        folded = keras_resnet.surgery.fold_batch_norm(original)
        bias = folded.get_layer("stem_conv").bias
        bias.assign(bias + 0.5)
        return folded

    monkeypatch.setattr(exporter_module, "fold_batch_norm", wrongly_folded)
    with pytest.raises(ExportMismatch, match="The openvino export disagrees with the Keras"):
        export.openvino(model, path, examples=IMAGES)
    assert os.listdir(tmp_path) == ["m"]
    np.testing.assert_allclose(run(path, IMAGES), expected, atol=1e-5)
    export.openvino(model, path, examples=IMAGES, tolerance=Tolerance())  # that replaces it
    assert sorted(os.listdir(path)) == ["model.bin", "model.xml"]
    assert np.abs(run(path, IMAGES) - expected).max() > 1e-3


def test_folders_of_others_are_kept(model, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not an OpenVINO model, so it is not replaced"):
        export.openvino(model, tmp_path / "m", examples=IMAGES)
    assert (tmp_path / "m" / "thesis.txt").read_text() == "precious"


def test_the_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"Received: no openvino. Try: pip install openvino"):
        export.openvino(model, tmp_path / "m", examples=IMAGES)
    assert os.listdir(tmp_path) == []
