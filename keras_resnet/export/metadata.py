"""TFLite Metadata: what goes into a file and what comes out, where phones look for it.

MediaPipe, ML Kit and Android Studio read it. Google's package that writes it, tflite-support, does
not install on today's Python, and the writer inside MediaPipe 1.2 cannot be imported; so the one
table that an image classifier needs is written here.

Reference: `metadata_schema.fbs` of TensorFlow Lite Support, version 1.0.0 of the parser.
"""

import dataclasses
import io
import zipfile
from collections.abc import Sequence

import numpy as np

from keras_resnet.export.graph_file import pack, unpack
from keras_resnet.export.runtime import LABELS
from keras_resnet.preprocessing import Preprocessing

BUFFER = "TFLITE_METADATA"
_PARSER_VERSION = "1.0.0"  # that reads every field written here
_IMAGE_PROPERTIES, _FEATURE_PROPERTIES, _NORMALIZATION, _AXIS_LABELS = 2, 1, 1, 2
_COLOR_SPACES = {1: 2, 3: 1}  # greyscale and RGB, by the number of channels


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is said about a file.

    Args:
        name: Of the network.
        input_shape: `(height, width, channels)`.
        preprocessing: What has to be done to an image before it goes in; `None`: not known.
        includes_preprocessing: Whether the file does that itself.
        class_names: Names of the classes; `None`: not known.
    """

    name: str
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing | None = None
    includes_preprocessing: bool = False
    class_names: Sequence[str] | None = None

    @property
    def normalization(self) -> tuple[list[float], list[float]] | None:
        """Mean and deviation per channel of raw values 0..255: `(raw - mean) / std` goes in."""
        if self.includes_preprocessing:
            return [0.0], [1.0]
        if self.preprocessing is None:
            return None
        scale = self.preprocessing.scale
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return [value / scale for value in mean], [value / scale for value in std]


def add_metadata(content: bytes, metadata: Metadata) -> bytes:
    """Puts metadata into a TFLite file, and the names of its classes behind it.

    Args:
        content: The file.
        metadata: What is said about it.

    Returns:
        The new file: the same graph, and if there are names, an archive of `labels.txt` appended.
    """
    from ai_edge_litert import schema_py_generated as schema

    model, buffer, entry = unpack(content), schema.BufferT(), schema.MetadataT()
    buffer.data = _flatbuffer(metadata)
    entry.name, entry.buffer = BUFFER, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    packed = pack(model)
    return packed if metadata.class_names is None else _append_labels(packed, metadata.class_names)


def _append_labels(content, class_names):
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:  # not compressed: phones map it into memory
        # With its default time of 1980: the same export is the same file.
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{name}\n" for name in class_names))
    return file.getvalue()


def _flatbuffer(metadata):
    """The metadata as a flatbuffer: tables are `{number of the field: value}`."""
    height, width, channels = metadata.input_shape
    size = {0: np.uint32(width), 1: np.uint32(height)}
    # BGR has no name there.
    swapped = metadata.preprocessing is not None and metadata.preprocessing.channel_order == "bgr"
    hidden = swapped and not metadata.includes_preprocessing
    color_space = np.uint8(0 if hidden else _COLOR_SPACES.get(channels, 0))
    source = {
        0: "image",
        1: f"Image of {height}x{width} pixels{', channels in the order BGR' if hidden else ''}.",
        3: {0: np.uint8(_IMAGE_PROPERTIES), 1: {0: color_space, 1: size}},
    }
    if metadata.normalization is not None:
        mean, std = (np.float32(values) for values in metadata.normalization)
        source[4] = [{0: np.uint8(_NORMALIZATION), 1: {0: mean, 1: std}}]
    target = {
        0: "probability",
        1: "Probabilities of the classes.",
        3: {0: np.uint8(_FEATURE_PROPERTIES), 1: {}},
    }
    if metadata.class_names is not None:
        target[6] = [{0: LABELS, 1: "Names of the classes.", 2: np.uint8(_AXIS_LABELS)}]
    model = {
        0: metadata.name,
        1: "Image classifier.",
        3: [{2: [source], 3: [target]}],
        7: _PARSER_VERSION,
    }
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(_written(builder, model), b"M001")
    return np.frombuffer(builder.Output(), "uint8")


def _written(builder, value) -> int:
    """Where a string, a vector or a table stands, once everything in it has been written."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_written(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    prepend = {np.uint8: builder.PrependUint8Slot, np.uint32: builder.PrependUint32Slot}
    fields = {
        number: item if type(item) in prepend else _written(builder, item)
        for number, item in value.items()
    }
    builder.StartObject(max(fields, default=-1) + 1)
    for number, item in fields.items():
        prepend.get(type(item), builder.PrependUOffsetTRelativeSlot)(number, item, 0)
    return builder.EndObject()
