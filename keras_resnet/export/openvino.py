"""OpenVINO: Intel's runtime, and the servers and devices that read its files."""

import collections
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from keras_resnet.export.keras_exporter import check_packages, export_through_keras, images_spec
from keras_resnet.export.report import ExportReport, Tolerance
from keras_resnet.export.staging import check_replaceable

PACKAGES = ("openvino",)
GRAPH, WEIGHTS = "model.xml", "model.bin"
_NO_OPERATIONS = {"Constant", "Parameter", "Result"}  # nodes of the graph besides


def openvino(
    model,
    path,
    *,
    examples,
    labels=None,
    class_names: Sequence[str] | None = None,
    include_preprocessing: bool = False,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Exports a classifier as an OpenVINO model, in float32, for batches of any length.

    It is written by Keras's own exporter, with batch normalisation folded, and maps `images`,
    `(batch, height, width, channels)`, to `probabilities`, `(batch, classes)`. A model that ends in
    logits gets a softmax. `preprocessing` and `class_names` stand in the model's runtime
    information, below `model_info`, as JSON, where they are known.

    The comparison computes in float32. By itself OpenVINO computes in bfloat16 on processors that
    can: compile the model with `{"INFERENCE_PRECISION_HINT": "f32"}` for what was compared.

    Args:
        model: The trained Keras model, Functional, channels last; also one that was built under a
            `tf.distribute` strategy.
        path: Folder to write, for `model.xml` and `model.bin`. An earlier OpenVINO model there is
            replaced once the new one is proven.
        examples: Images to compare on, preprocessed: an array, or batches `x` or `(x, y)`. With
            `include_preprocessing` raw ones of the model's input size, values 0..255.
        labels: Classes of the examples, `(images,)`. Default: the `y` of `examples`, if any.
        class_names: One name per class.
        include_preprocessing: Whether the model takes raw uint8 images and normalises them itself.
        tolerance: What may be lost. Default: probabilities may differ by 1e-4.

    Returns:
        An `ExportReport`, with the operations of the graph. Its milliseconds are those of
        OpenVINO on all CPU cores, in float32.

    Raises:
        ImportError: If openvino is not installed.
        ValueError: If the model, the images or the path do not fit, or the disk does not take it.
        ExportMismatch: If the export disagrees with the model. Nothing is written then.
    """
    path = pathlib.Path(path)
    check_packages("OpenVINO", PACKAGES)
    check_replaceable(path, "OpenVINO model", _is_openvino(path))
    return export_through_keras(
        model,
        path,
        format="openvino",
        write=_write,
        load=_load,
        examples=examples,
        labels=labels,
        class_names=class_names,
        include_preprocessing=include_preprocessing,
        tolerance=tolerance,
    )


def _write(model, folder, properties):
    import openvino

    folder.mkdir()
    graph = folder / GRAPH
    model.export(str(graph), format="openvino", verbose=False, input_signature=[images_spec(model)])
    written = openvino.Core().read_model(graph)
    for end in written.outputs:  # what nothing reads in TensorFlow's graph has become one too
        if "Identity:0" not in end.names:
            written.remove_result(end.node)
    (output,) = written.outputs
    output.tensor.set_names({"probabilities"})
    for name, text in properties.items():
        written.set_rt_info(text, ["model_info", name])
    named = folder / "named.xml"  # the weights of the first are still being read
    openvino.serialize(written, named)
    operations = collections.Counter(node.get_type_name() for node in written.get_ops())
    operations = {name: n for name, n in operations.most_common() if name not in _NO_OPERATIONS}
    del written, output, end
    named.replace(graph)
    named.with_suffix(".bin").replace(folder / WEIGHTS)
    return operations


def _load(folder) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    compiled = openvino.compile_model(folder / GRAPH, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled({"images": np.asarray(images)})["probabilities"]


def _is_openvino(path):
    """Whether a folder holds an OpenVINO model, or nothing, and no file of anybody else."""
    return path.is_dir() and {entry.name for entry in path.iterdir()} in ({GRAPH, WEIGHTS}, set())
