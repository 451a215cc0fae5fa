"""Every family runs on a phone: TFLite in float32 and in integers, agreeing with Keras."""

import dataclasses

import keras
import numpy as np
import pytest
from families import SMALL
from integer_graph import assert_integer_throughout, count_operations

import keras_resnet
from keras_resnet import export
from keras_resnet.export.conversion import convert
from keras_resnet.export.inference import inference_model
from keras_resnet.export.layer_errors import measure_layer_errors
from keras_resnet.surgery import fold_batch_norm

pytestmark = pytest.mark.parity  # of LiteRT; the fast tests have `test_export.py`

FORMATS = {"float32": None, "int8": "int8"}


def make_data(count=120):
    """Noisy copies of one random image per class, normalised."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    images = rng.uniform(-1.5, 1.5, (3, 16, 16, 3))[labels]
    images += rng.uniform(-0.5, 0.5, images.shape)
    return images.astype("float32"), labels


IMAGES, LABELS = make_data()


# Others of the same operations.
SLOW = {"pre_activation_cifar", "wide_bottleneck", "dense", "constant_scaling", "dropout_shortcut"}
SLOW |= {"shortcut_only_gating", "wide", "resnext", "exclusive_gating", "resnet_d"}
ROWS = [pytest.param(row, marks=[pytest.mark.slow] if row in SLOW else []) for row in SMALL]


@pytest.fixture(scope="module", params=ROWS)
def model(request):
    """A small network of random residuals that decides: its classifier is solved for."""
    keras.utils.set_random_seed(0)
    row = dataclasses.replace(SMALL[request.param], blocks=(1, 1))
    model = keras_resnet.build(row, input_shape=(16, 16, 3))
    for _ in range(15):  # the statistics of batch normalisation
        model(IMAGES, training=True)
    features = keras.Model(model.input, model.get_layer("head_pool").output)
    features = np.hstack([features.predict(IMAGES, verbose=0), np.ones((len(IMAGES), 1))])
    solution = np.linalg.lstsq(features, 6 * np.eye(3)[LABELS], rcond=1e-3)[0]
    model.get_layer("predictions").set_weights([solution[:-1], solution[-1]])
    return model


@pytest.fixture(scope="module")
def reports(model, tmp_path_factory):
    """The reports of both formats; an export that disagrees raises."""
    folder = tmp_path_factory.mktemp(model.name)
    return {
        name: export.tflite(
            model,
            folder / f"{name}.tflite",
            quantization=quantization,
            representative_data=IMAGES,
            examples=IMAGES,
            labels=LABELS,
        )
        for name, quantization in FORMATS.items()
    }


def test_export_agrees_with_keras(model, reports):
    expected = model.predict(IMAGES, verbose=0)
    assert (expected.argmax(axis=1) == LABELS).mean() > 0.9  # it decides
    for name, tolerance in (("float32", 1e-4), ("int8", 0.35)):
        answers = export.load_tflite(reports[name].path)(IMAGES)
        np.testing.assert_allclose(answers, expected, atol=tolerance)
        assert (answers.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95


def test_int8_is_integer_throughout(reports):
    assert_integer_throughout(reports["int8"].path)
    assert reports["int8"].operations == count_operations(reports["int8"].path)


def test_each_layer_is_compared_with_its_own_outputs(model, reports):
    """In float32 nothing is lost, so a layer that was taken for another would stand out."""
    folded = fold_batch_norm(inference_model(model))
    errors = measure_layer_errors(convert(folded), folded, IMAGES, IMAGES)
    assert max(errors.values()) < 1e-4
    # What computes is compared itself, or as a part of the activation behind it.
    computing = [layer for layer in folded.layers if getattr(layer, "kernel", None) is not None]
    assert len(errors) >= len(computing)
    assert reports["int8"].layer_errors.keys() == errors.keys()


def test_normalised_features_and_a_bare_operation_at_the_end_are_integers_too(tmp_path):
    images = keras.Input((16, 16, 3))
    convolution = keras.layers.Conv2D(8, 3)
    x = keras.layers.MaxPooling2D()(convolution(keras.layers.RandomFlip()(images)))
    early, late = (keras.layers.BatchNormalization(name=name) for name in ("early", "late"))
    x = keras.layers.GlobalAveragePooling2D()(early(x))
    outputs = keras.ops.softmax(keras.layers.Dense(3, name="logits")(late(x)))
    network = keras.Model(images, outputs)
    late.gamma.assign(np.geomspace(0.01, 10, 8))
    sizes = np.geomspace(1e-3, 1, 8)  # of channels that the next normalisation makes equal again
    convolution.kernel.assign(convolution.kernel * sizes)
    early.moving_variance.assign(sizes**2)
    report = export.tflite(
        network, tmp_path / "m.tflite", quantization="int8", representative_data=IMAGES
    )
    assert_integer_throughout(report.path)
    assert "MUL" not in report.operations
    assert report.operations["SOFTMAX"] == 1
    assert {"early", "logits"} <= report.layer_errors.keys()
    assert max(report.layer_errors.values()) < 0.05
