"""From which to which value 8 bits reach, for each activation of a graph."""

from collections.abc import Iterator

import numpy as np

from keras_resnet.export.graph_file import pack, unpack
from keras_resnet.export.runtime import run

IMAGES = 100
VALUES = 512  # of each tensor and image, drawn at random
SHARES = np.geomspace(1.0, 0.05, 40)  # of the range that was seen
EXPONENTS = (2.0, 1.5, 1.0)  # of errors: the smaller, the more outliers are clipped
STEPS = 255  # between the smallest and the largest of 8 bits


def narrowed_ranges(content: bytes, images: np.ndarray) -> Iterator[bytes]:
    """Narrows the ranges of activations to where 8 bits represent them best.

    TensorFlow's calibration takes the smallest and the largest value it ever saw, so that a single
    outlier makes every step coarse. Here both ends are drawn in by the share that makes the mean
    error of the values smallest, where each image counts alike: a few with values ten times those
    of all others would decide otherwise. How much an outlier matters depends on what the network
    does with it, so there are several means to choose from.

    Args:
        content: A float32 TFLite file that holds the ranges of its calibration.
        images: Array of images as the file takes them; the first 100 are used.

    Yields:
        The file with other ranges, for each of `EXPONENTS`. Those of the input stay.

    References: Nagel et al. 2021, "A white paper on neural network quantization", section 3.1;
    Nahshan et al. 2021, "Loss aware post-training quantization", section 4 (the exponents).
    """
    model = unpack(content)
    wide = {number: (found.min[0], found.max[0]) for number, found in _ranges(model).items()}
    seen = _seen_values(content, wide, images[:IMAGES])
    shares = {number: _best_shares(seen[number], *ends) for number, ends in wide.items()}
    for choice in range(len(EXPONENTS)):
        for number, found in _ranges(model).items():
            found.min, found.max = ([end * shares[number][choice]] for end in wide[number])
        yield pack(model)


def _ranges(model):
    """From the number of each tensor that an operation makes to the range it has."""
    (graph,) = model.subgraphs
    made = [operator.outputs[0] for operator in graph.operators]
    ranges = {number: graph.tensors[number].quantization for number in made}
    return {number: found for number, found in ranges.items() if found and found.min is not None}


def _seen_values(content, numbers, images):
    """For each tensor, values at random, of shape (images, values)."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    rng, drawn = np.random.default_rng(0), {number: [] for number in numbers}
    for count in run(interpreter, images):
        for number, values in drawn.items():
            seen = interpreter.get_tensor(number)[:count].reshape(count, -1)
            values.append(rng.choice(seen, min(VALUES, seen.shape[1]), axis=1, replace=False))
    return {number: np.concatenate(values) for number, values in drawn.items()}


def _best_shares(values, low, high):
    """For each exponent, how much of a range to keep."""
    if low == high:
        return np.ones(len(EXPONENTS))
    low, high = min(low, 0.0), max(high, 0.0)
    images = np.sqrt(np.mean(values**2, axis=1, keepdims=True))
    images = np.maximum(images, 1e-3 * np.sqrt(np.mean(values**2)) or 1.0)  # some hold zeros only

    def errors(share):
        step = (high - low) * share / STEPS
        zero = np.round(-low * share / step)
        rounded = np.clip(np.round(values / step), -zero, STEPS - zero)
        relative = np.abs(rounded * step - values) / images
        return [np.mean(relative**exponent) for exponent in EXPONENTS]

    return SHARES[np.argmin([errors(share) for share in SHARES], axis=0)]
