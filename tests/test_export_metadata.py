"""TFLite Metadata, read back by others: a reader of flatbuffers of its own, zip, and MediaPipe."""

import dataclasses
import importlib.util
import struct
import subprocess
import sys
import zipfile

import exported
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from exported import IMAGES, PREPROCESSING, RAW

from keras_resnet import export
from keras_resnet.export.runtime import read_labels

NAMES = ["cat", "dog", "Straßenbahn"]
# Fields of the tables of TensorFlow Lite Support's metadata_schema.fbs, in its order.
MODEL = "name description version subgraphs author license files min_parser_version"
SUBGRAPH = "name description inputs outputs"
TENSOR = "name description dimensions content process_units stats files"
FIELDS = {
    "model": MODEL.split(),
    "subgraph": SUBGRAPH.split(),
    "tensor": TENSOR.split(),
    "content": ["type", "properties", "range"],
    "image": ["color_space", "size"],
    "size": ["width", "height"],
    "unit": ["type", "options"],
    "normalization": ["mean", "std"],
    "file": ["name", "description", "type", "locale", "version"],
}


class Table:
    """A table of a flatbuffer, by the rules of the format alone.

    A table begins with its distance from its vtable: two sizes, then the place of each field in the
    table, 0 for those that are not there. What is not a number is a distance to what it is.
    """

    def __init__(self, data, place, kind):
        self.data, self.place, self.fields = data, place, FIELDS[kind]
        self.vtable = place - self.number("<i", place)

    @classmethod
    def root(cls, data, kind):
        return cls(data, struct.unpack_from("<I", data)[0], kind)

    def number(self, format, place):
        return struct.unpack_from(format, self.data, place)[0]

    def at(self, field):
        """Where a field is; `None` if it is not there."""
        entry = 4 + 2 * self.fields.index(field)
        if entry >= self.number("<H", self.vtable):
            return None
        offset = self.number("<H", self.vtable + entry)
        return self.place + offset if offset else None

    def scalar(self, field, format="<B"):
        return 0 if self.at(field) is None else self.number(format, self.at(field))

    def table(self, field, kind):
        place = self.at(field)
        return Table(self.data, place + self.number("<I", place), kind)

    def vector(self, field):
        """Where the elements begin, and how many there are."""
        if self.at(field) is None:
            return 0, 0
        place = self.at(field)
        place += self.number("<I", place)
        return place + 4, self.number("<I", place)

    def text(self, field):
        start, length = self.vector(field)
        assert self.data[start + length] == 0  # strings end in a zero
        return self.data[start : start + length].decode()

    def floats(self, field):
        start, length = self.vector(field)
        return struct.unpack_from(f"<{length}f", self.data, start)

    def tables(self, field, kind):
        start, length = self.vector(field)
        places = range(start, start + 4 * length, 4)
        return [Table(self.data, place + self.number("<I", place), kind) for place in places]


