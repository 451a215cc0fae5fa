"""From a published set to a file on this machine that is known to be the right one.

Looked for in the folder KERAS_RESNET_WEIGHTS, then in the cache, then downloaded. Nothing is opened
before its hash is checked, where one is published; where none is, the hash it has is told. Keras's
own `get_file` writes over the file that others are reading, checks it afterwards, knows no prefixes
of hashes and waits for ever.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request

from keras_resnet.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from keras_resnet.weights.formats import LARGEST_BYTES
from keras_resnet.weights.sets import HUB, Source, WeightSet

FOLDER = "KERAS_RESNET_WEIGHTS"
TIMEOUT_SECONDS = 30  # without a byte
_CHUNK_BYTES = 2**20
_ABANDONED_SECONDS = 3600
# What reads a file, by its suffix, where the library itself does not.
_READERS = {".pth": "torch"}
# What the networks of transformers that are read have, and no weight shows.
_GRAPH = {
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


class Unavailable(Exception):
    """Why a source gives no file; the next one may."""


def cache_folder() -> pathlib.Path:
    """Where downloads are kept: `keras_resnet` in Keras's folder, `~/.keras` or KERAS_HOME."""
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return pathlib.Path(home).expanduser() / "keras_resnet"


def fetch(weight_set: WeightSet) -> pathlib.Path:
    """The file of a set, downloaded if it is not here.

    Args:
        weight_set: A row of `keras_resnet.list_weights()`.

    Returns:
        Path of a file whose hash was checked; where none is published, stderr has the sha256.

    Raises:
        ValueError: If a file that is here was changed, or none is here and none can be downloaded.
    """
    for source in weight_set.sources:
        path = _local(source)
        if path:
            _check(path, source.hash)
            return _told(path, source)
    failures = []
    for source in weight_set.sources:
        try:
            return _told(_download(source), source)
        except Unavailable as error:
            failures.append(f"{source.url}: {error}")
    raise ValueError(_not_here(weight_set, failures))


def file_of(address: str, suffix: str = "safetensors") -> str:
    """What a file of a repository of the hub is called on this machine."""
    return f"{address[len(HUB) :].replace('/', '.')}.{suffix}"


@dataclasses.dataclass(frozen=True)
class Repository:
    """What a repository of the hub says of its network; `None` for what it does not say.

    Args:
        architecture: Timm's name of the network.
        classes: Number of classes.
        preprocessing: What its images go through.
    """

    architecture: str | None
    classes: int | None
    preprocessing: Preprocessing | None


def read_repository(address: str) -> Repository:
    """What the `config.json` of timm or transformers says, and `preprocessor_config.json`.

    Args:
        address: `"hf://OWNER/NAME"`.

    Raises:
        ValueError: If there is no such repository, no way to it, or it says something else.
    """
    try:
        config = _json_of(address, "config")
    except Unavailable as error:
        name, config = file_of(address), file_of(address, "config.json")
        url = Source(address, name).url
        raise ValueError(
            f"The repository {address!r} cannot be read. Expected one of https://huggingface.co "
            f"with a config.json. Received: {error}. Without a network, put into "
            f"{_folder()!r}: {name} from {url}, and the config.json beside it as {config}; or "
            f"set {FOLDER} to the folder that holds them."
        ) from error
    try:
        other = {
            key: config[key] for key, value in _GRAPH.items() if config.get(key, value) != value
        }
        if other:
            raise ValueError(f"a graph that no network here has: {other}")
        classes = config.get("num_classes") or len(config.get("id2label", ())) or None
        return Repository(config.get("architecture"), classes, _preprocessing(address, config))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            "The repository describes its network in another way. Expected the config.json of timm "
            f"or transformers. Received: {address!r} ({type(error).__name__}: {error})."
        ) from error


def _preprocessing(address, config):
    images = config.get("pretrained_cfg")
    if images is not None:
        return _of_timm(images)
    try:
        return _of_transformers(_json_of(address, "preprocessor_config"))
    except Unavailable:
        return None


def _of_timm(images):
    """Timm's record; what it lacks is what timm takes then."""
    if images.get("crop_mode", "center") != "center":
        raise ValueError(f"crop_mode {images['crop_mode']!r}, where 'center' is read")
    size = tuple(images.get("input_size", (3, 224, 224))[1:])
    return Preprocessing(
        size=size,
        resize_size=int(min(size) / images.get("crop_pct", 0.875)),
        interpolation=images.get("interpolation", "bicubic"),
        mean=images.get("mean", IMAGENET_MEAN),
        std=images.get("std", IMAGENET_STD),
    )


def _of_transformers(images):
    """The record of an image processor of transformers."""
    kind = images.get("image_processor_type") or images.get("feature_extractor_type") or ""
    size = images.get("size", 224)
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (size["height"], size["width"])
    resize_size = None
    if kind.startswith("ConvNext"):  # and ResNet: from 384 on the whole image
        resize_size = int(size / images.get("crop_pct", 224 / 256)) if size < 384 else None
    elif images.get("do_center_crop"):
        resize_size, size = size, images["crop_size"]
        size = (size["height"], size["width"]) if isinstance(size, dict) else size
    normalizes = images.get("do_normalize", True)
    return Preprocessing(
        size=(size, size) if isinstance(size, int) else size,
        resize_size=resize_size,
        interpolation={2: "bilinear", 3: "bicubic"}[images.get("resample", 2)],
        scale=images.get("rescale_factor", 1 / 255),
        mean=images.get("image_mean", IMAGENET_MEAN) if normalizes else (0.0,) * 3,
        std=images.get("image_std", IMAGENET_STD) if normalizes else (1.0,) * 3,
    )


