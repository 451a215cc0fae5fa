"""ONNX: written by Keras's exporter, checked by ONNX, and run by onnxruntime, as Keras computes."""

import importlib
import json
import os
import sys

import keras
import numpy as np
import pytest
from families import SMALL
from trained import look_trained

import keras_resnet
from keras_resnet import export
from keras_resnet.export import ExportMismatch, Tolerance

onnx = pytest.importorskip("onnx", reason="needs ONNX: make parity")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX: make parity")
pytest.importorskip("tf2onnx", reason="needs ONNX: make parity")
pytestmark = pytest.mark.parity

exporter_module = importlib.import_module("keras_resnet.export.keras_exporter")

NAMES = ("cat", "dog", "Straßenbahn")
RAW = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype="uint8")
PREPROCESSING = keras_resnet.Preprocessing(
    size=(16, 16), mean=(0.45, 0.5, 0.55), std=(0.3, 0.25, 0.2), channel_order="bgr"
)
IMAGES = PREPROCESSING.normalize(RAW)


def make_model(**options):
    options = {"classes": 3, "input_shape": (16, 16, 3), "classifier_activation": None} | options
    model = look_trained(keras_resnet.CifarResNet(8, weights=None, **options))
    model.preprocessing = PREPROCESSING
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return make_model()


@pytest.fixture(scope="module")
def expected(model):
    return keras.ops.convert_to_numpy(keras.ops.softmax(model.predict(IMAGES, verbose=0)))


def run(path, images):
    return onnxruntime.InferenceSession(path).run(["probabilities"], {"images": images})[0]


def test_onnxruntime_computes_what_keras_computes(model, expected, tmp_path):
    path = tmp_path / "m.onnx"
    report = export.onnx(model, path, examples=IMAGES, labels=[0, 1, 2, 0, 1], class_names=NAMES)
    assert (report.format, report.examples, report.bytes) == ("onnx", 5, path.stat().st_size)
    assert report.max_probability_difference < 1e-5
    assert report.accuracy == report.keras_accuracy
    for count in (5, 1):  # any batch
        np.testing.assert_allclose(run(path, IMAGES[:count]), expected[:count], atol=1e-5)
    graph = onnx.load(path).graph
    sides = [axis.dim_param or axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 16, 16, 3]
    assert report.operations["Conv"] == 7
    assert "BatchNormalization" not in report.operations
    properties = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert properties["class_names"] == list(NAMES)
    assert keras_resnet.Preprocessing(**properties["preprocessing"]) == PREPROCESSING


def test_raw_images_go_in_when_preprocessing_is_inside(model, expected, tmp_path):
    path = tmp_path / "m.onnx"
    export.onnx(model, path, examples=RAW, include_preprocessing=True)
    np.testing.assert_allclose(run(path, RAW), expected, atol=1e-5)
    with pytest.raises(ValueError, match="A file with the preprocessing inside takes raw images"):
        export.onnx(model, path, examples=IMAGES, include_preprocessing=True)
    with pytest.raises(ValueError, match="The images do not look preprocessed"):
        export.onnx(model, path, examples=RAW)


def test_images_of_any_size_go_to_a_model_of_any_size(model, tmp_path):
    anysize = make_model(input_shape=(None, None, 3))
    anysize.set_weights(model.get_weights())
    examples = [IMAGES, np.concatenate([IMAGES, IMAGES], axis=2)]
    report = export.onnx(anysize, tmp_path / "m.onnx", examples=examples)
    assert report.examples == 10


@pytest.mark.parametrize("family", SMALL)
def test_every_family_is_exported(tmp_path, family):
    model = look_trained(keras_resnet.build(SMALL[family], input_shape=(16, 16, 3)))
    report = export.onnx(model, tmp_path / "m.onnx", examples=IMAGES)
    assert report.max_probability_difference < 1e-4


def test_a_wrong_file_is_found_out_and_the_good_one_kept(model, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    export.onnx(model, path, examples=IMAGES)
    good = path.read_bytes()

    def wrongly_folded(original):
        folded = keras_resnet.surgery.fold_batch_norm(original)
        bias = folded.get_layer("stem_conv").bias
        bias.assign(bias + 0.5)
        return folded

    monkeypatch.setattr(exporter_module, "fold_batch_norm", wrongly_folded)
    with pytest.raises(ExportMismatch, match="The onnx export disagrees with the Keras model"):
        export.onnx(model, path, examples=IMAGES)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (good, ["m.onnx"])
    export.onnx(model, path, examples=IMAGES, tolerance=Tolerance())  # that replaces it
    assert path.read_bytes() != good


def test_missing_packages_are_named_with_the_command_that_installs_them(
    model, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError) as error:
        export.onnx(model, tmp_path / "m.onnx", examples=IMAGES)
    assert str(error.value) == (
        "ONNX needs packages that are not installed. Expected onnx, tf2onnx, onnxruntime. "
        "Received: no tf2onnx, no onnxruntime. Try: pip install tf2onnx onnxruntime"
    )
    assert os.listdir(tmp_path) == []


@keras.saving.register_keras_serializable("tests")
class IncompleteBeta(keras.layers.Layer):
    """An operation that ONNX lacks."""

    def call(self, inputs):
        import tensorflow as tf

        return tf.math.betainc(1.0, 1.0, tf.clip_by_value(inputs, 0.0, 1.0))


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(IncompleteBeta(name="odd_one")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ValueError, match="does not become a valid ONNX file") as error:
        export.onnx(model, tmp_path / "m.onnx", examples=IMAGES)
    assert "Betainc" in str(error.value)
    assert "odd_one" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_paths_that_do_not_fit(model, tmp_path):
    with pytest.raises(ValueError, match=r"ending in '\.onnx'") as error:
        export.onnx(model, "model.tflite", examples=IMAGES)
    assert str(error.value).endswith("Received: path='model.tflite'. Did you mean 'model.onnx'?")
    for content in ("precious", ""):
        (tmp_path / "m.onnx").write_text(content)
        with pytest.raises(ValueError, match="is not an ONNX file, so it is not replaced"):
            export.onnx(model, tmp_path / "m.onnx", examples=IMAGES)
        assert (tmp_path / "m.onnx").read_text() == content


def test_without_names_and_preprocessing_the_file_says_neither(model, tmp_path):
    plain = keras.Model(model.inputs, model.outputs, name="plain")
    export.onnx(plain, tmp_path / "m.onnx", examples=IMAGES)
    keys = {entry.key for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert keys == {"include_preprocessing"}
    with pytest.raises(ValueError, match="does not say how its images are preprocessed"):
        export.onnx(plain, tmp_path / "m.onnx", examples=RAW, include_preprocessing=True)
