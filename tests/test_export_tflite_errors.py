"""TFLite exports that cannot be: they say why, lose nothing and leave nothing behind."""

import os
import re
import sys

import exported
import keras
import numpy as np
import pytest
import tensorflow as tf
from exported import IMAGES, LABELS, PREPROCESSING, RAW, contents, run_python

import keras_resnet
from keras_resnet import export
from keras_resnet.export.calibration import read_calibration
from keras_resnet.export.examples import read_examples


@pytest.fixture(scope="module")
def model():
    return exported.trained_model()


# Images


def test_images_are_needed(model, tmp_path):
    with pytest.raises(ValueError, match="calibrate") as error:
        export.tflite(model, tmp_path / "m.tflite", quantization="int8", examples=IMAGES)
    assert str(error.value) == (
        "int8 needs images to calibrate on. Expected in `representative_data` at least 100 "
        "preprocessed images, e.g. the training dataset. Received: representative_data=None"
    )
    with pytest.raises(ValueError, match="compare") as error:
        export.tflite(model, tmp_path / "m.tflite")
    assert str(error.value) == (
        "There are no images to compare the export with the model on. Expected preprocessed "
        "images in `examples`. Received: examples=None, representative_data=None"
    )
    with pytest.raises(ValueError, match="no image") as error:
        export.tflite(model, tmp_path / "m.tflite", examples=IMAGES[:0])
    assert str(error.value) == (
        "There is no image in `examples`. Expected an array of images, or batches of them. "
        "Received: ndarray without images"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"quantization": "int-8"},
            "Unknown quantization. Expected one of None, float16, dynamic, int8, int16x8. "
            "Received: 'int-8'. Did you mean 'int8'?",
        ),
        (
            {"quantization": "int8", "io_dtype": "int16", "representative_data": IMAGES},
            "Unknown io_dtype. Expected one of int8, uint8, float32. Received: 'int16'. "
            "Did you mean 'int8'?",
        ),
        (
            {"quantization": "float16", "io_dtype": "uint8", "examples": IMAGES},
            "Only int8 files have a choice of input and output. Expected io_dtype=None, or "
            "quantization='int8'. Received: io_dtype='uint8', quantization='float16'",
        ),
        (
            {"batch_size": 0, "examples": IMAGES},
            "A file takes whole images. Expected batch_size >= 1, or None for any number. "
            "Received: batch_size=0",
        ),
        (
            {"quantization": "int8", "representative_data": np.zeros((3, 8, 8, 3))},
            "The images of `representative_data` do not fit the model. Expected shape "
            "(batch, 16, 16, 3). Received: shape (3, 8, 8, 3)",
        ),
        (
            {"examples": IMAGES, "labels": LABELS[:7]},
            "The labels do not fit the examples. Expected one class per image, shape (160,). "
            "Received: shape (7,)",
        ),
        (
            {"representative_data": IMAGES, "labels": LABELS},
            "There are labels without images. Expected the images they belong to in `examples`. "
            "Received: examples=None",
        ),
        (
            {"examples": RAW},
            "The images do not look preprocessed. Expected values between -7.8 and 7.2, as the "
            "model gets them in training. Received: values from 0.0 to 255.0 in `examples`. Apply "
            "`model.preprocessing` to them.",
        ),
    ],
)
def test_bad_requests(model, tmp_path, options, message):
    with pytest.raises(ValueError, match="Received") as error:
        export.tflite(model, tmp_path / "m.tflite", **options)
    assert str(error.value) == message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"image": IMAGES}], "are no images. Expected arrays x, or tuples (x, y), e.g. of `tfds"),
        ([[IMAGES, LABELS]], "as_supervised=True)`. Received: list"),
        ("folder", "Received: str"),
        (5, "Received: int"),
        (
            [(IMAGES[:4], LABELS[:4]), IMAGES[4:8]],
            "Expected one class per image, shape (8,). Received: shape (4,)",
        ),
        (
            tf.data.Dataset.from_tensor_slices(IMAGES).repeat(),
            "The images of `examples` have no end. Expected a dataset that does not repeat. "
            "Received: one of infinite cardinality. Try `.take(count)`.",
        ),
    ],
)
def test_what_gives_no_images_is_said(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_examples(data, shape=(16, 16, 3), argument="examples")


def test_batches_may_be_empty_or_without_labels():
    batches = [(IMAGES[:0],), (IMAGES[:3],), (IMAGES[3], LABELS[3], 1.0)]
    examples = read_examples(batches[:2], shape=(16, 16, 3), argument="examples")
    assert (len(examples.batches), len(examples), examples.labels) == (1, 3, None)
    assert read_examples(batches[2:], shape=(16, 16, 3), argument="examples").labels == LABELS[3]


def test_wrong_suffix(model):
    with pytest.raises(ValueError, match="ending") as error:
        export.tflite(model, "model.lite", examples=IMAGES)
    assert str(error.value) == (
        "The path has the wrong ending. Expected a file ending in '.tflite'. "
        "Received: path='model.lite'. Did you mean 'model.tflite'?"
    )


def test_few_images_are_said(model, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.warns(UserWarning, match="^12 calibration images are few") as warned:
        export.tflite(model, path, quantization="int8", representative_data=IMAGES[:12])
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            RAW,
            "The calibration images do not look preprocessed. Expected values between -7.8 and "
            "7.2, as the model gets them in training. Received: values from 0.0 to 255.0 in "
            "`representative_data`. Apply `model.preprocessing` to them.",
        ),
        (
            np.where(np.arange(3) == 1, np.nan, IMAGES),
            "The images of `representative_data` hold values that are no numbers. Expected finite "
            "values. Received: NaN or infinity at 8192 of 24576 places of a batch. Look for a "
            "division by zero in the pipeline.",
        ),
        (
            np.full_like(IMAGES, 0.5),
            "The calibration images are blank, so they say nothing about the ranges of "
            "activations. Expected real images in `representative_data`. Received: 160 images, "
            "each of a single value",
        ),
        (
            IMAGES[:0],
            "There is no image in `representative_data`. Expected an array of images, or batches "
            "of them. Received: ndarray without images",
        ),
        (
            np.array([["cat.jpg"]]),
            "The images of `representative_data` do not fit the model. Expected shape "
            "(batch, 16, 16, 3). Received: shape (1, 1)",
        ),
        (
            IMAGES.astype("complex64"),
            "The images of `representative_data` are no numbers. Expected uint8 or float32. "
            "Received: complex64",
        ),
    ],
    ids=["raw", "nan", "blank", "none", "names", "complex"],
)
def test_images_that_cannot_calibrate(model, tmp_path, images, message):
    with pytest.raises(ValueError, match="Received") as error:
        export.tflite(model, tmp_path / "m.tflite", quantization="int8", representative_data=images)
    assert str(error.value) == message
    assert os.listdir(tmp_path) == []


