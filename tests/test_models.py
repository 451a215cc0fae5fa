"""What the networks compute, and that nothing of them is lost on the way to a file and back."""

import json

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from structure import build_unallocated

import keras_resnet
from keras_resnet import ResNet, Variant, build
from keras_resnet.preprocessing import CIFAR10
from keras_resnet.surgery import new_classifier

# Every kind of block, in networks small enough to run in milliseconds. Not below 16 channels: the
# gradient of a strided 1x1 convolution of fewer overwrites memory on CPUs (oneDNN, issue 6035).
SIZES = {"blocks": (1, 2, 1, 2), "filters": (4, 8, 12, 16), "classes": 5}
TINY = {
    "basic": Variant("basic", **SIZES | {"filters": (16, 24, 32, 48)}),
    "v1": Variant("v1", block="bottleneck", stride_in_1x1=True, **SIZES),
    "v1.5": Variant("v1.5", block="bottleneck", **SIZES),
    "cifar": Variant(
        "cifar",
        (2, 1, 2),
        (16, 24, 32),
        stem="cifar",
        shortcut="zero_padding",
        classes=10,
        preprocessing=CIFAR10,
    ),
}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(model, x, **arguments):
    return keras.ops.convert_to_numpy(model(x, **arguments))


def built(name, **options):
    """A tiny network of random weights."""
    model = build(TINY[name], **options)
    reference.randomize(model)
    return model


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet18", {}, (33, 47)),
        ("plainnet18", {}, (33, 47)),
        ("resnet50", {}, (33, 47)),
        (TINY["v1"], {}, (64, 41)),
        (TINY["v1.5"], {"shortcut": "projection_all"}, (64, 41)),
        ("cifar_resnet20", {}, (17, 8)),
        ("cifar_resnet20", {"shortcut": "projection"}, (8, 8)),
    ],
)
def test_whole_network_equals_the_equations(name, options, size):
    keras.config.set_dtype_policy("float64")
    model = build(name, input_shape=(*size, 3), classifier_activation=None, **options)
    variant = model.variant
    reference.randomize(model)
    x = images(2, *size, 3)
    expected = reference.network(
        np.float64(x),
        model,
        variant.blocks,
        reference.PROGRAMS[variant.block, "original"],
        variant.shortcut,
        imagenet_stem=variant.stem == "imagenet",
        strided_conv=2 if variant.block == "bottleneck" and not variant.stride_in_1x1 else 1,
    )
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
@pytest.mark.parametrize("name", TINY)
def test_dilated_network_equals_the_strided_one_where_that_looks(name, size):
    options = {"include_top": False, "input_shape": (None, None, 3)}
    strided = built(name, **options)
    x = images(1, *size, 3)
    expected = run(strided, x)
    full_stride = 4 if name == "cifar" else 32
    for step in (2, 4):
        dilated = build(TINY[name], output_stride=full_stride // step, **options)
        dilated.set_weights(strided.get_weights())
        features = run(dilated, x)
        sides = [-(-side * step // full_stride) for side in size]
        assert features.shape[1:3] == tuple(sides)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(features[:, ::step, ::step], expected, atol=1e-5 * scale)


@pytest.mark.parametrize("order", ["original", "full_pre_activation"])
@pytest.mark.parametrize("shortcut", ["zero_padding", "projection", "projection_all", "none"])
@pytest.mark.parametrize("name", TINY)
def test_every_trainable_weight_gets_a_gradient(name, shortcut, order):
    model = build(TINY[name], shortcut=shortcut, activation_order=order, input_shape=(33, 33, 3))
    x = images(8, 33, 33, 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) * images(8, model.output_shape[-1]))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert np.any(gradient), weight.path


@pytest.mark.parametrize("name", TINY)
def test_channels_first_gives_the_same_transposed(name):
    last = built(name, include_top=False, input_shape=(48, 33, 3))
    x = images(2, 48, 33, 3)
    expected = np.moveaxis(run(last, x), -1, 1)
    keras.config.set_image_data_format("channels_first")
    first = build(TINY[name], include_top=False, input_shape=(3, 48, 33))
    first.set_weights(last.get_weights())
    assert first.output_shape == (None, *expected.shape[1:])
    result = run(first, np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert build(TINY[name]).input_shape[1] == 3


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(17, 17), (31, 64), (None, None), (None, 40)])
def test_any_channels_and_sizes(channels, size):
    model = build(TINY["basic"], input_shape=(*size, channels))
    assert model.input_shape == (None, *size, channels)
    concrete = [side or 37 for side in size]
    probabilities = run(model, images(2, *concrete, channels))
    np.testing.assert_allclose(probabilities.sum(axis=1), [1, 1], rtol=1e-5)


def test_default_input_is_that_of_the_variant():
    assert build_unallocated("resnet18").input_shape == (None, 224, 224, 3)
    assert build_unallocated("cifar_resnet20").input_shape == (None, 32, 32, 3)
    assert build(TINY["basic"], include_top=False).input_shape == (None, None, None, 3)


@pytest.mark.parametrize("pooling", [None, "avg", "max"])
def test_pooling_without_the_top(pooling):
    options = {"include_top": False, "input_shape": (64, 64, 3)}
    features = built("basic", **options)
    model = build(TINY["basic"], pooling=pooling, **options)
    model.set_weights(features.get_weights())
    x = images(2, 64, 64, 3)
    pool = {None: np.asarray, "avg": lambda f: f.mean((1, 2)), "max": lambda f: f.max((1, 2))}
    np.testing.assert_allclose(run(model, x), pool[pooling](run(features, x)), rtol=1e-5)


def test_classifier_activation_none_gives_logits():
    logits = built("cifar", classifier_activation=None)
    probabilities = build(TINY["cifar"])
    probabilities.set_weights(logits.get_weights())
    x = images(2, 32, 32, 3)
    expected = tf.nn.softmax(run(logits, x))
    np.testing.assert_allclose(run(probabilities, x), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("policy", "features", "logits"),
    [
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_logits_are_never_narrower_than_float32(policy, features, logits):
    keras.config.set_dtype_policy(policy)
    model = build(TINY["cifar"])
    outputs = model.pyramid_outputs["P2"], model.output
    assert [output.dtype for output in outputs] == [features, logits]
    assert model(images(1, 32, 32, 3)).dtype == logits
    assert model.get_layer("stem_conv").kernel.dtype == (
        "float32" if policy.startswith("mixed") else policy
    )


def test_input_tensor_of_another_layer_is_built_upon():
    image = keras.Input((32, 32, 3), name="raw")
    half = keras.layers.Rescaling(0.5)(image)
    upon = build(TINY["cifar"], input_tensor=half)
    alone = build(TINY["cifar"])
    alone.set_weights(upon.get_weights())
    x = images(2, 32, 32, 3)
    assert upon.input is image
    assert upon.input_shape == (None, 32, 32, 3)
    np.testing.assert_array_equal(run(upon, x), run(alone, x / 2))
    assert keras_resnet.count_macs(upon) == keras_resnet.count_macs(alone)


def test_inputs_need_not_be_one_image():
    """A network upon vectors, or upon several images, is preprocessed as what its stem sees."""
    vectors = keras.layers.Reshape((8, 9, 4))(keras.Input((8 * 9 * 4,)))
    several = keras.layers.Concatenate()([keras.Input((8, 9, 3)), keras.Input((8, 9, 1))])
    for tensor in (vectors, several):
        preprocessing = build(TINY["cifar"], input_tensor=tensor).preprocessing
        assert (preprocessing.size, len(preprocessing.mean)) == ((8, 9), 4)


def test_input_tensor_used_twice():
    image = keras.Input((32, 32, 3))
    pair = [build(TINY["cifar"], input_tensor=image, name=name) for name in ("one", "two")]
    both = keras.Model(image, [model(image) for model in pair])
    x = images(2, 32, 32, 3)
    for output, model in zip(both(x), pair):
        np.testing.assert_array_equal(output, run(model, x))
    assert list(pair[0].pyramid_outputs) == ["P0", "P1", "P2"]  # not disturbed by the call


@pytest.mark.filterwarnings("error")
def test_calls_do_not_warn():
    image = keras.Input((32, 32, 3))
    for model in (build(TINY["cifar"]), build(TINY["cifar"], input_tensor=image)):
        model(images(1, 32, 32, 3))


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [
        ("resnet18", {}, [(56, 64), (28, 128), (14, 256), (7, 512)]),
        ("resnet50", {}, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        ("resnet18", {"output_stride": 16}, [(56, 64), (28, 128), (14, 256), (14, 512)]),
        ("resnet18", {"output_stride": 8}, [(56, 64), (28, 128), (28, 256), (28, 512)]),
        ("cifar_resnet20", {}, [(32, 16), (16, 32), (8, 64)]),
    ],
)
def test_pyramid_outputs(name, options, shapes):
    model = build_unallocated(name, **options)
    first = 0 if name.startswith("cifar") else 2
    assert {level: x.shape for level, x in model.pyramid_outputs.items()} == {
        f"P{first + stage}": (None, size, size, filters)
        for stage, (size, filters) in enumerate(shapes)
    }


def test_pyramid_outputs_are_a_model_s_outputs():
    model = build(TINY["basic"], include_top=False, input_shape=(64, 64, 3))
    x = images(1, 64, 64, 3)
    levels = keras.Model(model.input, model.pyramid_outputs)(x)
    np.testing.assert_array_equal(levels["P5"], run(model, x))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("basic", {"shortcut": "zero_padding", "output_stride": 8}),
        ("v1.5", {"conv_bias": True, "activation_order": "full_pre_activation"}),
        ("cifar", {"survival_probability": 0.5, "classes": 3}),
    ],
)
def test_saved_model_comes_back_whole(tmp_path, name, options):
    model = built(name, input_shape=(40, 40, 3), **options)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = ResNet.from_config(json.loads(json.dumps(model.get_config())))
    again.set_weights(model.get_weights())
    x = images(2, 40, 40, 3)
    for copy in (loaded, again):
        assert (type(copy), copy.name) == (ResNet, model.name)
        assert (copy.variant, copy.preprocessing) == (model.variant, model.preprocessing)
        assert [x.name for x in copy.layers] == [x.name for x in model.layers]
        assert [w.path for w in copy.weights] == [w.path for w in model.weights]
        assert list(copy.pyramid_outputs) == list(model.pyramid_outputs)
        np.testing.assert_array_equal(run(copy, x), run(model, x))


def test_the_policy_is_kept(tmp_path):
    """By it `compile` scales the loss of float16, also where Keras's setting is another by now."""
    keras.config.set_dtype_policy("mixed_float16")
    model = built("cifar", input_shape=(16, 16, 3))
    keras.config.set_dtype_policy("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for other in (loaded, new_classifier(loaded, 3)):
        other.compile("sgd", "mse")
        assert isinstance(other.optimizer, keras.optimizers.LossScaleOptimizer)


def test_weights_file_comes_back(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = built("cifar")
    model.save_weights(path)
    x = images(2, 32, 32, 3)
    expected = run(model, x)
    np.testing.assert_array_equal(run(build(TINY["cifar"], weights=str(path)), x), expected)
    other = build(TINY["cifar"])
    other.load_weights(path)
    np.testing.assert_array_equal(run(other, x), expected)
    of_seven = build(TINY["cifar"], weights=path, classes=7)
    assert of_seven.output_shape == (None, 7)
    for old, new in zip(model.layers[:-1], of_seven.layers[:-1], strict=True):
        assert all(map(np.array_equal, new.get_weights(), old.get_weights()))


def test_clone_has_the_same_graph_and_names():
    model = built("v1.5", survival_probability=0.8, input_shape=(64, 64, 3))
    clone = keras.models.clone_model(model)
    assert type(clone) is ResNet
    assert [x.name for x in clone.layers] == [x.name for x in model.layers]
    clone.set_weights(model.get_weights())
    x = images(2, 64, 64, 3)
    np.testing.assert_array_equal(run(clone, x), run(model, x))


def test_survival_falls_linearly_with_depth():
    """Huang et al. 2016, section 4: with p_L = 0.5, (3L - 1) / 4 blocks are kept on average."""
    for depth in (20, 110):
        model = build(f"cifar_resnet{depth}", survival_probability=0.5)
        drops = [x for x in model.layers if isinstance(x, keras_resnet.layers.StochasticDepth)]
        survival = [drop.survival_probability for drop in drops]
        total = (depth - 2) // 2
        np.testing.assert_allclose(
            survival, [1 - block / total / 2 for block in range(1, total + 1)]
        )
        assert sum(survival) == pytest.approx((3 * total - 1) / 4)


def test_dropped_residuals_are_scaled_at_inference():
    """`p (gamma x + beta)` is batch normalisation with `p gamma` and `p beta`."""
    dropped = built("cifar", survival_probability=0.4, classifier_activation=None)
    model = build(TINY["cifar"], classifier_activation=None)
    weights = {w.path: w for w in model.weights}
    for weight in dropped.weights:
        if weight.path in weights:
            weights[weight.path].assign(weight)
    positions = [(stage, block) for stage in range(3) for block in range((2, 1, 2)[stage])]
    for position, (stage, block) in enumerate(positions, 1):
        bn = model.get_layer(f"stage{stage + 1}_block{block + 1}_bn2")
        for weight in (bn.gamma, bn.beta):
            weight.assign(weight * (1 - position / 5 * 0.6))
    x = images(2, 32, 32, 3)
    np.testing.assert_allclose(run(dropped, x), run(model, x), rtol=1e-4, atol=1e-4)


def test_residuals_are_dropped_in_training():
    """With every residual dropped, only the stem and the shortcuts speak."""
    model = build(
        TINY["cifar"], survival_probability=1e-6, include_top=False, input_shape=(9, 9, 3)
    )
    for layer in model.layers:
        if isinstance(layer, keras_resnet.layers.StochasticDepth):
            layer.survival_probability = 1e-9
    stem = keras.Model(model.input, model.get_layer("stem_relu").output)
    x = images(2, 9, 9, 3)
    expected = np.pad(run(stem, x, training=True)[:, ::4, ::4], [(0, 0)] * 3 + [(0, 16)])
    np.testing.assert_allclose(run(model, x, training=True), expected, rtol=1e-5, atol=1e-6)
