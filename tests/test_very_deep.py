"""Networks of hundreds of blocks in a row, where stock Keras ends in `RecursionError`."""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import keras, numpy as np
import keras_resnet

depth, limit, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
blocks = (depth - 2) // 6


def draw_in_stock_keras():
    x = image = keras.Input((4, 4, 1))
    for _ in range((depth - 2) // 2):
        x = keras.layers.ReLU()(keras.layers.Add()([x, keras.layers.ReLU()(x)]))
    keras.Model(image, x)


sys.setrecursionlimit(limit)
try:
    draw_in_stock_keras()
except RecursionError:
    pass
else:
    sys.exit("stock Keras draws it too: the test shows nothing")

# Blocks that start as the identity keep the untrained outputs finite.
model = keras_resnet.CifarResNet(depth=depth, input_shape=(8, 8, 3), zero_init_residual=True)
middle = keras.Model(model.input, model.get_layer(f"stage2_block{blocks}_out").output)
assert middle.output_shape == (None, 4, 4, 32)

sys.setrecursionlimit(limit)
model.save(f"{folder}/deep.keras")
sys.setrecursionlimit(limit)
loaded = keras.models.load_model(f"{folder}/deep.keras")
assert loaded.variant == model.variant and loaded.variant.depth == depth
for one, two in zip(model.weights, loaded.weights, strict=True):
    assert one.path == two.path and np.array_equal(one, two)

clone = keras.models.clone_model(loaded)
assert [layer.name for layer in clone.layers] == [layer.name for layer in model.layers]
x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("float32")
assert np.isfinite(model(x)).all() and np.array_equal(loaded(x), model(x))
"""


def check(depth, limit, folder):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(depth), str(limit), str(folder)],
        cwd=pathlib.Path(__file__).parents[1],
        check=True,
    )


@pytest.mark.slow
def test_a_network_deeper_than_the_recursion_limit(tmp_path):
    """Of 200 layers under a limit in the same proportion: seconds instead of minutes."""
    check(200, 180, tmp_path)


@pytest.mark.slow
def test_cifar_resnet1202_under_python_s_own_limit(tmp_path):
    check(1202, 1000, tmp_path)
