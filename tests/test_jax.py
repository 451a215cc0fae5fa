"""The same builders on JAX give the same outputs as on TensorFlow, for the same weights."""

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

pytest.importorskip("jax", reason="needs the extra: pip install 'keras-resnet-zoo[jax]'")

# Blocks per stage, and what differs from the row.
NETWORKS = {
    "zero_padding": ("cifar_resnet20", (2, 1, 1), {}),
    "stochastic_depth": ("cifar_resnet20", (1, 1, 1), {"survival_probability": 0.5}),
    "plain": ("cifar_plainnet20", (1, 1, 1), {}),
    "dilated": ("resnet18", (1, 1, 1, 1), {"output_stride": 16}),
    "bottleneck": ("resnet50", (1, 1, 1, 1), {}),
    "pre_activation": ("cifar_resnet20", (1, 1, 1), {"activation_order": "full_pre_activation"}),
}


def build(name, blocks, options):
    """A shortened row of the table, with logits."""
    row = keras_resnet.VARIANTS[name]
    variant = dataclasses.replace(row, blocks=tuple(blocks), **options)
    return keras_resnet.build(variant, input_shape=(33, 40, 3), classifier_activation=None)


SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import keras, numpy as np
from test_jax import build

folder, networks = sys.argv[1], json.loads(sys.argv[2])
assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
images = np.load(folder + "/images.npy")
for key, row in networks.items():
    model = build(*row)
    model.load_weights(folder + "/" + key + ".weights.h5")
    np.save(folder + "/" + key, model.predict(images, verbose=0))
    model.save(folder + "/" + key + ".keras")
noisy = build(*networks["stochastic_depth"])
noisy.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
losses = noisy.fit(images, np.arange(2), verbose=0).history["loss"]
assert np.isfinite(losses).all()
"""


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    """The networks, their outputs on TensorFlow, and the folder with what JAX makes of them."""
    folder = tmp_path_factory.mktemp("jax")
    images = np.random.default_rng(0).normal(size=(2, 33, 40, 3)).astype("float32")
    np.save(folder / "images.npy", images)
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
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[1],
        check=True,
    )
    return folder, images, outputs


@pytest.mark.parametrize("key", NETWORKS)
def test_outputs_are_those_of_tensorflow(on_jax, key):
    folder, _, outputs = on_jax
    scale = np.abs(outputs[key]).max()
    assert scale > 0.1
    np.testing.assert_allclose(np.load(folder / f"{key}.npy"), outputs[key], atol=1e-4 * scale)


@pytest.mark.parametrize("key", ["stochastic_depth", "bottleneck"])
def test_a_model_saved_on_jax_loads_on_tensorflow(on_jax, key):
    folder, images, outputs = on_jax
    model = keras.models.load_model(folder / f"{key}.keras")
    assert isinstance(model, keras_resnet.ResNet)
    np.testing.assert_allclose(model(images), outputs[key], rtol=1e-5, atol=1e-5)
