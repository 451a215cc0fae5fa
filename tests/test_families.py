"""The families that followed: their blocks against the equations."""

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
import tensorflow as tf
from families import SMALL, small
from keras.src.applications.densenet import DenseNet as KerasDenseNet
from reference import average_pool, batch_norm, block, conv2d, relu, sigmoid
from structure import build_unallocated

import keras_resnet
from keras_resnet.variants import VARIANTS


def test_densenet_computes_what_that_of_keras_applications_computes():
    theirs = KerasDenseNet((2, 2, 2, 2), weights=None, input_shape=(64, 64, 3), classes=10)
    row = dataclasses.replace(VARIANTS["densenet121"], blocks=(2, 2, 2, 2))
    ours = keras_resnet.build(row, input_shape=(64, 64, 3), classes=10)
    reference.randomize(theirs)
    ours.set_weights(theirs.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    assert np.ptp(theirs(x)) > 0.1
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-3, atol=1e-5)


def drawn(row, size=(14, 12), **fields):
    """A small network in float64 with random weights, without its top."""
    keras.config.set_dtype_policy("float64")
    row = dataclasses.replace(SMALL[row] if isinstance(row, str) else row, **fields)
    model = keras_resnet.build(row, include_top=False, input_shape=(*size, 3))
    reference.randomize(model)
    return model


def maps(model, *names, training=False):
    """What the layers called `names` make of random images."""
    x = np.random.default_rng(1).normal(size=(2, *model.input_shape[1:]))
    tensors = [model.input if name == "image" else model.get_layer(name).output for name in names]
    outputs = keras.Model(model.input, tensors)(x, training=training)
    return [keras.ops.convert_to_numpy(output) for output in outputs]


