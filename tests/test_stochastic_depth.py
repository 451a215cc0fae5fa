"""Stochastic depth: who survives how often, and that a dropped residual is as if it were not."""

import dataclasses

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from families import small
from structure import build_unallocated

import keras_resnet
from keras_resnet.layers import StochasticDepth
from training.strategy import make_strategy

HALF = {"survival_probability": 0.5}
ROWS = {
    "zero_padding": small("cifar_resnet110", **HALF),
    "average_pool": small("cifar_resnet110", shortcut="average_pool_zero_padding", **HALF),
    "projection": small("cifar_resnet110", shortcut="projection", **HALF),
    "pre_activation": small("cifar_resnet164v2", **HALF),
    "se": small("se_resnet50", stem="cifar", **HALF),
}
BLOCKS = ["stage1_block1", "stage1_block2", "stage2_block1", "stage2_block2"]
# As the residuals of each block are to be kept or dropped.
SOME = dict(zip(BLOCKS, (True, False, False, True)))
ALL, NONE = dict.fromkeys(BLOCKS, True), dict.fromkeys(BLOCKS, False)


def drops(model):
    return [layer for layer in model.layers if isinstance(layer, StochasticDepth)]


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def build(row="zero_padding", **arguments):
    """A small network that gives logits, its weights random."""
    variant = ROWS.get(row, row)
    arguments = {"input_shape": (9, 8, 3), "classifier_activation": None} | arguments
    model = keras_resnet.build(variant, **arguments)
    randomize(model)
    return model


def randomize(model):
    """Random values for all but the states of the draws, which are integers."""
    for layer in model.layers:
        if not isinstance(layer, StochasticDepth):
            reference.randomize(layer)
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(layer.kernel / np.sqrt(np.prod(layer.kernel.shape[:3])))


@pytest.fixture
def decide(monkeypatch):
    """A function that fixes the draws: from a block's name to whether its residual is kept."""

    def fix(kept):
        def draw(layer, shape=()):
            return tf.fill(shape, kept[layer.name.removesuffix("_drop")])

        monkeypatch.setattr(StochasticDepth, "draw", draw)

    return fix


def step(model, x, mode="eager"):
    """One forward and backward pass: outputs, gradients by path, and all weights thereafter."""
    signature = {"input_signature": [tf.TensorSpec(x.shape)], "autograph": False}

    def forward_backward(x):
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, "float32") * images(*outputs.shape))
        return outputs, tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    if mode != "eager":
        forward_backward = tf.function(forward_backward, jit_compile=mode == "xla", **signature)
    outputs, gradients = forward_backward(tf.constant(x))
    paths = [weight.path for weight in model.trainable_weights]
    return (
        keras.ops.convert_to_numpy(outputs),
        {path: keras.ops.convert_to_numpy(g) for path, g in zip(paths, gradients, strict=True)},
        {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights},
    )


def computed_and_multiplied(model, x):
    """The same step as stock Keras runs it: residuals are computed, then multiplied by 0."""
    before = model.get_weights()
    result = step(keras.Model(model.input, model.output), x)
    model.set_weights(before)
    return result


def is_of_residual(path, kept, value=False):
    """Whether a weight belongs to a residual that is dropped (or kept, by `value`)."""
    part = path.split("/")[0]
    block = next((block for block in BLOCKS if part.startswith(f"{block}_")), None)
    return block is not None and "shortcut" not in part and kept[block] is value


def check_step(model, x, kept, mode="eager", tolerance=1e-5):
    """A step equals the stock one, but that the statistics of dropped residuals rest."""
    before = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    outputs, gradients, after = computed_and_multiplied(model, x)
    results = step(model, x, mode)
    np.testing.assert_allclose(results[0], outputs, tolerance, tolerance * np.abs(outputs).max())
    scale = max(np.abs(gradient).max() for gradient in gradients.values())
    for path, gradient in gradients.items():
        np.testing.assert_allclose(
            results[1][path], gradient, 100 * tolerance, tolerance * scale, err_msg=path
        )
        if is_of_residual(path, kept) and not is_shared(model, path):
            assert not np.any(results[1][path]), path
    for path, weight in results[2].items():
        if is_of_residual(path, kept) and not is_shared(model, path):
            np.testing.assert_array_equal(weight, before[path], err_msg=path)
        elif "seed_generator" not in path:
            np.testing.assert_allclose(weight, after[path], tolerance, tolerance, err_msg=path)
            if "moving" in path:
                assert np.any(weight != before[path]), path


