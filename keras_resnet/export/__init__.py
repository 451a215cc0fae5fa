"""From a trained Keras model to what runs elsewhere, with a report of what was lost.

Every export is written beside its target, loaded again in its real runtime and compared with the
Keras model on the user's images, and only then moved into place. TensorFlow is imported when an
export is asked for, not before; `runtime.py` needs neither TensorFlow nor Keras.
"""

from keras_resnet.export.report import (
    ExportMismatch,
    ExportReport,
    Tolerance,
    format_table,
    table_rows,
)
from keras_resnet.export.runtime import load_tflite
from keras_resnet.export.saved_model import saved_model
from keras_resnet.export.tflite import tflite

__all__ = [
    "ExportMismatch",
    "ExportReport",
    "Tolerance",
    "format_table",
    "load_tflite",
    "saved_model",
    "table_rows",
    "tflite",
]
