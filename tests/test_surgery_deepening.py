"""Deepening: nothing changes, and what was inserted learns."""

import keras
import numpy as np
import pytest
import sklearn.datasets
from keras import layers
from trained import images, look_trained, network, outputs

from keras_resnet import CifarResNet20, ResNet, build, ensemble
from keras_resnet.surgery import deepen

NETWORKS = {
    "zero_padding": ("cifar_resnet20", {}),
    "projection": ("resnet18", {"input_shape": (40, 33, 3)}),
    "projection_all": ("cifar_resnet20", {"shortcut": "projection_all"}),
    "bottleneck": ("resnet50", {"input_shape": (40, 33, 3), "filters": (4, 8)}),
    "bn_after_addition": ("cifar_resnet20", {"activation_order": "bn_after_addition"}),
    "relu_pre_activation": ("cifar_resnet20", {"activation_order": "relu_pre_activation"}),
    "full_pre_activation": ("cifar_resnet20", {"activation_order": "full_pre_activation"}),
    "stochastic_depth": ("cifar_resnet20", {"survival_probability": 0.5}),
    "squeeze_and_excitation": ("cifar_resnet20", {"attention": "se"}),
    "dilated": ("resnet18", {"blocks": (1, 1, 2, 2), "output_stride": 8}),
    "plain": ("cifar_plainnet20", {}),
    # With one block in a stage, the pattern is a block that down-samples.
    "one_block": ("cifar_resnet20", {"blocks": (1, 1, 1)}),
    "one_block_projection": ("cifar_resnet20", {"blocks": (1, 1), "shortcut": "projection"}),
    "one_block_plain": ("cifar_plainnet20", {"blocks": (1, 1)}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_are_equal_to_the_bit_and_the_variant_is_true(kind):
    name, options = NETWORKS[kind]
    if "blocks" in options and len(options["blocks"]) == 4:
        options = {"input_shape": (40, 33, 3), "filters": (4, 4, 8, 8)} | options
    model = network(name, **options)
    counts = model.variant.blocks
    deep = deepen(model, {"stage1": 2, "stage2": 1})
    x = images(model)
    np.testing.assert_array_equal(outputs(deep, x), outputs(model, x))
    assert isinstance(deep, ResNet)
    assert deep.variant.blocks == (counts[0] + 2, counts[1] + 1, *counts[2:])
    built = build(deep.variant, input_shape=model.input_shape[1:])
    assert {weight.path: weight.shape for weight in deep.weights} == {
        weight.path: weight.shape for weight in built.weights
    }
    assert {level: x.shape for level, x in deep.pyramid_outputs.items()} == {
        level: x.shape for level, x in built.pyramid_outputs.items()
    }


def test_eighteen_blocks_more():
    model = look_trained(CifarResNet20())
    deep = deepen(model, 6)
    assert deep.variant.blocks == (9, 9, 9)
    assert deep.count_params() == 857_082  # ResNet-56
    np.testing.assert_array_equal(*(net.predict(images(model), verbose=0) for net in (model, deep)))
    # What was trained is kept; what is new follows it.
    for layer in model.layers:
        kept = deep.get_layer(layer.name).get_weights()
        assert all(map(np.array_equal, layer.get_weights(), kept))
    assert not deep.get_layer("stage3_block9_bn2").gamma.numpy().any()
    assert deep.get_layer("stage3_block9_conv1").kernel.numpy().std() > 0


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
def test_other_precisions(policy):
    keras.config.set_dtype_policy(policy)
    for name in ("cifar_resnet20", "cifar_plainnet20"):
        model = network(name, (1, 1))
        x = images(model)
        np.testing.assert_array_equal(outputs(deepen(model, 2), x), outputs(model, x))


def test_resnet50_of_keras_applications():
    application = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=5)
    model = look_trained(application)
    deep = deepen(model, {"conv4": 1})
    np.testing.assert_array_equal(*(outputs(net, images(model)) for net in (model, deep)))
    # A bottleneck of width 256: three convolutions with biases and three normalisations.
    block = 2 * 1024 * 256 + 9 * 256**2 + 256 + 256 + 1024 + 4 * (256 + 256 + 1024)
    assert deep.count_params() == model.count_params() + block
    assert deep.get_layer("conv4_block7_3_bn").name in {layer.name for layer in deep.layers}


def test_a_backbone_in_a_classifier_is_deepened():
    backbone = network("cifar_resnet20", (2, 1))
    model = keras.Sequential([backbone, layers.Dense(3)])
    deep, x = deepen(model, {"stage2": 1}), images(backbone)
    np.testing.assert_array_equal(outputs(deep, x), outputs(model, x))
    assert deep.get_layer(backbone.name).variant.blocks == (2, 2)


def test_the_variant_is_true_where_layers_were_renamed():
    model = network("cifar_resnet20", (2, 1))
    for layer in model.layers:
        layer.name = f"teacher_{layer.name}"
    assert deepen(model, {"teacher_stage2": 1}).variant.blocks == (2, 2)


def test_several_networks_in_one_model_are_refused():
    """Their stages have the same names: one of them would be deepened, and both be said to be."""
    both = ensemble([network("cifar_resnet20", (1, 1)), network("cifar_resnet20", (2, 1))])
    with pytest.raises(ValueError, match=r"several networks.*2 times 'stage1_block1_out'"):
        deepen(both, 1)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_plainnet20"])
def test_the_deeper_network_trains_on(name, tmp_path):
    digits = sklearn.datasets.load_digits()
    x, y = digits.images[:256, ..., None] / 16, digits.target[:256]
    settings = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model = network(name, (1, 1), input_shape=(8, 8, 1))
    model.compile(keras.optimizers.Adam(3e-3), **settings)
    model.fit(x, y, epochs=2, verbose=0)

    deep = deepen(model, 1)
    np.testing.assert_array_equal(outputs(deep, x), outputs(model, x))
    deep.compile(keras.optimizers.Adam(3e-3), **settings)
    before = {weight.path: weight.numpy() for weight in deep.trainable_weights}
    start = deep.evaluate(x, y, verbose=0)
    assert start == model.evaluate(x, y, verbose=0)
    losses = deep.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < min(losses[0], start)
    new = [weight for weight in deep.trainable_weights if "_block2_" in weight.path]
    assert len(new) == 12
    for weight in new:
        assert np.abs(weight.numpy() - before[weight.path]).max() > 1e-4, weight.path
    deep.save(tmp_path / "deep.keras")
    loaded = keras.models.load_model(tmp_path / "deep.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(deep, x))


def test_nothing_is_inserted_where_nothing_is_asked_for():
    model = network("cifar_resnet20")
    deep = deepen(model, {"stage2": 0})
    assert deep.variant == model.variant
    assert deep.count_params() == model.count_params()


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({"activation_order": "relu_before_addition"}, "stage1_block2_relu2' (ReLU)"),
        ({"shortcut": "exclusive_gating"}, "stage1_block2_add' (GatedAdd)"),
        ({"shortcut": "none", "activation_order": "full_pre_activation"}, "stage1_block2_relu2'"),
    ],
)
def test_blocks_that_cannot_be_the_identity_are_refused(options, layer):
    with pytest.raises(ValueError) as error:
        deepen(network("cifar_resnet20", **options), 1)
    assert str(error.value).startswith(
        "A block like stage1_block2 cannot be the identity and learn. Expected residuals that end "
        "in batch normalisation or a convolution, added to an unchanged shortcut; or plain "
        f"convolutions of one width behind a ReLU. Received: layer '{layer}"
    )


