"""From which to which value 8 bits reach, for each activation of a graph."""

import numpy as np

from keras_resnet.export.graph_file import pack, unpack
from keras_resnet.export.runtime import run

IMAGES = 100
VALUES = 512  # of each tensor and image, drawn at random
SHARES = np.linspace(0.3, 1.0, 29)  # of the range that was seen
STEPS = 255  # between the smallest and the largest of 8 bits


def narrow_ranges(content: bytes, images: np.ndarray) -> bytes:
    """Narrows the ranges of activations to where 8 bits represent them best.

    TensorFlow's calibration takes the smallest and the largest value it ever saw, so that a single
    outlier makes every step coarse. Here both ends are drawn in by the share that makes the mean
    squared error of the values smallest.

    Args:
        content: A float32 TFLite file that holds the ranges of its calibration.
        images: Array of images as the file takes them; the first 100 are used.

    Returns:
        The file with other ranges. Those of the input stay.

    Reference: Nagel et al. 2021, "A white paper on neural network quantization", section 3.1.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    model = unpack(content)
    (graph,) = model.subgraphs
    made = [operator.outputs[0] for operator in graph.operators]
    ranges = {number: graph.tensors[number].quantization for number in made}
    ranges = {number: found for number, found in ranges.items() if found and found.min is not None}
    rng, drawn = np.random.default_rng(0), {number: [] for number in ranges}
    for count in run(interpreter, images[:IMAGES]):
        for number, values in drawn.items():
            seen = interpreter.get_tensor(number)[:count].ravel()
            values.append(rng.choice(seen, min(count * VALUES, seen.size), replace=False))
    for number, values in drawn.items():
        low, high = float(ranges[number].min[0]), float(ranges[number].max[0])
        share = _best_share(np.concatenate(values), min(low, 0.0), max(high, 0.0))
        ranges[number].min, ranges[number].max = [low * share], [high * share]
    return pack(model)


def _best_share(values, low, high):
    """How much of a range to keep."""
    if low == high:
        return 1.0

    def error(share):
        step = (high - low) * share / STEPS
        zero = round(-low * share / step)
        rounded = np.clip(np.round(values / step) + zero, 0, STEPS)
        return np.mean(((rounded - zero) * step - values) ** 2)

    return float(min(SHARES[::-1], key=error))
