"""Files of weights of any kind to named arrays; every one may be damaged or hostile."""

import hashlib
import importlib
import io
import json
import os
import pathlib
import pickle
import re
import zipfile

import numpy as np
import safetensors

from keras_resnet.errors import unknown_name
from keras_resnet.weights import caffe, hdf5

# The largest network here has 0.5 GB; a checkpoint may hold the states of an optimizer besides.
LARGEST_BYTES = 8 * 2**30

_MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", "keras"),
    (0, b"PK\x03\x04", "torch"),
    (0, b"\x80\x02", "torch"),  # a pickle: PyTorch before 1.6
    (8, b"{", "safetensors"),
)
_SUFFIXES = {
    ".safetensors": "safetensors",
    ".pth": "torch",
    ".pt": "torch",
    ".th": "torch",
    ".h5": "keras",
    ".caffemodel": "caffe",
}
# What a format needs besides the packages that are always here.
_PACKAGES = {
    "torch": (
        "torch",
        "pip install torch; or convert the file where it is installed, by "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')",
    ),
    "caffe": ("google.protobuf", "pip install protobuf"),
}
_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}


def read(
    path: str | os.PathLike, format: str = "auto", sha256: str | None = None
) -> dict[str, np.ndarray]:
    """All tensors of a file by the names they have there.

    Names lose what says nothing: `module.` of a parallel model, `_orig_mod.` of a compiled one,
    `model.` of one that PyTorch Lightning trained, the dots of old DenseNets (`norm.1`), and the
    counters `num_batches_tracked` as a whole. What some CIFAR networks call `shortcut.0` is called
    `downsample.0`, as elsewhere.

    Args:
        path: The file.
        format: `"safetensors"`, `"torch"`, `"keras"` (HDF5, and whole models, `.keras`), `"caffe"`;
            `"auto"` looks at the file.
        sha256: What the hash of the file must be; checked before anything interprets it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of no known format, or another than `sha256` says.
        ImportError: If the package that reads the format is missing.
    """
    if format not in ("auto", *_READERS):
        raise unknown_name("format", format, ["auto", *_READERS])
    content = _content(path, sha256)
    format = format if format != "auto" else _format(path, content)
    _require(format, path)
    try:
        tensors = _READERS[format](content)
        return _renamed(tensors)
    except Exception as error:  # the readers are other people's, and raise whatever they meet
        raise ValueError(
            f"The weights cannot be read. Expected an undamaged file of format {format!r}. "
            f"Received: {os.fspath(path)!r} ({error})."
        ) from error


def _content(path, sha256):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            "Weights are read from a file. Expected its path. "
            f"Received: {type(path).__name__}. A `state_dict` becomes one by "
            "torch.save(state_dict, 'weights.pth')."
        )
    given, path = os.fspath(path), pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no such file of weights. Expected the path of a file. Received: {given!r}. "
            "Tags and hf:// addresses are for constructors: keras_resnet.build(name, weights=...)."
        )
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(
            f"The weights file is too large. Expected at most {LARGEST_BYTES:,} bytes. "
            f"Received: {path.stat().st_size:,} bytes in {os.fspath(path)!r}."
        )
    content = path.read_bytes()
    received = hashlib.sha256(content).hexdigest()
    if sha256 is not None and received != sha256:
        raise ValueError(
            f"The weights file was changed. Expected sha256 {sha256}. Received: {received} of "
            f"{os.fspath(path)!r}. Fetch it again."
        )
    return content


def is_model(path: str | os.PathLike) -> bool:
    """Whether a file is a whole model of Keras, by its name."""
    return pathlib.Path(path).suffix.lower() == ".keras"


def read_config(path: str | os.PathLike) -> dict:
    """The configuration of a whole model of Keras.

    Raises:
        ValueError: If the file is damaged, or none.
    """
    try:
        with _archive(path, os.path.getsize(path)) as archive:
            return dict(json.loads(archive.read("config.json"))["config"])
    except Exception as error:  # whatever is met in a file of others
        raise not_a_model(path, error) from error


def not_a_model(path: str | os.PathLike, error: Exception) -> ValueError:
    """The error for a damaged file of a whole model of Keras, for the caller to raise."""
    return ValueError(
        "The model cannot be read. Expected an undamaged file of `model.save`. "
        f"Received: {os.fspath(path)!r} ({error})."
    )


