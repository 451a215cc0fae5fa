"""SavedModel: raw images or files in, probabilities out, for TensorFlow and TensorFlow Serving."""

import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from keras_resnet.errors import unknown_name
from keras_resnet.export.examples import check_raw, read_examples
from keras_resnet.export.inference import (
    bfloat16_model,
    check_class_names,
    classifier_input,
    inference_model,
    write_saved_model,
)
from keras_resnet.export.report import ExportMismatch, ExportReport, Tolerance, compare
from keras_resnet.export.signatures import ENCODED, FEATURES, IMAGES, signatures
from keras_resnet.export.staging import check_replaceable, is_saved_model, quiet_console, staged
from keras_resnet.preprocessing import Preprocessing, model_preprocessing
from keras_resnet.surgery import fold_batch_norm

# bfloat16 keeps 8 bits: probabilities move where the model itself is undecided.
TOLERANCES = {
    "float32": Tolerance(max_probability_difference=1e-4),
    "bfloat16": Tolerance(clear_disagreements=0.01, accuracy_loss=0.01),
}
# Between two signatures of one SavedModel, on the same images.
_SIGNATURES_DIFFER = {"float32": 1e-4, "bfloat16": 0.05}


def saved_model(
    model,
    path,
    *,
    examples,
    labels=None,
    class_names: Sequence[str] | None = None,
    precision: str = "float32",
    preprocessing: Preprocessing | None = None,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Exports a classifier as a SavedModel that takes raw images.

    Its signatures, with resizing and normalisation inside, as `preprocessing` says:

    - `serving_default`: `images`, uint8 `(batch, height, width, channels)` of any size, to
      `probabilities`, float32 `(batch, classes)`, and with `class_names` to `labels`, the name of
      the most probable class, `(batch,)`.
    - `encoded`: `encoded`, `(batch,)` strings, the bytes of JPEG or PNG files, to the same. Their
      sizes may differ, and greyscale files become RGB.
    - `features`: `images` to `features`, float32 `(batch, features)`, what the classifier reads.

    A model without a fixed input size only normalises; the files of one call to `encoded` must then
    have one size, or TensorFlow raises `InvalidArgumentError`. There is no `encoded` for other than
    1 or 3 channels, and no `features` where the model does not end in a dense layer (ensembles).

    A model that ends in logits gets a softmax. Batch normalisation is folded into the convolutions.
    The file needs TensorFlow alone to load, and stores every weight once for all signatures
    (Keras's `model.export` does so twice).

    Args:
        model: The trained Keras model, Functional, channels last; also one that was built under a
            `tf.distribute` strategy.
        path: Folder to write. An earlier SavedModel there is replaced once the new one is proven.
        examples: Raw images to compare on, values 0..255: an array `(images, height, width,
            channels)`, or batches `x` or `(x, y)`, e.g. a `tf.data.Dataset`. Sizes may differ
            from batch to batch.
        labels: Classes of the examples, `(images,)`. Default: the `y` of `examples`, if any.
        class_names: One name per class.
        precision: `"float32"`, or `"bfloat16"`: convolutions compute in bfloat16 and their weights
            are stored so, half the size. Faster on CPUs with AVX512_BF16 or AMX, many times slower
            on others.
        preprocessing: How raw images become the model's input. Default: `model.preprocessing`.
        tolerance: What may be lost. Default: probabilities may differ by 1e-4 in float32; in
            bfloat16 at most 1 % of the images may get a clearly different class, and at most 0.01
            of the accuracy may be lost if labels are known.

    Returns:
        An `ExportReport`. Its milliseconds include the preprocessing; Keras's do not.

    Raises:
        ValueError: If the model, the images or the path do not fit, or the disk does not take it.
        ExportMismatch: If the export disagrees with the model. Nothing is written then.
    """
    path = pathlib.Path(path)
    check_replaceable(path, "SavedModel", is_saved_model(path))
    if precision not in TOLERANCES:
        raise unknown_name("precision", precision, TOLERANCES)
    preprocessing = preprocessing or model_preprocessing(model)
    keras_model = inference_model(model)
    channels = _check_preprocessing(preprocessing, keras_model.input_shape)
    check_class_names(class_names, keras_model)
    examples = read_examples(examples, labels, shape=(None, None, channels), argument="examples")
    check_raw(examples, "examples", "The SavedModel")

    import tensorflow as tf

    served = fold_batch_norm(keras_model)
    if precision == "bfloat16":
        served = bfloat16_model(served)
    has_fixed_size = None not in keras_model.input_shape[1:3]
    name = "saved_model" if precision == "float32" else f"saved_model_{precision}"
    with staged(path) as made:
        with quiet_console():
            write_saved_model(made, signatures(served, preprocessing, class_names), served)
            loaded = tf.saved_model.load(str(made)).signatures
        report = compare(
            format=name,
            path=path,
            written=made,
            export=lambda images: loaded[IMAGES](images=images)["probabilities"].numpy(),
            model=keras_model,
            prepare=preprocessing if has_fixed_size else preprocessing.normalize,
            examples=examples,
            tolerance=tolerance or TOLERANCES[precision],
        )
        _check_signatures(
            loaded, keras_model, examples.batches[0], _SIGNATURES_DIFFER[precision], path
        )
    return report


def _check_signatures(loaded, keras_model, images, tolerance, path):
    """`serving_default` is compared with Keras; the others must give what it gives."""
    import tensorflow as tf

    expected = loaded[IMAGES](images=tf.constant(images))["probabilities"]
    received = {}
    if ENCODED in loaded:
        files = tf.stack([tf.io.encode_png(image) for image in images])
        received[ENCODED] = loaded[ENCODED](encoded=files)["probabilities"]
    if FEATURES in loaded:
        features = loaded[FEATURES](images=tf.constant(images))["features"]
        received[FEATURES] = keras.Model(classifier_input(keras_model), keras_model.outputs[0])(
            features
        )
    for name, probabilities in received.items():
        difference = np.abs(probabilities - expected).max()
        if not difference <= tolerance:  # written so that NaN fails
            raise ExportMismatch(
                f"The signature {name!r} disagrees with {IMAGES!r}. Expected probabilities that "
                f"differ by at most {tolerance:g} on the same images. Received: {difference:.6g}. "
                f"'{path}' was not written."
            )


def _check_preprocessing(preprocessing, input_shape):
    _, *size, channels = input_shape
    if len(preprocessing.mean) != channels or (
        None not in size and tuple(size) != preprocessing.size
    ):
        raise ValueError(
            "The preprocessing does not fit the model. "
            f"Expected size {tuple(size)} and {channels} channels. "
            f"Received: size {preprocessing.size} and {len(preprocessing.mean)} channels. Pass "
            "`preprocessing=dataclasses.replace(model.preprocessing, size=..., mean=..., std=...)`."
        )
    return channels
