"""The images from which integer files take the ranges of their activations."""

import warnings

import numpy as np

from keras_resnet.export.examples import Examples, check_raw, read_examples
from keras_resnet.preprocessing import Preprocessing

CALIBRATION_IMAGES = 500  # more changes nothing: ranges are converged
ENOUGH_CALIBRATION_IMAGES = 100


def read_calibration(data, *, shape, preprocessing: Preprocessing | None, raw: bool) -> Examples:
    """Reads the first images of `representative_data` and checks what they are.

    Args:
        data: Images in the forms that `read_examples` takes; it may go on for ever.
        shape: `(height, width, channels)` of the model's input.
        preprocessing: What the images went through, or will; `None`: not known.
        raw: Whether they are expected as they come from a camera, uint8.

    Returns:
        At most 500 images. The first of raw ones is given a black and a white corner, so that the
        range of the input is that of bytes, 0..255, and its scale exactly 1 in 8 bits.

    Raises:
        ValueError: If there is no image, or they are not what is expected.

    Warns:
        UserWarning: If there are fewer than 100 images, or their values are so large that they
            look raw and nothing is known of the preprocessing, or none is below 0 and black is.
    """
    examples = read_examples(
        data, shape=shape, argument="representative_data", limit=CALIBRATION_IMAGES
    )
    if len(examples) < ENOUGH_CALIBRATION_IMAGES:
        warnings.warn(
            f"{len(examples)} calibration images are few; accuracy may suffer. Expected at "
            f"least {ENOUGH_CALIBRATION_IMAGES} in `representative_data`.",
            stacklevel=3,
        )
    if raw:
        check_raw(examples, "representative_data", "A file with the preprocessing inside")
    else:
        check_range(examples, preprocessing, "representative_data", "The calibration images")
    _check_contrast(examples)
    if not raw:
        _check_centre(examples, preprocessing)
        return examples
    first, *others = examples.batches
    first = first.copy()
    first[0, 0, 0], first[0, -1, -1] = 0, 255
    return Examples([first, *others], examples.labels)


def _check_contrast(examples):
    if all(image.min() == image.max() for image in examples.images()):
        raise ValueError(
            "The calibration images are blank, so they say nothing about the ranges of "
            "activations. Expected real images in `representative_data`. "
            f"Received: {len(examples)} images, each of a single value"
        )


def _check_centre(examples, preprocessing):
    black = 0.0 if preprocessing is None else _black_and_white(preprocessing).min()
    smallest = min(batch.min() for batch in examples.batches)
    if black < 0 <= smallest:
        warnings.warn(
            "The calibration images look scaled, but not centred. Expected dark pixels below 0, "
            f"black is {black:.1f}. Received: no value below {smallest:.1f} in "
            "`representative_data`. Apply `model.preprocessing` to raw images.",
            stacklevel=4,
        )


def _black_and_white(preprocessing):
    limits = np.zeros((2, 1, 1, len(preprocessing.mean)), "float32")
    limits[1] = 255.0
    return preprocessing.normalize(limits)


def check_range(
    examples: Examples,
    preprocessing: Preprocessing | None,
    argument: str,
    what: str = "The images",
) -> None:
    """Checks that the values of images are those of preprocessed ones.

    Args:
        examples: The images.
        preprocessing: What they went through; `None`: not known.
        argument: Name of the argument they came in, for the error.
        what: Its subject.

    Raises:
        ValueError: If they are not, by far.

    Warns:
        UserWarning: If they do not look so and the preprocessing is not known.
    """
    low, high = -16.0, 16.0  # beyond what any normalisation by mean and deviation gives
    if preprocessing is not None:
        limits = _black_and_white(preprocessing)
        slack = limits.max() - limits.min()  # augmentation may overshoot
        low, high = limits.min() - slack, limits.max() + slack
    smallest = min(batch.min() for batch in examples.batches)
    largest = max(batch.max() for batch in examples.batches)
    if low <= smallest and largest <= high:
        return
    message = (
        f"{what} do not look preprocessed. Expected values between "
        f"{low:.1f} and {high:.1f}, as the model gets them in training. "
        f"Received: values from {smallest:.1f} to {largest:.1f} in `{argument}`."
    )
    if preprocessing is not None:
        raise ValueError(f"{message} Apply `model.preprocessing` to them.")
    warnings.warn(message, stacklevel=4)
