"""From a Keras model to the bytes of a TFLite file, by TensorFlow's converter."""

import dataclasses
import tempfile
from collections.abc import Mapping

import keras
import numpy as np
from keras import layers

from keras_resnet.export import ranges
from keras_resnet.export.examples import Examples
from keras_resnet.export.graph_file import unpack
from keras_resnet.export.inference import write_saved_model
from keras_resnet.export.runtime import classifier
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.surgery.folding import scale_and_bias
from keras_resnet.surgery.graph import calls_in_order, replay

CALIBRATED = ("int8", "int16x8")  # integers throughout, by ranges taken from images


@dataclasses.dataclass(frozen=True)
class Converted:
    """A TFLite file, and whose its operations are.

    Args:
        content: The bytes of the file.
        layers: From the scope of an operation's name, `"stage1_block1_conv1_1"`, to the name of
            the Keras layer that it computes.
    """

    content: bytes
    layers: dict[str, str]


def convert(
    model: keras.Model,
    *,
    quantization: str | None = None,
    calibration: Examples | None = None,
    io_dtype: str | None = None,
    batch_size: int | None = 1,
    preprocessing: Preprocessing | None = None,
) -> Converted:
    """Converts a classifier.

    Args:
        model: Functional, of fixed image size, with its batch normalisation folded.
        quantization: `None`, `"float16"`, `"dynamic"`, `"int8"` or `"int16x8"`.
        calibration: For the last two: images from which ranges are taken, as the file takes them.
        io_dtype: For `"int8"`: of input and output.
        batch_size: Images that the file takes at a time; `None`: any number.
        preprocessing: What the file does to raw images. `None`: it takes preprocessed ones.

    Raises:
        ValueError: If a layer of the model cannot be expressed, or not in integers where they are
            asked for.
    """
    import tensorflow as tf

    integer = quantization in CALIBRATED
    takes_bytes = preprocessing is not None and not integer  # integer files get theirs afterwards
    dtype = tf.uint8 if takes_bytes else tf.float32
    spec = tf.TensorSpec((batch_size, *model.input_shape[1:]), dtype, "images")
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    instead = {norm: as_convolution(norm) for norm in norms} if integer else {}
    scopes = {}

    @tf.function(input_signature=[spec], autograph=False)
    def classify(images):
        if preprocessing is not None:
            images = _normalize(tf.cast(images, tf.float32), preprocessing)
        outputs = layer_outputs(model, images, instead)
        for name, tensor in outputs.items():  # of layers that do nothing, the scope is another's
            scopes.setdefault(tensor.op.name.rpartition("/")[0], name)
        return {"probabilities": outputs[calls_in_order(model)[-1].operation.name]}

    with tempfile.TemporaryDirectory() as folder:
        # Never `from_concrete_functions`: it loses the weights of Keras 3 models without a word.
        write_saved_model(folder, {"serving_default": classify}, model)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        _configure(converter, quantization, calibration)
        try:
            content = converter.convert()
        except Exception as error:  # the converter's own, RuntimeError and ValueError alike
            raise _not_convertible(error, scopes, quantization) from error
    if quantization == "int8":
        content = _quantized(content, calibration, io_dtype, preprocessing is not None)
    if integer:
        _check_integer(content, scopes, quantization)
    return Converted(content, scopes)


def layer_outputs(model: keras.Model, images, instead: Mapping | None = None) -> dict:
    """Runs a model layer by layer.

    Args:
        model: Functional classifier.
        images: Tensor of its preprocessed input.
        instead: Functions to call in the place of layers.

    Returns:
        From the name of each layer to the tensor it returns, in the order of computation.
    """
    tensors, nodes = {id(model.inputs[0]): images}, calls_in_order(model)
    replay(nodes, tensors, lambda layer: (instead or {}).get(layer, layer))
    return {node.operation.name: tensors[id(node.outputs[0])] for node in nodes}