def _format(path, content):
    if is_model(path):
        return "keras"
    if content.startswith(b"PK") and _is_keras_archive(content):
        raise ValueError(
            "A whole Keras model is no file of weights. Expected a file of format "
            f"{', '.join(_READERS)}. Received: {os.fspath(path)!r}. Load it by "
            "keras.models.load_model(path), or its weights by model.load_weights(path)."
        )
    for offset, magic, format in _MAGIC:
        if content[offset : offset + len(magic)] == magic:
            return format
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            "The format of the weights cannot be told. Expected a file of format "
            f"{', '.join(_READERS)}. Received: {os.fspath(path)!r}. Give `format`."
        )
    return _SUFFIXES[suffix]


def _is_keras_archive(content):
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {"metadata.json", "config.json"} <= set(archive.namelist())
    except Exception:  # damaged: whoever reads it says so
        return False


def _require(format, path):
    package, remedy = _PACKAGES.get(format, ("safetensors", ""))
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"Files of format {format!r} need the package {package!r}. Expected it to be "
            f"installed. Received: {os.fspath(path)!r}. {remedy}."
        ) from error


def _safetensors(content):
    tensors = {}
    for name, record in safetensors.deserialize(content):
        if record["dtype"] == "BF16":  # the upper half of a float32
            bits = np.frombuffer(record["data"], "<u2").astype("<u4") << 16
            array = bits.view("<f4")
        else:
            array = np.frombuffer(record["data"], _SAFETENSORS_TYPES[record["dtype"]])
        tensors[name] = array.reshape(record["shape"])
    return tensors


def _archive(file, size):
    """A zip file of so many bytes."""
    archive = zipfile.ZipFile(file)
    if sum(entry.file_size for entry in archive.infolist()) > size:
        archive.close()
        raise ValueError("its archive claims to unpack to more than the file has")
    return archive


def _keras(content):
    """Of a file of weights, or of that in the archive which a whole model is."""
    if content.startswith(b"PK"):
        with _archive(io.BytesIO(content), len(content)) as archive:
            content = archive.read("model.weights.h5")
    return _safetensors(hdf5.read(content))


def _torch(content):
    torch = importlib.import_module("torch")
    if content.startswith(b"PK"):
        _archive(io.BytesIO(content), len(content)).close()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose advice is to trust the file
        raise ValueError(
            "it is damaged, or holds more than tensors, as a whole module does; write it by "
            "torch.save(module.state_dict(), path)"
        ) from error
    for _ in _WRAPPERS:  # no deeper: a dictionary may hold itself
        inner = [state[key] for key in _WRAPPERS if key in state] if _is_dict(state) else []
        state = next(filter(_is_dict, inner), state)
    tensors = {
        name: value
        for name, value in (state.items() if _is_dict(state) else ())
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ValueError("it holds no dictionary of tensors")
    # A tensor can claim any shape by strides of zero, and many tensors the same values.
    left = len(content)
    for name, value in tensors.items():
        left -= value.numel() * value.element_size()
        if left < 0:
            raise ValueError(f"{name} claims more bytes than the file has")
    return {
        name: (value.float() if value.is_floating_point() else value).detach().numpy()
        for name, value in tensors.items()
    }


def _is_dict(value):
    return isinstance(value, dict)


# Under which names training scripts keep the weights among other things.
_WRAPPERS = ("state_dict", "model", "net", "model_state_dict")

_READERS = {
    "safetensors": _safetensors,
    "torch": _torch,
    "keras": _keras,
    "caffe": caffe.extract,
}


def _renamed(tensors):
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^((module|_orig_mod|model)\.)+", "", name)
        name = re.sub(r"\.shortcut\.([01])\.", r".downsample.\1.", name)
        name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)
        if name.endswith("num_batches_tracked"):
            continue
        if name in renamed:
            raise ValueError(f"{name} is there twice")
        if tensor.dtype.kind != "f":
            raise ValueError(f"{name} has the type {tensor.dtype}, which is no floating-point one")
        renamed[name] = tensor
    return renamed
