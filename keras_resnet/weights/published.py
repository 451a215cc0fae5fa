"""Every published set of weights is one row of one table; what licences forbid to sell is not here.

Addresses, hash prefixes and preprocessing are those of torchvision 0.28, timm 1.0 and Keras 3.15.
Accuracies are theirs at the size of the preprocessing, which is what a network is built for; of
timm's: results-imagenet.csv, then the model cards (two digits), then the release notes (one). Where
none of them has that size, `evaluation` says at which it was measured.
"""

import dataclasses
import pathlib
import re

from keras_resnet.preprocessing import CIFAR10, IMAGENET, Preprocessing
from keras_resnet.weights.sets import HUB, Source, WeightSet, WeightSets

_SHIPPED = pathlib.Path(__file__).parent / "shipped"
_TORCHVISION = "https://download.pytorch.org/models/"
_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/"
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
_HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
_CAFFE = Preprocessing(
    scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), channel_order="bgr"
)


def timm_name(variant: str) -> str:
    """What timm calls a network: `resnetv2_50`, `seresnet50`; most are called as here."""
    return re.sub(r"^resnet(\d+)v2$", r"resnetv2_\1", variant).replace("se_resnet", "seresnet")


def _bicubic(crop: float, size: int = 224, **fields) -> Preprocessing:
    """Timm's evaluation: of the image, resized bicubically, the central share `crop`."""
    resize_size = int(size / crop)
    size = (size, size)
    return Preprocessing(size=size, resize_size=resize_size, interpolation="bicubic", **fields)


def _of_torch(variant, tag, path, preprocessing, accuracy, *, licence, made_by, **fields):
    """The file whose name ends in its hash; and timm's copy on the hub, whose hash nobody says."""
    address = f"{HUB}timm/{timm_name(variant)}.{tag}"
    sources = [Source(address, f"{variant}.{tag}.safetensors")]
    if path:
        name = path.rpartition("/")[2]
        prefix = name.removesuffix(".pth").rpartition("-")[2]
        sources.insert(0, Source(path, name, f"sha256:{prefix}"))
    return WeightSet(
        variant,
        tag,
        tuple(sources),
        licence,
        preprocessing,
        accuracy=accuracy,
        made_by=made_by,
        **fields,
    )


def _strikes_back(variant, plan, file, accuracy, size=224):
    """Procedures of "ResNet strikes back", by their letter and number."""
    crop = 1.0 if (variant, plan) == ("resnet50", "a1h") else 0.95
    values = _HALVES if variant.endswith("v2") else {}
    # timm scores these networks on whole images where it enlarges them.
    evaluation = None if size == 224 else _bicubic(1.0, size, **values)
    path = file and f"{_TIMM}v0.1-rsb-weights/{file}.pth"
    return _of_torch(
        variant,
        f"{plan}_in1k",
        path,
        _bicubic(crop, **values),
        accuracy,
        licence="Apache-2.0",
        made_by=f"Wightman et al. 2021, {plan.upper()}",
        evaluation=evaluation,
    )


def _torchvision(variant, version, suffix, accuracy):
    resized = dataclasses.replace(IMAGENET, resize_size=256 if version == 1 else 232)
    return _of_torch(
        variant,
        "tv_in1k" if version == 1 else "tv2_in1k",
        f"{_TORCHVISION}{variant}-{suffix}.pth",
        resized,
        accuracy,
        licence="BSD-3-Clause",
        made_by=f"torchvision, V{version}",
    )


def _gluon(variant, file, accuracy):
    return _of_torch(
        variant,
        "gluon_in1k",
        f"{_GLUON}gluon_{file}.pth",
        _bicubic(0.875),
        accuracy,
        licence="Apache-2.0",
        made_by="GluonCV (He et al. 2019)",
    )


def _timm(variant, tag, file, preprocessing, accuracy):
    path = file and f"{_TIMM}v0.1-weights/{file}.pth"
    return _of_torch(
        variant, tag, path, preprocessing, accuracy, licence="Apache-2.0", made_by="timm"
    )


def _caffe(variant, md5, accuracy):
    """The weights of He et al. 2015, as keras.applications has them: strides in 1x1, biases."""
    file = f"{variant}_weights_tf_dim_ordering_tf_kernels.h5"
    return WeightSet(
        variant,
        "v1_caffe",
        (Source(f"{_KERAS}{file}", file, f"md5:{md5}"),),
        licence="MIT",
        preprocessing=_CAFFE,
        accuracy=accuracy,
        made_by="He et al. 2015, by way of keras.applications",
        options={"stride_in_1x1": True},
    )


