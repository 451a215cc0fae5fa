"""Averages over the steps: what is validated and what is left are the averages of everything."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.variants import VARIANTS
from training.averaging import SwapAverages
from training.strategy import make_strategy

MOMENTUM = 0.7
NETWORK = dataclasses.replace(VARIANTS["cifar_resnet20"], blocks=(1,), filters=(16,))


class Follow(keras.callbacks.Callback):
    """Notes all weights after every step, when they are validated, and when that is over."""

    def __init__(self):
        super().__init__()
        self.steps, self.validated, self.between = [], [], []

    def values(self):
        copies = (getattr(w.value, "values", (w,)) for w in self.model.variables)
        return [np.mean([np.array(copy) for copy in each], axis=0) for each in copies]

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.values())

    def on_test_end(self, logs=None):
        self.validated.append(self.values())

    def on_epoch_end(self, epoch, logs=None):
        self.between.append(self.values())


def averaged(steps):
    """In float64; Keras's first average is the first weights."""
    average = [value.astype("float64") for value in steps[0]]
    for values in steps[1:]:
        average = [MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(average, values)]
    return average


@pytest.mark.parametrize("replicas", [1, 2])
def test_statistics_are_averaged_like_the_weights(replicas):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(2, 3, size=(64, 8, 8, 3)).astype("float32"), np.arange(64) % 10
    with make_strategy(replicas).scope():
        model = keras_resnet.build(NETWORK, input_shape=(8, 8, 3))
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=MOMENTUM)
        model.compile(optimizer, "sparse_categorical_crossentropy")
    follow = Follow()
    model.fit(
        *(images, labels),
        batch_size=16,
        epochs=2,
        validation_data=(images, labels),
        callbacks=[follow, SwapAverages({}, MOMENTUM)],
        verbose=0,
    )
    assert len(follow.steps) == 8
    kept = (*follow.validated, follow.values())
    for steps, received in zip((4, 8, 8), kept, strict=True):
        for expected, value in zip(averaged(follow.steps[:steps]), received, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    for steps, received in zip((4, 8), follow.between, strict=True):
        for expected, value in zip(follow.steps[steps - 1], received, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
