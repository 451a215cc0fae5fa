"""Files that are whole or not there at all."""

import contextlib
import errno
import fcntl
import json
import os
import stat

import pytest
import tensorflow as tf

from training import files


def test_a_file_is_whole_or_as_it_was_before(tmp_path):
    path = tmp_path / "deep" / "model.keras"
    with files.replacing(path) as partial:
        assert partial.suffix == ".keras"
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with contextlib.suppress(KeyboardInterrupt), files.replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert [*path.parent.iterdir()] == [path]


def test_a_full_disk_is_told_from_full_memory_also_in_tensorflow(tmp_path):
    disk = tf.errors.ResourceExhaustedError(None, None, "events.v2; No space left on device")
    memory = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(files.WriteError, match="A file cannot be written"), files.writing(tmp_path):
        raise disk
    with pytest.raises(tf.errors.ResourceExhaustedError), files.writing(tmp_path):
        raise memory


def test_an_error_of_a_disk_is_told_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(files.WriteError) as error, files.writing(tmp_path):
        files.write_json(tmp_path / "file" / "record.json", {})
    assert str(error.value) == (
        "A file cannot be written. Expected room for it, and permission. Received: [Errno 17] File "
        f"exists: '{tmp_path}/file' ('{tmp_path}/file/record.json'). Free some space or "
        "choose another folder."
    )


def test_a_path_that_is_no_utf8_stands_in_json(tmp_path):
    content = {"dataset": os.fsdecode(b"folder:caf\xe9"), "name": "\N{GREEK SMALL LETTER PI}"}
    files.write_json(tmp_path / "recipe.json", content)
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8")) == content


def test_a_file_system_that_cannot_sync_folders_takes_files(tmp_path, monkeypatch):
    sync = os.fsync

    def sync_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    files.write_json(tmp_path / "record.json", {"a": 1})
    assert json.loads((tmp_path / "record.json").read_text()) == {"a": 1}


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(ValueError, match="locks files") as error,
        files.locked(tmp_path, what="run", option="--run-dir"),
    ):
        pass
    assert str(error.value) == (
        "The run directory cannot be kept for one process. Expected a file system that locks "
        f"files. Received: [Errno {errno.ENOLCK}] No locks available ('{tmp_path}'). Mount it so "
        "that it does, or choose another --run-dir."
    )
