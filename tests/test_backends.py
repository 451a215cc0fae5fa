"""The same builders on JAX and PyTorch give the outputs of TensorFlow, for the same weights."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import reference

import keras_resnet
from keras_resnet import resampling

pytestmark = pytest.mark.parity

PHOTO = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), "uint8")

# Blocks per stage, and what differs from the row.
NETWORKS = {
    "zero_padding": ("cifar_resnet20", (1, 1, 1), {"survival_probability": 0.5}),
    "dilated": ("resnet18", (1, 1, 1, 1), {"output_stride": 16}),
    "bottleneck": ("resnet50", (1, 1, 1, 1), {}),
    "pre_activation": ("cifar_resnet20", (1, 1, 1), {"activation_order": "full_pre_activation"}),
}


def build(name, blocks, options):
    """A row of the table, shortened and thinned, with logits."""
    row = keras_resnet.VARIANTS[name]
    thin = {"blocks": tuple(blocks), "filters": (8, 16, 24, 32)[: len(blocks)], "classes": 10}
    variant = dataclasses.replace(row, **thin, **options)
    return keras_resnet.build(variant, input_shape=(17, 24, 3), classifier_activation=None)


FAST = "--xla_backend_optimization_level=0"  # compiles in a third of the time
SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import keras, numpy as np
from keras_resnet import resampling
from test_backends import build

folder, networks = sys.argv[1], json.loads(sys.argv[2])
assert "tensorflow" not in sys.modules
images = np.load(folder + "/images.npy")
photo = np.load(folder + "/photo.npy")
resized = resampling.resize(keras.ops.convert_to_tensor(photo), (32, 32))
np.save(folder + "/resized", keras.ops.convert_to_numpy(resized))
for key, row in networks.items():
    model = build(*row)
    model.load_weights(folder + "/" + key + ".weights.h5")
    made = folder + "/" + key
    np.save(made, model.predict(images, verbose=0))
    model.save(made + ".keras")
    if key == "zero_padding":
        outputs = keras.ops.convert_to_numpy(model(images, training=True))
        assert np.isfinite(outputs).all()
"""


@pytest.fixture(scope="module", params=["jax", "torch"])
def on_another(request, tmp_path_factory):
    """The networks' outputs on TensorFlow, and where those of another backend lie, by the key."""
    pytest.importorskip(request.param, reason=f"needs {request.param}: make parity")
    folder = tmp_path_factory.mktemp(request.param)
    images = np.random.default_rng(0).normal(size=(2, 17, 24, 3)).astype("float32")
    np.save(folder / "images.npy", images)
    np.save(folder / "photo.npy", PHOTO)
    outputs = {}
    for key, row in NETWORKS.items():
        model = build(*row)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                reference.randomize(layer)
        model.save_weights(folder / f"{key}.weights.h5")
        outputs[key] = keras.ops.convert_to_numpy(model(images))
    subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, json.dumps(NETWORKS)],
        env=os.environ
        | {"KERAS_BACKEND": request.param, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST},
        cwd=pathlib.Path(__file__).parents[1],
        check=True,
    )
    return folder, images, outputs


@pytest.mark.parametrize("key", NETWORKS)
def test_outputs_are_those_of_tensorflow(on_another, key):
    folder, _, outputs = on_another
    scale = np.abs(outputs[key]).max()
    assert scale > 0.1
    np.testing.assert_allclose(np.load(folder / f"{key}.npy"), outputs[key], atol=1e-4 * scale)


def test_images_are_resized_to_the_same_pixels(on_another):
    folder, _, _ = on_another
    differences = np.abs(np.load(folder / "resized.npy") - resampling.resize(PHOTO, (32, 32)))
    is_exact = "torch" in folder.name  # JAX computes in float32
    assert differences.max() <= (0 if is_exact else 1)


@pytest.mark.parametrize("key", ["zero_padding", "bottleneck"])
def test_a_model_saved_there_loads_on_tensorflow(on_another, key):
    folder, images, outputs = on_another
    model = keras.models.load_model(folder / f"{key}.keras")
    assert isinstance(model, keras_resnet.ResNet)
    np.testing.assert_allclose(model(images), outputs[key], rtol=1e-5, atol=1e-5)
