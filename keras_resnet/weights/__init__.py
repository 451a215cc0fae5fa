"""Trained weights: which there are, and how they come into a model and out of one."""

from keras_resnet.weights.files import load_weights, read_metadata, save_weights
from keras_resnet.weights.registry import WEIGHT_SETS, WeightSet, get_weight_set, list_weights

__all__ = [
    "WEIGHT_SETS",
    "WeightSet",
    "get_weight_set",
    "list_weights",
    "load_weights",
    "read_metadata",
    "save_weights",
]
