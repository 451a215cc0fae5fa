"""ONNX: onnxruntime, and whatever else reads its files."""

import collections
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from keras_resnet.export.keras_exporter import check_packages, export_through_keras, images_spec
from keras_resnet.export.report import ExportReport, Tolerance
from keras_resnet.export.staging import check_replaceable

PACKAGES = ("onnx", "tf2onnx", "onnxruntime")
_AXES = ("batch", "height", "width", "channels")


def onnx(
    model,
    path,
    *,
    examples,
    labels=None,
    class_names: Sequence[str] | None = None,
    include_preprocessing: bool = False,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Exports a classifier as an ONNX file, in float32, for batches of any length.

    It is written by Keras's own exporter, with batch normalisation folded, and maps `images`,
    `(batch, height, width, channels)`, to `probabilities`, `(batch, classes)`. A model that ends in
    logits gets a softmax. The metadata of the file hold `preprocessing` and `class_names` as JSON,
    where they are known.

    Args:
        model: The trained Keras model, Functional, channels last; also one that was built under a
            `tf.distribute` strategy.
        path: File to write, ending in `.onnx`. An earlier ONNX file there is replaced once the new
            one is proven.
        examples: Images to compare on, preprocessed: an array, or batches `x` or `(x, y)`. With
            `include_preprocessing` raw ones of the model's input size, values 0..255.
        labels: Classes of the examples, `(images,)`. Default: the `y` of `examples`, if any.
        class_names: One name per class.
        include_preprocessing: Whether the file takes raw uint8 images and normalises them itself.
        tolerance: What may be lost. Default: probabilities may differ by 1e-4.

    Returns:
        An `ExportReport`, with the operations of the graph. Its milliseconds are those of
        onnxruntime on all CPU cores.

    Raises:
        ImportError: If onnx, tf2onnx or onnxruntime is not installed.
        ValueError: If the model, the images or the path do not fit, the model has operations that
            ONNX lacks, or the disk does not take it.
        ExportMismatch: If the export disagrees with the model. Nothing is written then.
    """
    path = pathlib.Path(path)
    check_packages("ONNX", PACKAGES)
    _check_path(path)
    return export_through_keras(
        model,
        path,
        format="onnx",
        write=_write,
        load=_load,
        examples=examples,
        labels=labels,
        class_names=class_names,
        include_preprocessing=include_preprocessing,
        tolerance=tolerance,
    )


def _write(model, path, properties):
    """Writes the file, and returns how many there are of each operation."""
    import onnx

    model.export(path, format="onnx", verbose=False, input_signature=[images_spec(model)])
    exported = onnx.load(path)
    _name_outputs(exported.graph)
    onnx.helper.set_model_props(exported, properties)
    try:
        onnx.checker.check_model(exported, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ValueError(
            "The model does not become a valid ONNX file. Expected operations that ONNX has. "
            f"Received: {' '.join(str(error).split())}"
        ) from error
    onnx.save(exported, path)
    return dict(collections.Counter(node.op_type for node in exported.graph.node).most_common())


def _name_outputs(graph):
    """The converter calls the output `Identity:0`, and axes of open size `unk__1`."""
    (images,), (output,) = graph.input, graph.output
    for node in graph.node:
        node.output[:] = ["probabilities" if name == output.name else name for name in node.output]
    output.name = "probabilities"
    for value in (images, output):
        for axis, name in zip(value.type.tensor_type.shape.dim, _AXES):
            if axis.dim_param:
                axis.dim_param = name


def _load(path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dtype = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}[session.get_inputs()[0].type]
    return lambda images: session.run(None, {"images": np.asarray(images, dtype)})[0]


def _check_path(path):
    if path.suffix != ".onnx":
        raise ValueError(
            "The path has the wrong ending. Expected a file ending in '.onnx'. "
            f"Received: path='{path}'. Did you mean '{path.with_suffix('.onnx')}'?"
        )
    check_replaceable(path, "ONNX file", _is_onnx(path))


def _is_onnx(path):
    import google.protobuf.message
    import onnx

    try:
        return bool(path.is_file() and onnx.load(path, load_external_data=False).graph.node)
    except google.protobuf.message.DecodeError:
        return False
