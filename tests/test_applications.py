"""The public constructors: the contract of keras.applications, and what they refuse."""

import inspect
import pydoc
import re

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.axes import AXES
from keras_resnet.variants import VARIANTS

CONSTRUCTORS = {
    name: getattr(keras_resnet, name)
    for name in keras_resnet.__all__
    if name.lower().replace("cifar", "cifar_") in VARIANTS
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_signature_is_that_of_keras_applications(name):
    theirs = list(inspect.signature(keras.applications.ResNet50).parameters)
    parameters = inspect.signature(CONSTRUCTORS[name]).parameters
    assert list(parameters)[: len(theirs)] == theirs
    for position, parameter in enumerate(parameters.values()):
        expected = "POSITIONAL_OR_KEYWORD" if position < len(theirs) else "KEYWORD_ONLY"
        assert parameter.kind.name == expected
    assert parameters["weights"].default is None


def test_every_named_network_has_a_constructor_and_builds_its_row():
    paper = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    paper += ["plainnet18", "plainnet34", "cifar_resnet1202"]
    for depth in (20, 32, 44, 56, 110):
        paper += [f"cifar_resnet{depth}", f"cifar_plainnet{depth}"]
    built = {name.lower().replace("cifar", "cifar_") for name in CONSTRUCTORS}
    assert set(paper) <= built
    model = keras_resnet.CifarPlainNet32()
    assert (model.variant, model.name) == (VARIANTS["cifar_plainnet32"], "cifar_plainnet32")
    assert keras_resnet.CifarResNet(depth=14).variant.blocks == (2, 2, 2)
    assert keras_resnet.CifarPlainNet(8, classes=3).output_shape == (None, 3)


def test_numpy_s_integers_are_integers(tmp_path):
    """As `labels.max() + 1` is one; what is saved holds none of them."""
    model = keras_resnet.CifarResNet(np.int64(8), classes=np.int64(7))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.name, loaded.output_shape) == ("cifar_resnet8", (None, 7))


def test_positional_arguments_go_where_those_of_keras_applications_go():
    model = keras_resnet.CifarResNet20(False, None, None, (16, 16, 1), "max", 7, None, "mine")
    assert (model.input_shape, model.output_shape) == ((None, 16, 16, 1), (None, 64))
    assert model.name == "mine"


@pytest.mark.parametrize("name", [*CONSTRUCTORS, "CifarResNet", "CifarPlainNet", "build"])
def test_help_reads_well(name):
    text = pydoc.plain(pydoc.render_doc(getattr(keras_resnet, name)))
    assert f"{name}(" in text.splitlines()[2]
    assert not {"{", "}"} & set(text)
    assert max(map(len, inspect.getdoc(getattr(keras_resnet, name)).splitlines())) <= 100
    if name in CONSTRUCTORS:
        parameters = inspect.signature(CONSTRUCTORS[name]).parameters
        assert all(f"    {parameter}: " in text for parameter in parameters)
        for part in (f"keras_resnet.{name}(", "Returns:", "Raises:"):
            assert part in text


def test_help_of_resnet34_says_what_it_is():
    text = inspect.getdoc(keras_resnet.ResNet34)
    assert text.startswith("The 34-layer residual network for ImageNet.\n")
    for default in ("(224, 224, 3)", "feature map: 32, 16, 8;"):
        assert default in text
    for option in set(AXES) & set(keras_resnet.OPTIONS):
        assert all(f'"{name}"' in text for name in AXES[option]), option


