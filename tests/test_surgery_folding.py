"""Folding against the network itself, and against the equations in NumPy."""

import keras
import numpy as np
import pytest
import reference
from keras import layers
from trained import images, look_trained, network, outputs

from keras_resnet import CifarResNet20, ResNet, ensemble
from keras_resnet.export.inference import inference_model
from keras_resnet.surgery import batch_norm_folds, deepen, fold_batch_norm, to_plain

CONVOLUTIONS = {
    "conv": layers.Conv2D(5, 3),
    "bias": layers.Conv2D(5, 3, use_bias=False),
    "strided": layers.Conv2D(5, 3, strides=2, padding="same"),
    "dilated": layers.Conv2D(5, 3, dilation_rate=2, padding="same"),
    "grouped": layers.Conv2D(6, 3, groups=2),
    "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
    "separable": layers.SeparableConv2D(5, 3, use_bias=False),
    "transposed": layers.Conv2DTranspose(5, 3),
    "dense": layers.Dense(5),
}


def check_folded(model, left=(), tolerance=1e-12):
    """Folds, compares outputs, and checks which batch normalisations are left."""
    folded = fold_batch_norm(model)
    x = images(model)
    np.testing.assert_allclose(outputs(folded, x), outputs(model, x), rtol=0, atol=tolerance)
    found = [
        layer.name
        for layer in folded._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]
    assert found == list(left)
    kept = [name for name, conv in batch_norm_folds(model).items() if conv is None]
    assert [name.split("/")[-1] for name in kept] == list(left)
    return folded


def small(*stack, shape=(9, 8, 4)):
    """A model of a few layers, each called on what the one before returns."""
    x = image = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return look_trained(keras.Model(image, x))


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize(
    "norm", [{}, {"scale": False}, {"center": False, "epsilon": 1e-2}, {"renorm": True}]
)
def test_every_kind_of_convolution(float64, kind, norm):
    layer = CONVOLUTIONS[kind]
    layer = layer.from_config(layer.get_config() | {"dtype": "float64"})
    check_folded(small(layer, layers.BatchNormalization(**norm), layers.ReLU()))


def test_one_convolution_equals_the_equation(float64):
    model = small(layers.Conv2D(5, 3, padding="same"), layers.BatchNormalization(epsilon=1e-5))
    conv, norm = (layer.get_weights() for layer in model.layers[1:])
    x = images(model)
    expected = reference.batch_norm(reference.conv2d(x, *conv), *norm)
    np.testing.assert_allclose(outputs(fold_batch_norm(model), x), expected, rtol=0, atol=1e-12)


def test_channels_first_is_folded_along_its_channels(float64):
    keras.config.set_image_data_format("channels_first")
    model = small(layers.Conv2D(5, 3), layers.BatchNormalization(axis=1), shape=(4, 9, 8))
    conv, norm = (layer.get_weights() for layer in model.layers[1:])
    kernel, bias = fold_batch_norm(model).layers[-1].get_weights()
    scale = norm[0] / np.sqrt(norm[3] + 1e-3)
    np.testing.assert_allclose(kernel, conv[0] * scale, rtol=1e-12)
    np.testing.assert_allclose(bias, norm[1] + (conv[1] - norm[2]) * scale, rtol=1e-12)
    # Along the width it is no scaling of channels.
    model = small(layers.Conv2D(5, 3), layers.BatchNormalization(axis=3), shape=(4, 9, 8))
    assert list(batch_norm_folds(model).values()) == [None]


@pytest.mark.parametrize(
    ("order", "left"),
    [
        ("original", []),
        ("relu_pre_activation", []),
        ("bn_after_addition", [f"stage{s}_block{b}_bn2" for s in (1, 2) for b in (1, 2)]),
        # The first follows the stem's convolution; the others follow an addition.
        ("full_pre_activation", ["stage1_block2_bn1", "stage2_block1_bn1", "stage2_block2_bn1"]),
    ],
)
@pytest.mark.parametrize("shortcut", ["zero_padding", "projection"])
def test_residual_networks(float64, order, left, shortcut):
    head = ["head_bn"] if order == "full_pre_activation" else []
    model = network("cifar_resnet20", activation_order=order, shortcut=shortcut)
    check_folded(model, left + head, tolerance=1e-10)


def test_resnet20_in_float32():
    model = look_trained(CifarResNet20())
    folded = check_folded(model, tolerance=1e-5)
    assert folded.count_params() == 269_034  # one bias instead of four values, for 688 channels
    assert batch_norm_folds(model)["stage3_block1_bn2"] == "stage3_block1_conv2"


@pytest.mark.parametrize(("name", "norms"), [("ResNet50", 53), ("MobileNetV2", 52)])
def test_models_of_keras_applications(name, norms):
    """Convolutions with biases, depthwise ones, Activation layers, 1.001e-5 as epsilon."""
    application = getattr(keras.applications, name)
    model = look_trained(application(weights=None, input_shape=(32, 32, 3), classes=7))
    assert len(batch_norm_folds(model)) == norms
    check_folded(model, tolerance=1e-5)


class Doubled(layers.Conv2D):
    """A convolution whose kernel is not all of it."""

    def call(self, inputs):
        return 2 * super().call(inputs) ** 2


class Activated(layers.BatchNormalization):
    """A batch normalisation that does more."""

    def call(self, inputs, training=None, mask=None):
        return keras.ops.relu(super().call(inputs, training=training, mask=mask))


