"""The user's images, from an array or a `tf.data.Dataset`, in one form for all exports."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

BATCH = 32
_INFINITE = -1  # tf.data.INFINITE_CARDINALITY


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images in batches, and their classes where they are known.

    Args:
        batches: Arrays of shape `(batch, height, width, channels)`; sizes may differ from batch to
            batch.
        labels: Classes of all images in order, of shape `(images,)`, or `None`.
    """

    batches: list[np.ndarray]
    labels: np.ndarray | None = None

    def __len__(self):
        return sum(map(len, self.batches))

    def images(self):
        """One image at a time, of shape `(1, height, width, channels)`."""
        for batch in self.batches:
            for start in range(len(batch)):
                yield batch[start : start + 1]


def read_examples(
    data: Any, labels: Any = None, *, shape, argument: str, limit: int | None = None
) -> Examples:
    """Reads images into memory and checks them.

    Args:
        data: Array of images, or an iterable (`tf.data.Dataset`, generator, list) of batches `x`
            or `(x, y)`; single images count as batches of one.
        labels: Classes `(images,)`, or one-hot `(images, classes)`. Default: the `y` of `data`.
        shape: `(height, width, channels)` that is expected; `None` where any size will do.
        argument: Name of the argument `data` came in, for the error.
        limit: Reading stops after this many images: datasets may repeat for ever.

    Raises:
        ValueError: If there is no image, or no end of them, a shape does not fit, a value is no
            finite number, or labels are missing for some.
    """
    cardinality = getattr(data, "cardinality", None)
    if limit is None and callable(cardinality) and int(cardinality()) == _INFINITE:
        raise ValueError(
            f"The images of `{argument}` have no end. Expected a dataset that does not repeat. "
            "Received: one of infinite cardinality. Try `.take(count)`."
        )
    batches, seen, count = [], [], 0
    for images, classes in _pairs(data, argument):
        images = np.asarray(images)
        if images.ndim == 3:
            images, classes = images[np.newaxis], None if classes is None else [classes]
        images = images[: None if limit is None else limit - count]
        _check_shape(images, shape, argument)
        _check_numbers(images, argument)
        if not len(images):
            continue
        batches.append(images)
        seen.append(classes)
        count += len(images)
        if limit is not None and count >= limit:
            break
    if not count:
        raise ValueError(
            f"There is no image in `{argument}`. Expected an array of images, or batches of them. "
            f"Received: {type(data).__name__} without images"
        )
    known = [np.asarray(classes) for classes in seen if classes is not None]
    if labels is None and limit is None and known:
        labels = np.concatenate(known)
    return Examples(batches, None if labels is None else _classes(labels, count))


def check_raw(examples: Examples, argument: str, taker: str) -> None:
    """Raises `ValueError` if images are not uint8.

    Args:
        examples: The images.
        argument: Name of the argument they came in.
        taker: What takes raw images, e.g. `"The SavedModel"`.
    """
    dtypes = {str(batch.dtype) for batch in examples.batches}
    if dtypes != {"uint8"}:
        raise ValueError(
            f"{taker} takes raw images. Expected uint8 values 0..255 in `{argument}`. "
            f"Received: {', '.join(sorted(dtypes))}"
        )


def _pairs(data, argument) -> Iterator:
    if hasattr(data, "shape"):
        data = np.asarray(data)
        data = [data[start : start + BATCH] for start in range(0, len(data), BATCH)]
    for batch in data if isinstance(data, Iterable) else [data]:
        images, classes, *_ = (*batch, None) if isinstance(batch, tuple) else (batch, None)
        if isinstance(images, (dict, list, str, int)):
            raise ValueError(
                f"The elements of `{argument}` are no images. Expected arrays x, or tuples (x, y), "
                "e.g. of `tfds.load(..., as_supervised=True)`. "
                f"Received: {type(images).__name__}"
            )
        yield images, classes


def _check_shape(images, shape, argument):
    fits = images.ndim == 4 and all(
        side in (None, received) for side, received in zip(shape, images.shape[1:])
    )
    if not fits:
        expected = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(
            f"The images of `{argument}` do not fit the model. "
            f"Expected shape (batch, {expected}). Received: shape {images.shape}"
        )


def _check_numbers(images, argument):
    if images.dtype.kind not in "uif":
        raise ValueError(
            f"The images of `{argument}` are no numbers. Expected uint8 or float32. "
            f"Received: {images.dtype}"
        )
    broken = np.count_nonzero(~np.isfinite(images))
    if broken:
        raise ValueError(
            f"The images of `{argument}` hold values that are no numbers. Expected finite values. "
            f"Received: NaN or infinity at {broken} of {images.size} places of a batch. Look for a "
            "division by zero in the pipeline."
        )


def _classes(labels, count):
    labels = np.asarray(labels)
    if labels.ndim == 2:
        labels = labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    if labels.shape != (count,):
        raise ValueError(
            "The labels do not fit the examples. Expected one class per image, "
            f"shape ({count},). Received: shape {labels.shape}"
        )
    return labels
