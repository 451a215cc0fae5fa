"""From a trained Keras model to what runs elsewhere, with a report of what was lost.

Every export is written beside its target, loaded again in its real runtime and compared with the
Keras model on the user's images, and only then moved into place. TensorFlow is imported when an
export is asked for, not before; `runtime.py` needs neither TensorFlow nor Keras.
"""

from keras_resnet.export.formats import (
    DEFAULT_FORMATS,
    FORMATS,
    ExportsFailed,
    Format,
    export_formats,
)
from keras_resnet.export.onnx import onnx
from keras_resnet.export.openvino import openvino
from keras_resnet.export.report import (
    ExportMismatch,
    ExportReport,
    Tolerance,
    format_table,
    table_rows,
)
from keras_resnet.export.runtime import load_tflite, read_labels
from keras_resnet.export.saved_model import saved_model
from keras_resnet.export.staging import WriteError
from keras_resnet.export.tflite import tflite

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "ExportMismatch",
    "ExportReport",
    "ExportsFailed",
    "Format",
    "Tolerance",
    "WriteError",
    "export_formats",
    "format_table",
    "load_tflite",
    "onnx",
    "openvino",
    "read_labels",
    "saved_model",
    "table_rows",
    "tflite",
]
