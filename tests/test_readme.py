"""What the README shows runs as written, and its numbers are those of the code."""

import math
import pathlib
import re
import subprocess
import sys

import keras
import pytest

import keras_resnet

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()

# A notebook before the snippet: two devices, and pipelines of batches that a user would have.
CELLS_BEFORE = """
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
images = tf.random.stateless_normal((32, 224, 224, 3), seed=(1, 2))
pairs = tf.data.Dataset.from_tensor_slices((images, tf.range(32) % 8))
train_ds = pairs.batch(4, drop_remainder=True)
val_ds = train_ds
"""
CELLS_AFTER = """
assert strategy.num_replicas_in_sync == 2
assert model.preprocessing.size == (224, 224)
"""


@pytest.mark.slow
def test_snippet_runs_as_written_on_two_devices(tmp_path):
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    code = CELLS_BEFORE + snippet + CELLS_AFTER
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "model.tflite").stat().st_size < 25e6  # a quarter of float32


@pytest.mark.slow
def test_network_table():
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \|$", README, re.MULTILINE)
    assert len(rows) == len(keras_resnet.VARIANTS)
    for constructor, parameters, multiply_adds in rows:
        if "1202" in constructor or "1001" in constructor:  # checked by test_variants, slowly built
            continue
        with keras.StatelessScope(initialize_variables=False):
            model = getattr(keras_resnet, constructor)()
        trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
        assert f"{trainable:,}" == parameters, constructor
        assert f"{keras_resnet.count_macs(model):,}" == multiply_adds, constructor
        keras.utils.clear_session(free_memory=False)