def two_consumers(norm):
    x = layers.Conv2D(4, 3, padding="same")(image := keras.Input((9, 8, 4)))
    return keras.Model(image, layers.Add()([x, norm(x)]))


def shared_convolution(norm):
    conv = layers.Conv2D(4, 3, padding="same")
    return keras.Model(image := keras.Input((9, 8, 4)), norm(conv(conv(image))))


def shared_norm(norm):
    x = layers.Conv2D(4, 3, padding="same")(image := keras.Input((9, 8, 4)))
    return keras.Model(image, norm(norm(x)))


def output_of_the_model(norm):
    x = layers.Conv2D(4, 3, padding="same")(image := keras.Input((9, 8, 4)))
    return keras.Model(image, layers.Concatenate()([x, norm(x)]))


def batch_statistics(norm):
    x = layers.Conv2D(4, 3, padding="same")(image := keras.Input((9, 8, 4)))
    return keras.Model(image, norm(x, training=True))


@pytest.mark.parametrize(
    "draw",
    [
        two_consumers,
        shared_convolution,
        shared_norm,
        output_of_the_model,
        batch_statistics,
        lambda norm: small(layers.Conv2D(4, 3, activation="relu"), norm),
        lambda norm: small(Doubled(4, 3), norm),
        lambda norm: small(norm, layers.Conv2D(4, 3)),
        lambda norm: small(layers.Conv2D(4, 3), layers.ReLU(), norm),
        lambda norm: small(layers.Conv2D(4, 3), Activated.from_config(norm.get_config())),
    ],
)
def test_what_cannot_be_folded_is_left(float64, draw):
    norm = layers.BatchNormalization(name="norm", dtype="float64")
    check_folded(look_trained(draw(norm)), left=["norm"])


def test_models_inside_models(float64):
    inner = keras.Sequential([keras.Input((10, 10, 3)), layers.Conv2D(3, 3, padding="same")])
    inner.add(layers.BatchNormalization(name="norm"))
    backbone = network("cifar_resnet20", (1, 1), input_shape=(10, 10, 3))
    x = inner(inner(image := keras.Input((10, 10, 3))))
    model = keras.Sequential([keras.Model(image, backbone(x)), layers.Dense(3)])
    model.build((None, 10, 10, 3))
    folded = check_folded(look_trained(model), tolerance=1e-10)
    inside = folded.layers[1].get_layer(backbone.name)
    assert isinstance(inside, ResNet)
    assert inside.variant == backbone.variant
    assert f"{model.layers[0].name}/{backbone.name}/stem_bn" in batch_norm_folds(model)


def test_the_copy_is_a_resnet_and_the_original_is_untouched(tmp_path):
    model = network("cifar_resnet20", input_shape=(None, None, 3))
    model.get_layer("stem_conv").trainable = False
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert isinstance(folded, ResNet)
    assert folded.name == model.name
    assert (folded.variant, folded.preprocessing) == (model.variant, model.preprocessing)
    names = [layer.name for layer in model.layers if "bn" not in layer.name]
    assert sorted(layer.name for layer in folded.layers) == sorted(names)
    assert not folded.get_layer("stem_conv").trainable
    assert {level: x.shape for level, x in folded.pyramid_outputs.items()} == {
        level: x.shape for level, x in model.pyramid_outputs.items()
    }
    folded.set_weights([0 * weight for weight in folded.get_weights()])
    assert all(map(np.array_equal, before, model.get_weights()))

    folded = fold_batch_norm(model)
    folded.save(tmp_path / "folded.keras")
    loaded, x = keras.models.load_model(tmp_path / "folded.keras"), images(model)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(folded, x))


def test_means_and_variances_that_a_layer_has_adapted_to_are_kept():
    """Keras's Normalization computes with constants, which `set_weights` does not renew."""
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 5.0, size=(8, 9, 8, 4)))
    model = small(normalization, layers.Conv2D(5, 3), layers.BatchNormalization())
    x = images(model)
    folded = fold_batch_norm(model)
    np.testing.assert_allclose(outputs(folded, x), outputs(model, x), rtol=0, atol=1e-5)
    model = small(normalization, layers.GlobalAveragePooling2D(), layers.Softmax())
    for copy in (ensemble([model, model]), inference_model(model)):
        np.testing.assert_allclose(outputs(copy, x), outputs(model, x), rtol=0, atol=1e-6)


def test_dtype_policies_are_kept():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network("cifar_resnet20", (1, 1))
    folded, x = fold_batch_norm(model), images(model)
    assert folded.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert folded.get_layer("stem_conv").bias.dtype == "float32"
    np.testing.assert_allclose(outputs(folded, x), outputs(model, x), atol=0.2)


@pytest.mark.slow
def test_depth_is_no_limit():
    """1,202 layers: Keras walks graphs recursively."""
    model = network("cifar_resnet20", (599, 1), input_shape=(4, 4, 3), filters=(2, 4))
    x = images(model)
    for surgery in (fold_batch_norm, to_plain, lambda model: deepen(model, 50)):
        result = surgery(model)
        np.testing.assert_allclose(outputs(result, x), outputs(model, x), rtol=1e-3)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("model", [Subclassed(name="own"), keras.Sequential(name="own")])
def test_a_model_without_a_graph_is_refused(model):
    with pytest.raises(ValueError) as error:
        fold_batch_norm(model)
    assert str(error.value) == (
        "The model has no graph. Expected a Functional model, or a Sequential one that is built. "
        f"Received: {type(model).__name__} 'own'. Subclassed models cannot be operated on; "
        "a Sequential one wants `model.build(shape)`."
    )
