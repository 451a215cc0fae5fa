"""What the tests share: quiet TensorFlow, seeds, and the real CIFAR-10 where it is present."""

import functools
import gc
import importlib
import os
import pathlib
import random
import sys
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

# As Python 3.12 does: TensorFlow asks of every value whether it follows one protocol or another.
if sys.version_info < (3, 12):
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)


def pytest_sessionstart(session):
    """Readies TensorFlow where tests run; the process that only deals them out starts without."""
    if session.config.getoption("dist", "no") != "no":
        return
    import keras
    import tensorflow as tf

    # For the tests under a strategy: TensorFlow divides the CPU once, before anything uses it.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    keras.utils.set_random_seed(0)

    # TensorFlow 2.21 wakes the thread that tunes a pipeline before it tells it to stop: the
    # iterator waits at its end for up to as long as it lived. Those of replicas take no options.
    tuned_iterator = tf.data.Dataset.__iter__

    def iterator(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return tuned_iterator(dataset.with_options(options))

    tf.data.Dataset.__iter__ = iterator


def pytest_collection_finish():
    """Spares the collector what stays: the libraries and the tests, half a million objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 100)


def pytest_collection_modifyitems(items):
    """Skips the tests on the real CIFAR-10 where it is not, and says how to get them to run."""
    data_dir = os.environ.get("TFDS_DATA_DIR", "")
    if data_dir and (pathlib.Path(data_dir) / "cifar10").is_dir():
        return
    reason = "needs the real CIFAR-10: set TFDS_DATA_DIR to a directory with a prepared cifar10"
    for item in items:
        if item.get_closest_marker("cifar10"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for the tests marked `parity`."""
    return pytest.importorskip("torch", reason="needs torch: make parity")


@pytest.fixture(scope="session")
def torchvision(torch):
    """Torchvision, also where its wheel does not fit PyTorch's."""
    try:
        return pytest.importorskip("torchvision", reason="needs torchvision: make parity")
    except RuntimeError:
        # The wheel is compiled for another torch, without which its detection operators are not
        # there; the networks need none of them, only their declarations.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        module = importlib.import_module("torchvision")
        module.declarations = library  # they last as long as this
        return module


@pytest.fixture(scope="session")
def timm(torchvision):
    """Timm, which imports torchvision."""
    return pytest.importorskip("timm", reason="needs timm: make parity")


@pytest.fixture(autouse=True)
def _seeded_and_clean():
    """Every test starts from the same seed and leaves Keras's global settings as they were.

    Seeds are drawn from Python's numbers (Keras) and NumPy's. Those of TensorFlow are set once:
    to set them empties its cache of kernels, each of which then takes 0.5 ms to make again.
    """
    import keras

    random.seed(0)
    np.random.seed(0)
    policy = keras.config.dtype_policy()
    data_format = keras.config.image_data_format()
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)
