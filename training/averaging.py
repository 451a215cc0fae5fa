"""Averages over the steps: of the weights, which Keras keeps, and of the moving statistics."""

from collections.abc import Iterator

import keras
import numpy as np

from training.workers import average_moving_statistics

PREFIX = "average/"  # of the names in a checkpoint


class SwapAverages(keras.callbacks.SwapEMAWeights):
    """Validates the averaged weights with averaged moving statistics, and leaves both at the end.

    Keras averages what is trained. The moving statistics that it validates with are those of the
    latest weights, which fit the average badly while the learning rate is high. As torchvision and
    timm do with a network's buffers, they are averaged here as well, over replicas too.

    Args:
        averages: The averages by name, changed in place; empty for a run that starts.
        momentum: That of the weights: the share of the old average in the new, 0..1.
    """

    def __init__(self, averages: dict[str, np.ndarray], momentum: float):
        super().__init__()
        self.averages, self.momentum = averages, momentum

    def on_train_batch_end(self, batch, logs=None):
        """The first statistics are the average of one step."""
        if hasattr(self.model, "jax_state_sync"):  # within an epoch, JAX keeps the values elsewhere
            self.model.jax_state_sync()
        for name, variable in _statistics(self.model):
            copies = getattr(variable.value, "values", (variable,))
            value = np.mean([keras.ops.convert_to_numpy(copy) for copy in copies], axis=0)
            average = self.averages.get(name, value)
            self.averages[name] = average + np.float32(1 - self.momentum) * (value - average)

    def on_test_begin(self, logs=None):
        """Both averages come into the model, and that of the statistics is one for all workers."""
        super().on_test_begin(logs)
        self._swap_statistics()
        average_moving_statistics(self.model)

    def on_test_end(self, logs=None):
        """And leave it."""
        super().on_test_end(logs)
        self._swap_statistics()

    def on_train_end(self, logs=None):
        """`fit` has put the averaged weights into the model."""
        super().on_train_end(logs)
        self._swap_statistics()

    def _swap_statistics(self):
        for name, variable in _statistics(self.model):
            latest = keras.ops.convert_to_numpy(variable)
            variable.assign(self.averages.get(name, latest))
            self.averages[name] = latest


def _statistics(model) -> Iterator[tuple[str, keras.Variable]]:
    """The moving statistics that training changes, by their names in a checkpoint."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            for variable in (layer.moving_mean, layer.moving_variance):
                yield PREFIX + variable.path, variable