def read_metadata(path):
    """The metadata of a file: the buffer that the model's entry of that name points to."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes())
    entries = [model.Metadata(number) for number in range(model.MetadataLength())]
    (number,) = [entry.Buffer() for entry in entries if entry.Name() == b"TFLITE_METADATA"]
    return model.Buffers(number).DataAsNumpy().tobytes()


@pytest.fixture(scope="module")
def model():
    return exported.trained_model()


@pytest.fixture
def path(model, tmp_path):
    export.tflite(model, tmp_path / "m.tflite", examples=IMAGES[:8], class_names=NAMES)
    return tmp_path / "m.tflite"


def input_of(path):
    root = Table.root(read_metadata(path), "model")
    return root.tables("subgraphs", "subgraph")[0].tables("inputs", "tensor")[0]


def test_the_metadata_say_what_goes_in_and_what_comes_out(path):
    data = read_metadata(path)
    assert data[4:8] == b"M001"
    root = Table.root(data, "model")
    assert root.text("name") == "cifar_resnet8"
    assert root.text("min_parser_version") == "1.0.0"
    (graph,) = root.tables("subgraphs", "subgraph")
    (source,), (target,) = graph.tables("inputs", "tensor"), graph.tables("outputs", "tensor")
    assert (source.text("name"), target.text("name")) == ("image", "probability")
    content = source.table("content", "content")
    assert content.scalar("type") == 2  # ImageProperties
    image = content.table("properties", "image")
    assert image.scalar("color_space") == 1  # RGB
    size = image.table("size", "size")
    assert (size.scalar("width", "<I"), size.scalar("height", "<I")) == (16, 16)
    assert target.table("content", "content").scalar("type") == 1  # FeatureProperties
    (labels,) = target.tables("files", "file")
    assert (labels.text("name"), labels.scalar("type")) == ("labels.txt", 2)  # axis labels


def test_the_normalisation_of_the_metadata_is_that_of_the_network(path):
    (unit,) = input_of(path).tables("process_units", "unit")
    assert unit.scalar("type") == 1  # NormalizationOptions
    options = unit.table("options", "normalization")
    mean, std = (np.array(options.floats(field)) for field in ("mean", "std"))
    np.testing.assert_allclose((RAW - mean) / std, IMAGES, atol=1e-5)


def test_a_file_that_normalises_says_that_nothing_is_to_be_done(model, tmp_path):
    path = tmp_path / "m.tflite"
    export.tflite(model, path, examples=RAW[:8], include_preprocessing=True)
    options = input_of(path).tables("process_units", "unit")[0].table("options", "normalization")
    assert (options.floats("mean"), options.floats("std")) == ((0.0,), (1.0,))


def test_channels_in_another_order_are_not_called_rgb(model, tmp_path):
    path = tmp_path / "m.tflite"
    bgr = dataclasses.replace(PREPROCESSING, channel_order="bgr")
    export.tflite(model, path, examples=IMAGES[:8], preprocessing=bgr)
    image = input_of(path).table("content", "content").table("properties", "image")
    assert image.scalar("color_space") == 0  # unknown
    assert "BGR" in input_of(path).text("description")


def test_the_names_are_in_an_archive_behind_the_file(path):
    with zipfile.ZipFile(path) as archive:
        (entry,) = archive.infolist()
        assert archive.read("labels.txt").decode().splitlines() == NAMES
        assert entry.compress_type == zipfile.ZIP_STORED  # phones map it into memory
    assert read_labels(path) == NAMES


def test_a_file_without_names_has_no_archive(model, tmp_path):
    export.tflite(model, tmp_path / "m.tflite", examples=IMAGES[:8])
    assert not zipfile.is_zipfile(tmp_path / "m.tflite")
    assert read_labels(tmp_path / "m.tflite") == []


def test_the_file_still_runs_and_its_weights_are_aligned(model, path):
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], IMAGES[:1])
    interpreter.invoke()
    answers = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(answers, model.predict(IMAGES[:1], verbose=0), atol=1e-5)

    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    whole = np.frombuffer(content, "uint8")
    file = schema.Model.GetRootAs(content)
    buffers = [file.Buffers(number) for number in range(file.BuffersLength())]
    weights = [buffer.DataAsNumpy() for buffer in buffers if buffer.DataLength()]
    assert len(weights) > 10
    start = whole.__array_interface__["data"][0]
    assert {(w.__array_interface__["data"][0] - start) % 16 for w in weights} == {0}


def test_the_same_export_is_the_same_file(model, path, tmp_path):
    again = tmp_path / "again.tflite"
    export.tflite(model, again, examples=IMAGES[:8], class_names=NAMES)
    assert again.read_bytes() == path.read_bytes()


def test_names_must_fit_the_classes(model, tmp_path):
    with pytest.raises(ValueError, match="The names do not fit the classes"):
        export.tflite(model, tmp_path / "m.tflite", examples=IMAGES[:8], class_names=["cat"])
    for odd in ("a cat\nor a dog", "cat\n", 2):
        with pytest.raises(ValueError, match="A name is a line of text") as error:
            export.tflite(model, tmp_path / "m.tflite", examples=IMAGES, class_names=["a", odd, ""])
        assert str(error.value).endswith(f"Received: {odd!r}")


@pytest.mark.skipif(not importlib.util.find_spec("mediapipe"), reason="needs mediapipe")
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_mediapipe_classifies_with_the_file(model, tmp_path, quantization):
    path = tmp_path / "m.tflite"
    export.tflite(
        model,
        path,
        quantization=quantization,
        io_dtype=quantization and "uint8",  # of integers MediaPipe reads these
        representative_data=RAW,
        class_names=NAMES,
        include_preprocessing=True,
    )
    np.save(tmp_path / "raw.npy", RAW[:20])
    code = """
import sys, numpy as np, mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
classifier = vision.ImageClassifier.create_from_options(options)
for pixels in np.load(sys.argv[2]):
    image = mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels)
    best = classifier.classify(image).classifications[0].categories[0]
    print(best.category_name, best.score)
"""
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "raw.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    expected = export.load_tflite(path)(RAW[:20])
    assert [name for name, _ in lines] == [NAMES[row.argmax()] for row in expected], done.stderr
    np.testing.assert_allclose(
        [float(score) for _, score in lines], expected.max(axis=1), atol=1e-5
    )
