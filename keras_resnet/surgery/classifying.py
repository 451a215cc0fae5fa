"""Another classifier on a trained network."""

import keras

from keras_resnet.surgery.graph import Edit, rewrite


def new_classifier(model: keras.Model, classes: int) -> keras.Model:
    """Gives a trained classifier a new last layer, for other classes.

    Args:
        model: A model of this package that ends in its dense layer `predictions`.
        classes: Number of classes, at least 1.

    Returns:
        A copy of the model, not compiled, whose last layer begins anew; its activation is that of
        the old one.

    Raises:
        ValueError: If the model has no classifier.
    """
    head = model.layers[-1]
    if not isinstance(head, keras.layers.Dense):
        raise ValueError(
            "There is no classifier to replace. Expected a model that ends in a dense layer. "
            f"Received: {model.name!r}, which ends in {head.name!r}. Build it with `include_top`."
        )
    features = head.kernel.shape[0]
    weights = [head.kernel_initializer((features, classes)), head.bias_initializer((classes,))]
    return rewrite(model, {head: Edit({"units": classes}, weights)}, calls={})