def test_images_that_are_scaled_but_not_centred_are_doubted():
    request = {"shape": (16, 16, 3), "preprocessing": PREPROCESSING, "raw": False}
    with pytest.warns(
        UserWarning, match=r"but not centred\. Expected dark pixels below 0, black is"
    ):
        read_calibration(RAW / 255.0, **request)


def test_raw_images_of_an_unknown_preprocessing_are_doubted(model, tmp_path):
    plain = keras.Model(model.inputs, model.outputs)
    with pytest.warns(UserWarning, match="do not look preprocessed") as warned:
        export.tflite(plain, tmp_path / "m.tflite", representative_data=RAW)
    assert warned[0].filename == __file__


def test_a_preprocessing_inside_must_be_known_and_fit(model, tmp_path):
    request = {"examples": RAW, "include_preprocessing": True}
    plain = keras.Model(model.inputs, model.outputs, name="plain")
    with pytest.raises(ValueError, match="'plain' does not say how its images are preprocessed"):
        export.tflite(plain, tmp_path / "m.tflite", **request)
    grey = keras_resnet.Preprocessing(mean=(0.5,), std=(0.25,))
    with pytest.raises(ValueError, match="Received: 1 channels"):
        export.tflite(model, tmp_path / "m.tflite", preprocessing=grey, **request)


# Layers


@keras.saving.register_keras_serializable(package="tests")
class Zeta(keras.layers.Layer):
    """What no phone computes."""

    def call(self, inputs):
        return tf.math.zeta(inputs + 2.0, inputs + 2.0)


def test_a_layer_that_tflite_does_not_know_is_named(model, tmp_path):
    odd = keras.layers.Softmax()(Zeta(name="odd_one")(model.outputs[0]))
    with pytest.raises(ValueError, match="TFLite cannot express") as error:
        export.tflite(keras.Model(model.inputs, odd), tmp_path / "m.tflite", examples=IMAGES[:8])
    assert str(error.value) == (
        "TFLite cannot express the model with quantization=None. Expected layers of which TFLite "
        "knows the operations. Received: layers odd_one. Replace them, or try another quantization."
    )
    assert os.listdir(tmp_path) == []


def test_layers_without_integer_kernels_are_named_where_integers_are_asked_for(tmp_path):
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, activation="gelu")(images)  # has one
    x = keras.layers.GroupNormalization(2, name="grouped")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ELU(name="odd_one")(x))
    network = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ValueError, match="TFLite has no integer kernels") as error:
        export.tflite(
            network, tmp_path / "m.tflite", quantization="int8", representative_data=IMAGES
        )
    assert str(error.value) == (
        "TFLite has no integer kernels for the model with quantization='int8'. Expected layers "
        "that it computes in integers. Received: layers grouped, odd_one. Replace them, or try "
        "quantization='dynamic'."
    )
    assert os.listdir(tmp_path) == []


# Packages


@pytest.mark.parametrize("package", ["flatbuffers", "ai_edge_litert"])
def test_a_missing_package_is_named_before_anything_is_converted(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as error:
        export.tflite(None, tmp_path / "m.tflite", examples=IMAGES)
    assert str(error.value) == (
        "TFLite needs packages that are not installed. Expected tensorflow, flatbuffers, "
        f"ai_edge_litert. Received: no {package}. Try: pip install {package}"
    )


# Disks


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_file(model, tmp_path):
    """A limit on the size of files stands for the disk; it cannot be lifted within a process."""
    export.tflite(model, tmp_path / "m.tflite", examples=IMAGES[:8])
    good = contents(tmp_path)
    code = """
import resource, sys
sys.path.insert(0, sys.argv[2])
import exported
from keras_resnet import export
model = exported.make_model()
for limit in (20_000, 290_000):  # too little for TensorFlow's files; for the TFLite file alone
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        export.tflite(model, sys.argv[1] + "/m.tflite", examples=exported.IMAGES[:8])
    except export.WriteError as error:
        print(error)
"""
    lines = run_python(code, tmp_path, os.path.dirname(__file__)).splitlines()
    assert contents(tmp_path) == good
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("The export cannot be written. Expected a folder with room for it")
        assert "File too large" in line


def test_a_folder_that_cannot_be_is_said(model, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(export.WriteError, match="The export cannot be written") as error:
        export.tflite(model, tmp_path / "file" / "m.tflite", examples=IMAGES[:8])
    assert "Not a directory" in str(error.value) or "File exists" in str(error.value)
    assert contents(tmp_path) == {(tmp_path / "file").relative_to(tmp_path): b"precious"}
