"""TFLite (LiteRT): phones, microcontrollers, and anything with an 8-bit accelerator."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from keras_resnet.errors import unknown_name
from keras_resnet.export.calibration import (
    ENOUGH_CALIBRATION_IMAGES,
    check_range,
    read_calibration,
)
from keras_resnet.export.conversion import CALIBRATED, convert
from keras_resnet.export.examples import check_raw, read_examples
from keras_resnet.export.inference import check_class_names, inference_model
from keras_resnet.export.keras_exporter import check_packages
from keras_resnet.export.layer_errors import IMAGES, count_operations, measure_layer_errors
from keras_resnet.export.metadata import Metadata, add_metadata
from keras_resnet.export.report import ExportReport, Tolerance, compare
from keras_resnet.export.runtime import load_tflite
from keras_resnet.export.staging import check_replaceable, is_tflite, quiet_console, staged
from keras_resnet.preprocessing import Preprocessing, model_preprocessing
from keras_resnet.surgery import equalize_channels, fold_batch_norm

# Integer weights and activations move probabilities, most of all where the model itself is
# undecided: what counts is that it still decides alike.
_INTEGER = Tolerance(clear_disagreements=0.05, accuracy_loss=0.02)
TOLERANCES = {
    None: Tolerance(max_probability_difference=1e-4),
    "float16": Tolerance(max_probability_difference=1e-2),
    "dynamic": _INTEGER,
    "int8": _INTEGER,
    "int16x8": _INTEGER,
}
PACKAGES = ("tensorflow", "flatbuffers", "ai_edge_litert")
IO_DTYPES = ("int8", "uint8", "float32")


def tflite(
    model,
    path,
    *,
    quantization: str | None = None,
    representative_data=None,
    examples=None,
    labels=None,
    class_names: Sequence[str] | None = None,
    batch_size: int | None = 1,
    io_dtype: str | None = None,
    include_preprocessing: bool = False,
    preprocessing: Preprocessing | None = None,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Exports a classifier as a TFLite file.

    The file maps images, `(batch_size, height, width, channels)`, to probabilities, `(batch_size,
    classes)`. A model that ends in logits gets a softmax. `load_tflite` runs it, on any number of
    images, without TensorFlow. TFLite Metadata inside say how images are normalised and how the
    classes are called, for MediaPipe, ML Kit and Android Studio.

    Args:
        model: The trained Keras model, Functional, channels last, of fixed input size; also one
            that was built under a `tf.distribute` strategy, or that computes in bfloat16.
        path: File to write, ending in `.tflite`. An earlier TFLite file there is replaced once the
            new one is proven.
        quantization: `None` (float32), `"float16"` (weights of half the size, float32
            arithmetic), `"dynamic"` (weights of 8 bits, activations quantised as they come, no
            images needed), `"int8"` (integer kernels only, input and output included) or
            `"int16x8"` (the same with activations of 16 bits: nearer to float32, for processors
            made for it; LiteRT has no fast kernels of it for CPUs).
        representative_data: For `"int8"` and `"int16x8"`: images from which the ranges of the
            activations are taken, preprocessed, as `model.fit` gets them: an array, or batches `x`
            or `(x, y)`, e.g. the training `tf.data.Dataset`. At least 100; the first 500 are used.
            In 8 bits outliers are clipped where that makes the error smaller.
        examples: Images to compare on, in the same forms. Default: those of
            `representative_data`.
        labels: Classes of the examples, `(images,)`. Default: the `y` of `examples`, if any.
        class_names: One name per class, packed into the file.
        batch_size: Images at a time; `None`: any number. The compilers of 8-bit accelerators take
            nothing but 1.
        io_dtype: For `"int8"`: input and output are `"int8"` (default), `"uint8"` or `"float32"`
            (with one operation at each end that converts).
        include_preprocessing: Whether the file normalises by itself. It then takes raw images of
            the model's input size, uint8 0..255, the bytes of a camera (`"int16x8"`: int16 whose
            scale is 255/32767); `representative_data` and `examples` must be such, and `io_dtype`
            is that of the output. The operation is one 1x1 convolution, integer in integer files.
            MediaPipe needs it: it cannot normalise each channel by its own numbers.
        preprocessing: How raw images become the model's input. Default: `model.preprocessing`.
        tolerance: What may be lost. Default: probabilities may differ by 1e-4 in float32 and 1e-2
            in float16; otherwise at most 5 % of the images may get a clearly different class, and
            at most 0.02 of the accuracy may be lost if labels are known.

    Returns:
        An `ExportReport`, with the operations of the graph, and the error of each layer if it is
        quantised. Its milliseconds are those of one CPU thread.

    Raises:
        ValueError: If the model, the images or the path do not fit, TFLite cannot express a layer,
            or the disk does not take the file.
        ExportMismatch: If the export disagrees with the model. Nothing is written then.
        ImportError: If flatbuffers or ai-edge-litert is not installed.
    """
    path = pathlib.Path(path)
    check_packages("TFLite", PACKAGES)
    _check_format(path, quantization, io_dtype, batch_size)
    _check_images(quantization, representative_data, examples, labels)
    keras_model = inference_model(model)
    shape = _fixed_shape(keras_model)
    check_class_names(class_names, keras_model)
    preprocessing = _record(model, preprocessing, shape, required=include_preprocessing)
    calibration = None
    if representative_data is not None:
        calibration = read_calibration(
            representative_data,
            shape=shape,
            preprocessing=preprocessing,
            raw=include_preprocessing,
        )
    if examples is None:
        examples = calibration
    else:
        examples = read_examples(examples, labels, shape=shape, argument="examples")
        if include_preprocessing:
            check_raw(examples, "examples", "A file with the preprocessing inside")
        elif preprocessing is not None:
            check_range(examples, preprocessing, "examples")
    prepare = preprocessing.normalize if include_preprocessing else np.asarray

    with staged(path) as made:
        with quiet_console():
            folded = fold_batch_norm(keras_model)
            if quantization in CALIBRATED:
                folded = equalize_channels(folded)
            converted = convert(
                folded,
                quantization=quantization,
                calibration=calibration,
                io_dtype=io_dtype or "int8",
                batch_size=batch_size,
                preprocessing=preprocessing if include_preprocessing else None,
            )
            metadata = Metadata(
                model.name, shape, preprocessing, include_preprocessing, class_names
            )
            made.write_bytes(add_metadata(converted.content, metadata))
            run = load_tflite(made)
            first = np.concatenate(list(examples.images())[:IMAGES])
            find_layer_errors = functools.partial(
                measure_layer_errors, converted, folded, first, prepare(first)
            )
            layer_errors = None if quantization is None else find_layer_errors()
        return compare(
            format="tflite" if quantization is None else f"tflite_{quantization}",
            path=path,
            written=made,
            export=run,
            model=keras_model,
            prepare=prepare,
            batch_size=batch_size or 1,
            examples=examples,
            tolerance=tolerance or TOLERANCES[quantization],
            operations=count_operations(converted.content),
            layer_errors=layer_errors,
            find_layer_errors=find_layer_errors,
        )


