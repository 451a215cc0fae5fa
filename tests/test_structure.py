"""The weights and the graphs of all networks: as recorded, and as the paper draws them."""

import json

import keras
import pytest
from structure import COMMAND, GOLDEN, build_unallocated, structure

import keras_resnet
from keras_resnet.variants import VARIANTS

PAPER = [
    name
    for pattern in ("resnet[0-9]*", "plainnet*", "cifar_resnet*", "cifar_plainnet*")
    for name in keras_resnet.list_variants(pattern)
    if VARIANTS[name].reference.startswith("He et al. 2015")
]


@pytest.mark.parametrize("name", VARIANTS)
def test_structure_is_the_golden_one(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    message = f"the weights of {name} changed; if that is meant: {COMMAND}"
    assert structure(build_unallocated(name)) == golden, message
    assert list(structure(build_unallocated(name))) == list(golden), message


def test_golden_files_are_those_of_the_table():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(VARIANTS), COMMAND


@pytest.mark.parametrize("name", PAPER)
def test_one_addition_per_block(name):
    variant = VARIANTS[name]
    added = [x for x in build_unallocated(name).layers if isinstance(x, keras.layers.Add)]
    assert len(added) == (0 if variant.shortcut == "none" else sum(variant.blocks))


@pytest.mark.parametrize(
    ("name", "projections"), [("resnet18", 3), ("resnet34", 3), ("resnet50", 4)]
)
def test_projections_stand_where_the_shape_changes(name, projections):
    names = [layer.name for layer in build_unallocated(name).layers]
    expected = [f"stage{stage}_block1_shortcut_conv" for stage in range(5 - projections, 5)]
    assert [name for name in names if name.endswith("shortcut_conv")] == expected