def check(actual, expected):
    assert np.any(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def around(model, name, training=False):
    """The input of a block, its output, and its weights before any moves."""
    stage, position = int(name[5]), int(name[-1])
    weights = reference.weights_of(model, name)
    if position > 1:
        before = f"stage{stage}_block{position - 1}_out"
    elif stage > 1:
        pooled = [x.name for x in model.layers if x.name == f"stage{stage - 1}_transition_pool"]
        before = pooled[0] if pooled else f"stage{stage - 1}_block2_out"
    else:
        before = [x.name for x in model.layers if x.name.startswith("stem_")][-1]
    return (*maps(model, before, f"{name}_out", training=training), weights)


BLOCKS = ["stage1_block1", "stage1_block2", "stage2_block1", "stage2_block2"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("row", "program"), [("dense", "BRW"), ("dense_bottleneck", "BRWBRW")])
def test_dense_block_appends_its_growth(row, program, name, training):
    """Huang et al. 2017, equation 2 and section 3, composite function and bottleneck."""
    size = (14, 12) if row == "dense" else (33, 40)
    growth = SMALL[row].filters[0]
    x, y, weights = around(drawn(row, size), name, training)
    assert y.shape[-1] == x.shape[-1] + growth
    if row == "dense_bottleneck":
        assert weights["conv1"][0].shape[-1] == 4 * growth
    residual = block(x, weights, program, "none", training=training)
    check(y, np.concatenate([x, residual], axis=-1))


@pytest.mark.parametrize("size", [(12, 8), (13, 9)])
@pytest.mark.parametrize("compression", [1.0, 0.5, 0.3])
def test_transition_compresses_and_averages(compression, size):
    """Huang et al. 2017, section 3; an odd last row or column is left out, as torch does."""
    model = drawn("dense", size, compression=compression)
    x, y = maps(model, "stage1_block2_out", "stage1_transition_pool")
    weights = reference.weights_of(model, "stage1_transition")
    y_expected = conv2d(relu(batch_norm(x, *weights["bn"])), *weights["conv"])
    even = y_expected[:, : size[0] // 2 * 2, : size[1] // 2 * 2]
    check(y, average_pool(even))
    assert y.shape[-1] == int(compression * 40)


@pytest.mark.parametrize("name", BLOCKS)
def test_grouped_block(name):
    """Xie et al. 2017, figure 3c: each group of the 3x3 convolution sees its own channels."""
    x, y, weights = around(drawn("resnext", (33, 40)), name)
    filters = 16 if name.startswith("stage1") else 24
    assert weights["conv2"][0].shape == (3, 3, 2 * filters // 8, 2 * filters)
    assert y.shape[-1] == 4 * filters
    strides = 2 if name == "stage2_block1" else 1
    program = reference.PROGRAMS["bottleneck", "original"]
    check(y, block(x, weights, program, "projection", strides=strides, strided_conv=2))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_squeeze_and_excitation(name, training):
    """Hu et al. 2018, equations 2 to 4."""
    x, y, weights = around(drawn("se", (33, 40)), name, training)
    strides = 2 if name == "stage2_block1" else 1
    stride = {"strides": strides, "strided_conv": 2, "training": training}
    residual = block(x, weights, "WBRWBRWB", "none", **stride)
    (w1, b1), (w2, b2) = weights["se_reduce"], weights["se_expand"]
    assert w1.shape[2:] == (residual.shape[-1], residual.shape[-1] // 16)
    squeezed = residual.mean(axis=(1, 2))
    scale = sigmoid(relu(squeezed @ w1[0, 0] + b1) @ w2[0, 0] + b2)
    changes = x.shape[-1] != residual.shape[-1] or strides > 1
    kept = reference.shortcut(
        x, weights, "projection", strides, residual.shape[-1], changes, training
    )
    check(y, relu(kept + scale[:, None, None] * residual))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (33, 40), (41, 35)])
def test_resnet_d_shortcut_averages_before_it_projects(size, training):
    """He et al. 2019, figure 2c; no pixel is left out where the size is odd."""
    model = drawn("resnet_d", size)
    x, y, weights = around(model, "stage2_block1", training)
    residual = block(x, weights, "WBRWBRWB", "none", strides=2, strided_conv=2, training=training)
    kept = conv2d(average_pool(x), *weights["shortcut_conv"])
    kept = batch_norm(kept, *weights["shortcut_bn"], training=training)
    check(y, relu(kept + residual))
    assert "stage1_block1_shortcut_pool" not in {layer.name for layer in model.layers}


@pytest.mark.parametrize("size", [(14, 12), (13, 15)])
def test_stochastic_depth_shortcut_averages_and_pads_with_zeros(size):
    """Huang et al. 2016, section 4."""
    model = drawn("stochastic_depth", size, survival_probability=1.0)
    x, y, weights = around(model, "stage2_block1")
    residual = block(x, weights, "WBRWB", "none", strides=2)
    kept = np.pad(average_pool(x), ((0, 0), (0, 0), (0, 0), (0, 8)))
    check(y, relu(kept + residual))


@pytest.mark.parametrize("size", [(32, 40), (33, 35)])
def test_deep_stem(size):
    """He et al. 2019, figure 2b: 3x3 of stride 2, 3x3, 3x3 to twice the width, max-pool."""
    model = drawn("resnet_d", size)
    x, y = maps(model, "image", "stem_pool")
    weights = reference.weights_of(model, "stem")
    for position, strides in enumerate((2, 1, 1), 1):
        x = conv2d(x, *weights[f"conv{position}"], strides=strides)
        x = relu(batch_norm(x, *weights[f"bn{position}"]))
    check(y, reference.max_pool(x))
    assert [weights[f"conv{i}"][0].shape[-1] for i in (1, 2, 3)] == [8, 8, 16]


@pytest.mark.parametrize("row", ["pre_activation", "pre_activation_cifar", "wide"])
def test_pre_activation_networks_begin_and_end_with_the_shared_activation(row):
    """He et al. 2016, appendix: the first activation serves both paths, the last has its own."""
    model = drawn(row, (33, 40), dropout_rate=0.0)
    x, y, weights = around(model, "stage1_block1")
    activated = relu(batch_norm(x, *weights["bn1"]))
    program = reference.PROGRAMS[model.variant.block, model.variant.activation_order]
    carried = conv2d(activated, *weights["shortcut_conv"])
    residual = block(x, weights, program[:-1], "none")
    check(y, carried + residual)

    last, features = maps(model, "stage2_block2_out", "head_relu")
    check(features, relu(batch_norm(last, *reference.weights_of(model, "head")["bn"])))
    assert model.output is model.get_layer("head_relu").output


def gated(row, name, gate, **fields):
    """Around a block whose gates stand at `gate`: x, plain transform of x, y."""
    model = drawn(row, **fields)
    layer = model.get_layer(f"{name}_gate")
    layer.kernel.assign(0 * layer.kernel)
    bias = {0: -1e4, 1: 1e4}.get(gate) or np.log(gate / (1 - gate))
    layer.bias.assign(np.full(layer.bias.shape, bias))
    x, y, weights = around(model, name)
    program = "WR" if row == "highway" else "WBRWB"
    return x, block(x, weights, program, "none"), y


@pytest.mark.parametrize("gate", [0, 0.3, 1])
def test_highway_gate_carries_or_transforms(gate):
    """Srivastava et al. 2015, equations 3 and 4."""
    x, transformed, y = gated("highway", "stage1_block2", gate)
    check(y, gate * transformed + (1 - gate) * x)
    if gate == 0:
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("gate", [0, 0.3, 1])
@pytest.mark.parametrize("row", ["exclusive_gating", "shortcut_only_gating"])
def test_gated_shortcut_scales_one_path_or_both(row, gate):
    """He et al. 2016, section 3.1."""
    x, residual, y = gated(row, "stage2_block2", gate)
    scale = gate if row == "exclusive_gating" else 1
    check(y, relu((1 - gate) * x + scale * residual))


@pytest.mark.parametrize(
    ("row", "kernel_size", "bias"),
    [("highway", 3, -2.0), ("exclusive_gating", 1, -6.0), ("shortcut_only_gating", 1, -6.0)],
)
def test_gates_see_the_block_s_input_and_start_closed(row, kernel_size, bias):
    model = keras_resnet.build(SMALL[row], include_top=False, input_shape=(9, 9, 3))
    kernel, initial = model.get_layer("stage1_block2_gate").get_weights()
    assert kernel.shape == (kernel_size, kernel_size, 16, 16)
    np.testing.assert_array_equal(initial, np.full(16, bias))
    model = drawn(row)
    x, gate = maps(model, "stage1_block1_out", "stage1_block2_gate")
    check(gate, sigmoid(conv2d(x, *reference.weights_of(model, "stage1_block2")["gate"])))


def test_gate_bias_is_an_option():
    model = keras_resnet.build(SMALL["highway"], gate_bias=-3.5, input_shape=(9, 9, 3))
    np.testing.assert_array_equal(model.get_layer("stage1_block2_gate").bias, np.full(16, -3.5))


def test_highway_network_is_plain_where_the_shape_changes():
    x, y, weights = around(drawn("highway"), "stage2_block1")
    check(y, block(x, weights, "WR", "none", strides=2))


def test_constant_scaling_halves_both_paths():
    """He et al. 2016, table 1, the case that trains."""
    x, y, weights = around(drawn("constant_scaling"), "stage2_block2")
    check(y, relu(0.5 * x + 0.5 * block(x, weights, "WBRWB", "none")))


def test_projections_everywhere_are_the_1x1_shortcut():
    row = small("cifar_resnet20", shortcut="projection_all")
    x, y, weights = around(drawn(row), "stage2_block2")
    program = reference.PROGRAMS["basic", "original"]
    check(y, block(x, weights, program, "projection_all"))


def test_dropout_on_the_shortcut():
    """He et al. 2016, table 1: half of the shortcut's values vanish in training, none in tests."""
    model = drawn("dropout_shortcut", (32, 32))
    x, y, weights = around(model, "stage1_block2")
    check(y, relu(x + block(x, weights, "WBRWB", "none")))
    x, kept = maps(model, "stage1_block1_out", "stage1_block2_shortcut_dropout", training=True)
    positive = x > 0
    ratio = kept[positive] / x[positive]
    assert set(np.unique(ratio.round(9))) == {0.0, 2.0}
    assert abs(np.mean(ratio > 0) - 0.5) < 4 * np.sqrt(0.25 / positive.sum())


@pytest.mark.parametrize(
    ("row", "layer", "before"),
    [
        ("wide", "stage1_block2_dropout1", "stage1_block2_relu2"),
        ("dense", "stage1_block2_dropout1", "stage1_block2_conv1"),
        ("dense_bottleneck", "stage1_block2_dropout2", "stage1_block2_conv2"),
        ("highway", "stage1_block2_dropout1", "stage1_block1_out"),
        ("resnext", "stage1_block2_dropout1", "stage1_block2_relu1"),
    ],
)
def test_dropout_inside_the_residual(row, layer, before):
    """Zagoruyko & Komodakis 2016, section 2.4; Huang et al. 2017, section 4.2."""
    model = drawn(row, (24, 24), dropout_rate=0.3)
    x, dropped = maps(model, before, layer, training=True)
    present = x != 0
    ratio = dropped[present] / x[present]
    assert set(np.unique(ratio.round(9))) == {0.0, np.round(1 / 0.7, 9)}
    assert abs(np.mean(ratio == 0) - 0.3) < 4 * np.sqrt(0.21 / present.sum())
    without = drawn(row, (24, 24), dropout_rate=0.0)
    without.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        maps(model, "stage2_block2_out"), maps(without, "stage2_block2_out")
    )


def built(row, **arguments):
    """A small network with random weights, of 17x20 images unless told."""
    model = keras_resnet.build(SMALL[row], **{"input_shape": (17, 20, 3)} | arguments)
    reference.randomize(model)
    for layer in model.layers:  # of a size that does not explode with the depth
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(layer.kernel / np.sqrt(np.prod(layer.kernel.shape[:3])))
    return model


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("row", SMALL)
def test_saved_model_comes_back_whole(tmp_path, row):
    model = built(row, classifier_activation=None)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (type(loaded), loaded.variant) == (keras_resnet.ResNet, SMALL[row])
    assert [weight.path for weight in loaded.weights] == [weight.path for weight in model.weights]
    assert list(loaded.pyramid_outputs) == list(model.pyramid_outputs)
    x = images(2, 17, 20, 3)
    assert np.ptp(model(x)) > 1e-3
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("row", SMALL)
def test_every_trainable_weight_gets_a_gradient(row):
    model = built(row, classifier_activation=None)
    for layer in model.layers:
        if isinstance(layer, keras_resnet.layers.StochasticDepth):
            layer.survival_probability = 1.0
    x = images(8, 17, 20, 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) * images(8, 3))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert np.all(np.isfinite(gradient)), weight.path
        assert np.any(gradient), weight.path