def _check_format(path, quantization, io_dtype, batch_size):
    if quantization not in TOLERANCES:
        raise unknown_name("quantization", quantization, TOLERANCES)
    if path.suffix != ".tflite":
        raise ValueError(
            "The path has the wrong ending. Expected a file ending in '.tflite'. "
            f"Received: path='{path}'. Did you mean '{path.with_suffix('.tflite')}'?"
        )
    check_replaceable(path, "TFLite file", is_tflite(path))
    if io_dtype not in (None, *IO_DTYPES):
        raise unknown_name("io_dtype", io_dtype, IO_DTYPES)
    if io_dtype is not None and quantization != "int8":
        raise ValueError(
            "Only int8 files have a choice of input and output. Expected io_dtype=None, or "
            f"quantization='int8'. Received: io_dtype={io_dtype!r}, quantization={quantization!r}"
        )
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            "A file takes whole images. Expected batch_size >= 1, or None for any number. "
            f"Received: batch_size={batch_size!r}"
        )


def _check_images(quantization, representative_data, examples, labels):
    if quantization in CALIBRATED and representative_data is None:
        raise ValueError(
            f"{quantization} needs images to calibrate on. Expected in `representative_data` at "
            f"least {ENOUGH_CALIBRATION_IMAGES} preprocessed images, e.g. the training dataset. "
            "Received: representative_data=None"
        )
    if labels is not None and examples is None:
        raise ValueError(
            "There are labels without images. Expected the images they belong to in `examples`. "
            "Received: examples=None"
        )
    if examples is None and representative_data is None:
        raise ValueError(
            "There are no images to compare the export with the model on. Expected preprocessed "
            "images in `examples`. Received: examples=None, representative_data=None"
        )


def _fixed_shape(model):
    shape = model.input_shape[1:]
    if None in shape:
        raise ValueError(
            "TFLite needs a fixed image size. Expected an input of known height and width. "
            f"Received: input shape {model.input_shape}. Build the model with `input_shape=` and "
            "`set_weights` of this one."
        )
    return shape


def _record(model, preprocessing, shape, required):
    """The preprocessing to go by, or `None` if there is none and none is needed."""
    if required or preprocessing is not None:
        preprocessing = preprocessing or model_preprocessing(model)
        if len(preprocessing.mean) != shape[-1]:
            raise ValueError(
                f"The preprocessing does not fit the model. Expected {shape[-1]} channels. "
                f"Received: {len(preprocessing.mean)} channels. Pass "
                "`preprocessing=dataclasses.replace(model.preprocessing, mean=..., std=...)`."
            )
        return preprocessing
    carried = getattr(model, "preprocessing", None)
    fits = isinstance(carried, Preprocessing) and len(carried.mean) == shape[-1]
    return carried if fits else None
