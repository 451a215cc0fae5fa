"""How good a model is on one split, every image counted exactly once."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import unknown_name
from training import datasets, records
from training.crops import SINGLE, Crops, predict
from training.strategy import make_strategy


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model got right on a split.

    Args:
        count: Number of images.
        top1: Fraction of images whose most probable class is the label.
        top5: Fraction of images whose label is among the five most probable classes; `None` for
            five classes or fewer.
        cross_entropy: Mean of -log(probability of the label), in nats; of classes on their own
            (binary cross-entropy), whose probabilities need not sum to 1, as a share of their sum.
        confusion: Integers of shape `(classes, classes)`: images by label (row) and by most
            probable class (column).
    """

    count: int
    top1: float
    top5: float | None
    cross_entropy: float
    confusion: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain JSON types."""
        return dataclasses.asdict(self) | {"confusion": self.confusion.tolist()}


def evaluate(
    model: keras.Model, split, *, batch_size: int = 250, preprocessing, crops: Crops = SINGLE
) -> Evaluation:
    """Scores every image of a split once, under any number of replicas.

    Args:
        model: A classifier that gives probabilities.
        split: One of `Dataset.splits`.
        batch_size: Images per step over all replicas; changes the speed only.
        preprocessing: The `Preprocessing` the model expects.
        crops: Which views of each image are scored.

    Returns:
        The evaluation.
    """
    probabilities = predict(
        model, split, batch_size=batch_size, preprocessing=preprocessing, crops=crops
    )
    return score(probabilities, read_labels(split))


def read_labels(split) -> np.ndarray:
    """The labels of a split, in its order: integers of shape `(images,)`.

    Args:
        split: One of `Dataset.splits`.
    """
    labels = split.keys.map(lambda key: split.fetch(key)[1]).batch(1024)
    return np.concatenate([*labels.as_numpy_iterator()])


def score(probabilities, labels) -> Evaluation:
    """Compares probabilities with labels, in float64.

    Args:
        probabilities: Array of shape `(images, classes)`.
        labels: Integers of shape `(images,)`.

    Returns:
        The evaluation.
    """
    probabilities = np.asarray(probabilities, "float64")
    labels = np.asarray(labels)
    count, classes = probabilities.shape
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == labels[:, None]
    smallest = np.finfo("float32").tiny  # a float32 softmax may round to 0
    of_label = np.take_along_axis(probabilities, labels[:, None], axis=1)
    of_label /= np.maximum(probabilities.sum(axis=1, keepdims=True), smallest)
    return Evaluation(
        count=count,
        top1=float(hits[:, 0].mean()),
        top5=float(hits[:, :5].any(axis=1).mean()) if classes > 5 else None,
        cross_entropy=float(-np.log(np.maximum(of_label, smallest)).mean()),
        confusion=np.bincount(labels * classes + order[:, 0], minlength=classes**2).reshape(
            classes, classes
        ),
    )


@dataclasses.dataclass(frozen=True)
class Answers:
    """What runs answer to the images of one split.

    Args:
        dataset: Where the images come from.
        split: Name of the split.
        labels: Integers of shape `(images,)`.
        members: For each run its probabilities, of shape `(images, classes)`.
    """

    dataset: datasets.Dataset
    split: str
    labels: np.ndarray
    members: tuple[np.ndarray, ...]

    @property
    def probabilities(self) -> np.ndarray:
        """Those of the ensemble: their mean over the runs."""
        return np.mean(self.members, axis=0)

    @property
    def evaluation(self) -> Evaluation:
        """The scores of the ensemble, which for one run are its own."""
        return score(self.probabilities, self.labels)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The scores of each run."""
        return [score(member, self.labels) for member in self.members]


