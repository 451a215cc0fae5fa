"""Batch normalisation over the whole batch, also where replicas share it."""

import keras


def synchronize_batch_norm(model: keras.Model) -> keras.Model:
    """Makes every batch normalisation of a model use the statistics of all replicas together.

    By default each replica normalises with its own images, as in the papers. Small shares, say
    fewer than 16 images, want the statistics of the whole batch; the price is communication in
    every layer, and a training step without XLA. Has no effect on one device. It is kept in saved
    models; compile after it.

    Args:
        model: Any Keras model; it is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: If it has no batch normalisation.

    Reference: Peng et al. 2018, section 3.4.
    """
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        raise ValueError(
            "There is nothing to synchronise. Expected a model with BatchNormalization layers. "
            f"Received: {model.name!r} without any."
        )
    for layer in layers:
        layer.synchronized = True
    return model
