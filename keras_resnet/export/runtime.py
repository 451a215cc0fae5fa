"""Runs a TFLite classifier with NumPy and `ai-edge-litert` alone.

This file imports nothing else of the package: where Keras and TensorFlow are not installed, copy
it to the device and `import runtime`.
"""

from collections.abc import Callable

import numpy as np


def load_tflite(path, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a TFLite classifier, float or quantised, behind one float interface.

    Args:
        path: Path of the `.tflite` file: one input, one output.
        threads: Number of CPU threads, at least 1.

    Returns:
        A function from float32 images of shape `(batch, height, width, channels)`, preprocessed as
        for the Keras model, to float32 probabilities of shape `(batch, classes)`. Images run one
        at a time, as they do on a phone; integer files are quantised and dequantised outside.

    Raises:
        ValueError: If the file is not a TFLite model; the function, if the images do not fit it.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def classify(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images, "float32")
        if images.ndim != 4 or images.shape[1:] != tuple(source["shape"][1:]):
            expected = ", ".join(map(str, source["shape"][1:]))
            raise ValueError(
                f"The images do not fit the model. Expected shape (batch, {expected}). "
                f"Received: shape {images.shape}"
            )
        answers = np.empty((len(images), *target["shape"][1:]), "float32")
        for image, answer in zip(_quantize(images, source), answers):
            interpreter.set_tensor(source["index"], image[np.newaxis])
            interpreter.invoke()
            answer[...] = _dequantize(interpreter.get_tensor(target["index"])[0], target)
        return answers

    return classify


def _quantize(values, details):
    if details["dtype"] == np.float32:
        return values
    scale, zero_point = details["quantization"]
    limits = np.iinfo(details["dtype"])
    integers = np.round(values / scale) + zero_point
    return np.clip(integers, limits.min, limits.max).astype(details["dtype"])


def _dequantize(values, details):
    if details["dtype"] == np.float32:
        return values
    scale, zero_point = details["quantization"]
    return (values.astype("float32") - zero_point) * scale
