"""Files of weights from a server on this machine; nothing of what goes wrong there is opened."""

import contextlib
import functools
import hashlib
import http.server
import multiprocessing
import os
import random
import threading
import time

import pytest

import keras_resnet
from keras_resnet.weights import Source, WeightSet, fetch, store

CONTENT = random.Random(0).randbytes(3 * 2**20)  # every process of the tests has the same
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT`, or something worse, by the first part of the path."""

    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        getattr(self, self.path.split("/")[1])()

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def somebody(self):
        """A repository as the Hugging Face hub serves it."""
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{SHA256}"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(CONTENT)

    def whole(self, content=CONTENT, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def endless(self):
        """Says no length."""
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(CONTENT)

    def truncated(self):
        self.whole(CONTENT[:-1], len(CONTENT))

    def wrong(self):
        self.whole(b"\0" + CONTENT[1:])

    def broken(self):
        self.send_error(503, "Out of order")

    def missing(self):
        self.send_error(404)

    def moved(self):
        self._redirect("/whole/file")

    def circle(self):
        self._redirect("/circle/file")

    def elsewhere(self):
        self._redirect("ftp://127.0.0.1/file")

    def disk(self):
        self._redirect("file:///etc/hostname")

    def silent(self):
        self.whole(CONTENT[:1000], len(CONTENT))
        time.sleep(3)

    def slow(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for start in range(0, len(CONTENT), 2**18):
            self.wfile.write(CONTENT[start : start + 2**18])
            time.sleep(0.1)

    def _redirect(self, place):
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_RESNET_WEIGHTS", raising=False)
    return tmp_path / "keras_resnet"


def row(server, *kinds, hash=f"sha256:{SHA256[:8]}"):
    """A set whose sources the server serves in these ways."""
    sources = tuple(
        Source(f"http://127.0.0.1:{server.server_port}/{kind}/file", f"{kind}.safetensors", hash)
        for kind in kinds
    )
    return WeightSet("resnet18", "test", sources, "MIT", keras_resnet.IMAGENET)


@pytest.mark.parametrize("hash", [f"sha256:{SHA256}", f"md5:{hashlib.md5(CONTENT).hexdigest()}"])
def test_a_file_is_downloaded_once(server, cache, hash):
    before = server.requests
    path = fetch(row(server, "whole", hash=hash))
    assert path == cache / "whole.safetensors"
    assert path.read_bytes() == CONTENT
    assert fetch(row(server, "whole", hash=hash)) == path
    assert server.requests == before + 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "the connection ended after 3,145,727 of 3,145,728 bytes"),
        ("wrong", f"Expected sha256 {SHA256[:8]}..."),
        ("broken", "HTTP Error 503: Out of order"),
        ("missing", "HTTP Error 404"),
        ("circle", "infinite loop"),
        ("elsewhere", "which is not http"),
        ("disk", "'file:///etc/hostname' is not allowed"),
        ("silent", "timed out"),
    ],
)
def test_what_is_not_the_file_is_not_kept(server, cache, kind, reason, monkeypatch):
    monkeypatch.setattr(store, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(ValueError, match="not on this machine") as error:
        fetch(row(server, kind))
    assert reason in str(error.value)
    assert not list(cache.iterdir())


def test_a_redirect_is_followed(server, cache):
    assert fetch(row(server, "moved")).read_bytes() == CONTENT


def test_the_next_source_is_taken(server, cache):
    assert fetch(row(server, "broken", "whole")) == cache / "whole.safetensors"


def test_without_network_the_error_says_which_file_goes_where(cache):
    place = "http://127.0.0.1:9/file.safetensors"
    sources = (Source(place, "file.safetensors", "sha256:0123abcd"),)
    with pytest.raises(ValueError, match="not on this machine") as error:
        fetch(WeightSet("resnet18", "test", sources, "MIT", keras_resnet.IMAGENET))
    assert str(error.value) == (
        "The weights 'test' of resnet18 are not on this machine. Expected in "
        f"{str(cache)!r}: file.safetensors (sha256:0123abcd...) from {place}. Received: {place}: "
        "<urlopen error [Errno 111] Connection refused>. Put the file there by hand, or set "
        "KERAS_RESNET_WEIGHTS to the folder that holds it."
    )


def test_the_hub_says_what_it_needs(cache, monkeypatch):
    monkeypatch.setattr(store.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install huggingface_hub") as error:
        fetch(keras_resnet.list_weights("resnet18")[0])
    assert "or resnet18.a1_in1k.safetensors from https://huggingface.co/timm/" in str(error.value)
    assert "resnet18_a1_0-d63eafa0.pth (sha256:d63eafa0...) from https://" in str(error.value)
    assert "pip install torch" in str(error.value)


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The hub's own client, which takes this server for the hub."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    download = functools.partial(
        huggingface_hub.hf_hub_download, endpoint=endpoint, cache_dir=tmp_path / "hub"
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(store, "_knock", lambda: None)


def of_hub(name):
    source = Source(f"hf://{name}", "theirs.safetensors")
    return WeightSet("resnet18", "test", (source,), "MIT", keras_resnet.IMAGENET)


def test_a_file_of_the_hub_has_the_hash_that_the_hub_says(hub, cache):
    path = fetch(of_hub("somebody/theirs"))
    assert path.read_bytes() == CONTENT
    path.resolve().write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=f"Expected sha256 {SHA256}. Received: "):
        fetch(of_hub("somebody/theirs"))


def test_a_repository_that_is_not_there_is_named(hub, cache):
    with pytest.raises(ValueError, match="huggingface"):
        fetch(of_hub("missing/theirs"))
    with pytest.raises(ValueError, match=r"cannot be read\. Expected one of"):
        store.read_repository("hf://missing/theirs")


def test_a_file_without_a_published_hash_says_what_it_is(hub, cache, monkeypatch, capsys):
    fetch(of_hub("somebody/theirs"))
    told = f"/somebody/theirs/resolve/main/model.safetensors is published. Loaded: sha256 {SHA256}"
    assert told in capsys.readouterr().err
    cache.mkdir()
    (cache / "theirs.safetensors").write_bytes(b"other")
    fetch(of_hub("somebody/theirs"))
    assert hashlib.sha256(b"other").hexdigest() in capsys.readouterr().err


def test_a_hash_that_is_published_needs_no_words(server, cache, capsys):
    fetch(row(server, "whole"))
    assert "sha256" not in capsys.readouterr().err


def test_files_with_a_published_hash_come_first():
    for each in keras_resnet.list_weights():
        hashes = [source.hash is not None for source in each.sources]
        assert hashes == sorted(hashes, reverse=True)


def test_without_network_the_hub_is_given_up_at_once(cache, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    def waits(*_, local_files_only=False, **__):
        assert local_files_only
        raise huggingface_hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", waits)
    with pytest.raises(ValueError, match=r"theirs\.safetensors from https.*Connection refused"):
        fetch(of_hub("somebody/theirs"))
    with pytest.raises(ValueError, match="cannot be read") as error:
        store.read_repository("hf://somebody/theirs")
    url = "https://huggingface.co/somebody/theirs/resolve/main/model.safetensors"
    assert str(error.value).endswith(
        f"Without a network, put into {str(cache)!r}: somebody.theirs.safetensors from {url}, and "
        "the config.json beside it as somebody.theirs.config.json; or set KERAS_RESNET_WEIGHTS to "
        "the folder that holds them."
    )


def test_a_download_without_a_length_ends_somewhere(server, cache, monkeypatch):
    assert fetch(row(server, "endless")).read_bytes() == CONTENT
    (cache / "endless.safetensors").unlink()
    monkeypatch.setattr(store, "LARGEST_BYTES", 2 * 2**20)
    with pytest.raises(ValueError, match="more than 2,097,152 bytes"):
        fetch(row(server, "endless"))
    assert not list(cache.iterdir())


def test_a_damaged_file_of_the_cache_is_downloaded_anew(server, cache):
    path = fetch(row(server, "whole"))
    path.write_bytes(CONTENT[:100])
    assert fetch(row(server, "whole")).read_bytes() == CONTENT


def test_a_folder_of_the_users_comes_first(server, cache, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "whole.safetensors").write_bytes(CONTENT)
    monkeypatch.setenv("KERAS_RESNET_WEIGHTS", str(folder))
    before = server.requests
    assert fetch(row(server, "broken", "whole")) == folder / "whole.safetensors"
    assert server.requests == before
    (folder / "whole.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"Expected sha256 {SHA256[:8]}.... Received: "):
        fetch(row(server, "whole"))


def test_a_cache_that_cannot_be_written_is_named(server, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"\[Errno 17\] File exists"):
        fetch(row(server, "whole"))


def test_two_processes_may_fetch_at_once(server, cache):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fetch, args=(row(server, "slow"),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in cache.iterdir()] == ["slow.safetensors"]
    assert (cache / "slow.safetensors").read_bytes() == CONTENT


def test_a_killed_download_leaves_no_weights_and_is_cleared_away(server, cache):
    process = multiprocessing.get_context("fork").Process(target=fetch, args=(row(server, "slow"),))
    process.start()
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in cache.glob("*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join(60)
    (part,) = cache.iterdir()
    assert 0 < part.stat().st_size < len(CONTENT)
    long_ago = time.time() - 2 * 3600
    os.utime(part, (long_ago, long_ago))
    fetch(row(server, "slow"))
    assert [path.name for path in cache.iterdir()] == ["slow.safetensors"]
