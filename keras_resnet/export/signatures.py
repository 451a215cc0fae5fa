"""What a SavedModel answers to: raw images or encoded files in; probabilities or features out."""

from collections.abc import Callable, Sequence

import keras

from keras_resnet.export.inference import classifier_input
from keras_resnet.preprocessing import Preprocessing

IMAGES, ENCODED, FEATURES = "serving_default", "encoded", "features"
_DECODED_CHANNELS = (1, 3)  # what TensorFlow decodes JPEG and PNG alike to


def signatures(
    model: keras.Model, preprocessing: Preprocessing, class_names: Sequence[str] | None = None
) -> dict[str, Callable]:
    """Functions over one model, with the preprocessing inside.

    Args:
        model: Functional classifier that returns probabilities.
        preprocessing: How raw images become its input; a model without a fixed input size only
            normalises.
        class_names: One name per class, for the output `labels`; `None` for none.

    Returns:
        `tf.function`s by the name of their signature: `"serving_default"`; `"encoded"` where
        images of so many channels can be decoded; `"features"` where the model ends in a dense
        layer.
    """
    import tensorflow as tf

    *size, channels = model.input_shape[1:]
    has_fixed_size = None not in size
    features = classifier_input(model)
    outputs = {"probabilities": model.outputs[0]}
    if features is not None:
        outputs["features"] = features
    network = keras.Model(model.inputs[0], outputs)

    def images_spec(dtype, height=None, width=None):
        return tf.TensorSpec((None, height, width, channels), dtype, "images")

    # Functions of their own: the file holds what they compute once, not once for each signature.
    @tf.function(input_signature=[images_spec(tf.float32)], autograph=False)
    def fitted(images):
        return preprocessing.resize(images) if has_fixed_size else images

    @tf.function(input_signature=[images_spec(tf.float32, *size)], autograph=False)
    def answers(pixels):
        return network(preprocessing.normalize(pixels), training=False)

    def classify(pixels):
        probabilities = answers(pixels)["probabilities"]
        if class_names is None:
            return {"probabilities": probabilities}
        names = tf.constant(list(class_names))
        chosen = tf.argmax(probabilities, axis=1)
        return {"probabilities": probabilities, "labels": tf.gather(names, chosen)}

    @tf.function(input_signature=[images_spec(tf.uint8)], autograph=False)
    def of_images(images):
        return classify(fitted(tf.cast(images, tf.float32)))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "encoded")], autograph=False)
    def of_encoded(encoded):
        def load(contents):
            image = tf.cast(decode(contents, channels), tf.float32)
            return fitted(image[tf.newaxis])[0]

        pixels = preprocessing.size if has_fixed_size else size
        pixels = tf.TensorSpec((*pixels, channels), tf.float32)
        return classify(tf.map_fn(load, encoded, fn_output_signature=pixels))

    @tf.function(input_signature=[images_spec(tf.uint8)], autograph=False)
    def of_features(images):
        pixels = fitted(tf.cast(images, tf.float32))
        return {"features": answers(pixels)["features"]}

    named = {IMAGES: of_images}
    if channels in _DECODED_CHANNELS:
        named[ENCODED] = of_encoded
    if features is not None:
        named[FEATURES] = of_features
    return named


def decode(contents, channels: int):
    """A JPEG or PNG file as pixels, exactly as Pillow decodes it.

    Args:
        contents: The bytes of the file, a string tensor or `bytes`.
        channels: 1 for greyscale, 3 for RGB, whatever the file has.

    Returns:
        uint8 of shape `(height, width, channels)`.
    """
    import tensorflow as tf

    # TensorFlow's default for JPEG is a faster, coarser transform. PNG goes through as well.
    return tf.io.decode_jpeg(contents, channels, dct_method="INTEGER_ACCURATE")