def _json_of(address, name):
    """A JSON file of a repository, which may lie on this machine."""
    path = _local(Source(address, file_of(address, f"{name}.json")))
    try:
        return json.loads((path or _from_hub(address, f"{name}.json")).read_text("utf-8"))
    except ValueError as error:
        raise Unavailable(f"{name}.json is damaged: {error}") from error


def _local(source):
    """A file that is here already; a damaged one of the cache is none."""
    if os.path.isabs(source.address) or os.path.exists(source.address):
        return pathlib.Path(source.address)
    folder = os.environ.get(FOLDER)
    if folder and (pathlib.Path(folder) / source.file).is_file():
        return pathlib.Path(folder) / source.file
    cached = cache_folder() / source.file
    if cached.is_file():
        with contextlib.suppress(ValueError):
            _check(cached, source.hash)
            return cached
    return None


def _told(path, source):
    """The path; of a file of the hub nobody else says the hash."""
    if source.hash is None and source.address.startswith(HUB):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"No hash of {source.url} is published. Loaded: sha256 {digest}", file=sys.stderr)
    return path


def _check(path, expected):
    """Raises a ValueError if a file has another hash than the one that is published."""
    if expected is None:
        return
    kind, _, prefix = expected.partition(":")
    with open(path, "rb") as file:
        received = hashlib.file_digest(file, kind).hexdigest()
    if not received.startswith(prefix):
        raise ValueError(
            f"The weights file was changed. Expected {kind} {prefix}{_dots(kind, prefix)}. "
            f"Received: {received} of {os.fspath(path)!r}. Delete it, and get it anew."
        )


def _dots(kind, prefix):
    return "" if len(prefix) == 2 * hashlib.new(kind).digest_size else "..."


def _download(source):
    suffix = pathlib.Path(source.file).suffix
    reader = _READERS.get(suffix)
    if reader and importlib.util.find_spec(reader) is None:
        raise Unavailable(f"{reader} reads {suffix} files: pip install {reader}")
    if source.address.startswith(HUB):
        return _from_hub(source.address, "model.safetensors")
    return _from_web(source)


def _from_hub(address, file):
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Unavailable("the hub is reached by huggingface_hub: pip install huggingface_hub")
    from huggingface_hub import errors, hf_hub_download

    name = address[len(HUB) :]
    try:
        try:  # without asking the hub, whose client retries for long where there is no network
            path = hf_hub_download(name, file, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            _knock()
            path = hf_hub_download(name, file)
    except Exception as error:  # of whatever library the hub's client talks HTTP with
        raise Unavailable(str(error).strip().splitlines()[0]) from error
    path = pathlib.Path(path)
    # The hub's cache keeps large files under the sha256 that the hub has for them.
    hash = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", hash):
        _check(path, f"sha256:{hash}")
    return path


def _knock():
    """Fails at once where there is no network; the hub's client tries for half a minute."""
    from huggingface_hub import constants

    with contextlib.suppress(urllib.error.HTTPError):  # an answer is an answer
        urllib.request.urlopen(
            urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT_SECONDS
        ).close()


class _SameProtocol(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from https to where anybody can change what is sent."""

    def redirect_request(self, request, *arguments):
        redirected = super().redirect_request(request, *arguments)
        if redirected is not None and redirected.type != request.type:
            raise Unavailable(f"it leads to {redirected.full_url}, which is not {request.type}")
        return redirected


def _from_web(source):
    """Downloads a file beside its place, and moves it there once its hash is right."""
    path = cache_folder() / source.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False
        ) as part:
            try:
                _receive(source.address, part)
                _check(part.name, source.hash)
                os.replace(part.name, path)
            except BaseException:
                os.unlink(part.name)
                raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(str(error) or type(error).__name__) from error
    return path


def _receive(url, file):
    opener = urllib.request.build_opener(_SameProtocol)
    with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
        length = answer.length  # of what is to come, where the server says so
        print(f"Downloading {url} ({_megabytes(length)})", file=sys.stderr)
        while chunk := answer.read(_CHUNK_BYTES):
            file.write(chunk)
            if file.tell() > LARGEST_BYTES:
                raise OSError(f"more than {LARGEST_BYTES:,} bytes, which no network here has")
    file.flush()
    if length is not None and file.tell() != length:
        raise OSError(f"the connection ended after {file.tell():,} of {length:,} bytes")


def _megabytes(length):
    return "of unknown size" if length is None else f"{length / 1e6:.1f} MB"


def _remove_abandoned(path):
    """What downloads left behind that were killed: nothing has been written there for long."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                part.unlink()


def _not_here(weight_set, failures):
    files = " or ".join(f"{_named(source)} from {source.url}" for source in weight_set.sources)
    return (
        f"The weights {weight_set.tag!r} of {weight_set.variant} are not on this machine. "
        f"Expected in {_folder()!r}: {files}. Received: {'; '.join(failures)}. Put the "
        f"file there by hand, or set {FOLDER} to the folder that holds it."
    )


def _folder():
    """Where files are put by hand."""
    return os.environ.get(FOLDER) or os.fspath(cache_folder())


def _named(source: Source):
    return f"{source.file} ({source.hash}...)" if source.hash else source.file
