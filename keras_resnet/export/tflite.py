"""TFLite (LiteRT): phones, microcontrollers, and anything with an 8-bit accelerator."""

import pathlib
import tempfile
import warnings

import numpy as np

from keras_resnet.errors import unknown_name
from keras_resnet.export.examples import Examples, read_examples
from keras_resnet.export.inference import inference_model, write_saved_model
from keras_resnet.export.report import ExportReport, Tolerance, compare
from keras_resnet.export.runtime import load_tflite
from keras_resnet.export.staging import check_replaceable, is_tflite, quiet_console, staged
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.surgery import fold_batch_norm

CALIBRATION_IMAGES = 500  # more changes nothing: ranges are converged
ENOUGH_CALIBRATION_IMAGES = 100

# Integer arithmetic moves probabilities, most of all where the model itself is undecided: what
# counts is that it still decides alike.
TOLERANCES = {
    None: Tolerance(max_probability_difference=1e-4),
    "float16": Tolerance(max_probability_difference=1e-2),
    "int8": Tolerance(clear_disagreements=0.05, accuracy_loss=0.02),
}


def tflite(
    model,
    path,
    *,
    quantization: str | None = None,
    representative_data=None,
    examples=None,
    labels=None,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Exports a classifier as a TFLite file.

    The file maps one preprocessed image, `(1, height, width, channels)`, to probabilities, `(1,
    classes)`: the batch is fixed to 1, because the compilers of 8-bit accelerators take nothing
    else. A model that ends in logits gets a softmax. `load_tflite` runs it, on any number of
    images, without TensorFlow.

    Args:
        model: The trained Keras model, Functional, channels last, of fixed input size; also one
            that was built under a `tf.distribute` strategy, or that computes in bfloat16.
        path: File to write, ending in `.tflite`. An earlier TFLite file there is replaced once the
            new one is proven.
        quantization: `None` (float32), `"float16"` (weights of half the size, float32
            arithmetic) or `"int8"` (integer kernels only; input and output are int8 as well).
        representative_data: For `"int8"`: preprocessed images, as `model.fit` gets them, from
            which the ranges of the activations are taken: an array, or batches `x` or `(x, y)`,
            e.g. the training `tf.data.Dataset`. At least 100; the first 500 are used.
        examples: Preprocessed images to compare on, in the same forms. Default: those of
            `representative_data`.
        labels: Classes of the examples, `(images,)`. Default: the `y` of `examples`, if any.
        tolerance: What may be lost. Default: probabilities may differ by 1e-4 in float32 and 1e-2
            in float16; in int8 at most 5 % of the images may get a clearly different class, and at
            most 0.02 of the accuracy may be lost if labels are known.

    Returns:
        An `ExportReport`. Its milliseconds are those of one CPU thread.

    Raises:
        ValueError: If the model, the images or the path do not fit.
        ExportMismatch: If the export disagrees with the model. Nothing is written then.
    """
    path = pathlib.Path(path)
    _check_request(path, quantization, representative_data, examples, labels)
    keras_model = inference_model(model)
    shape = _fixed_shape(keras_model)
    calibration = None
    if representative_data is not None:
        calibration = read_examples(
            representative_data,
            shape=shape,
            argument="representative_data",
            limit=CALIBRATION_IMAGES,
        )
        _warn_if_doubtful(calibration, getattr(model, "preprocessing", None))
    if examples is None:
        examples = calibration
    else:
        examples = read_examples(examples, labels, shape=shape, argument="examples")

    with staged(path) as made:
        with quiet_console():
            made.write_bytes(_convert(fold_batch_norm(keras_model), quantization, calibration))
            run = load_tflite(made)
        return compare(
            format="tflite" if quantization is None else f"tflite_{quantization}",
            path=path,
            written=made,
            export=run,
            model=keras_model,
            examples=examples,
            tolerance=tolerance or TOLERANCES[quantization],
        )


def _convert(keras_model, quantization, calibration) -> bytes:
    import tensorflow as tf

    shape = (1, *keras_model.input_shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, "images")])
    def classify(images):
        return {"probabilities": keras_model(images, training=False)}

    with tempfile.TemporaryDirectory() as folder:
        # Never `from_concrete_functions`: it loses the weights of Keras 3 models without a word.
        write_saved_model(folder, {"serving_default": classify}, keras_model)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantization is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantization == "int8":
            converter.representative_dataset = lambda: (
                [image.astype("float32")] for image in calibration.images()
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.int8
            converter.inference_output_type = tf.int8
        return converter.convert()


def _check_request(path, quantization, representative_data, examples, labels):
    if quantization not in TOLERANCES:
        raise unknown_name("quantization", quantization, TOLERANCES)
    if path.suffix != ".tflite":
        raise ValueError(
            "The path has the wrong ending. Expected a file ending in '.tflite'. "
            f"Received: path='{path}'. Did you mean '{path.with_suffix('.tflite')}'?"
        )
    check_replaceable(path, "TFLite file", is_tflite(path))
    if quantization == "int8" and representative_data is None:
        raise ValueError(
            "int8 needs images to calibrate on. Expected in `representative_data` at least "
            f"{ENOUGH_CALIBRATION_IMAGES} preprocessed images, e.g. the training dataset. "
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


def _warn_if_doubtful(calibration: Examples, preprocessing: Preprocessing | None):
    if len(calibration) < ENOUGH_CALIBRATION_IMAGES:
        warnings.warn(
            f"{len(calibration)} calibration images are few; accuracy may suffer. Expected at "
            f"least {ENOUGH_CALIBRATION_IMAGES} in `representative_data`.",
            stacklevel=3,
        )
    low, high = -16.0, 16.0  # beyond what any normalisation by mean and deviation gives
    if isinstance(preprocessing, Preprocessing):
        limits = np.full((2, 1, 1, len(preprocessing.mean)), 0.0, "float32")
        limits[1] = 255.0
        limits = preprocessing.normalize(limits)
        slack = 0.1 * (limits.max() - limits.min())  # augmentation may overshoot a little
        low, high = limits.min() - slack, limits.max() + slack
    smallest = min(batch.min() for batch in calibration.batches)
    largest = max(batch.max() for batch in calibration.batches)
    if smallest < low or largest > high:
        warnings.warn(
            "The calibration images do not look preprocessed. Expected values between "
            f"{low:.1f} and {high:.1f}, as the model gets them in training. "
            f"Received: values from {smallest:.1f} to {largest:.1f} in `representative_data`.",
            stacklevel=3,
        )