def _keras_v2(variant, md5, accuracy):
    """Pre-activation networks of keras.applications: biases, stages that end in their stride."""
    file = f"{variant}_weights_tf_dim_ordering_tf_kernels.h5"
    return WeightSet(
        variant,
        "v2_keras",
        (Source(f"{_KERAS}{file}", file, f"md5:{md5}"),),
        licence="MIT",
        preprocessing=Preprocessing(scale=1 / 127.5, mean=(1.0,) * 3, std=(1.0,) * 3),
        accuracy=accuracy,
        made_by="keras.applications",
        options={
            "conv_bias": True,
            "stride_in_last_block": True,
            "stem": "imagenet_zero_padded",
        },
    )


_CIFAR10 = "cifar_resnet20.cifar10.safetensors"

WEIGHT_SETS = WeightSets(
    (
        WeightSet(
            variant="cifar_resnet20",
            tag="cifar10",
            sources=(
                Source(
                    str(_SHIPPED / _CIFAR10),
                    _CIFAR10,
                    "sha256:5f35b9cee959ab9b539676f69f27a12d2a6497488ad6f3562540bf775c3874bc",
                ),
            ),
            licence="Apache-2.0",
            preprocessing=CIFAR10,
            classes=10,
            accuracy=0.9162,
            made_by="python -m training train cifar10-resnet20-fast",
        ),
        _strikes_back("resnet18", "a1", "resnet18_a1_0-d63eafa0", 0.71504),
        _strikes_back("resnet18", "a2", "resnet18_a2_0-b61bd467", 0.70634),
        _strikes_back("resnet18", "a3", "resnet18_a3_0-40c531c8", 0.68250),
        _torchvision("resnet18", 1, "f37072fd", 0.69758),
        _gluon("resnet18", "resnet18_v1b-0757602b", 0.70844),
        _strikes_back("resnet34", "a1", "resnet34_a1_0-46f8f793", 0.76420),
        _strikes_back("resnet34", "a2", "resnet34_a2_0-82d47d71", 0.75520),
        _strikes_back("resnet34", "a3", "resnet34_a3_0-a20cabb6", 0.72996),
        _timm("resnet34", "ra4_e3600_r224_in1k", None, _bicubic(0.9, **_HALVES), 0.77492),
        _timm("resnet34", "bt_in1k", "resnet34-43635321", _bicubic(0.875), 0.7516),
        _torchvision("resnet34", 1, "b627a593", 0.73314),
        _gluon("resnet34", "resnet34_v1b-c6d82d59", 0.74574),
        _strikes_back("resnet50", "a1", "resnet50_a1_0-14fe96d1", 0.80382),
        _strikes_back("resnet50", "a1h", "resnet50_a1h2_176-001a1197", 0.80676),
        _strikes_back("resnet50", "a2", "resnet50_a2_0-a2746f79", 0.79828),
        _strikes_back("resnet50", "a3", "resnet50_a3_0-59cae1ef", 0.78052),
        _strikes_back("resnet50", "b1k", "resnet50_b1k-532a802a", 0.7952),
        _strikes_back("resnet50", "b2k", "resnet50_b2k-1ba180c1", 0.7938),
        _strikes_back("resnet50", "c1", "resnet50_c1-5ba5e060", 0.7974),
        _strikes_back("resnet50", "c2", "resnet50_c2-d01e05b2", 0.7988),
        _strikes_back("resnet50", "d", "resnet50_d-f39db8af", 0.7991),
        _timm("resnet50", "bt_in1k", "rw_resnet50-86acaeed", _bicubic(0.875), 0.7846),
        _timm("resnet50", "ra_in1k", "resnet50_ra-85ebb6e5", _bicubic(0.875), 0.7881),
        _timm("resnet50", "ram_in1k", "resnet50_ram-a26f946b", _bicubic(0.875), 0.7903),
        _timm("resnet50", "am_in1k", "resnet50_am-6c502b37", _bicubic(0.875), 0.7901),
        _torchvision("resnet50", 1, "0676ba61", 0.76130),
        _torchvision("resnet50", 2, "11ad3fa6", 0.80858),
        _gluon("resnet50", "resnet50_v1b-0ebe02e2", 0.77580),
        _caffe("resnet50", "2cb95161c43110f7111970584f804107", 0.749),
        _strikes_back("resnet101", "a1", "resnet101_a1_0-cdcb52a9", 0.81494),
        _strikes_back("resnet101", "a1h", "resnet101_a1h-36d3f2aa", 0.8193),
        _strikes_back("resnet101", "a2", "resnet101_a2_0-6edb36c7", 0.81344),
        _strikes_back("resnet101", "a3", "resnet101_a3_0-1db14157", 0.79836),
        _torchvision("resnet101", 1, "63fe2227", 0.77374),
        _torchvision("resnet101", 2, "cd907fc2", 0.81886),
        _gluon("resnet101", "resnet101_v1b-3b017079", 0.79306),
        _caffe("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", 0.764),
        _strikes_back("resnet152", "a1", "resnet152_a1_0-2eee8a7a", 0.81998),
        _strikes_back("resnet152", "a1h", "resnet152_a1h-dc400468", 0.8280),
        _strikes_back("resnet152", "a2", "resnet152_a2_0-b4c6978f", 0.81764),
        _strikes_back("resnet152", "a3", "resnet152_a3_0-134d4688", 0.80548),
        _torchvision("resnet152", 1, "394f9c45", 0.78312),
        _torchvision("resnet152", 2, "f82ba261", 0.82284),
        _gluon("resnet152", "resnet152_v1b-c1edb0dd", 0.79712),
        _caffe("resnet152", "100835be76be38e30d865e96f2aaae62", 0.766),
        _strikes_back("resnet50v2", "a1h", None, 0.81398, size=288),
        _keras_v2("resnet50v2", "3ef43a0b657b3be2300d5770ece849e0", 0.760),
        _strikes_back("resnet101v2", "a1h", None, 0.8210),
        _keras_v2("resnet101v2", "6343647c601c52e1368623803854d971", 0.772),
        _keras_v2("resnet152v2", "a49b44d1979771252814e80f8ec446f9", 0.780),
        _torchvision("wide_resnet50_2", 1, "95faca4d", 0.78468),
        _torchvision("wide_resnet50_2", 2, "9ba9bcbe", 0.81602),
        _timm(
            "wide_resnet50_2", "racm_in1k", "wide_resnet50_racm-8234f177", _bicubic(0.875), 0.8145
        ),
        _torchvision("wide_resnet101_2", 1, "32ee1156", 0.78848),
        _torchvision("wide_resnet101_2", 2, "d733dc28", 0.82510),
        _strikes_back("resnext50_32x4d", "a1", "resnext50_32x4d_a1_0-b5a91a1d", 0.8053),
        _strikes_back("resnext50_32x4d", "a1h", "resnext50_32x4d_a1h-0146ab0a", 0.8110),
        _strikes_back("resnext50_32x4d", "a2", "resnext50_32x4d_a2_0-efc76add", 0.8045),
        _strikes_back("resnext50_32x4d", "a3", "resnext50_32x4d_a3_0-3e450271", 0.79268),
        _timm("resnext50_32x4d", "ra_in1k", "resnext50_32x4d_ra-d733960d", _bicubic(0.875), 0.7976),
        _torchvision("resnext50_32x4d", 1, "7cdf4587", 0.77618),
        _torchvision("resnext50_32x4d", 2, "1a0047aa", 0.81198),
        _gluon("resnext50_32x4d", "resnext50_32x4d-e6a097c1", 0.79360),
        _torchvision("resnext101_32x8d", 1, "8ba56ff5", 0.79312),
        _torchvision("resnext101_32x8d", 2, "110c445d", 0.82834),
        _timm("resnet18d", "ra2_in1k", "resnet18d_ra2-48a79e06", _bicubic(0.875), 0.7226),
        _timm("resnet34d", "ra2_in1k", "resnet34d_ra2-f8dcfcaf", _bicubic(0.875), 0.7710),
        _strikes_back("resnet50d", "a1", "resnet50d_a1_0-e20cff14", 0.8068),
        _strikes_back("resnet50d", "a2", "resnet50d_a2_0-a3adc64d", 0.8022),
        _strikes_back("resnet50d", "a3", "resnet50d_a3_0-403fdfad", 0.78722),
        _timm("resnet50d", "ra4_e3600_r224_in1k", None, _bicubic(0.95, **_HALVES), 0.80952),
        _timm("resnet50d", "ra2_in1k", "resnet50d_ra2-464e36ba", _bicubic(0.875), 0.8053),
        _gluon("resnet50d", "resnet50_v1d-818a1b1b", 0.79078),
        _timm("resnet101d", "ra2_in1k", "resnet101d_ra2-2803ffab", _bicubic(0.95, 256), 0.8226),
        _gluon("resnet101d", "resnet101_v1d-0f9c8644", 0.80426),
        _timm("resnet152d", "ra2_in1k", "resnet152d_ra2-5cac0439", _bicubic(0.95, 256), 0.8314),
        _gluon("resnet152d", "resnet152_v1d-bd354e12", 0.80476),
        _strikes_back("se_resnet50", "a1", "seresnet50_a1_0-ffa00869", 0.8002),
        _strikes_back("se_resnet50", "a2", "seresnet50_a2_0-850de0d9", 0.8008),
        _strikes_back("se_resnet50", "a3", "seresnet50_a3_0-317ecd56", 0.77028),
        _timm("se_resnet50", "ra2_in1k", "seresnet50_ra_224-8efdb4bb", _bicubic(0.875), 0.8026),
        _torchvision("densenet121", 1, "a639ec97", 0.74434),
        _torchvision("densenet169", 1, "b2777c0a", 0.75600),
        _torchvision("densenet201", 1, "c1103571", 0.76896),
    )
)
