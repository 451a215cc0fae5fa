"""SavedModel: raw images in, probabilities out, for TensorFlow and TensorFlow Serving."""

import pathlib

from keras_resnet.export.examples import read_examples
from keras_resnet.export.inference import inference_model, write_saved_model
from keras_resnet.export.report import ExportReport, Tolerance, compare
from keras_resnet.export.staging import check_replaceable, is_saved_model, quiet_console, staged
from keras_resnet.preprocessing import Preprocessing, model_preprocessing
from keras_resnet.surgery import fold_batch_norm


def saved_model(
    model,
    path,
    *,
    examples,
    labels=None,
    preprocessing: Preprocessing | None = None,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Exports a classifier as a SavedModel that takes raw images.

    Its signature `serving_default` maps `images`, uint8 of shape `(batch, height, width,
    channels)`, to `probabilities`, float32 of shape `(batch, classes)`. Resizing and normalisation
    happen inside, as `preprocessing` says; a model without a fixed input size only normalises. A
    model that ends in logits gets a softmax. Batch normalisation is folded into the convolutions.
    The file needs TensorFlow alone to load, computes in float32, and stores every weight once
    (Keras's `model.export` does so twice).

    Args:
        model: The trained Keras model, Functional, channels last; also one that was built under a
            `tf.distribute` strategy.
        path: Folder to write. An earlier SavedModel there is replaced once the new one is proven.
        examples: Raw images to compare on, values 0..255: an array `(images, height, width,
            channels)`, or batches `x` or `(x, y)`, e.g. a `tf.data.Dataset`. Sizes may differ
            from batch to batch.
        labels: Classes of the examples, `(images,)`. Default: the `y` of `examples`, if any.
        preprocessing: How raw images become the model's input. Default: `model.preprocessing`.
        tolerance: What may be lost. Default: probabilities may differ by 1e-4.

    Returns:
        An `ExportReport`. Its milliseconds include the preprocessing; Keras's do not.

    Raises:
        ValueError: If the model, the images or the path do not fit.
        ExportMismatch: If the export disagrees with the model. Nothing is written then.
    """
    path = pathlib.Path(path)
    check_replaceable(path, "SavedModel", is_saved_model(path))
    preprocessing = preprocessing or model_preprocessing(model)
    keras_model = inference_model(model)
    channels = _check_preprocessing(preprocessing, keras_model.input_shape)
    examples = read_examples(examples, labels, shape=(None, None, channels), argument="examples")
    _check_raw(examples)

    import tensorflow as tf

    folded = fold_batch_norm(keras_model)
    fixed_size = None not in keras_model.input_shape[1:3]
    prepare = preprocessing if fixed_size else preprocessing.normalize

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, channels), tf.uint8, "images")])
    def classify(images):
        images = tf.cast(images, tf.float32)
        if fixed_size:
            images = _resize(images, preprocessing)
        return {"probabilities": folded(preprocessing.normalize(images), training=False)}

    with staged(path) as made:
        with quiet_console():
            write_saved_model(made, {"serving_default": classify}, folded)
            served = tf.saved_model.load(str(made)).signatures["serving_default"]
        return compare(
            format="saved_model",
            path=path,
            written=made,
            export=lambda images: served(images=images)["probabilities"].numpy(),
            model=keras_model,
            prepare=prepare,
            examples=examples,
            tolerance=tolerance or Tolerance(max_probability_difference=1e-4),
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


def _check_raw(examples):
    dtypes = {str(batch.dtype) for batch in examples.batches}
    if dtypes != {"uint8"}:
        raise ValueError(
            "The SavedModel takes raw images. Expected uint8 values 0..255 in `examples`. "
            f"Received: {', '.join(sorted(dtypes))}"
        )


def _resize(images, preprocessing):
    """`Preprocessing.resize` for a size that is known only when the images arrive."""
    import tensorflow as tf

    size = tf.constant(preprocessing.size)
    given = tf.shape(images)[1:3]

    def resized():
        target = size
        if preprocessing.resize_size is not None:
            sides = tf.cast(given, tf.float64)
            ratio = preprocessing.resize_size / tf.reduce_min(sides)
            target = tf.maximum(tf.cast(tf.round(sides * ratio), tf.int32), size)
        scaled = tf.image.resize(
            images, target, preprocessing.interpolation, antialias=preprocessing.antialias
        )
        scaled = tf.clip_by_value(scaled, 0.0, 255.0)
        top, left = tf.unstack((target - size) // 2)
        return scaled[:, top : top + size[0], left : left + size[1], :]

    fits = tf.reduce_all(given == size)
    images = tf.cond(fits, lambda: images, resized)
    return tf.ensure_shape(images, (None, *preprocessing.size, None))
