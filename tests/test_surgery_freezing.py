"""Frozen parts keep weights and statistics in real training, in saved models, on two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnet
from keras_resnet.surgery import freeze, new_classifier, unfreeze

IMAGES = np.random.default_rng(0).normal(2.0, 3.0, (8, 16, 16, 3)).astype("float32")
LABELS = np.arange(8) % 3


def network(**options):
    return keras_resnet.CifarResNet(8, input_shape=(16, 16, 3), classes=3, **options)


def learn(model):
    """One epoch; which layers' weights changed, and in which parts those lie."""
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    model.fit(IMAGES, LABELS, batch_size=4, epochs=1, verbose=0)
    changed = {
        name
        for name, weights in before.items()
        if any(
            not np.array_equal(old, new)
            for old, new in zip(weights, model.get_layer(name).get_weights(), strict=True)
        )
    }
    return changed, {name.split("_")[0] for name in changed}


@pytest.mark.parametrize(
    ("up_to", "learning"),
    [
        ("stem", {"stage1", "stage2", "stage3", "predictions"}),
        ("stage2", {"stage3", "predictions"}),
        ("stage3", {"predictions"}),
    ],
)
def test_frozen_parts_do_not_change_in_fit(up_to, learning):
    assert learn(freeze(network(), up_to))[1] == learning


@pytest.mark.parametrize("wrap", ["functional", "sequential"])
def test_a_network_inside_another_model_is_frozen_as_alone(wrap):
    backbone = network(include_top=False, pooling="avg")
    parts = [keras.Input((16, 16, 3)), keras.layers.RandomFlip(), backbone, keras.layers.Dense(3)]
    model = keras.Sequential(parts)
    if wrap == "functional":
        model = keras.Model(model.inputs, model.outputs)
    alone = {layer.name for layer in freeze(network(), "stage2").layers if not layer.trainable}
    freeze(model, "stage2")
    assert {layer.name for layer in backbone.layers if not layer.trainable} == alone
    freeze(model, batch_norm="all")
    assert not any(layer.trainable for layer in backbone.layers if "bn" in layer.name)
    assert all(layer.trainable for layer in backbone.layers if "stage3_block1_conv" in layer.name)


def test_batch_norm_that_is_not_there_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"Nothing would be frozen.*'cifar_resnet8', which has"):
        freeze(network(activation_order="no_normalization"), batch_norm="all")


@pytest.mark.parametrize("batch_norm", [True, False])
def test_to_freeze_nothing_is_an_error(batch_norm):
    with pytest.raises(ValueError, match=r"Nothing would be frozen. Expected `up_to`"):
        freeze(network(), batch_norm=batch_norm)


def test_the_head_of_a_pre_activation_network_is_a_part():
    model = network(activation_order="full_pre_activation")
    assert learn(freeze(model, "stage3"))[1] == {"head", "predictions"}
    assert learn(freeze(model, "head"))[1] == {"predictions"}


def test_batch_norm_may_learn_on():
    changed, _ = learn(freeze(network(), "stage2", batch_norm=False))
    assert {"stem_bn", "stage1_block1_bn1", "stage2_block1_bn2"} < changed
    assert not {"stem_conv", "stage1_block1_conv1", "stage2_block1_conv2"} & changed


def test_all_batch_norm_may_be_frozen_alone():
    changed, parts = learn(freeze(network(), batch_norm="all"))
    assert not any("bn" in name for name in changed)
    assert "stem" in parts


@pytest.mark.parametrize("fused", [True, False])
def test_frozen_batch_norm_normalises_with_what_it_learnt(fused):
    """In the fused layer of this package, and in Keras's own."""
    model = network()
    if not fused:
        model = keras_resnet.surgery.synchronize_batch_norm(model)
    freeze(model, "stage3")
    outputs = keras.Model(model.input, model.get_layer("head_pool").output)
    np.testing.assert_array_equal(outputs(IMAGES, training=True), outputs(IMAGES, training=False))


def test_freezing_survives_saving_and_loading(tmp_path):
    model = freeze(network(), "stage2")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    frozen = [layer.name for layer in model.layers if not layer.trainable]
    assert [layer.name for layer in loaded.layers if not layer.trainable] == frozen
    assert learn(loaded)[1] == {"stage3", "predictions"}


def test_unfreezing_takes_it_back():
    model = unfreeze(freeze(network(), "stage3", batch_norm="all"))
    assert learn(model)[1] == {"stem", "stage1", "stage2", "stage3", "predictions"}


def test_statistics_stand_still_on_two_replicas():
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        model = freeze(network(), "stage2")
        parts = learn(model)[1]
    assert parts == {"stage3", "predictions"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"up_to": "stage4"},
            "Unknown part of cifar_resnet8. Expected one of stem, stage1, stage2, stage3, head. "
            "Received: 'stage4'. Did you mean 'stage3'?",
        ),
        (
            {"up_to": "stem", "batch_norm": "none"},
            "Unknown `batch_norm`. Expected True, False or 'all'. Received: 'none'.",
        ),
    ],
)
def test_unknown_parts_change_nothing(arguments, message):
    model = network()
    with pytest.raises(ValueError, match="Unknown") as error:
        freeze(model, **arguments)
    assert str(error.value) == message
    assert all(layer.trainable for layer in model.layers)


def test_a_model_without_parts_says_so():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="mlp")
    with pytest.raises(
        ValueError,
        match=r"Unknown part of mlp\. Expected none, for there are none\. Received: 'stem'\.",
    ):
        freeze(model, "stem")


# A new classifier


def test_a_new_classifier_keeps_all_before_it():
    model = network()
    other = new_classifier(model, 5)
    assert other.output_shape == (None, 5)
    assert (other.variant, other.preprocessing) == (model.variant, model.preprocessing)
    first, second = (
        keras.Model(each.input, each.get_layer("head_pool").output)(IMAGES)
        for each in (model, other)
    )
    np.testing.assert_array_equal(second, first)
    np.testing.assert_allclose(np.sum(other(IMAGES), axis=1), 1, atol=1e-6)  # still a softmax


@pytest.mark.parametrize("change", ["enable_lora", "quantize"])
def test_a_new_classifier_is_a_plain_one(change):
    model = network()
    head = model.layers[-1]
    head.enable_lora(2) if change == "enable_lora" else model.quantize("int8")
    other = new_classifier(model, 5).layers[-1]
    assert {weight.name: weight.dtype for weight in other.weights} == {
        "kernel": "float32",
        "bias": "float32",
    }


def test_there_must_be_a_classifier():
    with pytest.raises(ValueError, match="no classifier to replace"):
        new_classifier(network(include_top=False), 5)
    with pytest.raises(ValueError, match=r"The model has no graph.*'network\.keras'"):
        new_classifier("network.keras", 5)


@pytest.mark.parametrize("classes", [0, "3", 2.0])
def test_a_new_classifier_needs_a_whole_number_of_classes(classes):
    with pytest.raises(
        ValueError, match=r"A classifier needs a whole number of classes, at least 1"
    ):
        new_classifier(network(), classes)
