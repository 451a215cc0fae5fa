"""One small trained network and its images, for the tests of exports."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np

import keras_resnet

PREPROCESSING = keras_resnet.Preprocessing(
    size=(16, 16), resize_size=None, mean=(0.45, 0.5, 0.55), std=(0.3, 0.25, 0.2)
)


def make_data(count=160):
    """Noisy copies of one random image per class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    patterns = rng.uniform(40, 215, (3, 16, 16, 3))
    images = patterns[labels] + rng.normal(0, 60, (count, 16, 16, 3))
    return images.clip(0, 255).astype("uint8"), labels


RAW, LABELS = make_data()
IMAGES = np.asarray(PREPROCESSING(RAW))


def make_model(**options):
    """A network of eight layers, not trained."""
    options = {"classes": 3, "input_shape": (16, 16, 3)} | options
    model = keras_resnet.CifarResNet(8, weights=None, **options)
    model.preprocessing = PREPROCESSING
    return model


@functools.cache
def trained_model():
    """The network after four epochs of the images."""
    keras.utils.set_random_seed(0)
    model = make_model()
    model.compile(keras.optimizers.SGD(0.05, 0.9), "sparse_categorical_crossentropy")
    model.fit(IMAGES, LABELS, batch_size=16, epochs=4, verbose=0)
    return model


def run_python(code, *arguments):
    """Runs code in a fresh interpreter and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder):
    """Every file below a folder, hidden ones too, with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
