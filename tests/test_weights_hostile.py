"""Damaged and hostile files: an error that says so, and a model as it was."""

import dataclasses
import json
import pathlib
import struct
import subprocess
import sys
import threading
import zipfile

import h5py
import numpy as np
import pytest
from mutation import mutated
from test_weights_names import (
    SMALL_V1,
    build,
    randomized,
    write_caffe,
    write_legacy,
)

import keras_resnet
from keras_resnet.weights import caffe, formats, hdf5
from keras_resnet.weights.files import load_weights, save_torch, save_weights

TINY = {"depth": 8, "input_shape": (8, 8, 3)}


@pytest.fixture(scope="module")
def model():
    return keras_resnet.CifarResNet(**TINY)


@pytest.fixture
def untouched(model):
    """Fails the test that leaves the model with other weights than it found."""
    before = model.get_weights()
    yield
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def safetensors_file(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def tensor(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "empty": b"",
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "a header of exabytes": struct.pack("<Q", 2**62) + b"{}",
    "a header that is no JSON": safetensors_file(b"{" * 1000),
    "a header nested deeply": safetensors_file(b'{"a":' + b"[" * 100_000),
    "values beyond the file": safetensors_file({"a": tensor([2**40], [0, 2**42])}),
    "an absurd shape": safetensors_file({"a": tensor([2**62, 2**62], [0, 8])}, bytes(8)),
    "a negative shape": safetensors_file({"a": tensor([-2], [0, 8])}, bytes(8)),
    "values twice": safetensors_file(
        {"a": tensor([2], [0, 8]), "b": tensor([2], [0, 8])}, bytes(8)
    ),
    "names twice": safetensors_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "names twice, but for `module.`": safetensors_file(
        {"a": tensor([1], [0, 4]), "module.a": tensor([1], [4, 8])}, bytes(8)
    ),
    "an unknown type": safetensors_file({"a": tensor([8], [0, 8], "F8_E4M3")}, bytes(8)),
    "whole numbers": safetensors_file({"a": tensor([1], [0, 8], "I64")}, bytes(8)),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_hostile_safetensors(model, content, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read. Expected an undamaged file"):
        load_weights(model, path)


def hdf5_file(path, write):
    with h5py.File(path, "w") as file:
        write(file)


def external_storage(file):
    storage = [(str(pathlib.Path(file.filename).with_name("secret")), 0, 40)]
    file.create_dataset("a/kernel:0", (10,), "float32", external=storage)


def virtual(file):
    layout = h5py.VirtualLayout((10,), "float32")
    layout[:] = h5py.VirtualSource(pathlib.Path(file.filename).with_name("other.h5"), "a", (10,))
    file.create_virtual_dataset("a/kernel:0", layout)


def twice(file):
    file["a/kernel:0"] = file["a/b/kernel:0"] = np.zeros(3, "float32")
    file["a/c/kernel:0"] = np.zeros(3, "float32")


HDF5 = {
    "an absurd shape": (
        lambda file: file.create_dataset("a/kernel:0", (10**6, 10**6), "float32"),
        "claims 4000000000000 bytes",
    ),
    "compressed zeros": (
        lambda file: file.create_dataset(
            "a/kernel:0", data=np.zeros(10**6, "float32"), compression="gzip"
        ),
        "claims 4000000 bytes",
    ),
    "values in another file": (external_storage, "lies in another file"),
    "a data set of another file": (virtual, "lies in another file"),
    "names twice": (twice, "a/kernel is there twice"),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", HDF5)
def test_hostile_hdf5(model, case, tmp_path):
    write, message = HDF5[case]
    (tmp_path / "secret").write_bytes(bytes(40))
    hdf5_file(tmp_path / "hostile.h5", write)
    with pytest.raises(ValueError, match=f"cannot be read.*{message}"):
        load_weights(model, tmp_path / "hostile.h5")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("link", [h5py.ExternalLink, h5py.SoftLink])
def test_links_in_hdf5_are_not_followed(model, link, tmp_path):
    model.save_weights(tmp_path / "whole.weights.h5")

    def write(file):
        target = (tmp_path / "whole.weights.h5", "/") if link is h5py.ExternalLink else ("/",)
        for name in ("layers", "model_weights"):
            file[name] = link(*target)

    hdf5_file(tmp_path / "links.h5", write)
    with pytest.raises(ValueError, match=r"only the file has: nothing"):
        load_weights(model, tmp_path / "links.h5")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", "HDF5 crashes on it, code -6"),
        ("import time; time.sleep(60)", "reading it does not end"),
        ("import sys; sys.stdout.write('nonsense')", "deserializing"),
    ],
    ids=["crash", "hang", "nonsense"],
)
def test_what_hdf5_does_to_its_process_stays_there(model, script, message, tmp_path, monkeypatch):
    (tmp_path / "reader.py").write_text(script)
    monkeypatch.setattr(hdf5, "__file__", str(tmp_path / "reader.py"))
    monkeypatch.setattr(hdf5, "_TIMEOUT_SECONDS", 2)
    model.save_weights(tmp_path / "whole.weights.h5")
    with pytest.raises(ValueError, match=f"cannot be read.*{message}"):
        load_weights(model, tmp_path / "whole.weights.h5")


def test_hdf5_may_only_use_memory_in_proportion(tmp_path):
    """What a few bytes make the C library allocate ends in an error, not with the machine.

    What was reserved before does not count: numerical libraries do so for every core.
    """
    script = (
        "import mmap, runpy; reserved = mmap.mmap(-1, 3 * 2**30)\n"
        f"m = runpy.run_path({hdf5.__file__!r}); m['_limit_memory'](1000)\n"
        "print(len(bytearray(10**8)))\n"
        "bytearray(3 * 2**30)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "100000000"
    assert "MemoryError" in result.stderr


def caffe_file(*layers):
    net = caffe.net_parameter()()
    for name, kind, *blobs in layers:
        layer = net.layer.add(name=name, type=kind)
        for shape, values in blobs:
            blob = layer.blobs.add(data=[np.asarray(values, "<f4").tobytes()])
            blob.shape.dim.extend(shape)
    return net.SerializeToString()


CAFFE = {
    "empty": (b"", "no layer with weights"),
    "something else": (b"\xff" * 100, "arsing"),
    "an absurd shape": (
        caffe_file(("a", "Convolution", ([2**40, 2**40, 1, 1], [1.0]))),
        "has 4 bytes",
    ),
    "a negative shape": (caffe_file(("a", "Convolution", ([-1, -1], [1.0]))), "has 4 bytes"),
    "names twice": (
        caffe_file(("a", "InnerProduct", ([1, 1], [1])), ("a", "InnerProduct", ([1, 1], [1]))),
        "a/kernel is there twice",
    ),
    "three weights": (caffe_file(("a", "Scale", *[([1], [1])] * 3)), "of type Scale has 3 blobs"),
    "two statistics": (caffe_file(("a", "BatchNorm", *[([1], [1])] * 2)), "not enough values"),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", CAFFE)
def test_hostile_caffe(model, case, tmp_path):
    content, message = CAFFE[case]
    (tmp_path / "hostile.caffemodel").write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot be read.*{message}"):
        load_weights(model, tmp_path / "hostile.caffemodel")


@pytest.mark.usefixtures("untouched")
def test_torch_files_without_torch_name_the_remedy(model, tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install torch; or convert the file .*save_file"):
        load_weights(model, tmp_path / "weights.pth")


def test_the_format_is_told_by_the_content_whatever_the_name(model, tmp_path):
    save_weights(model, tmp_path / "whole.safetensors")
    (tmp_path / "whole.h5").write_bytes((tmp_path / "whole.safetensors").read_bytes())
    assert len(load_weights(model, tmp_path / "whole.h5").loaded) == len(model.weights)
    with pytest.raises(ValueError, match=r"cannot be read.*'keras'"):
        load_weights(model, tmp_path / "whole.h5", format="keras")


@pytest.mark.usefixtures("untouched")
def test_a_whole_keras_model_names_its_own_way(model, tmp_path):
    model.save(tmp_path / "whole.keras")
    renamed = (tmp_path / "whole.keras").rename(tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"Load it by keras.models.load_model\(path\)"):
        load_weights(model, renamed)


@pytest.mark.usefixtures("untouched")
def test_a_whole_keras_model_is_trusted_no_more_than_others(model, tmp_path, monkeypatch):
    path = tmp_path / "whole.keras"
    model.save(path)
    with pytest.raises(ValueError, match=r"was changed. Expected sha256 00"):
        load_weights(model, path, sha256="00")
    with pytest.raises(FileNotFoundError, match="There is no such file of weights"):
        load_weights(model, tmp_path / "other.keras")
    for kind in (b'"Lambda"', b'"Unheard"'):  # no layer is made, whatever it would execute
        rewrite(path, lambda content, kind=kind: content.replace(b'"ReLU"', kind))
        assert load_weights(model, path).loaded
    (tmp_path / "reader.py").write_text("import os; os.abort()")
    with monkeypatch.context() as patch:  # HDF5 is read in another process
        patch.setattr(hdf5, "__file__", str(tmp_path / "reader.py"))
        with pytest.raises(ValueError, match="HDF5 crashes on it, code -6"):
            load_weights(model, path)
    rewrite(path, lambda content: content + b" " * 10**7, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="unpack to more than the file has"):
        load_weights(model, path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"cannot be read.* of format 'keras'"):
        load_weights(model, path)


def rewrite(path, change, packing=zipfile.ZIP_STORED):
    """Another configuration in a whole model's archive."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, change(content) if name == "config.json" else content)


@pytest.mark.usefixtures("untouched")
def test_formats_that_are_not_known_are_listed(model, tmp_path):
    (tmp_path / "weights.xyz").write_bytes(b"what is this")
    with pytest.raises(ValueError, match=r"Expected a file of format safetensors, torch, keras"):
        load_weights(model, tmp_path / "weights.xyz")
    with pytest.raises(ValueError, match=r"Unknown format.*Did you mean 'torch'"):
        load_weights(model, tmp_path / "weights.xyz", format="pytorch")


@pytest.mark.usefixtures("untouched")
def test_a_file_larger_than_memory_is_not_read(model, tmp_path):
    with open(tmp_path / "sparse.safetensors", "wb") as file:
        file.truncate(formats.LARGEST_BYTES + 1)
    with pytest.raises(ValueError, match=r"too large. Expected at most 8,589,934,592 bytes"):
        load_weights(model, tmp_path / "sparse.safetensors")


def fuzz(model, path, counts):
    """Loads mutated files; returns how many were loaded and how many refused."""
    content, loaded, refused = path.read_bytes(), 0, 0
    good = model.get_weights()
    for seed in range(counts):
        path.write_bytes(mutated(content, seed))
        try:
            load_weights(model, path)
        except ValueError:
            refused += 1
            after = model.get_weights()
            assert all(np.array_equal(a, b) for a, b in zip(good, after, strict=True)), seed
        else:
            loaded += 1
            assert all(np.isfinite(weight).all() for weight in model.get_weights()), seed
            model.set_weights(good)
    path.write_bytes(content)
    return loaded, refused


# The few among the fast tests; the many with those of PyTorch, which CI runs too.
COUNTS = [200, pytest.param(2000, marks=pytest.mark.parity)]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("save", [save_weights, save_torch])
def test_mutated_safetensors_load_or_are_refused(model, save, counts, tmp_path):
    save(model, tmp_path / "mutated.safetensors")
    loaded, refused = fuzz(model, tmp_path / "mutated.safetensors", counts)
    assert loaded + refused == counts
    assert min(loaded, refused) > counts / 20  # both happen, so the fuzzing is worth something


@pytest.mark.parametrize("counts", COUNTS)
def test_mutated_caffe_files_load_or_are_refused(counts, tmp_path):
    model = randomized(build(dataclasses.replace(SMALL_V1, blocks=(1, 1), stem="imagenet_caffe")))
    write_caffe(model, tmp_path / "mutated.caffemodel", {(1, 1): "2a", (2, 1): "3a"})
    loaded, refused = fuzz(model, tmp_path / "mutated.caffemodel", counts)
    assert loaded + refused == counts
    assert min(loaded, refused) > counts / 20


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5", ".keras"])
def test_mutated_hdf5_files_load_or_are_refused(model, suffix, tmp_path):
    path = tmp_path / f"mutated{suffix}"
    if suffix == ".h5":
        write_legacy(model, path)
    else:
        (model.save if suffix == ".keras" else model.save_weights)(path)
    assert sum(fuzz(model, path, 8)) == 8  # each starts a process; below, one reads many files


# `main` of the reader, but of one file after the other: sizes before contents, errors as text.
READ_MANY = """
import runpy, struct, sys
import safetensors.numpy
reader = runpy.run_path(sys.argv[1])
reader["_limit_memory"](int(sys.argv[2]))
while size := sys.stdin.buffer.read(8):
    try:
        tensors = reader["extract"](sys.stdin.buffer.read(*struct.unpack("<Q", size)))
        answer = safetensors.numpy.save(tensors)
    except Exception as error:
        answer = b"!" + repr(error).encode()
    sys.stdout.buffer.write(struct.pack("<Q", len(answer)) + answer)
    sys.stdout.buffer.flush()
"""


class Reader:
    """Stands in for `hdf5.read`: one process for many files, and a new one when it crashes."""

    def __init__(self, size):
        self.size, self.process, self.crashes = size, None, 0

    def __call__(self, content):
        if self.process is None:
            arguments = ["-P", "-c", READ_MANY, hdf5.__file__, str(self.size)]
            self.process = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        # Reading that does not end ends with the process, and so as a crash.
        watchdog = threading.Timer(120, self.process.kill)
        watchdog.start()
        try:
            self.process.stdin.write(struct.pack("<Q", len(content)) + content)
            self.process.stdin.flush()
            answer = self.process.stdout.read(*struct.unpack("<Q", self.process.stdout.read(8)))
        except (OSError, struct.error) as error:
            self.close()
            self.crashes += 1
            raise ValueError("HDF5 crashes on it") from error
        finally:
            watchdog.cancel()
        if answer.startswith(b"!"):
            raise ValueError(answer.decode())
        return answer

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_many_mutated_hdf5_files_load_or_are_refused(model, suffix, counts, tmp_path, monkeypatch):
    path = tmp_path / f"mutated{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else write_legacy(model, path)
    reader = Reader(path.stat().st_size)
    monkeypatch.setattr(hdf5, "read", reader)
    try:
        loaded, refused = fuzz(model, path, counts)
    finally:
        reader.close()
    assert loaded + refused == counts
    assert min(loaded, refused) > counts / 20
    assert reader.crashes < counts / 20