def as_convolution(norm: layers.BatchNormalization):
    """A channels-last batch normalisation at inference, as a depthwise 1x1 convolution.

    Integer convolutions have a scale for each channel and round once. TFLite's multiplication has
    one scale for all channels, and rounds before the addition as well.

    Args:
        norm: The layer.

    Returns:
        A function from its input to its output.
    """
    import tensorflow as tf

    scale, bias = (np.float32(values) for values in scale_and_bias(norm))
    kernel = scale[np.newaxis, np.newaxis, :, np.newaxis]

    def normalize(images, **_):
        shape = images.shape
        with tf.name_scope(norm.name):
            if len(shape) != 4:  # behind the pooling
                images = tf.reshape(images, (-1, 1, 1, scale.size))
            images = tf.nn.depthwise_conv2d(images, kernel, (1, 1, 1, 1), "VALID")
            images = tf.nn.bias_add(images, bias)
            return images if len(shape) == 4 else tf.reshape(images, (-1, *shape[1:]))

    return normalize


def _normalize(images, preprocessing):
    """`Preprocessing.normalize` as a 1x1 convolution.

    In integers it rounds once, to what a quantised input would have been. It cannot become part of
    the first convolution, which pads with zeros behind it, not before.
    """
    import tensorflow as tf

    std = np.float64(preprocessing.std)
    kernel = np.diag(preprocessing.scale / std)[list(preprocessing.channel_indices)]
    with tf.name_scope("preprocessing"):
        images = tf.nn.conv2d(images, kernel[np.newaxis, np.newaxis].astype("float32"), 1, "VALID")
        return tf.nn.bias_add(images, np.float32(-np.float64(preprocessing.mean) / std))


def _configure(converter, quantization, calibration):
    import tensorflow as tf

    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization not in CALIBRATED:
        return
    converter.representative_dataset = lambda: (
        [image.astype("float32")] for image in calibration.images()
    )
    if quantization == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter._experimental_calibrate_only = True  # what is left is done by `_quantized`
    else:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter.inference_input_type = converter.inference_output_type = tf.int16


def _quantized(calibrated, calibration, io_dtype, takes_bytes):
    """The second half of the converter's work, which has no public name.

    Returns the file whose probabilities are nearest to those of the float32 one.
    """
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter
    from tensorflow.lite.python.convert import mlir_quantize

    def probabilities(content):
        return classifier(Interpreter(model_content=content))(images)

    images = np.concatenate(list(calibration.images())[: ranges.IMAGES])
    expected = probabilities(calibrated)
    files = (
        mlir_quantize(
            content,
            input_data_type=tf.uint8 if takes_bytes else tf.as_dtype(io_dtype),
            output_data_type=tf.as_dtype(io_dtype),
        )
        for content in ranges.narrowed_ranges(calibrated, images)
    )
    return min(files, key=lambda content: np.mean((probabilities(content) - expected) ** 2))


def _check_integer(content, scopes, quantization):
    """The converter leaves operations in float32 of which TFLite has no integer kernel."""
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(content)
    (graph,) = model.subgraphs
    floats = {}
    for operator in graph.operators:
        (tensor, *_), code = operator.outputs, model.operatorCodes[operator.opcodeIndex]
        kind, name = graph.tensors[tensor].type, graph.tensors[tensor].name.decode()
        converts = code.builtinCode == schema.BuiltinOperator.DEQUANTIZE
        if kind == schema.TensorType.FLOAT32 and not converts:
            owners = (layer for scope, layer in scopes.items() if name.startswith(f"{scope}/"))
            floats[next(owners, name)] = None
    if floats:
        raise ValueError(
            f"TFLite has no integer kernels for the model with quantization={quantization!r}. "
            f"Expected layers that it computes in integers. Received: layers {', '.join(floats)}. "
            "Replace them, or try quantization='dynamic'."
        )


def _not_convertible(error, scopes, quantization):
    layers = [name for scope, name in scopes.items() if scope and f'"{scope}/' in str(error)]
    named = f"layers {', '.join(layers)}" if layers else str(error).strip().splitlines()[0]
    return ValueError(
        f"TFLite cannot express the model with quantization={quantization!r}. Expected layers of "
        f"which TFLite knows the operations. Received: {named}. Replace them, or try another "
        "quantization."
    )
