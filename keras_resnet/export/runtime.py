"""Runs a TFLite classifier with NumPy and `ai-edge-litert` alone.

This file imports nothing else of the package: where Keras and TensorFlow are not installed, copy
it to the device and `import runtime`.
"""

import zipfile
from collections.abc import Callable, Iterator

import numpy as np

LABELS = "labels.txt"  # packed into the file
BATCH = 32  # images at a time through a file of any batch size


def load_tflite(path, threads: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a TFLite classifier, float or quantised, behind one float interface.

    Args:
        path: Path of the `.tflite` file: one input, one output.
        threads: Number of CPU threads, at least 1.

    Returns:
        A function from images of shape `(batch, height, width, channels)` to float32 probabilities
        of shape `(batch, classes)`. It takes what the file was exported for: raw images (uint8),
        or float32 images preprocessed as for the Keras model. Any number of them: they run in
        pieces of the file's batch size. Integer files are quantised and dequantised outside.

    Raises:
        ValueError: If the file is not a TFLite model; the function, if the images do not fit it.
    """
    from ai_edge_litert.interpreter import Interpreter

    return classifier(Interpreter(str(path), num_threads=threads))


def classifier(interpreter) -> Callable[[np.ndarray], np.ndarray]:
    """The function that `load_tflite` returns, of a LiteRT interpreter."""
    interpreter.allocate_tensors()
    (target,) = interpreter.get_output_details()

    def classify(images: np.ndarray) -> np.ndarray:
        pieces = [read(interpreter, target)[:count] for count in run(interpreter, images)]
        empty = np.empty((0, *target["shape"][1:]), "float32")
        return np.concatenate([empty, *pieces])

    return classify


def read_labels(path) -> list[str]:
    """The names of the classes that are packed into a TFLite file; none: an empty list."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.read(LABELS).decode().splitlines()


def run(interpreter, images: np.ndarray) -> Iterator[int]:
    """Runs images through an interpreter, as many at a time as its file takes.

    Args:
        interpreter: A LiteRT interpreter with one input, its tensors allocated.
        images: Any number of them, as `load_tflite` describes.

    Yields:
        How many of the images now stand in the interpreter's tensors, from the first row on.
    """
    (source,) = interpreter.get_input_details()
    batch, *shape = source["shape_signature"]
    images = _fitting(np.asarray(images), shape, source)
    for start in range(0, len(images), BATCH if batch < 0 else batch):
        piece = images[start : start + (BATCH if batch < 0 else batch)]
        count = len(piece)
        if batch < 0 and interpreter.get_input_details()[0]["shape"][0] != count:
            interpreter.resize_tensor_input(source["index"], piece.shape)
            interpreter.allocate_tensors()
        if batch > count:  # the file takes no fewer
            piece = np.resize(piece, (batch, *shape))
        interpreter.set_tensor(source["index"], _quantize(piece, source))
        interpreter.invoke()
        yield count


def read(interpreter, details) -> np.ndarray:
    """The float32 values of a tensor, dequantised if it holds integers.

    Args:
        interpreter: A LiteRT interpreter that has run.
        details: Of the tensor, as `get_tensor_details` gives them.
    """
    values = interpreter.get_tensor(details["index"])
    scale, zero_point = details["quantization"]
    if scale == 0:
        return values.astype("float32", copy=False)
    return (values.astype("float32") - zero_point) * np.float32(scale)


def _fitting(images, shape, source):
    if images.ndim != 4 or list(images.shape[1:]) != list(shape):
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"The images do not fit the model. Expected shape (batch, {expected}). "
            f"Received: shape {images.shape}"
        )
    takes_bytes = source["dtype"] == np.uint8 and source["quantization"] in ((0.0, 0), (1.0, 0))
    if takes_bytes and images.dtype != np.uint8:
        raise ValueError(
            "The file normalises by itself. Expected raw images, uint8 values 0..255. "
            f"Received: {images.dtype}"
        )
    return images


def _quantize(values, details):
    scale, zero_point = details["quantization"]
    if scale == 0:
        return values.astype(details["dtype"], copy=False)
    limits = np.iinfo(details["dtype"])
    integers = np.round(values.astype("float32") / np.float32(scale)) + zero_point
    return np.clip(integers, limits.min, limits.max).astype(details["dtype"])
