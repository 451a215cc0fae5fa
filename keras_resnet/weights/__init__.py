"""Trained weights: which there are, and how they come into a model and out of one."""

from keras_resnet.weights.channels import spread_channels
from keras_resnet.weights.files import load_weights, read_metadata, save_torch, save_weights
from keras_resnet.weights.matching import LoadReport
from keras_resnet.weights.published import WEIGHT_SETS
from keras_resnet.weights.registry import find_weights, get_weight_set, list_weights
from keras_resnet.weights.sets import Source, WeightSet, WeightSets
from keras_resnet.weights.store import fetch
from keras_resnet.weights.verify import Verification, verify

__all__ = [
    "WEIGHT_SETS",
    "LoadReport",
    "Source",
    "Verification",
    "WeightSet",
    "WeightSets",
    "fetch",
    "find_weights",
    "get_weight_set",
    "list_weights",
    "load_weights",
    "read_metadata",
    "save_torch",
    "save_weights",
    "spread_channels",
    "verify",
]
