"""The same builders on JAX give the same outputs as on TensorFlow, for the same weights."""

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

NETWORKS = {
    "zero_padding": ("cifar_resnet14", {"include_top": False}),
    "stochastic_depth": ("cifar_resnet8", {"survival_probability": 0.5, "classes": 4}),
    "plain": ("cifar_plainnet8", {"classifier_activation": None}),
    "imagenet": ("resnet18", {"include_top": False, "output_stride": 16}),
    "bottleneck": ("resnet50", {"include_top": False, "pooling": "avg"}),
    "pre_activation": (
        "cifar_resnet8",
        {"activation_order": "full_pre_activation", "shortcut": "projection"},
    ),
}
SHAPE = (33, 40, 3)

SCRIPT = """
import json, sys
import keras, numpy as np
import keras_resnet

folder, networks, shape = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
images = np.load(f"{folder}/images.npy")
for key, (name, options) in networks.items():
    weights = f"{folder}/{key}.weights.h5"
    model = keras_resnet.build(name, weights=weights, input_shape=shape, **options)
    np.save(f"{folder}/{key}.npy", keras.ops.convert_to_numpy(model(images)))
    model.save(f"{folder}/{key}.keras")
noisy = keras_resnet.build("cifar_resnet8", survival_probability=0.5)
noisy.compile("sgd", "sparse_categorical_crossentropy")
losses = noisy.fit(np.zeros((8, 32, 32, 3)), np.arange(8), verbose=0).history["loss"]
assert np.isfinite(losses).all()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    """The networks, their outputs on TensorFlow, and the folder with what JAX makes of them."""
    import json

    folder = tmp_path_factory.mktemp("jax")
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("float32")
    np.save(folder / "images.npy", images)
    outputs = {}
    for key, (name, options) in NETWORKS.items():
        model = keras_resnet.build(name, input_shape=SHAPE, **options)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                reference.randomize(layer)
        model.save_weights(folder / f"{key}.weights.h5")
        outputs[key] = keras.ops.convert_to_numpy(model(images))
    subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, json.dumps(NETWORKS), json.dumps(SHAPE)],
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
