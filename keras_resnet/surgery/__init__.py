"""Operations on trained networks that keep their function: fold, deepen, to plain and back.

They take Functional models (or built Sequential ones) of this package or not, find the pattern they
need in the graph, and return a new model with weights of its own; the model that was given is left
as it was. The result is not compiled. (Freezing and `synchronize_batch_norm` work in
place.)
"""

from keras_resnet.surgery.classifying import new_classifier
from keras_resnet.surgery.deepening import deepen
from keras_resnet.surgery.equalizing import equalize_channels
from keras_resnet.surgery.folding import batch_norm_folds, fold_batch_norm
from keras_resnet.surgery.freezing import freeze, unfreeze
from keras_resnet.surgery.plain import PlainCost, plain_cost, to_plain
from keras_resnet.surgery.residual import to_residual
from keras_resnet.surgery.synchronizing import synchronize_batch_norm

__all__ = [
    "PlainCost",
    "batch_norm_folds",
    "deepen",
    "equalize_channels",
    "fold_batch_norm",
    "freeze",
    "new_classifier",
    "plain_cost",
    "synchronize_batch_norm",
    "to_plain",
    "to_residual",
    "unfreeze",
]
