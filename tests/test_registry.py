"""Which weights are meant, what is known of them, and what they make of other inputs."""

import dataclasses
import json
import pathlib
import re
import runpy
import struct
import sys

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.axes import resolve
from keras_resnet.weights import (
    WEIGHT_SETS,
    find_weights,
    get_weight_set,
    list_weights,
    load_weights,
    read_metadata,
    registry,
    save_torch,
    save_weights,
    spread_channels,
)

SMALL = {"input_shape": (12, 12, 3)}
PERMISSIVE = {"Apache-2.0", "BSD-3-Clause", "MIT"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small network with statistics of its own, and the file of its weights."""
    keras.utils.set_random_seed(1)
    model = keras_resnet.CifarResNet(8, **SMALL)
    for weight in model.weights:
        if "moving" in weight.path:
            weight.assign(keras.random.uniform(weight.shape, 0.5, 1.5))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(model, path)
    return model, str(path)


def stem(model, images):
    """What the first convolution and its normalisation give."""
    part = keras.Model(model.input, model.get_layer("stem_relu").output)
    return np.asarray(part(images))


# The table


def test_tags_are_unique_and_networks_exist():
    pairs = [(row.variant, row.tag) for row in WEIGHT_SETS]
    assert len(pairs) == len(set(pairs))
    for row in WEIGHT_SETS:
        assert resolve(row.variant, row.options).classes == row.classes


def test_every_file_can_be_told_from_others_and_may_be_sold():
    files = [source.file for row in WEIGHT_SETS for source in row.sources]
    assert len(files) == len(set(files))
    for row in WEIGHT_SETS:
        assert row.licence in PERMISSIVE
        for source in row.sources:
            kind, _, digits = (source.hash or "").partition(":")
            if not source.address.startswith("hf://timm/"):
                assert kind in ("sha256", "md5")
                assert re.fullmatch("[0-9a-f]{8,64}", digits)


@pytest.mark.parametrize(
    ("variant", "tag", "accuracy"),
    [
        ("resnet18", "a1_in1k", 0.71504),
        ("resnet34", "ra4_e3600_r224_in1k", 0.77492),
        ("resnet50", "tv2_in1k", 0.80858),
        ("resnet101", "a1h_in1k", 0.8193),
        ("resnet152", "a1h_in1k", 0.8280),
        ("resnet50v2", "a1h_in1k", 0.81398),
        ("resnet101v2", "a1h_in1k", 0.8210),
        ("resnet152v2", "v2_keras", 0.780),
        ("resnet50d", "ra4_e3600_r224_in1k", 0.80952),
        ("se_resnet50", "ra2_in1k", 0.8026),
    ],
)
def test_imagenet_is_the_best_published_set(variant, tag, accuracy):
    row = get_weight_set(variant, "imagenet")
    assert (row.tag, row.accuracy) == (tag, accuracy)
    assert find_weights(variant, "imagenet") is row


def test_every_row_says_how_accurate_it_is_and_on_which_images():
    assert all(0.65 < row.accuracy < 0.95 for row in WEIGHT_SETS)
    others = [row for row in WEIGHT_SETS if row.evaluation != row.preprocessing]
    # timm's results-imagenet.csv has this one for images of 288 pixels, of which nothing is cut.
    assert [(row.variant, row.tag) for row in others] == [("resnet50v2", "a1h_in1k")]
    (row,) = others
    assert (row.preprocessing.size, row.preprocessing.resize_size) == ((224, 224), 235)
    assert row.evaluation == dataclasses.replace(
        row.preprocessing, size=(288, 288), resize_size=288
    )


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        # peers.md, section 4: crop of 95%, bicubic; torchvision's 256 and 232; the means of Caffe
        ("a1_in1k", (235, "bicubic", "rgb", 0.485, 1 / 255)),
        ("tv_in1k", (256, "bilinear", "rgb", 0.485, 1 / 255)),
        ("tv2_in1k", (232, "bilinear", "rgb", 0.485, 1 / 255)),
        ("v1_caffe", (256, "bilinear", "bgr", 103.939, 1.0)),
    ],
)
def test_preprocessing_is_that_of_the_set(tag, expected):
    images = get_weight_set("resnet50", tag).preprocessing
    received = images.resize_size, images.interpolation, images.channel_order
    assert (*received, images.mean[0], images.scale) == expected


def test_the_records_print_as_a_table():
    table = str(list_weights("resnet34"))
    assert table.splitlines()[0].startswith("| network | weights | top-1 |")
    assert "| resnet34 | a1_in1k | 76.42% | 224 | Apache-2.0 | Wightman et al. 2021, A1 | " in table
    assert "/v0.1-rsb-weights/resnet34_a1_0-46f8f793.pth | sha256:46f8f793 |" in table
    assert "/timm/resnet34.ra4_e3600_r224_in1k/resolve/main/model.safetensors | not pub" in table
    assert len(table.splitlines()) == 2 + len(list_weights("resnet34"))
    assert "| resnet50v2 | a1h_in1k | 81.40% | 288 |" in str(list_weights("resnet50v2"))


def test_the_readme_has_the_table():
    lines = []
    for variant in dict.fromkeys(row.variant for row in WEIGHT_SETS):
        rows = list_weights(variant)
        best = get_weight_set(variant, "imagenet") if rows[0].classes == 1000 else rows[0]
        others = ", ".join(f"`{row.tag}`" for row in rows if row is not best)
        cells = (f"{best.accuracy:.2%}", best.evaluation.size[0], best.licence, others)
        lines.append(f"| {variant} | `{best.tag}` | {' | '.join(map(str, cells))} |\n")
    readme = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    assert f"|---|---|---:|---:|---|---|\n{''.join(lines)}\n" in readme


def test_a_network_that_does_not_exist_has_no_list():
    with pytest.raises(ValueError, match=r"Unknown variant.*Did you mean 'resnet34'\?"):
        list_weights("resnet_34")
    assert not list_weights("plainnet18")


def test_the_table_is_one_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["weights", "resnet34"])
    runpy.run_module("keras_resnet.weights", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(list_weights("resnet34"))
    monkeypatch.setattr(sys, "argv", ["weights", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("keras_resnet.weights", run_name="__main__")
    assert "usage: python -m keras_resnet.weights [-h] [NETWORK ...]" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["weights", "resnet_34"])
    with pytest.raises(SystemExit, match="Did you mean 'resnet34'"):
        runpy.run_module("keras_resnet.weights", run_name="__main__")


# What `weights=` means


def test_unknown_weights_name_those_that_exist():
    with pytest.raises(ValueError, match="Unknown weights of resnet18") as error:
        keras_resnet.ResNet18(weights="a1_in1")
    assert "a1_in1k, a2_in1k, a3_in1k" in str(error.value)
    assert str(error.value).endswith("Received: 'a1_in1'. Did you mean 'a1_in1k'?")


def test_a_network_without_published_weights_says_so():
    with pytest.raises(ValueError, match="Expected one of None, hf://OWNER/NAME, the path"):
        keras_resnet.PlainNet18(weights="imagenet")


def test_a_published_file_is_known_by_its_name(tmp_path):
    path = tmp_path / "resnet18-f37072fd.pth"
    path.write_bytes(b"not what it says")
    row = find_weights("resnet18", path)
    assert (row.tag, row.preprocessing.resize_size) == ("tv_in1k", 256)
    with pytest.raises(ValueError, match=r"Expected sha256 f37072fd\.\.\.\. Received: "):
        keras_resnet.ResNet18(weights=path)


def test_the_address_of_a_published_set_is_that_set():
    assert find_weights("resnet18", "hf://timm/resnet18.a1_in1k").tag == "a1_in1k"


def test_a_repository_says_how_its_images_are_preprocessed(monkeypatch, tmp_path):
    config = {
        "num_classes": 7,
        "pretrained_cfg": {
            "input_size": [3, 240, 240],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
        },
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    monkeypatch.setattr(registry.store, "_from_hub", lambda address, file: path)
    row = find_weights("resnet18", "hf://somebody/theirs")
    assert row.classes == 7
    assert row.preprocessing == keras_resnet.Preprocessing(
        size=(240, 240),
        resize_size=266,  # floor of 240 / 0.9
        interpolation="bicubic",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
    )


# What images a repository is for: transformers' ResNets, its other processors, timm of few words.
PROCESSORS = [
    (
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3},
        {"resize_size": 256, "interpolation": "bicubic"},
    ),
    (
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 224},
            "crop_pct": 0.95,
            "image_mean": [0.5] * 3,
            "image_std": [0.25] * 3,
        },
        {"resize_size": 235, "mean": (0.5,) * 3, "std": (0.25,) * 3},
    ),
    (
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384},
        {"size": (384, 384), "resize_size": None},
    ),
    (
        {
            "size": {"shortest_edge": 232},
            "do_center_crop": True,
            "crop_size": {"height": 200, "width": 220},
            "do_normalize": False,
        },
        {"size": (200, 220), "resize_size": 232, "mean": (0.0,) * 3, "std": (1.0,) * 3},
    ),
    ({"size": {"height": 64, "width": 48}}, {"size": (64, 48), "resize_size": None}),
]


def put(folder, **files):
    """Files of the repository `somebody/theirs`, put by hand."""
    for name, content in files.items():
        (folder / f"somebody.theirs.{name}.json").write_text(json.dumps(content))


@pytest.fixture
def by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_RESNET_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("processor", "expected"), PROCESSORS)
def test_a_repository_of_transformers_is_understood(by_hand, processor, expected):
    names = {str(index): f"class {index}" for index in range(7)}
    usual = {"hidden_act": "relu", "downsample_in_bottleneck": False}
    put(by_hand, config={"id2label": names} | usual, preprocessor_config=processor)
    row = find_weights("resnet50", "hf://somebody/theirs")
    assert row.classes == 7
    assert row.preprocessing == dataclasses.replace(keras_resnet.IMAGENET, **expected)


def test_timm_of_few_words_is_understood(by_hand):
    put(by_hand, config={"architecture": "resnetv2_50", "pretrained_cfg": {}})
    row = find_weights("resnet50v2", "hf://somebody/theirs")
    expected = dataclasses.replace(keras_resnet.IMAGENET, interpolation="bicubic")
    assert (row.classes, row.preprocessing) == (None, expected)


def test_a_repository_for_another_network_is_refused(by_hand):
    # Blurred pools have no weights: all names and shapes are those of resnet50.
    put(by_hand, config={"architecture": "resnetblur50", "pretrained_cfg": {}})
    with pytest.raises(
        ValueError, match=r"for another network\. Expected 'resnet50'\. Received: 'res"
    ):
        find_weights("resnet50", "hf://somebody/theirs")


@pytest.mark.parametrize(
    "config",
    [
        [1],
        {"pretrained_cfg": 3},
        {"id2label": 3},
        {"pretrained_cfg": {"std": [0]}},
        {"pretrained_cfg": {"crop_mode": "squash"}},
        # Of transformers, with the names and shapes of all others.
        {"downsample_in_bottleneck": True},
        {"downsample_in_first_stage": True},
        {"hidden_act": "gelu"},
    ],
)
def test_a_repository_of_another_kind_is_refused(by_hand, config):
    put(by_hand, config=config)
    with pytest.raises(ValueError, match="describes its network in another way"):
        find_weights("resnet50", "hf://somebody/theirs")


@pytest.mark.parametrize("weights", [True, 18, b"tv_in1k"])
def test_what_names_no_weights_is_refused(weights):
    """Such as `pretrained=True` of other libraries."""
    with pytest.raises(ValueError, match=r"Unknown `weights`. Expected None, a tag, .* Received: "):
        keras_resnet.ResNet18(weights=weights)


@pytest.mark.parametrize("name", ["nope.safetensors", "no/such", "{folder}"])
def test_a_path_without_a_file_says_so(tmp_path, name):
    name = name.format(folder=tmp_path)
    with pytest.raises(
        ValueError, match=r"There is no such file of weights\. Expected a file\. Rec"
    ):
        keras_resnet.ResNet18(weights=name)


def test_a_path_gives_the_model_back(saved):
    model, path = saved
    other = keras_resnet.CifarResNet(8, weights=path, **SMALL)
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3))
    np.testing.assert_array_equal(other(images), model(images))


def test_options_of_a_set_are_the_models(saved, monkeypatch):
    _, path = saved
    row = find_weights("cifar_resnet8", path)
    row = dataclasses.replace(row, options={"stride_in_1x1": True})
    monkeypatch.setattr(keras_resnet.models, "find_weights", lambda variant, weights: row)
    assert keras_resnet.CifarResNet(8, weights="v1", **SMALL).variant.stride_in_1x1
    with pytest.raises(ValueError, match="Expected stride_in_1x1=True, or no stride_in_1x1"):
        keras_resnet.CifarResNet(8, weights="v1", stride_in_1x1=False, **SMALL)


# Other classes and channels


def test_other_classes_keep_the_backbone_and_begin_a_new_classifier():
    trained = keras_resnet.CifarResNet20(weights="cifar10")
    model = keras_resnet.CifarResNet20(weights="cifar10", classes=7)
    assert model.output_shape == (None, 7)
    for old, new in zip(trained.weights, model.weights, strict=True):
        if not new.path.startswith("predictions"):
            np.testing.assert_array_equal(new, old)


OWN = keras_resnet.Preprocessing(size=(12, 12), resize_size=14, mean=(0.5,) * 3, std=(0.3,) * 3)


@pytest.fixture(scope="module", params=["safetensors", "keras", "torch"])
def own(request, tmp_path_factory):
    """A network of seven classes with preprocessing of its own, and a file of it."""
    model = keras_resnet.CifarResNet(8, classes=7, **SMALL)
    model.preprocessing = OWN
    path = tmp_path_factory.mktemp("own") / f"own.{request.param}"
    if request.param == "torch":
        path = path.with_suffix(".safetensors")
        save_torch(model, path)
    else:
        save_weights(model, path) if request.param == "safetensors" else model.save(path)
    return model, path, request.param


def test_a_file_says_how_many_classes_and_which_images(own):
    model, path, kind = own
    other = keras_resnet.CifarResNet(8, weights=path)
    assert other.output_shape == (None, 7)
    expected = keras_resnet.CIFAR10 if kind == "torch" else OWN  # PyTorch's files do not say
    assert other.preprocessing == expected
    for old, new in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(new, old)
    larger = keras_resnet.CifarResNet(8, input_shape=(24, 24, 1), classes=2)
    with pytest.raises(ValueError, match="not those of this network"):
        load_weights(larger, path)
    assert larger.preprocessing == keras_resnet.CIFAR10.adapted(size=(24, 24), channels=1)
    load_weights(larger, path, head=False, strict=False)
    assert larger.preprocessing == expected.adapted(size=(24, 24), channels=1)


@pytest.mark.parametrize("options", [{"classes": 4}, {"include_top": False}])
def test_a_file_of_other_classes_gives_its_backbone(own, options):
    model, path, _ = own
    other = keras_resnet.CifarResNet(8, weights=path, input_shape=(16, 16, 1), **options)
    others = {weight.path: weight for weight in other.weights}
    for weight in model.weights:
        if not weight.path.startswith(("predictions", "stem_conv")):
            np.testing.assert_array_equal(others[weight.path], weight)


@pytest.mark.parametrize("save", [save_weights, save_torch])
def test_a_backbone_gets_a_new_classifier_where_classes_are_named(save, tmp_path, capsys):
    """Of files that say nothing, as many channels as the first convolution sees."""
    path, images = tmp_path / "grey.safetensors", {"input_shape": (12, 12, 1)}
    backbone = keras_resnet.CifarResNet(8, include_top=False, **images)
    save(backbone, path)
    model = keras_resnet.CifarResNet(8, weights=path, classes=4, **images)
    assert (model.input_shape, model.output_shape) == ((None, 12, 12, 1), (None, 4))
    stem = model.get_layer("stem_conv").kernel
    np.testing.assert_array_equal(stem, backbone.get_layer("stem_conv").kernel)
    coloured = keras_resnet.CifarResNet(8, weights=path, classes=4, **SMALL)
    np.testing.assert_allclose(np.sum(coloured.get_layer("stem_conv").kernel, 2), stem[:, :, 0])
    with pytest.raises(ValueError, match="or with `classes` for a new one"):
        keras_resnet.CifarResNet(8, weights=path, **images)
    says_nothing = "grey.safetensors does not say how its images are preprocessed: as for cifar_"
    assert (says_nothing in capsys.readouterr().err) == (save is save_torch)


def test_channels_that_are_only_claimed_are_not_believed(tmp_path):
    header = b'{"conv1.weight":{"dtype":"F32","shape":[0,1099511627776,3,3],"data_offsets":[0,0]}}'
    (tmp_path / "hostile.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="are not those of this network"):
        keras_resnet.CifarResNet(8, weights=tmp_path / "hostile.safetensors")


def test_a_saved_model_of_another_network_is_refused(own):
    _, path, _ = own
    with pytest.raises(
        ValueError, match=r"are not those of this network\. Expected the same names"
    ):
        keras_resnet.CifarResNet(14, weights=path)


def test_what_a_file_says_of_itself(tmp_path, saved):
    model, path = saved
    assert read_metadata(path)["classes"] == "10"
    assert json.loads(read_metadata(path)["preprocessing"])["size"] == [12, 12]
    save_weights(model, tmp_path / "odd.safetensors", {"preprocessing": '{"colour": "red"}'})
    with pytest.raises(
        ValueError, match=r"The file's preprocessing cannot be read\. Expected the f"
    ):
        keras_resnet.CifarResNet(8, weights=tmp_path / "odd.safetensors")
    (tmp_path / "odd.keras").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"The model cannot be read\. Expected an undamaged file of"
    ):
        keras_resnet.CifarResNet(8, weights=tmp_path / "odd.keras")


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
def test_an_image_of_equal_channels_gives_the_same_stem(saved, channels):
    model, path = saved
    other = keras_resnet.CifarResNet(8, weights=path, input_shape=(12, 12, channels))
    grey = np.random.default_rng(0).normal(size=(2, 12, 12, 1))
    expected = stem(model, np.repeat(grey, 3, axis=-1))
    received = stem(other, np.repeat(grey, channels, axis=-1))
    np.testing.assert_allclose(received, expected, atol=1e-5)
    np.testing.assert_allclose(
        other(np.repeat(grey, channels, axis=-1)), model(np.repeat(grey, 3, axis=-1)), atol=1e-5
    )


@pytest.mark.parametrize("channels", [3, 6])
def test_a_grey_image_is_preprocessed_to_the_same_stem(saved, channels):
    model, path = saved
    other = keras_resnet.CifarResNet(8, weights=path, input_shape=(12, 12, channels))
    grey = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 1), dtype="uint8")
    first, second = (
        stem(each, keras_resnet.preprocess_input(np.repeat(grey, count, axis=-1), each))
        for each, count in ((model, 3), (other, channels))
    )
    np.testing.assert_allclose(second, first, atol=1e-5)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_kernels_follow_their_colours_to_four_channels(saved, monkeypatch, order):
    _, path = saved
    images = dataclasses.replace(keras_resnet.CIFAR10, size=(12, 12), channel_order=order)
    row = dataclasses.replace(find_weights("cifar_resnet8", path), preprocessing=images)
    monkeypatch.setattr(keras_resnet.models, "find_weights", lambda variant, weights: row)

    def change(channels, colour):
        """What a colour does to the first convolution."""
        model = keras_resnet.CifarResNet(8, weights="it", input_shape=(12, 12, channels))
        convolution = keras.Model(model.input, model.get_layer("stem_conv").output)
        black = np.zeros((1, 12, 12, channels), "uint8")
        light = black.copy()
        light[..., colour] = 255
        first, second = (
            np.asarray(convolution(keras_resnet.preprocess_input(each, model)))
            for each in (black, light)
        )
        return second - first

    # The fourth channel shares the kernel of the first one that the network sees.
    shares = [1 / 2 if colour == (0 if order == "rgb" else 2) else 1 for colour in range(3)]
    for colour, share in enumerate(shares):
        np.testing.assert_allclose(change(4, colour), change(3, colour) * share, atol=1e-5)


def test_spread_kernels_against_float64():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 5)).astype("float32")
    red, green, blue = kernel.astype("float64").transpose(2, 0, 1, 3)
    np.testing.assert_allclose(spread_channels(kernel, 1)[:, :, 0], red + green + blue, atol=1e-6)
    four = spread_channels(kernel, 4).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(four, [red / 2, green, blue, red / 2], atol=1e-6)


def test_one_channel_and_other_classes_at_once_and_again(tmp_path):
    model = keras_resnet.CifarResNet20(weights="cifar10", input_shape=(8, 8, 1), classes=3)
    assert (model.input_shape, model.output_shape) == ((None, 8, 8, 1), (None, 3))
    assert model.preprocessing.mean == pytest.approx([np.mean(keras_resnet.CIFAR10.mean)])
    save_weights(model, tmp_path / "mine.safetensors")
    again = keras_resnet.CifarResNet20(weights=tmp_path / "mine.safetensors")
    assert (again.input_shape, again.output_shape) == (model.input_shape, model.output_shape)
    for old, new in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(new, old)
