"""Whether a TFLite file computes in integers alone, as 8-bit accelerators want it."""

import collections

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

# Operations that move values about and must leave them as they are.
MOVES = {"PAD", "STRIDED_SLICE", "CONCATENATION", "MAX_POOL_2D", "RESHAPE"}
CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}  # of the weights' shape
CONVERSIONS = {"QUANTIZE", "DEQUANTIZE", "CAST"}


def open_graph(path):
    """An interpreter that shows the graph as it is in the file."""
    interpreter = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    return interpreter


def read_operations(interpreter):
    """The operations in order, as `(name, tensors it reads, tensors it writes)`."""
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    for details in interpreter._get_ops_details():
        reads = [tensors[index] for index in details["inputs"] if index >= 0]
        yield details["op_name"], reads, [tensors[index] for index in details["outputs"]]


def count_operations(path):
    """How many there are of each, as the runtime counts them."""
    return collections.Counter(name for name, *_ in read_operations(open_graph(path)))


def assert_integer_throughout(path, source="int8", target="int8", dtypes=("int8", "int32")):
    """Every operation between input and output computes in integers, per channel where it can."""
    interpreter = open_graph(path)
    (first,), (last,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert np.dtype(first["dtype"]).name == source
    assert np.dtype(last["dtype"]).name == target
    for name, reads, writes in read_operations(interpreter):
        at_an_end = first["index"] == reads[0]["index"] or last["index"] == writes[0]["index"]
        if name in CONVERSIONS and at_an_end:
            assert source != target or source not in dtypes
            continue
        assert name not in CONVERSIONS, "an island"
        assert {np.dtype(tensor["dtype"]).name for tensor in (*reads, *writes)} <= set(dtypes), name
        if name in MOVES:
            values = [tensor for tensor in reads if tensor["dtype"] == writes[0]["dtype"]]
            assert {tensor["quantization"] for tensor in values} == {writes[0]["quantization"]}
        if name in CHANNEL_AXIS:
            scales = reads[1]["quantization_parameters"]
            assert scales["quantized_dimension"] == CHANNEL_AXIS[name]
            assert len(scales["scales"]) == reads[1]["shape"][CHANNEL_AXIS[name]]