def of_activations(first, last, residual, **options):
    """A foreign network of one block, two convolutions with activations of their own."""
    image = keras.Input((9, 8, 4))
    x = layers.ReLU()(image)
    options = {"kernel_size": 3, "padding": "same", "activation": first} | options
    y = layers.Conv2D(4, **options, name="stage1_block1_conv1")(x)
    name = "stage1_block1_conv2" if residual else "stage1_block1_out"
    y = layers.Conv2D(4, 3, padding="same", activation=last, name=name)(y)
    y = layers.Add(name="stage1_block1_out")([x, y]) if residual else y
    return look_trained(keras.Model(image, y))


@pytest.mark.parametrize("kinds", [("tanh", None, True), ("relu", "relu", False)])
def test_convolutions_may_have_activations_of_their_own(kinds):
    model = of_activations(*kinds)
    deep, x = deepen(model, 2), images(model)
    np.testing.assert_array_equal(outputs(deep, x), outputs(model, x))


@pytest.mark.parametrize(
    ("kinds", "layer"),
    [
        (("relu", "sigmoid", True), "conv2"),
        (("relu", "relu", True), "conv2"),  # it would never learn
        (("tanh", "relu", False), "conv1"),
        (("relu", None, False), "conv1"),  # would cut what is negative behind it
    ],
)
def test_activations_that_change_what_passes_are_refused(kinds, layer):
    with pytest.raises(ValueError, match=f"Received: layer 'stage1_block1_{layer}' .Conv2D."):
        deepen(of_activations(*kinds), 1)


@pytest.mark.parametrize("dilation", [1, 2])
def test_an_even_kernel_has_a_centre_unless_it_is_dilated(dilation):
    options = {"kernel_size": 2, "dilation_rate": dilation}
    model = of_activations("relu", "relu", False, **options)
    if dilation == 2:
        with pytest.raises(ValueError, match=r"layer 'stage1_block1_conv1' .Conv2D."):
            deepen(model, 1)
    else:
        x = images(model)
        np.testing.assert_array_equal(outputs(deepen(model, 1), x), outputs(model, x))


def test_stages_that_end_in_their_down_sampling_are_not_prolonged():
    model = network("resnet50v2", (2, 2), (33, 40, 3), filters=(4, 8), stride_in_last_block=True)
    with pytest.raises(ValueError) as error:
        deepen(model, {"stage1": 1})
    assert str(error.value) == (
        "The stages end in their down-sampling: new blocks behind it would be of the next stage. "
        "Expected blocks for stage2 alone, e.g. {'stage2': 2}. "
        "Received: 'resnet50v2' with stride_in_last_block=True, blocks={'stage1': 1}."
    )
    deep, x = deepen(model, {"stage2": 1}), images(model)
    np.testing.assert_array_equal(outputs(deep, x), outputs(model, x))


def test_errors_of_arguments():
    model = network("cifar_resnet20", (1, 1))
    with pytest.raises(ValueError) as error:
        deepen(model, {"stage_1": 1})
    assert str(error.value) == (
        "Unknown stage. Expected one of stage1, stage2. Received: 'stage_1'. Did you mean 'stage1'?"
    )
    for blocks in (-1, 1.5, True):
        with pytest.raises(ValueError) as error:
            deepen(model, blocks)
        assert str(error.value) == (
            "A number of blocks is not possible. Expected `blocks` to be an integer of at least 0, "
            f"or such integers by stage. Received: blocks={blocks!r}."
        )
    image = keras.Input((4, 4, 3))
    with pytest.raises(ValueError) as error:
        deepen(keras.Model(image, layers.ReLU()(image), name="other"), 1)
    assert str(error.value) == (
        "The model has no blocks. Expected layers called '{stage}_block{number}_out', e.g. "
        "'stage3_block2_out'. Received: 'other', which has none."
    )
