"""Weights of a model to a file, and of any library's file into a model.

Our own files are safetensors, each tensor by the path of its variable in the model. Paths such as
`stage1_block1_conv1/kernel` do not depend on the order of layers, so weights move between networks
that share layers: with and without stochastic depth, on another input size.
"""

import dataclasses
import json
import os
import pathlib
import struct

import keras
import numpy as np
import safetensors
import safetensors.numpy

from keras_resnet.preprocessing import Preprocessing
from keras_resnet.weights import formats, padding
from keras_resnet.weights.matching import LoadReport, check_graph, match, weights_by_path
from keras_resnet.weights.naming import SCHEMES

# What no weight shows.
_GRAPH = ("activation_order", "shortcut", "stem", "stride_in_1x1", "stride_in_last_block")


def save_weights(
    model: keras.Model, path: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Writes all weights of a model, without optimizer.

    The file says how the model's images are preprocessed and how many classes it has, and
    `weights=path` gives a model that knows it again; and what of its graph no weight shows.

    Args:
        model: A built model.
        path: Where, ending in `.safetensors`.
        metadata: What the file shall say of itself besides.

    Raises:
        ValueError: If the path ends otherwise, or two weights have the same path, as those of an
            ensemble. Nothing is written.
    """
    path = _with_ending(path)
    tensors = {
        name: keras.ops.convert_to_numpy(weight) for name, weight in weights_by_path(model).items()
    }
    about = {}
    preprocessing = getattr(model, "preprocessing", None)
    if isinstance(preprocessing, Preprocessing):
        about["preprocessing"] = json.dumps(preprocessing.to_dict())
    if "predictions/bias" in tensors:
        about["classes"] = str(tensors["predictions/bias"].shape[0])
    if getattr(model, "variant", None) is not None:
        about |= _graph(vars(model.variant))
    about |= metadata or {}
    path.write_bytes(_serialized(tensors, about))


def _serialized(tensors, metadata):
    """The bytes of a safetensors file: of the same content the same, so that hashes tell."""
    content = safetensors.numpy.save(tensors, metadata)
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))  # where the library has any order
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the values are aligned
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _with_ending(path):
    """The path, if its ending says what is written: by it others choose how to read the file."""
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            "The path has the wrong ending. Expected a file ending in '.safetensors'. "
            f"Received: path='{path}'. Did you mean '{path.with_suffix('.safetensors')}'?"
        )
    return path


def _graph(fields):
    """What of a graph no weight shows, as metadata, out of the fields of a `Variant`."""
    return {"graph": json.dumps({field: fields[field] for field in _GRAPH if field in fields})}


def save_torch(model: keras.Model, path: str | os.PathLike) -> None:
    """Writes all weights of a network by the names that PyTorch's libraries give them.

    Torchvision's names; timm's for the families that torchvision lacks (ResNet-D, squeeze-and-
    excitation, pre-activation); the usual ones of CIFAR networks, whose classifier is `linear`. The
    file loads there strictly: `module.load_state_dict(safetensors.torch.load_file(path))`. Zero-
    padded shortcuts must add their channels behind there, as here; the file says so.

    Args:
        model: A model of this package.
        path: Where, ending in `.safetensors`.

    Raises:
        ValueError: If the path ends otherwise, or no library of PyTorch has such a network:
            layers of these names and shapes, in this graph. Nothing is written then.
    """
    path = _with_ending(path)
    weights = weights_by_path(model)
    is_cifar = any(layer.name == "stem_conv" and layer.strides == (1, 1) for layer in model.layers)
    schemes = sorted(SCHEMES, key=lambda scheme: (scheme.name == "cifar") != is_cifar)
    for scheme in schemes:
        keys = {name: scheme.key(name) for name in weights}
        if scheme.transposed and None not in keys.values():
            break
    else:
        raise ValueError(
            "No library of PyTorch has this network. Expected layers of one of "
            f"{', '.join(scheme.name for scheme in SCHEMES if scheme.transposed)}. "
            f"Received: {model.name!r}."
        )
    unbiased = dataclasses.replace(scheme, options=scheme.options | {"conv_bias": (False,)})
    check_graph(unbiased, model, f"The network {model.name!r} has another graph than PyTorch's.")
    tensors = {
        keys[name]: np.ascontiguousarray(
            scheme.write(name, keras.ops.convert_to_numpy(weight).astype("float32"))
        )
        for name, weight in weights.items()
    }
    metadata = {"format": "pt"}
    if padding.is_padded(model):
        metadata[padding.METADATA] = "behind"
    path.write_bytes(_serialized(tensors, metadata))


def load_weights(
    model: keras.Model,
    source: str | os.PathLike,
    *,
    format: str = "auto",
    strict: bool = True,
    head: bool = True,
    shortcut_padding: str | None = None,
    sha256: str | None = None,
) -> LoadReport:
    """Puts the weights of a file into a model; all of them, or none and an error.

    Besides the files of `save_weights` and models saved by Keras (`.keras`), those of torchvision,
    timm, transformers and the usual CIFAR networks of PyTorch (`.safetensors`, `.pth`),
    keras.applications (`.h5`), KerasHub (`.weights.h5`) and Caffe (He et al. 2015,
    `.caffemodel`). Whose names they are is told by the
    names. The model then computes what the source's does: another epsilon of batch normalisation
    goes into the moving variance, a bias in front of it into the moving mean.

    Where the file says how its images are preprocessed, as those of `save_weights` and `.keras` do,
    so does `model.preprocessing` then, at the model's size.

    Strides and pools have no weights: a file is refused where `model.variant` has them elsewhere
    than the library that its names are of. Nor have zero-padded shortcuts: of PyTorch's CIFAR
    networks, `shortcut_padding` must say which they have.

    Files are not trusted: no pickle is executed, HDF5 is read in another process, and values that
    are no numbers or negative variances are refused.

    Args:
        model: A built model.
        source: Path of the file.
        format: `"safetensors"`, `"torch"`, `"keras"`, `"caffe"`; `"auto"` looks at the file.
        strict: Whether every tensor of the file and of the model must have its counterpart, of the
            same shape. Without, what fits is loaded, and the report names the rest.
        head: Whether the file's classifier is used; without it, the model may lack one or have one
            of its own, which stays as it is.
        shortcut_padding: Where the zero-padded shortcuts of the file's network put the new
            channels: `"both"`, half before and half behind, as in the widely copied 6n+2 networks
            of PyTorch whose classifier is `linear`; the channels are ordered anew then, and the
            logits are the source's. `"behind"`: all behind, as here and in `save_torch`, whose
            files say so. Only for networks with such shortcuts, and only for names of PyTorch.
        sha256: What the hash of the file must be.

    Returns:
        A `LoadReport`.

    Raises:
        ValueError: If the file is damaged, its weights are not those of the model, or neither the
            file nor `shortcut_padding` says how its shortcuts are padded. Nothing in the model is
            changed then. Of names and shapes that differ, the message has the first of each side,
            and the attribute `report` of the error, a `LoadReport`, has all.
        FileNotFoundError: If there is no such file.
        ImportError: If the package that reads the format is missing: torch or protobuf.
    """
    tensors, about = formats.read(source, format, sha256), _metadata_of_any(source)
    values, report = match(tensors, model, head=head, strict=strict, source=source)
    if "graph" in about and report.scheme == SCHEMES[0].name:
        _check_own_graph(about["graph"], model, source)
    stated = about.get(padding.METADATA)
    padding.absorb_padding(values, model, report.scheme, shortcut_padding, stated, source)
    preprocessing = _preprocessing_for(model, about, source)
    weights = weights_by_path(model)
    for path, value in values.items():
        weights[path].assign(value)
    if preprocessing is not None and report.loaded:
        model.preprocessing = preprocessing
    return report


def _preprocessing_for(model, about, source):
    """The file's record at the model's size and channels; `None` if either has none."""
    own = getattr(model, "preprocessing", None)
    if "preprocessing" not in about or not isinstance(own, Preprocessing):
        return None
    record = _record(json.loads, about["preprocessing"], source)
    size = None if None in model.input_shape[1:] else own.size
    return record.adapted(size=size, channels=len(own.mean))


def _metadata_of_any(source):
    """What a file says of itself; of a model saved by Keras, what `save_weights` would say."""
    if formats.is_model(source):
        config = formats.read_config(source)
        about = _graph(config["variant"]) if isinstance(config.get("variant"), dict) else {}
        if config.get("preprocessing"):
            about["preprocessing"] = json.dumps(config["preprocessing"])
        return about
    try:
        return read_metadata(source)
    except safetensors.SafetensorError:  # a file of another format
        return {}


def _check_own_graph(stated, model, source):
    try:
        fields = json.loads(stated).items()
    except (AttributeError, ValueError) as error:
        raise ValueError(
            "The file's graph cannot be read. Expected fields of `keras_resnet.Variant` as JSON. "
            f"Received: {os.fspath(source)!r} ({error})."
        ) from error
    options = {field: (value,) for field, value in fields if field in _GRAPH}
    own = dataclasses.replace(SCHEMES[0], options=options)
    check_graph(own, model, f"The weights of {os.fspath(source)!r} belong to another graph.")


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What a file says of itself.

    Args:
        path: A file of `save_weights`.
    """
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


@dataclasses.dataclass(frozen=True)
class About:
    """What a file says of its network; `None` for what it does not say.

    Args:
        classes: Number of classes; 0 without a classifier.
        preprocessing: What its images go through.
        channels: Number of channels of its images.
    """

    classes: int
    preprocessing: Preprocessing | None
    channels: int | None = None


def describe(path: str | os.PathLike) -> About:
    """What is to be known before a network for a file of weights is built.

    Args:
        path: A file that `load_weights` reads.

    Returns:
        The number of classes, from the shape of the classifier, that of channels, from the shape of
        the stem; and the preprocessing of files of `save_weights` and of models saved by Keras.

    Raises:
        ValueError: If the file is damaged.
        ImportError: If the package that reads the format is missing: torch or protobuf.
    """
    if formats.is_model(path):
        return _about_model(path)
    try:  # without its values, which take long to read
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            preprocessing = (file.metadata() or {}).get("preprocessing")
    except safetensors.SafetensorError:
        shapes, preprocessing = {}, None
    if not _classes(shapes):  # of another format, or by names with a prefix
        shapes = {name: tensor.shape for name, tensor in formats.read(path).items()}
    record = preprocessing and _record(json.loads, preprocessing, path)
    return About(_classes(shapes), record, _channels(shapes))


def _classes(shapes):
    """The length of the classifier's bias, by the first library that calls one so."""
    keys = [scheme.key("predictions/bias") for scheme in SCHEMES]
    return next((shapes[key][-1] for key in keys if shapes.get(key)), 0)


def _channels(shapes):
    """What the first convolution sees, by the first library that calls one so."""
    for scheme in SCHEMES:
        for path in ("stem_conv/kernel", "stem_conv1/kernel"):
            shape = shapes.get(scheme.key(path), ())
            if len(shape) == 4 and all(shape):  # without values any number can be claimed
                return shape[1 if scheme.transposed else 2]
    return None


def _record(read, content, path):
    try:
        return Preprocessing(**read(content))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "The file's preprocessing cannot be read. Expected the fields of "
            f"`keras_resnet.Preprocessing`. Received: {os.fspath(path)!r} ({error})."
        ) from error


def _about_model(path):
    config = formats.read_config(path)
    try:
        layers = [layer["config"] for layer in config["layers"]]
        classes = next((layer["units"] for layer in layers if layer["name"] == "predictions"), 0)
    except (LookupError, TypeError) as error:
        raise formats.not_a_model(path, error) from error
    preprocessing = config.get("preprocessing")
    return About(classes, preprocessing and _record(dict, preprocessing, path))
