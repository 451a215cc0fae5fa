"""The table of networks against the paper's."""

import dataclasses

import pytest

import keras_resnet
from keras_resnet.variants import VARIANTS, cifar_variant, get_variant, list_variants

IMAGENET = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
PAPER = [*IMAGENET, "plainnet18", "plainnet34"]
PAPER += [f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)]
PAPER += [f"cifar_plainnet{depth}" for depth in (20, 32, 44, 56, 110)]


def test_imagenet_rows_are_table_1():
    rows = {name: (VARIANTS[name].block, VARIANTS[name].blocks) for name in VARIANTS}
    assert {name: rows[name] for name in IMAGENET} == {
        "resnet18": ("basic", (2, 2, 2, 2)),
        "resnet34": ("basic", (3, 4, 6, 3)),
        "resnet50": ("bottleneck", (3, 4, 6, 3)),
        "resnet101": ("bottleneck", (3, 4, 23, 3)),
        "resnet152": ("bottleneck", (3, 8, 36, 3)),
    }
    for name in ("resnet18", "resnet34"):
        plain = VARIANTS[name.replace("resnet", "plainnet")]
        assert plain.shortcut == "none"
        assert (plain.block, plain.blocks) == rows[name]


@pytest.mark.parametrize("name", PAPER)
def test_depth_is_the_number_in_the_name(name):
    assert VARIANTS[name].name == name
    assert name.endswith(str(VARIANTS[name].depth))


@pytest.mark.parametrize("n", [1, 3, 9, 18, 100, 200])
def test_cifar_variant_has_6n_plus_2_layers(n):
    residual, plain = cifar_variant(6 * n + 2), cifar_variant(6 * n + 2, plain=True)
    assert residual.blocks == plain.blocks == (n, n, n)
    assert residual.filters == (16, 32, 64)
    assert (residual.shortcut, plain.shortcut) == ("zero_padding", "none")
    assert residual.depth == 6 * n + 2


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [
        (21, " The nearest are 20 and 26."),
        (7, " The nearest are 8 and 14."),
        (-4, " The nearest are 8 and 14."),
        (2, " The nearest are 8 and 14."),
        ("20", ""),
        (20.0, ""),
    ],
)
def test_impossible_depth(depth, nearest):
    with pytest.raises(ValueError) as error:
        cifar_variant(depth)
    assert str(error.value) == (
        "A CIFAR ResNet has 6n+2 layers with n >= 1. Expected `depth` to be one of 8, 14, 20, 26, "
        f"32, ..., 110, ..., 1202, .... Received: {depth!r}.{nearest}"
    )


def test_list_variants_matches_shell_patterns():
    assert list_variants() == list(VARIANTS)
    assert list_variants("plain*") == ["plainnet18", "plainnet34"]
    assert list_variants("cifar_plainnet?6") == ["cifar_plainnet56"]
    assert list_variants("vgg*") == []


def test_get_variant_knows_every_cifar_depth():
    assert get_variant("resnet34") is VARIANTS["resnet34"]
    assert get_variant("cifar_resnet26") == cifar_variant(26)
    assert get_variant("cifar_plainnet8") == cifar_variant(8, plain=True)
    with pytest.raises(ValueError, match=r"Received: 21\. The nearest are 20 and 26\.$"):
        get_variant("cifar_resnet21")


@pytest.mark.parametrize(
    ("received", "proposal"),
    [
        ("resnet_34", " Did you mean 'resnet34'?"),
        ("ResNet50", " Did you mean 'resnet50'?"),
        ("cifar-resnet20", " Did you mean 'cifar_resnet20'?"),
        ("cifar_resnet", " Did you mean 'cifar_resnet56'?"),
        ("zzz", ""),
        (20, ""),
        ("20", ""),
    ],
)
def test_unknown_variant_names_the_nearest(received, proposal):
    with pytest.raises(ValueError) as error:
        get_variant(received)
    assert str(error.value) == (
        f"Unknown variant. Expected one of {', '.join(VARIANTS)}. Received: {received!r}.{proposal}"
    )


def test_rows_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VARIANTS["resnet18"].blocks = (1, 1, 1, 1)
    keras_resnet.build("cifar_resnet8", shortcut="projection")
    assert get_variant("cifar_resnet8").shortcut == "zero_padding"


def test_a_row_has_blocks_and_filters_for_every_stage():
    row = dataclasses.replace(VARIANTS["resnet18"], blocks=(1, 1, 1))
    with pytest.raises(
        ValueError, match=r"the same length\. Received: blocks=\(1, 1, 1\), filters"
    ):
        keras_resnet.build(row)


def test_images_are_those_the_network_was_trained_on():
    assert VARIANTS["resnet50"].preprocessing.size == (224, 224)
    assert VARIANTS["cifar_resnet20"].preprocessing.size == (32, 32)
    assert (VARIANTS["resnet50"].classes, VARIANTS["cifar_resnet20"].classes) == (1000, 10)
