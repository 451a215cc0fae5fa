"""What a network costs, counted as the paper counts it."""

import math

import keras
from keras import layers

# Whose kernels are applied at each position of the outputs, and of the inputs.
_AT_OUTPUTS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)
_AT_INPUTS = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def count_macs(model, input_shape=None) -> int:
    """Multiply-adds of one image: convolutions and dense layers, nothing else.

    Args:
        model: A built Functional model with one input, of this package or not. Models inside it
            are walked too.
        input_shape: `(height, width, channels)` of the image where the model leaves it open.

    Returns:
        The number of multiply-adds. (The paper prints them as FLOPs.)

    Raises:
        ValueError: If the model's input size is open and none is given.

    Reference: He et al. 2015, table 1.

    >>> import keras_resnet
    >>> count_macs(keras_resnet.CifarResNet20())
    40551040
    """
    shape = (1, *(input_shape or model.input_shape[1:]))
    if None in shape:
        raise ValueError(
            "The model leaves the size of its input open. Expected `input_shape`, e.g. "
            f"(224, 224, 3). Received: a model with input shape {model.input_shape}"
        )
    counts = []

    def counted(layer):
        def call(x, *args, **kwargs):
            if isinstance(layer, keras.Model):
                return _graph(layer)._run_through_graph(x, operation_fn=counted)
            y = layer.compute_output_spec(x, *args, **kwargs)
            if isinstance(layer, _AT_OUTPUTS + _AT_INPUTS):
                applied_at = x if isinstance(layer, _AT_INPUTS) else y
                counts.append(_positions(layer, applied_at.shape) * _kernel_size(layer))
            return y

        return call

    _graph(model)._run_through_graph(keras.KerasTensor(shape), operation_fn=counted)
    return sum(counts)


def _graph(model):
    """The Functional model that walks: a `Sequential` holds one."""
    return getattr(model, "_functional", model)


def _kernel_size(layer) -> int:
    """Number of weights of the kernel, or of the two of a separable convolution."""
    return sum(math.prod(w.shape) for w in layer.weights if w.name.endswith("kernel"))


def _positions(layer, shape) -> int:
    """How often the kernel is applied: the size of a tensor without its channels."""
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    return math.prod(shape[2:] if channels_first else shape[1:-1])
