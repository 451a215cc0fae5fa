"""From a recipe to a compiled network: precision, loss, optimizer, and how it is compiled."""

import contextlib
import dataclasses

import keras

import keras_resnet
from keras_resnet.preprocessing import Preprocessing
from training import augment
from training.optimizers import make_optimizer
from training.recipe import Recipe


def compiled_model(
    recipe: Recipe, dataset, *, xla: bool | str = "auto", accumulation_steps: int = 1
) -> keras.Model:
    """The recipe's network for a dataset, ready to be trained; call it in a strategy's scope.

    Args:
        recipe: The recipe.
        dataset: Its images give the input shape, its labels the classes.
        xla: Whether XLA compiles the training step; `"auto"`: on accelerators.
        accumulation_steps: In how many parts each replica does its share of a batch.

    Raises:
        ValueError: If the backend cannot accumulate.
    """
    if accumulation_steps > 1 and keras.backend.backend() != "tensorflow":
        raise ValueError(
            "This backend does a batch in one part. Expected accumulation_steps=1. "
            f"Received: {accumulation_steps} on {keras.backend.backend()!r}. Choose a smaller "
            "batch size, or KERAS_BACKEND=tensorflow."
        )
    preprocessing = preprocessing_of(recipe, dataset)
    # Images that grow during the run want a network for every size.
    size = (None, None) if recipe.image_sizes else preprocessing.size
    model = network(
        recipe,
        input_shape=(*size, dataset.image_shape[-1]),
        classes=len(dataset.class_names),
        weights=recipe.weights,
    )
    model.preprocessing = preprocessing  # the exports carry it along
    if recipe.freeze is not None:
        keras_resnet.surgery.freeze(model, recipe.freeze)
    model.accumulation_steps = accumulation_steps
    model.compile(
        make_optimizer(recipe),
        loss=_loss(recipe),
        # Weighted: the images that fill up the last validation batch weigh nothing. The loss
        # itself is a mean over batches, so the exact mean over images is a metric.
        weighted_metrics=_metrics(recipe),
        jit_compile=xla,
    )
    return model


def network(
    recipe: Recipe,
    *,
    input_shape: tuple[int | None, int | None, int],
    classes: int,
    weights: str | None = None,
) -> keras.Model:
    """The recipe's network, not compiled.

    Args:
        recipe: Gives the variant, its options, the precision and the kind of the answers.
        input_shape: Height, width and channels of its input.
        classes: Number of classes.
        weights: What it begins with, see `keras_resnet.build`.
    """
    with _policy(recipe.precision):
        model = keras_resnet.build(
            recipe.variant,
            input_shape=input_shape,
            classes=classes,
            weights=weights,
            classifier_activation="softmax" if _is_exclusive(recipe) else "sigmoid",
            **recipe.options,
        )
    if recipe.synchronized_batch_norm:
        keras_resnet.surgery.synchronize_batch_norm(model)
    return model


def preprocessing_of(recipe: Recipe, dataset) -> Preprocessing:
    """What the network does with images before it sees them.

    The dataset's preprocessing, or that of the weights the network begins with; as the recipe
    wants it.

    Args:
        recipe: The recipe.
        dataset: What it is trained on.
    """
    weights = keras_resnet.weights.find_weights(recipe.variant, recipe.weights)
    preprocessing = weights.preprocessing if weights else dataset.preprocessing
    preprocessing = preprocessing.adapted(channels=dataset.image_shape[-1])
    return dataclasses.replace(preprocessing, **recipe.preprocessing)


def wants_one_hot(recipe: Recipe) -> bool:
    """Whether labels are vectors, because an image may belong to several classes in part.

    Args:
        recipe: The recipe.
    """
    return not (
        _is_exclusive(recipe)
        and recipe.label_smoothing == 0
        and not any(augment.get_augmentation(n).kind == "mix" for n in recipe.augmentation)
    )


@keras.saving.register_keras_serializable(package="training")
class BinaryCrossentropy(keras.losses.BinaryCrossentropy):
    """That of each class on its own; smoothing spreads a share of the label over all classes.

    Keras smooths each class towards one half: of a thousand classes the wrong ones together would
    weigh as much as 50 labels. Here they weigh a share of one, as in the runs of "ResNet strikes
    back".

    Args:
        label_smoothing: Share of a label that is spread over all classes, in [0, 1).
        target_threshold: Classes with a larger share than this count as wholly there, the others
            as not there, before the smoothing. `None`: a class counts by its share.
        **kwargs: Those of Keras's loss.
    """

    def __init__(
        self, label_smoothing: float = 0.0, target_threshold: float | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        self.share, self.threshold = label_smoothing, target_threshold

    def call(self, y_true, y_pred):
        """One value per image."""
        if self.threshold is not None:
            y_true = y_true > self.threshold
        y_true = keras.ops.cast(y_true, y_pred.dtype)
        return super().call((1 - self.share) * y_true + self.share / y_pred.shape[-1], y_pred)

    def get_config(self):
        """What makes it anew."""
        own = {"label_smoothing": self.share, "target_threshold": self.threshold}
        return {**super().get_config(), **own}


def _is_exclusive(recipe):
    return recipe.loss == "categorical_crossentropy"


def _loss(recipe):
    if not wants_one_hot(recipe):
        return keras.losses.SparseCategoricalCrossentropy()
    if _is_exclusive(recipe):
        return keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing)
    return BinaryCrossentropy(recipe.label_smoothing, recipe.target_threshold)


def _metrics(recipe):
    kind = "Categorical" if wants_one_hot(recipe) else "SparseCategorical"
    return [
        getattr(keras.metrics, f"{kind}Accuracy")(name="accuracy"),
        getattr(keras.metrics, f"{kind}Crossentropy")(name="cross_entropy"),
    ]


@contextlib.contextmanager
def _policy(name):
    """Layers that are made in here compute so."""
    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(default)
