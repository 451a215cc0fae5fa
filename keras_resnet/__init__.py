"""Residual networks for Keras, exact to the last parameter."""

from keras_resnet import export
from keras_resnet.applications import (
    CifarPlainNet,
    CifarPlainNet20,
    CifarPlainNet32,
    CifarPlainNet44,
    CifarPlainNet56,
    CifarPlainNet110,
    CifarResNet,
    CifarResNet20,
    CifarResNet32,
    CifarResNet44,
    CifarResNet56,
    CifarResNet110,
    CifarResNet1202,
    PlainNet18,
    PlainNet34,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
)
from keras_resnet.macs import count_macs
from keras_resnet.models import ResNet, build
from keras_resnet.preprocessing import Preprocessing, decode_predictions, preprocess_input
from keras_resnet.variants import VARIANTS, Variant, list_variants

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "CifarPlainNet",
    "CifarPlainNet20",
    "CifarPlainNet32",
    "CifarPlainNet44",
    "CifarPlainNet56",
    "CifarPlainNet110",
    "CifarResNet",
    "CifarResNet20",
    "CifarResNet32",
    "CifarResNet44",
    "CifarResNet56",
    "CifarResNet110",
    "CifarResNet1202",
    "PlainNet18",
    "PlainNet34",
    "Preprocessing",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "Variant",
    "build",
    "count_macs",
    "decode_predictions",
    "export",
    "list_variants",
    "preprocess_input",
]