def answer(
    run_dirs: Sequence[str | os.PathLike],
    *,
    split: str = "test",
    dataset: str | None = None,
    data_dir=None,
    batch_size: int = 250,
    replicas: int | None = None,
    crops: Crops = SINGLE,
) -> Answers:
    """Shows the images of a split to the best weights of one or several runs.

    The members answer one after the other, each with its own preprocessing, so an ensemble costs
    no more than its members; what it answers is what `keras_resnet.ensemble` of them answers.

    Args:
        run_dirs: The runs' directories.
        split: Name of the split.
        dataset: Name of other images than the runs', with the same classes. Runs that learnt from
            these decide what was held out of them.
        data_dir: Where the images are, see `datasets.load`.
        batch_size: Images per step over all replicas; changes the speed only.
        replicas: Number of devices, see `make_strategy`.
        crops: Which views of each image are shown.

    Raises:
        ValueError: If a run is not there or not finished, or the images do not fit it.
    """
    runs = [records.read(run_dir) for run_dir in run_dirs]
    strategy = make_strategy(replicas)
    name = dataset or _common_dataset(runs)
    learnt_from = [run for run in runs if run.recipe.dataset == name]
    data = datasets.load(
        name,
        data_dir=data_dir,
        validation_examples=_common_validation(learnt_from, split) if learnt_from else None,
        skip_corrupt=any(run.data["skip_corrupt"] for run in runs),
    )
    if split not in data.splits:
        raise unknown_name("split", split, data.splits)
    with strategy.scope():
        models = [load_model(run_dir) for run_dir in run_dirs]
    for model, run in zip(models, runs):
        check_fits(model, data, run.data["class_names"])
    examples = data.splits[split]
    members = [
        predict(
            model,
            examples,
            batch_size=batch_size,
            preprocessing=model.preprocessing,
            crops=crops,
        )
        for model in models
    ]
    return Answers(data, split, read_labels(examples), tuple(members))


def evaluate_run(run_dir, **options) -> tuple[Evaluation, datasets.Dataset]:
    """Scores the best weights of one run.

    Args:
        run_dir: The run's directory.
        **options: Those of `answer`.

    Returns:
        The evaluation, and the dataset it is about.
    """
    answers = answer([run_dir], **options)
    return answers.evaluation, answers.dataset


def _common_dataset(runs):
    names = [run.recipe.dataset for run in runs]
    if len(set(names)) > 1:
        raise ValueError(
            "The runs learnt from different images. Expected runs of one dataset. "
            f"Received: {', '.join(map(repr, names))}. Choose the images with --dataset."
        )
    return names[0]


def _common_validation(runs, split):
    counts = [run.recipe.validation_examples for run in runs]
    if split == "validation" and len(set(counts)) > 1:
        raise ValueError(
            "The runs held out different images for validation, so that one has learnt what is "
            "new to another. Expected runs with the same validation_examples. "
            f"Received: {', '.join(map(str, counts))}. Score them on the test split."
        )
    return counts[0]


def check_fits(model: keras.Model, dataset, class_names: Sequence[str] = ()) -> None:
    """Raises a ValueError if a model cannot be scored on a dataset.

    Args:
        model: A classifier.
        dataset: A `training.datasets.Dataset`.
        class_names: What the model's classes are called, in its order, if that is known. The
            dataset may have other names, but not the same ones for others.
    """
    classes = model.output_shape[-1]
    if classes != len(dataset.class_names):
        raise ValueError(
            f"The model's classes do not fit the labels of {dataset.name!r}. Expected "
            f"{len(dataset.class_names)} classes. Received: {model.name!r} with {classes}. "
            "Choose the dataset it was trained on with --dataset, or train it on this one."
        )
    for number, (ours, theirs) in enumerate(zip(class_names, dataset.class_names)):
        if ours != theirs and theirs in class_names:
            raise ValueError(
                f"The classes of {dataset.name!r} are in another order than {model.name!r} learnt "
                f"them. Expected {ours!r} as class {number}. Received: {theirs!r}. Prepare the "
                "images with the classes of the training, in its order."
            )
    channels = dataset.image_shape[-1]
    if model.input_shape[-1] != channels:
        raise ValueError(
            f"The model's input does not fit the images of {dataset.name!r}. Expected {channels} "
            f"channels. Received: {model.name!r} with {model.input_shape[-1]}. "
            "Choose the dataset it was trained on with --dataset, or train it on this one."
        )


def load_model(run_dir) -> keras.Model:
    """The model a run ended with: its best weights on the validation split.

    Args:
        run_dir: The run's directory.

    Raises:
        ValueError: If there is no run, or it has not finished.
    """
    record = records.read(run_dir)
    if not record.results:
        raise ValueError(
            "The run has not finished. Expected a record with results. "
            f"Received: {str(run_dir)!r}, started {record.started}. Continue it with "
            "`train ... --resume`, or delete it."
        )
    return keras.saving.load_model(pathlib.Path(run_dir) / records.BEST, compile=False)
