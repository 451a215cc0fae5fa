"""The weights, graphs and sizes of all named networks: as recorded, as drawn and as published."""

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

# He et al. 2015; trainable parameters with shortcuts A, B and C. Those of resnet50 and resnet152
# with B are the integers that torchvision prints.
IMAGENET_COUNTS = {
    "resnet18": (11_515_688, 11_689_512, 12_043_816),
    "resnet34": (21_623_848, 21_797_672, 22_716_840),
    "resnet50": (22_780_456, 25_557_032, 40_128_552),
    "resnet101": (41_772_584, 44_549_160, 76_981_288),
    "resnet152": (57_416_232, 60_192_808, 107_335_720),
}
# Moving statistics of batch normalisation with B.
IMAGENET_STATISTICS = {
    "resnet18": 9_600,
    "resnet34": 17_024,
    "resnet50": 53_120,
    "resnet101": 105_344,
    "resnet152": 151_424,
}
CIFAR_COUNTS = {
    20: (269_722, 272_474, 283_962, 271_098),
    32: (464_154, 466_906, 489_594, 466_426),
    44: (658_586, 661_338, 695_226, 661_754),
    56: (853_018, 855_770, 900_858, 857_082),
    110: (1_727_962, 1_730_714, 1_826_202, 1_736_058),
    1202: (19_421_274, 19_424_026, 20_538_714, 19_510_906),
}
SHORTCUTS = ("zero_padding", "projection", "projection_all")

# Trainable parameters and multiply-adds. The integers are those of torchvision
# (wide_resnet*_2, resnext*, densenet*), of timm (resnet*d, seresnet*) and of the authors' code;
# the multiply-adds are the authors', where they count them as here.
PUBLISHED = {
    "resnet200v2": (64_666_152, "15.0e9"),
    "cifar_resnet110v2": (1_727_962, "252.9e6"),
    "cifar_resnet164v2": (1_703_258, "244.5e6"),
    "cifar_resnet1001v2": (10_327_706, "1.4878e9"),
    "wide_resnet40_1": (563_930, "83.3e6"),
    "wide_resnet40_2": (2_243_546, "328e6"),
    "wide_resnet40_4": (8_949_210, "1.299e9"),
    "wide_resnet40_8": ("35.7e6", "5.17e9"),
    "wide_resnet40_10": ("55.8e6", "8.07e9"),
    "wide_resnet16_4": (2_748_890, "393e6"),
    "wide_resnet16_8": (10_961_370, "1.548e9"),
    "wide_resnet16_10": ("17.12e6", "2.41e9"),
    "wide_resnet22_8": ("17.16e6", "2.45e9"),
    "wide_resnet28_10": (36_479_194, "5.243e9"),
    "wide_resnet28_12": ("52.5e6", "7.54e9"),
    "wide_resnet50_2": (68_883_240, "11.398e9"),
    "wide_resnet101_2": (126_886_696, "22.753e9"),
    "resnext50_32x4d": (25_028_904, "4.23e9"),
    "resnext101_32x8d": (88_791_336, "16.414e9"),
    "resnet18d": ("11.71e6", "2.1e9"),
    "resnet34d": ("21.82e6", "3.9e9"),
    "resnet50d": (25_576_264, "4.3e9"),
    "resnet101d": ("44.57e6", "8.0e9"),
    "resnet152d": ("60.21e6", "11.8e9"),
    "se_resnet50": (28_088_024, "4.1e9"),
    "se_resnet101": ("49.33e6", "7.8e9"),
    "se_resnet152": ("66.82e6", "11.5e9"),
    "densenet40_12": (1_019_722, None),
    "densenet100_12": (6_979_642, None),
    "densenet100_24": (27_249_082, None),
    "densenet_bc40_36": ("1.54e6", None),
    "densenet_bc40_48": ("2.73e6", None),
    "densenet_bc40_60": ("4.26e6", None),
    "densenet_bc100_12": (769_162, "288e6"),
    "densenet_bc250_24": (15_324_406, None),
    "densenet_bc190_40": (25_624_430, None),
    "densenet121": (7_978_856, "2.834e9"),
    "densenet169": (14_149_480, "3.36e9"),
    "densenet201": (20_013_928, "4.291e9"),
    "densenet264": (33_337_704, None),
    # Srivastava et al. 2015 print "approximately 2.3M" and "1.25M".
    "highwaynet19": ("2.4e6", None),
    "highwaynet32": ("1.2e6", None),
}


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


def trainable(model):
    return sum(weight.shape.num_elements() for weight in model.trainable_weights)


def rounded_like(number, published):
    """`number` as a string of as many digits as `published` has, e.g. "2.45e9"."""
    mantissa, exponent = published.split("e")
    digits = len(mantissa.partition(".")[2])
    return f"{number / 10 ** int(exponent):.{digits}f}e{exponent}"


