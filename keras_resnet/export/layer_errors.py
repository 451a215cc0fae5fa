"""What a TFLite graph does, operation by operation, and how far each layer is from Keras."""

import collections

import numpy as np

from keras_resnet.export.conversion import Converted, layer_outputs
from keras_resnet.export.runtime import read, run
from keras_resnet.surgery.graph import calls_in_order

IMAGES = 32  # errors of layers are means over many values already


def count_operations(content: bytes) -> dict[str, int]:
    """How many there are of each operation in a TFLite graph.

    Args:
        content: The file.

    Returns:
        From TFLite's names, e.g. `"CONV_2D"`, to their numbers, most frequent first.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    model = schema.Model.GetRootAs(content)
    graph = model.Subgraphs(0)
    counts = collections.Counter()
    for number in range(graph.OperatorsLength()):
        code = model.OperatorCodes(graph.Operators(number).OpcodeIndex())
        # Files of before 2020 have the deprecated field only.
        counts[names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]] += 1
    return dict(counts.most_common())


def measure_layer_errors(converted: Converted, model, images, prepared) -> dict[str, float]:
    """Runs a file and its Keras model on the same images, and compares layer by layer.

    The whole graph runs quantised, so an error is what has gathered up to that layer.

    Args:
        converted: The file.
        model: The float32 model that was converted.
        images: Array of images, as the file takes them; the first 32 are used.
        prepared: The same, as the model takes them.

    Returns:
        From the name of each layer to the root mean square of its error, relative to that of its
        outputs. Layers that became part of the next have none, nor have those that return zeros.
    """
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=converted.content,
        experimental_preserve_all_tensors=True,
        # Delegates keep their tensors to themselves.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    outputs = tf.function(lambda images: layer_outputs(model, images), autograph=False)
    tensors = _tensors_of_layers(converted, model)
    noise, signal = collections.Counter(), collections.Counter()
    done = 0
    for count in run(interpreter, images[:IMAGES]):
        expected = outputs(tf.constant(prepared[done : done + count], tf.float32))
        details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
        for layer, tensor in tensors.items():
            values = np.float64(expected[layer])
            received = read(interpreter, details[tensor])[:count]
            if received.shape == values.shape:  # else it was drawn in another way
                noise[layer] += np.sum((received - values) ** 2)
                signal[layer] += np.sum(values**2)
        done += count
    return {
        layer: float(np.sqrt(noise[layer] / signal[layer])) for layer in signal if signal[layer]
    }


def _tensors_of_layers(converted, model):
    """From the name of a layer to the number of the tensor that holds its outputs.

    A tensor is called after the operations that make it, the last one first:
    `"stem_relu_1/Relu;stem_conv_1/convolution"`.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(converted.content).Subgraphs(0)
    tensors, absorbed = {}, set()
    for number in range(graph.OperatorsLength()):
        tensor = graph.Operators(number).Outputs(0)
        names = graph.Tensors(tensor).Name().decode().split(";")
        layer, *others = [converted.layers.get(name.rpartition("/")[0]) for name in names]
        if layer is not None:
            tensors[layer] = tensor
            absorbed.update(set(others) - {layer})
    tensors[calls_in_order(model)[-1].operation.name] = graph.Outputs(0)
    return {layer: tensor for layer, tensor in tensors.items() if layer not in absorbed}
