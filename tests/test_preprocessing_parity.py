"""Preprocessing against the evaluation transforms of torchvision and timm, on real photographs."""

import io
import pathlib

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

import keras_resnet
from keras_resnet import preprocess_input
from keras_resnet.imagenet_classes import imagenet_classes
from keras_resnet.weights.published import timm_name

pytestmark = pytest.mark.parity

ROWS = [row for row in keras_resnet.weights.WEIGHT_SETS if row.classes == 1000]
OF_TIMM = [row for row in ROWS if row.sources[-1].address.startswith("hf://timm/")]
# (height, width) of what is cut out of the photographs; odd, tall, wide, small, the crop's own
SIZES = [(427, 640), (333, 251), (300, 301), (181, 423), (401, 150), (97, 83), (256, 224)]
SIZES.append((224, 224))  # which the peers resize and crop as well
# 100 JPEGs of ImageNet's sizes, one of them greyscale, beside the checkout
SHARED = pathlib.Path(__file__).parents[2] / "shared" / "images"


def jpegs():
    """JPEG files of many sizes, as Pillow opens them; the last one is greyscale."""
    china, flower = sklearn.datasets.load_sample_images().images
    pictures = [photo[:h, :w] for photo in (china, flower) for h, w in SIZES]
    modes = ["RGB"] * len(pictures) + ["L"]
    for picture, mode in zip([*pictures, china[:211, :304]], modes):
        file = io.BytesIO()
        PIL.Image.fromarray(picture).convert(mode).save(file, "JPEG", quality=90)
        yield PIL.Image.open(file)


def difference(transform, preprocessing, images=None):
    """The largest of all pixels, before mean and std, on the scale 0..1."""
    std = np.asarray(preprocessing.std)
    largest = 0.0
    for image in images or jpegs():
        expected = transform(image.convert("RGB")).permute(1, 2, 0).numpy()
        received = np.asarray(preprocess_input(np.asarray(image), preprocessing))
        largest = max(largest, np.abs((received - expected) * std).max())
    return largest


@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_those_of_timm(crop, interpolation, timm):
    transform = timm.data.create_transform(
        224, crop_pct=crop, interpolation=interpolation, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    preprocessing = keras_resnet.Preprocessing(
        resize_size=int(224 / crop), interpolation=interpolation, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert difference(transform, preprocessing) < 1e-6


@pytest.mark.parametrize("version", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_images_are_those_of_torchvision(version, torchvision):
    tag = {"IMAGENET1K_V1": "tv_in1k", "IMAGENET1K_V2": "tv2_in1k"}[version]
    transform = torchvision.models.ResNet50_Weights[version].transforms()
    row = keras_resnet.weights.get_weight_set("resnet50", tag)
    assert difference(transform, row.preprocessing) < 1e-6


def test_real_photographs_are_those_of_the_peers(torchvision, timm):
    images = [PIL.Image.open(path) for path in sorted(SHARED.glob("*/*.*"))]
    if not images:
        pytest.skip(f"needs JPEGs in folders of {SHARED}")
    ours = keras_resnet.weights.get_weight_set("resnet50", "a1_in1k").preprocessing
    theirs = timm.data.create_transform(224, crop_pct=0.95, interpolation="bicubic")
    assert difference(theirs, ours, images) < 1e-6
    ours = keras_resnet.weights.get_weight_set("resnet50", "tv2_in1k").preprocessing
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert difference(theirs, ours, images) < 1e-6


@pytest.mark.parametrize("row", OF_TIMM, ids=lambda row: f"{row.variant}-{row.tag}")
def test_rows_say_what_timm_says(row, timm):
    config = timm.models.get_pretrained_cfg(row.sources[-1].address.removeprefix("hf://timm/"))
    images = row.preprocessing
    # `resnet50.a1h_in1k`, A3 and torchvision's V2 were trained small and are scored at 224.
    trained_small = config.input_size[1] < 224
    crop = (config.test_crop_pct if trained_small else None) or config.crop_pct
    size = config.test_input_size[1] if trained_small else config.input_size[1]
    assert images.size == (size, size)
    assert images.resize_size == int(size / crop)
    assert (images.mean, images.std) == (config.mean, config.std)
    # timm has torchvision's DenseNets with an interpolation that is not torchvision's.
    if not row.variant.startswith("densenet"):
        assert images.interpolation == config.interpolation
        assert row.licence.lower() == config.license
        released = [source.address.rpartition("/")[2] for source in row.sources[:-1]]
        assert released == ([config.url.rpartition("/")[2]] if config.url else [])


# Nobody says how accurate they are on images of 224 pixels.
LEFT_OUT = {("densenet121", "ra_in1k"), ("resnet18d", "ra4_e3600_r224_in1k")}


def test_no_permissive_set_of_timm_is_left_out(timm):
    left_out = set()
    for variant in dict.fromkeys(row.variant for row in ROWS):
        for name in timm.list_pretrained(f"{timm_name(variant)}.*_in1k"):
            pair = (variant, name.partition(".")[2])
            is_free = timm.models.get_pretrained_cfg(name).license in ("apache-2.0", "bsd-3-clause")
            if is_free and pair not in {(row.variant, row.tag) for row in ROWS}:
                left_out.add(pair)
    assert left_out == LEFT_OUT


def test_rows_say_what_torchvision_says(torchvision):
    for row in ROWS:
        if not row.tag.startswith("tv"):
            continue
        version = "IMAGENET1K_V2" if row.tag == "tv2_in1k" else "IMAGENET1K_V1"
        weights = torchvision.models.get_model_weights(row.variant)[version]
        assert row.sources[0].address == weights.url
        accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert row.accuracy == pytest.approx(accuracy / 100)
        transform = weights.transforms()
        assert [row.preprocessing.resize_size] == transform.resize_size
        assert row.preprocessing.interpolation == transform.interpolation.value


def test_class_names_are_those_of_torchvision(torchvision, timm):
    categories = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    assert [name for _, name in imagenet_classes()] == categories
    synsets = timm.data.ImageNetInfo().label_names()
    assert [synset for synset, _ in imagenet_classes()] == synsets
