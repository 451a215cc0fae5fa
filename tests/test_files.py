"""Files that are whole or not there at all."""

import contextlib

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