@pytest.mark.parametrize("row", SMALL)
def test_channels_first_gives_the_same_transposed(row):
    if SMALL[row].groups > 1:
        pytest.skip("TensorFlow has no grouped convolution of channels first on CPUs")
    last = built(row, include_top=False)
    x = images(2, 17, 20, 3)
    expected = np.moveaxis(keras.ops.convert_to_numpy(last(x)), -1, 1)
    keras.config.set_image_data_format("channels_first")
    first = keras_resnet.build(SMALL[row], include_top=False, input_shape=(3, 17, 20))
    first.set_weights(last.get_weights())
    assert first.output_shape == (None, *expected.shape[1:])
    result = first(np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "first", "shapes"),
    [
        ("resnet50v2", 2, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        ("resnet50d", 2, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        ("densenet121", 2, [(56, 256), (28, 512), (14, 1024), (7, 1024)]),
        ("wide_resnet16_4", 0, [(32, 64), (16, 128), (8, 256)]),
        ("highwaynet19", 0, [(32, 48), (16, 80), (8, 128)]),
    ],
)
def test_pyramid_outputs(name, first, shapes):
    assert {level: x.shape for level, x in build_unallocated(name).pyramid_outputs.items()} == {
        f"P{first + stage}": (None, size, size, filters)
        for stage, (size, filters) in enumerate(shapes)
    }


IMPOSSIBLE = [
    (
        ("resnet18", {"shortcut": "concatenation"}),
        "Dense blocks concatenate, and no others do. Expected a shortcut other than "
        "'concatenation' on basic blocks. Received: shortcut='concatenation'",
    ),
    (
        ("densenet121", {"shortcut": "projection"}),
        "Dense blocks concatenate, and no others do. Expected a shortcut of 'concatenation' on "
        "dense_bottleneck blocks. Received: shortcut='projection'",
    ),
    (
        ("wide_resnet28_10", {"dropout_rate": 1.0}),
        "A dropout rate lies in [0, 1). Received: dropout_rate=1.0",
    ),
    (
        ("wide_resnet28_10", {"dropout_rate": -0.1}),
        "A dropout rate lies in [0, 1). Received: dropout_rate=-0.1",
    ),
    (
        (small("resnext50_32x4d", groups=7), {}),
        "The groups do not divide the 3x3 convolutions. Expected a divisor of 32, 48. "
        "Received: groups=7",
    ),
    (
        (small("resnet18", groups=32), {}),
        "The groups do not divide the 3x3 convolutions. Expected a divisor of 16, 24. "
        "Received: groups=32",
    ),
    (
        (small("resnext50_32x4d", groups=0), {}),
        "The groups do not divide the 3x3 convolutions. Expected a divisor of 32, 48. "
        "Received: groups=0",
    ),
    (
        ("densenet40_12", {"attention": "se"}),
        "Squeeze-and-excitation keeps one channel in 16. Expected residuals of at least 16 "
        "channels. Received: attention='se' on 12 channels",
    ),
    (
        ("densenet121", {"output_stride": 16}),
        "densenet121 cannot have this output stride. Expected one of 32. "
        "Received: output_stride=16",
    ),
    (
        ("resnet50d", {"output_stride": 8}),
        "resnet50d cannot have this output stride. Expected one of 32. Received: output_stride=8",
    ),
    (
        ("highwaynet19", {"survival_probability": 0.5}),
        "A highway network has no way around a residual that is dropped or starts at zero. "
        "Expected survival_probability=1.0 and zero_init_residual=False. Received: "
        "survival_probability=0.5, zero_init_residual=False",
    ),
    (
        ("densenet121", {"zero_init_residual": True}),
        "`zero_init_residual` needs residuals that end in batch normalisation. Expected an "
        "activation_order of original, relu_pre_activation. Received: 'full_pre_activation'",
    ),
    (
        ("resnet50", {"attention": "cbam"}),
        "Unknown attention. Expected one of none, se. Received: 'cbam'.",
    ),
    (
        ("resnet50", {"survival_probability": 0.5, "survival_schedule": "linaer"}),
        "Unknown survival_schedule. Expected one of linear, uniform. Received: 'linaer'. "
        "Did you mean 'linear'?",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), IMPOSSIBLE)
def test_impossible_combinations_are_refused_before_anything_is_built(
    arguments, message, monkeypatch
):
    monkeypatch.setattr(keras.layers.Layer, "__call__", lambda *_, **__: pytest.fail("built"))
    variant, options = arguments
    with pytest.raises(ValueError) as error:
        keras_resnet.build(variant, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["densenet121", "resnet50d"])
def test_the_own_output_stride_is_no_dilation(name):
    assert build_unallocated(name, output_stride=32).output_shape == (None, 1000)


# Those whose layers differ most between the backends.
ON_JAX = ["resnext", "resnet_d", "se", "dense_bottleneck", "highway"]
FAST = "--xla_backend_optimization_level=0"  # compiles in a third of the time
SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import keras, numpy as np
import keras_resnet
from families import SMALL

folder, rows = sys.argv[1], json.loads(sys.argv[2])
assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
for row in rows:
    model = keras_resnet.build(SMALL[row], input_shape=(17, 20, 3), classifier_activation=None)
    model.load_weights(folder + "/" + row + ".weights.h5")
    np.save(folder + "/" + row, model.predict(np.load(folder + "/images.npy"), verbose=0))
"""


@pytest.mark.parity
def test_outputs_on_jax_are_those_on_tensorflow(tmp_path):
    pytest.importorskip("jax", reason="needs JAX: make parity")
    x = images(2, 17, 20, 3)
    np.save(tmp_path / "images.npy", x)
    outputs = {}
    for row in ON_JAX:
        model = built(row, classifier_activation=None)
        model.save_weights(tmp_path / f"{row}.weights.h5")
        outputs[row] = keras.ops.convert_to_numpy(model(x))
    subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, json.dumps(ON_JAX)],
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST},
        cwd=pathlib.Path(__file__).parents[1],
        check=True,
    )
    for row, expected in outputs.items():
        scale = np.abs(expected).max()
        assert scale > 0.01, row
        np.testing.assert_allclose(np.load(tmp_path / f"{row}.npy"), expected, atol=1e-4 * scale)