def is_shared(model, path):
    """Whether a weight stands before the fork of a block: activations that serve both paths."""
    pre_activated = model.variant.activation_order == "full_pre_activation"
    return pre_activated and path.split("/")[0] in ("stage1_block1_bn1", "stage2_block1_bn1")


# Who survives how often.


@pytest.mark.parametrize("name", ["resnet152", "cifar_resnet110", "cifar_resnet164v2"])
@pytest.mark.parametrize("last", [0.5, 0.2])
def test_survival_falls_linearly_to_that_of_the_last_block(name, last):
    """Huang et al. 2016, equation 4."""
    layers = drops(build_unallocated(name, survival_probability=last))
    total = len(layers)
    assert total == sum(keras_resnet.VARIANTS[name].blocks)
    for position, layer in enumerate(layers, 1):
        expected = 1 - position / total * (1 - last)
        assert layer.survival_probability == pytest.approx(expected, rel=1e-12)
        assert not layer.per_image
    assert layers[-1].survival_probability == pytest.approx(last)


def test_40_of_54_blocks_are_expected():
    """Huang et al. 2016, section 3, "expected network depth"."""
    kept = [
        drop.survival_probability for drop in drops(build_unallocated("cifar_resnet110", **HALF))
    ]
    assert (len(kept), round(sum(kept))) == (54, 40)
    assert sum(kept) == pytest.approx((3 * 54 - 1) / 4, rel=1e-12)


def test_survival_may_be_uniform():
    layers = drops(
        build_unallocated("resnet34", survival_probability=0.8, survival_schedule="uniform")
    )
    assert [layer.survival_probability for layer in layers] == [0.8] * 16


def test_blocks_survive_as_often_as_they_should():
    """Seen by the statistics of their batch normalisation, which a dropped block does not move."""
    model = build()
    norms = [model.get_layer(f"{block}_bn2") for block in BLOCKS]
    run = tf.function(lambda x: model(x, training=True))
    times, kept = 200, np.zeros(len(BLOCKS))
    x = images(1, 9, 8, 3)
    for _ in range(times):
        before = [norm.moving_variance.numpy() for norm in norms]
        for norm, variance in zip(norms, before):
            norm.moving_variance.assign(variance + 1)
        run(x)
        moved = [np.any(n.moving_variance.numpy() != v + 1) for n, v in zip(norms, before)]
        kept += moved
        for norm, variance in zip(norms, before):
            norm.moving_variance.assign(variance)
    survival = np.array([0.875, 0.75, 0.625, 0.5])
    assert np.all(np.abs(kept / times - survival) < 4 * np.sqrt(survival * (1 - survival) / times))


def test_inference_scales_by_survival():
    """Huang et al. 2016, equation 5."""
    keras.config.set_dtype_policy("float64")
    model = build(include_top=False)
    names = ["stem_relu", *(f"{block}_out" for block in BLOCKS)]
    tensors = [model.get_layer(name).output for name in names]
    maps = [np.asarray(x) for x in keras.Model(model.input, tensors)(images(2, 9, 8, 3))]
    for block, x, y, survival in zip(BLOCKS, maps, maps[1:], (0.875, 0.75, 0.625, 0.5)):
        weights = reference.weights_of(model, block)
        strides = 2 if block == "stage2_block1" else 1
        residual = reference.block(x, weights, "WBRWB", "none", strides=strides)
        kept = reference.shortcut(x, weights, "zero_padding", strides, y.shape[-1], None, False)
        np.testing.assert_allclose(y, np.maximum(kept + survival * residual, 0), rtol=1e-9)


# What a training step does.


@pytest.mark.parametrize("kept", [SOME, NONE], ids=["some", "none"])
@pytest.mark.parametrize("row", ROWS)
def test_step_equals_that_of_stock_keras_but_for_the_statistics_of_the_dropped(row, kept, decide):
    decide(kept)
    check_step(build(row), images(4, 9, 8, 3), kept)