@pytest.mark.parametrize("name", IMAGENET_COUNTS)
def test_imagenet_parameter_counts(name):
    models = [build_unallocated(name, shortcut=option) for option in SHORTCUTS]
    assert tuple(trainable(model) for model in models) == IMAGENET_COUNTS[name]
    total = IMAGENET_COUNTS[name][1] + IMAGENET_STATISTICS[name]
    assert build_unallocated(name).count_params() == models[1].count_params() == total


@pytest.mark.parametrize("name", ["18", "34"])
def test_plain_networks_have_the_parameters_of_option_a(name):
    plain = build_unallocated(f"plainnet{name}")
    assert trainable(plain) == IMAGENET_COUNTS[f"resnet{name}"][0]


def test_totals_of_keras_applications_come_out_with_conv_bias():
    """Its table of parameters; it keeps the biases."""
    assert build_unallocated("resnet50", conv_bias=True).count_params() == 25_636_712


@pytest.mark.parametrize("depth", CIFAR_COUNTS)
def test_cifar_parameter_counts(depth):
    *expected, total = CIFAR_COUNTS[depth]
    n = (depth - 2) // 6
    a = 97_216 * n - 21_926
    assert expected == [a, a + 2_752, a + 5_600 * n - 2_560]
    assert total == a + 448 * n + 32
    model = build_unallocated(f"cifar_resnet{depth}")
    assert (trainable(model), model.count_params()) == (a, total)
    if depth == 1202:  # the same builder; its other options would take minutes
        return
    for option, count in zip(SHORTCUTS, expected):
        assert trainable(build_unallocated(f"cifar_resnet{depth}", shortcut=option)) == count
    plain = build_unallocated(f"cifar_plainnet{depth}")
    assert (trainable(plain), plain.count_params()) == (a, total)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (20, 40_551_040),
        (32, 68_862_592),
        (44, 97_174_144),
        (56, 125_485_696),
        (110, 252_887_680),
        (1202, 2_829_238_912),
    ],
)
def test_multiply_adds_on_cifar(depth, expected):
    """He et al. 2015, section 4.2, counted by hand: 14,155,776 n - 1,916,288."""
    n = (depth - 2) // 6
    assert expected == 14_155_776 * n - 1_916_288
    assert keras_resnet.count_macs(build_unallocated(f"cifar_resnet{depth}")) == expected
    if depth != 1202:
        assert keras_resnet.count_macs(build_unallocated(f"cifar_plainnet{depth}")) == expected


@pytest.mark.parametrize(
    ("name", "options", "billions"),
    [
        ("plainnet18", {}, "1.795"),
        ("resnet18", {"shortcut": "zero_padding"}, "1.795"),
        ("resnet18", {}, "1.814"),
        ("plainnet34", {}, "3.644"),
        ("resnet34", {"shortcut": "zero_padding"}, "3.644"),
        ("resnet34", {}, "3.664"),
        ("resnet34", {"shortcut": "projection_all"}, "3.831"),
        ("resnet50", {"stride_in_1x1": True}, "3.858"),
        ("resnet50", {}, "4.089"),
        ("resnet101", {"stride_in_1x1": True}, "7.570"),
        ("resnet101", {}, "7.801"),
        ("resnet152", {"stride_in_1x1": True}, "11.282"),
        ("resnet152", {}, "11.514"),
    ],
)
def test_multiply_adds_on_imagenet(name, options, billions):
    """He et al. 2015, table 1, with the fully connected layer."""
    assert f"{keras_resnet.count_macs(build_unallocated(name, **options)) / 1e9:.3f}" == billions


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
    parameters, multiply_adds = PUBLISHED[name]
    model = build_unallocated(name)
    count = trainable(model)
    assert parameters == (count if isinstance(parameters, int) else rounded_like(count, parameters))
    if multiply_adds:
        assert rounded_like(keras_resnet.count_macs(model), multiply_adds) == multiply_adds


def test_every_later_network_has_a_published_size():
    later = {n for n, v in VARIANTS.items() if not v.reference.startswith("He et al. 2015")}
    assert later == {*PUBLISHED, "resnet50v2", "resnet101v2", "resnet152v2"}


@pytest.mark.parametrize(
    ("name", "total"),
    [("densenet121", 8_062_504), ("densenet169", 14_307_880), ("densenet201", 20_242_984)],
)
def test_totals_of_keras_applications(name, total):
    assert build_unallocated(name).count_params() == total


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_pre_activation_networks_are_those_of_keras_applications_less_their_biases(depth):
    with keras.StatelessScope(initialize_variables=False):
        theirs = getattr(keras.applications, f"ResNet{depth}V2")(weights=None)
    keras.utils.clear_session(free_memory=False)
    biases = sum(
        layer.bias.shape.num_elements()
        for layer in theirs.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.use_bias
    )
    ours = build_unallocated(f"resnet{depth}v2")
    assert biases > 0
    assert ours.count_params() == theirs.count_params() - biases
    published = {50: 25_613_800, 101: 44_675_560, 152: 60_380_648}
    assert theirs.count_params() == published[depth]