# "..." stands for the names that other families of networks add.
REFUSED = [
    (
        {"weights": "imagenet1k"},
        "Unknown weights of resnet18. Expected one of a1_in1k, ..., imagenet, None, "
        "hf://OWNER/NAME, the path of a file. Received: 'imagenet1k'. Did you mean 'imagenet'?",
    ),
    (
        {"input_shape": (16, 40, 3)},
        "Input size must be at least 17x17, or the last stage of resnet18 sees a single pixel. "
        "Received: input_shape=(16, 40, 3)",
    ),
    (
        {"input_shape": (8, 40, 3), "output_stride": 8},
        "Input size must be at least 9x9, or the last stage of resnet18 sees a single pixel. "
        "Received: input_shape=(8, 40, 3)",
    ),
    (
        {"input_shape": (224, 224)},
        "`input_shape` must be a tuple of three integers. Received: input_shape=(224, 224)",
    ),
    (
        {"input_shape": 224},
        "`input_shape` must be a tuple of three integers. Received: input_shape=224",
    ),
    (
        {"input_shape": "224"},
        "`input_shape` must be a tuple of three integers. Received: input_shape=224",
    ),
    (
        {"input_shape": (224, 224.0, 3)},
        "`input_shape` must be a tuple of three integers. Received: input_shape=(224, 224.0, 3)",
    ),
    (
        {"stride_in_1x1": "False"},
        "`stride_in_1x1` is of another kind. Expected True or False. "
        "Received: stride_in_1x1='False'",
    ),
    (
        {"survival_probability": None},
        "`survival_probability` is of another kind. Expected a number. "
        "Received: survival_probability=None",
    ),
    (
        {"input_shape": (224, 224, None)},
        "The number of input channels must be known. Expected it on axis 2 of `input_shape` "
        "(channels_last). Received: input_shape=(224, 224, None)",
    ),
    (
        {"include_top": False, "pooling": "mean"},
        "Unknown `pooling`. Expected None, 'avg' or 'max'. Received: 'mean'",
    ),
    *(
        (
            {"classes": classes},
            "A classifier needs a whole number of classes, at least 1. Received: "
            f"classes={classes!r}",
        )
        for classes in (0, 2.5, "10")
    ),
    (
        {"shortcut": "projektion"},
        "Unknown shortcut. Expected one of zero_padding, projection, projection_all, none... "
        "Received: 'projektion'. Did you mean 'projection'?",
    ),
    (
        {"activation_order": "pre_activation"},
        "Unknown activation_order. Expected one of original, bn_after_addition, "
        "relu_before_addition, relu_pre_activation, full_pre_activation... "
        "Received: 'pre_activation'. Did you mean 'relu_pre_activation'?",
    ),
    (
        {"output_stride": 4},
        "resnet18 cannot have this output stride. Expected one of 32, 16, 8. "
        "Received: output_stride=4",
    ),
    (
        {"output_stride": "8"},
        "resnet18 cannot have this output stride. Expected one of 32, 16, 8. "
        "Received: output_stride='8'",
    ),
    (
        {"survival_probability": 0},
        "A survival probability lies in (0, 1]. Received: survival_probability=0",
    ),
    (
        {"shortcut": "none", "survival_probability": 0.5},
        "A plain network has no way around a residual that is dropped or starts at zero. Expected "
        "survival_probability=1.0 and zero_init_residual=False. Received: "
        "survival_probability=0.5, zero_init_residual=False",
    ),
    (
        {"zero_init_residual": True, "activation_order": "full_pre_activation"},
        "`zero_init_residual` needs residuals that end in batch normalisation. Expected an "
        "activation_order of original, relu_pre_activation. Received: 'full_pre_activation'",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[next(iter(r[0])) for r in REFUSED])
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        keras_resnet.ResNet18(**arguments)
    assert re.fullmatch(re.escape(message).replace(r"\.\.\.", ".*"), str(error.value))


def test_too_small_an_input_tensor_is_refused():
    with pytest.raises(ValueError, match="at least 3x3, or the last stage of cifar_resnet20 sees"):
        keras_resnet.CifarResNet20(input_tensor=keras.Input((2, 2, 3)))


def test_images_of_other_channels_than_the_model_has_are_refused():
    model = keras_resnet.CifarResNet(8, input_shape=(8, 8, 3))
    with pytest.raises(ValueError, match=r"expected shape=\(None, 8, 8, 3\)"):
        model(keras.ops.zeros((1, 8, 8, 4)))


def test_unknown_options_are_refused():
    with pytest.raises(TypeError) as error:
        keras_resnet.build("resnet18", shortcuts="projection")
    assert str(error.value) == (
        f"Unknown option. Expected one of {', '.join(keras_resnet.OPTIONS)}. "
        "Received: 'shortcuts'. Did you mean 'shortcut'?"
    )
    with pytest.raises(TypeError, match="Did you mean 'shortcut'"):
        keras_resnet.ResNet18(shortcuts="projection")


def test_nothing_is_built_when_an_argument_is_refused(monkeypatch):
    monkeypatch.setattr(keras.layers.Layer, "__call__", lambda *_, **__: pytest.fail("built"))
    for arguments, _ in REFUSED:
        with pytest.raises(ValueError):
            keras_resnet.ResNet18(**arguments)
