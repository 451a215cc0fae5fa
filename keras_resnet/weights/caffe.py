"""Weights out of a `.caffemodel`: a protocol buffer, read by the few fields that matter here."""

import functools
import math

import numpy as np

# Caffe's own schema, in part: message -> (field, number, type, whether repeated). Floats are packed
# and read as bytes: a list of 25 million Python numbers is not needed.
_MESSAGES = {
    "NetParameter": (("layer", 100, "LayerParameter", True),),
    "LayerParameter": (
        ("name", 1, "string", False),
        ("type", 2, "string", False),
        ("blobs", 7, "BlobProto", True),
    ),
    "BlobProto": (
        *((name, number, "int32", False) for number, name in enumerate(("n", "c", "h", "w"), 1)),
        ("data", 5, "bytes", True),
        ("shape", 7, "BlobShape", False),
    ),
    "BlobShape": (("dim", 1, "int64", True),),
}


@functools.cache
def net_parameter() -> type:
    """The class of the message that a `.caffemodel` is.

    Raises:
        ImportError: If protobuf is not installed.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="keras_resnet.caffe")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            is_message = kind in _MESSAGES
            message.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if is_message else getattr(field, f"TYPE_{kind.upper()}"),
                type_name=f".{file.package}.{kind}" if is_message else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName(f"{file.package}.NetParameter")
    return message_factory.GetMessageClass(descriptor)


def extract(content: bytes) -> dict[str, np.ndarray]:
    """The weights of a `.caffemodel` by names such as `bn2a_branch1/gamma`, in Keras's layout.

    A batch normalisation is two layers there, `bn2a_branch1` and `scale2a_branch1`; its statistics
    are sums, and how much was summed stands beside them.

    Args:
        content: The file.

    Raises:
        ValueError: If it is none.
    """
    tensors = {}
    for layer in net_parameter().FromString(content).layer:
        blobs = [_array(blob) for blob in layer.blobs]
        for weight, tensor in _weights(layer.type, blobs).items():
            name = layer.name.replace("scale", "bn", 1) if layer.type == "Scale" else layer.name
            if f"{name}/{weight}" in tensors:
                raise ValueError(f"{name}/{weight} is there twice")
            tensors[f"{name}/{weight}"] = tensor
    if not tensors:
        raise ValueError("no layer with weights is in it")
    return tensors


def _array(blob):
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.n, blob.c, blob.h, blob.w]
    data = b"".join(blob.data)
    if min(shape, default=1) < 0 or 4 * math.prod(shape) != len(data):
        raise ValueError(f"a blob of shape {shape} has {len(data)} bytes")
    return np.frombuffer(data, "<f4").reshape(shape)


def _weights(kind, blobs):
    """The weights of a layer of a kind by their Keras name."""
    if kind == "BatchNorm":
        mean, variance, count = (blob.reshape(-1) for blob in blobs)
        factor = 1 / count[0] if count[0] else 0  # as Caffe has it
        return {"moving_mean": mean * factor, "moving_variance": variance * factor}
    names = {"Scale": ("gamma", "beta")}.get(kind, ("kernel", "bias"))
    if len(blobs) > len(names):
        raise ValueError(f"a layer of type {kind} has {len(blobs)} blobs")
    weights = dict(zip(names, blobs))
    if kind == "Convolution" and "kernel" in weights:
        weights["kernel"] = weights["kernel"].transpose(2, 3, 1, 0)
    elif kind == "InnerProduct" and "kernel" in weights:
        weights["kernel"] = weights["kernel"].reshape(weights["kernel"].shape[-2:]).T
    # Older files give every blob four axes.
    return {
        name: weight if name == "kernel" else weight.reshape(-1) for name, weight in weights.items()
    }
