"""From a published set to a file on this machine that is known to be the right one.

Looked for in the folder KERAS_RESNET_WEIGHTS, then in the cache, then downloaded. Nothing is opened
before its hash is checked. Keras's own `get_file` writes over the file that others are reading,
checks it afterwards, knows no prefixes of hashes and waits for ever.
"""

import contextlib
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

from keras_resnet.preprocessing import Preprocessing
from keras_resnet.weights.sets import HUB, Source, WeightSet

FOLDER = "KERAS_RESNET_WEIGHTS"
TIMEOUT_SECONDS = 30  # without a byte
_CHUNK_BYTES = 2**20
_ABANDONED_SECONDS = 3600
# What reads a file, by its suffix, where the library itself does not.
_READERS = {".pth": "torch"}


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
        Path of a file whose hash was checked, where one is published.

    Raises:
        ValueError: If a file that is here was changed, or none is here and none can be downloaded.
    """
    for source in weight_set.sources:
        path = _local(source)
        if path:
            _check(path, source.hash)
            return path
    failures = []
    for source in weight_set.sources:
        try:
            return _download(source)
        except Unavailable as error:
            failures.append(f"{source.url}: {error}")
    raise ValueError(_not_here(weight_set, failures))


def read_timm_config(address: str) -> tuple[int | None, Preprocessing | None]:
    """What a repository of the hub says of its network in timm's `config.json`.

    Args:
        address: `"hf://OWNER/NAME"`.

    Returns:
        The number of classes and the preprocessing; `None` for what it does not say.

    Raises:
        ValueError: If there is no such repository, or no way to it.
    """
    try:
        config = json.loads(_from_hub(address, "config.json").read_text())
    except (Unavailable, json.JSONDecodeError) as error:
        raise ValueError(
            "The repository cannot be read. Expected one of https://huggingface.co with a "
            f"config.json. Received: {address!r} ({error})."
        ) from error
    images = config.get("pretrained_cfg")
    if images is None:
        return config.get("num_classes"), None
    size = tuple(images["input_size"][1:])
    preprocessing = Preprocessing(
        size=size,
        resize_size=int(min(size) / images["crop_pct"]),
        interpolation=images["interpolation"],
        mean=images["mean"],
        std=images["std"],
    )
    return config.get("num_classes"), preprocessing


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
            path = hf_hub_download(name, file)
    except Exception as error:  # of whatever library the hub's client talks HTTP with
        raise Unavailable(str(error).strip().splitlines()[0]) from error
    path = pathlib.Path(path)
    # The hub's cache keeps large files under the sha256 that the hub has for them.
    hash = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", hash):
        _check(path, f"sha256:{hash}")
    return path


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
    folder = os.environ.get(FOLDER) or cache_folder()
    files = " or ".join(f"{_named(source)} from {source.url}" for source in weight_set.sources)
    return (
        f"The weights {weight_set.tag!r} of {weight_set.variant} are not on this machine. "
        f"Expected in {os.fspath(folder)!r}: {files}. Received: {'; '.join(failures)}. Put the "
        f"file there by hand, or set {FOLDER} to the folder that holds it."
    )


def _named(source: Source):
    return f"{source.file} ({source.hash}...)" if source.hash else source.file
