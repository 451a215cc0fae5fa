"""Whether a TFLite file computes in integers alone, as 8-bit accelerators want it."""

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def assert_integer_throughout(path):
    """Every tensor of the graph is an integer, the input and the output int8."""
    interpreter = Interpreter(
        path, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    dtypes = {np.dtype(tensor["dtype"]).name for tensor in interpreter.get_tensor_details()}
    assert dtypes == {"int8", "int32"}
    assert interpreter.get_input_details()[0]["dtype"] == np.int8
    assert interpreter.get_output_details()[0]["dtype"] == np.int8