@pytest.mark.parametrize("row", ROWS)
def test_all_kept_is_the_network_of_constant_depth(row, decide):
    decide(ALL)
    model = build(row)
    constant = keras_resnet.build(
        model.variant,
        survival_probability=1.0,
        input_shape=(9, 8, 3),
        classifier_activation=None,
    )
    values = {weight.path: weight for weight in model.weights}
    for weight in constant.weights:
        weight.assign(values[weight.path])
    x = images(4, 9, 8, 3)
    outputs, gradients, after = step(constant, x)
    results = step(model, x)
    np.testing.assert_array_equal(results[0], outputs)
    assert results[1].keys() == gradients.keys()
    for path in gradients:
        np.testing.assert_array_equal(results[1][path], gradients[path], err_msg=path)
    for path in after:
        np.testing.assert_array_equal(results[2][path], after[path], err_msg=path)


@pytest.mark.parametrize("row", ["zero_padding", "projection"])
def test_all_dropped_leaves_the_shortcuts(row, decide):
    decide(NONE)
    model = build(row, include_top=False)
    stem = keras.Model(model.input, model.get_layer("stem_relu").output)
    x = images(4, 9, 8, 3)
    before = model.get_weights()
    expected = np.float64(stem(x, training=True))
    model.set_weights(before)
    if row == "projection":
        weights = reference.weights_of(model, "stage2_block1")
        expected = reference.conv2d(expected, *weights["shortcut_conv"], strides=2)
        expected = reference.batch_norm(expected, *weights["shortcut_bn"], training=True)
    else:
        expected = np.pad(expected[:, ::2, ::2], [(0, 0)] * 3 + [(0, 8)])
    outputs = model(x, training=True)
    np.testing.assert_allclose(outputs, np.maximum(expected, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_step_in_a_graph(mode, decide):
    decide(SOME)
    check_step(build("projection"), images(4, 9, 8, 3), SOME, mode)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_step_in_mixed_precision(policy, mode, decide):
    decide(SOME)
    keras.config.set_dtype_policy(policy)
    model = build()
    check_step(model, images(4, 9, 8, 3), SOME, mode, 0.05)
    assert model(images(1, 9, 8, 3), training=True).dtype == "float32"


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_step_of_open_sizes(mode, decide):
    decide(SOME)
    model = build("average_pool", input_shape=(None, None, 3))
    check_step(model, images(4, 9, 8, 3), SOME, mode)


def test_step_of_a_gated_network_multiplies(decide):
    """Where the merge is no addition, there is no condition; the result is the paper's."""
    decide(NONE)
    model = build(small("cifar_resnet20", shortcut="exclusive_gating", **HALF), include_top=False)
    names = ("stage2_block2_gate", "stage2_block1_out", "stage2_block2_out")
    tensors = [model.get_layer(name).output for name in names]
    gate, x, y = keras.Model(model.input, tensors)(images(4, 9, 8, 3), training=True)
    np.testing.assert_allclose(y, np.maximum((1 - gate) * x, 0), rtol=1e-5, atol=1e-6)


def test_each_image_may_draw_for_itself():
    model = build(survival_per_image=True, include_top=False)
    assert all(layer.per_image for layer in drops(model))
    same = np.repeat(images(1, 9, 8, 3), 32, axis=0)
    outputs = np.asarray(model(same, training=True))
    ways = np.unique(outputs.round(3).reshape(32, -1), axis=0)
    assert 4 <= len(ways) <= 2 ** len(BLOCKS)


# That what is dropped costs nothing.


@pytest.mark.parametrize(
    ("row", "outside"), [("zero_padding", 1), ("projection", 2), ("pre_activation", 3)]
)
def test_dropped_residuals_are_not_computed(row, outside):
    """The graph has a condition per block, and only stem and projections outside of them."""
    model = build(row)

    def forward_backward(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True))
        return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    traced = tf.function(forward_backward).get_concrete_function(tf.TensorSpec((None, 9, 8, 3)))
    graph = traced.graph.as_graph_def()
    top = [node.op for node in graph.node]
    assert sum(op in ("If", "StatelessIf") for op in top) == 2 * len(BLOCKS)  # forth and back
    assert top.count("Conv2D") == top.count("Conv2DBackpropFilter") == outside


# `fit`, in every way.

NO_STATISTICS = {"activation_order": "no_normalization", "conv_bias": True}


def trained(replicas=None, options=NO_STATISTICS, static=False, blocks=(1, 1), **arguments):
    """A small network after two steps of 16 images; in batches of open size unless `static`."""
    keras.utils.set_random_seed(0)
    with make_strategy(replicas).scope() if replicas else tf.name_scope(""):
        row = dataclasses.replace(ROWS["zero_padding"], blocks=blocks)
        model = keras_resnet.build(row, input_shape=(8, 8, 3), **options)
        model.compile("sgd", "sparse_categorical_crossentropy", **arguments)
    data = tf.data.Dataset.from_tensor_slices((images(32, 8, 8, 3), np.arange(32) % 3))
    model.fit(data.batch(16, drop_remainder=static), shuffle=False, verbose=0)
    return model


def largest_difference(first, second):
    pairs = zip(first.trainable_weights, second.trainable_weights)
    return max(np.abs(a.numpy() - b.numpy()).max() for a, b in pairs)


@pytest.mark.parametrize(
    ("replicas", "arguments"),
    [
        (None, {"run_eagerly": True}),
        (None, {"jit_compile": True}),
        (2, {"jit_compile": False}),
        pytest.param(2, {"jit_compile": True}, marks=pytest.mark.slow),
    ],
    ids=["eager", "xla", "two replicas", "xla on two replicas"],
)
def test_fit_gives_the_same_weights_in_every_way(replicas, arguments, decide):
    decide(SOME)
    plain = trained(jit_compile=False)
    assert largest_difference(trained(replicas, **arguments), plain) < 1e-5


def test_xla_takes_batches_of_open_size(decide):
    """It cannot differentiate a condition around them; the residuals are multiplied instead."""
    decide(SOME)
    plain, compiled = (
        trained(options={}, jit_compile=jit_compile, blocks=(2, 2)) for jit_compile in (False, True)
    )
    assert largest_difference(compiled, plain) < 1e-4


@pytest.mark.parametrize("jit_compile", [False, True])
def test_statistics_of_dropped_residuals_rest_on_replicas(jit_compile, decide):
    decide(SOME)
    model = trained(2, options={}, jit_compile=jit_compile, static=True)
    for block in ("stage1_block1", "stage2_block1"):
        for name in ("bn1", "bn2"):
            mean = model.get_layer(f"{block}_{name}").moving_mean.numpy()
            assert np.any(mean) == SOME[block], (block, name)
    assert np.any(model.get_layer("stem_bn").moving_mean.numpy())


# The model among other models.


def statistics_rest(model, x, trains, kept=NONE):
    """Whether training leaves the statistics of all dropped residuals alone."""
    norms = {w.path: w for w in model.weights if "moving" in w.path and "stage" in w.path}
    before = {path: w.numpy() for path, w in norms.items()}
    trains(x)
    rests = [np.array_equal(w.numpy(), before[path]) for path, w in norms.items()]
    assert len(rests) >= 16
    return all(rests)


def test_inside_another_model(decide):
    decide(NONE)
    model = build()
    image = keras.Input((9, 8, 3))
    outer = keras.Model(image, keras.layers.Dense(2)(model(keras.layers.Rescaling(2.0)(image))))
    outer.compile("sgd", "mse", jit_compile=False)
    x = images(4, 9, 8, 3)
    assert statistics_rest(model, x, lambda x: outer.fit(x, np.zeros((4, 2)), verbose=0))


def test_inside_a_model_that_xla_compiles():
    """The model itself is not asked for XLA, and must not branch around open sizes all the same."""
    image = keras.Input((4, 4, 3))
    residual = keras.layers.Conv2D(3, 3, padding="same")(image)
    residual = StochasticDepth(0.5)(keras_resnet.layers.BatchNormalization()(residual))
    model = keras_resnet.ResNet(image, keras.layers.Add()([image, residual]))
    outer = keras.Sequential([model])
    outer.compile("sgd", "mse", jit_compile=True)
    x = images(4, 4, 4, 3)
    assert np.isfinite(outer.fit(x, x, verbose=0).history["loss"][0])


def test_two_inputs(decide):
    decide(NONE)
    pair = keras.Input((9, 8, 3)), keras.Input((9, 8, 3))
    model = build(input_tensor=keras.layers.Add()(list(pair)))
    x = images(4, 9, 8, 3)
    expected = keras.ops.convert_to_numpy(model([2 * x, 0 * x], training=True))
    assert statistics_rest(model, [x, x], lambda x: model(x, training=True))
    np.testing.assert_allclose(model([x, x], training=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [list, dict], ids=["list", "dict"])
def test_several_outputs(make, decide):
    decide(NONE)
    model = build()
    levels = model.pyramid_outputs
    outputs = levels if make is dict else list(levels.values())
    several = keras_resnet.ResNet(model.input, outputs, variant=model.variant)
    x = images(4, 9, 8, 3)
    maps = several(x, training=True)
    assert type(maps) is make
    values = maps.values() if make is dict else maps
    assert [value.shape[1:] for value in values] == [(9, 8, 16), (5, 4, 24)]
    assert statistics_rest(model, x, lambda x: several(x, training=True))


def test_a_list_of_one_output(decide):
    decide(NONE)
    model = build()
    listed = keras_resnet.ResNet(model.input, [model.output], variant=model.variant)
    assert listed(images(4, 9, 8, 3), training=True).shape == (4, 3)


def test_an_output_inside_a_residual_is_computed(decide):
    decide(NONE)
    model = build()
    inside = model.get_layer("stage1_block2_conv1").output
    both = keras_resnet.ResNet(model.input, [inside, model.output])
    x = images(4, 9, 8, 3)
    assert np.any(both(x, training=True)[0])


def test_a_drop_that_serves_twice_draws_once(decide):
    image = keras.Input((4, 4, 3))
    dropped = StochasticDepth(0.5, name="drop", seed=0)(keras.layers.ReLU()(image))
    once = keras.layers.Add()([image, dropped])
    twice = keras_resnet.ResNet(image, keras.layers.Add()([once, dropped]))
    ones = np.ones((1, 4, 4, 3), "float32")
    seen = {float(np.max(twice(ones, training=True))) for _ in range(30)}
    assert seen == {1.0, 3.0}


def test_three_addends(decide):
    image = keras.Input((4, 4, 3))
    dropped = StochasticDepth(0.5)(keras.layers.ReLU()(image))
    model = keras_resnet.ResNet(image, keras.layers.Add()([image, dropped, image]))
    ones = np.ones((1, 4, 4, 3), "float32")
    assert {float(np.max(model(ones, training=True))) for _ in range(30)} == {2.0, 3.0}


def test_a_residual_of_bare_operations(decide):
    decide({"only": False})
    image = keras.Input((4, 4, 3))
    dropped = StochasticDepth(0.5, name="only_drop")(2 * keras.layers.ReLU()(image))
    model = keras_resnet.ResNet(image, keras.layers.Add()([image, dropped]))
    ones = np.ones((1, 4, 4, 3), "float32")
    np.testing.assert_array_equal(model(ones, training=True), ones)


def test_activity_regularisation_inside_a_residual_counts(decide):
    decide({"only": True})
    image = keras.Input((4, 4, 3))
    inner = keras.layers.ActivityRegularization(l2=1.0)(keras.layers.ReLU()(image))
    dropped = StochasticDepth(0.5, name="only_drop")(inner)
    model = keras_resnet.ResNet(image, keras.layers.Add()([image, dropped]))

    @tf.function(autograph=False)
    def loss(x):
        model(x, training=True)
        return model.losses[0]

    assert loss(tf.ones((2, 4, 4, 3))) == 48  # per image


def test_frozen_network_stays_as_it_is(decide):
    decide(SOME)
    model = build()
    model.trainable = False
    before = model.get_weights()
    outputs = model(images(4, 9, 8, 3), training=True)
    for one, two in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)
    stock = keras.Model(model.input, model.output)(images(4, 9, 8, 3), training=True)
    np.testing.assert_allclose(outputs, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copy", ["saved", "cloned"])
@pytest.mark.parametrize("per_image", [False, True])
def test_copies_drop_by_themselves(tmp_path, copy, per_image, decide):
    decide(NONE)
    model = build(survival_schedule="uniform", survival_per_image=per_image)
    x = images(4, 9, 8, 3)
    model(x, training=True)  # finds and remembers its residuals
    if copy == "saved":
        model.save(tmp_path / "model.keras")
        other = keras.models.load_model(tmp_path / "model.keras")
    else:
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
    assert [layer.survival_probability for layer in drops(other)] == [0.5] * 4
    assert [layer.per_image for layer in drops(other)] == [per_image] * 4
    np.testing.assert_array_equal(other(x), model(x))
    before = model.get_weights()
    assert statistics_rest(other, x, lambda x: other(x, training=True)) is not per_image
    for one, two in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)
