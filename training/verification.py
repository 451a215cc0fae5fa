"""Published weights are scored here, to be compared with what is said of them."""

import keras

import keras_resnet
from training import datasets, evaluate
from training.evaluate import Evaluation
from training.strategy import make_strategy

# Decoders and machines differ in the last bits, which moves a few images in 10,000.
TOLERANCE = 0.001
DATASETS = {10: "cifar10", 1000: "imagenet2012"}


def verify(
    variant: str,
    tag: str,
    *,
    dataset: str | None = None,
    data_dir=None,
    batch_size: int = 250,
    replicas: int | None = None,
) -> tuple[keras_resnet.WeightSet, Evaluation]:
    """Scores a published set of weights on the test split of its images, as it was published.

    Args:
        variant: Name of the network.
        tag: What `weights=` takes.
        dataset: Name of the images, see `datasets.load`. Default: `"imagenet2012"` for sets of
            1,000 classes, `"cifar10"` for ten.
        data_dir: Where the images are.
        batch_size: Images per step over all replicas; changes the speed only.
        replicas: Number of devices, see `make_strategy`.

    Returns:
        The row of the table, and what was measured.

    Raises:
        ValueError: If there is no such set, it cannot be had, or the images do not fit it.
    """
    strategy = make_strategy(replicas)
    with strategy.scope():
        row, model, data = load(variant, tag, dataset=dataset, data_dir=data_dir)
        if row.evaluation != row.preprocessing:
            shape = (*row.evaluation.size, len(row.evaluation.mean))
            model = keras_resnet.build(variant, weights=tag, input_shape=shape)
            model.preprocessing = row.evaluation
    evaluate.check_fits(model, data)
    scores = evaluate.evaluate(
        model, data.splits["test"], batch_size=batch_size, preprocessing=model.preprocessing
    )
    return row, scores


def load(
    variant: str, tag: str, *, dataset: str | None = None, data_dir=None
) -> tuple[keras_resnet.WeightSet, keras.Model, datasets.Dataset]:
    """A network with published weights, and the images that they are for.

    Args:
        variant: Name of the network.
        tag: What `weights=` takes.
        dataset: Name of the images. Default: as in `verify`.
        data_dir: Where the images are.

    Returns:
        The row of the table, the model, and the dataset.

    Raises:
        ValueError: If there is no such set, or it or the images cannot be had.
    """
    row = keras_resnet.weights.find_weights(variant, tag)
    data = datasets.load(dataset or DATASETS.get(row.classes, "imagenet2012"), data_dir=data_dir)
    return row, keras_resnet.build(variant, weights=tag), data
