"""A run's directory and its record."""

import dataclasses
import json
import os
import platform
import subprocess

import keras
import pytest
import tensorflow as tf

from training import records
from training.recipes import get_recipe

DATA = {"images": {"train": 2}, "class_names": ["a", "b"], "skip_corrupt": False, "skipped": []}


@pytest.fixture
def record():
    return records.new_record(get_recipe("cifar10-resnet110"), seed=3, replicas=2, data=DATA)


def test_a_record_comes_back_as_it_was_written(tmp_path, record):
    records.write(tmp_path, record)
    assert records.read(tmp_path) == record


def test_a_record_says_where_it_comes_from(record):
    assert record.versions["keras"] == keras.__version__
    assert record.versions["tensorflow"] == tf.__version__
    assert record.versions["python"] == platform.python_version()
    assert record.hardware["cores"] >= 1
    assert record.hardware["cpu"]
    assert len(record.hardware["gpus"]) == len(tf.config.list_physical_devices("GPU"))
    assert record.started.endswith("+00:00")


def test_the_speed_counts_training_images(record):
    finished = record.finished(seconds=100.0, results={"test": {}})
    assert finished.images_per_second == 64_000 * 128 / 100
    assert (finished.seconds, finished.results) == (100.0, {"test": {}})


def test_the_commit_is_that_of_the_checkout_alone(tmp_path, monkeypatch):
    def git(*arguments, cwd):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout

    checkout = tmp_path / "checkout"
    checkout.mkdir()
    git("init", cwd=tmp_path)
    git("commit", "--allow-empty", "-m", "somebody else's", cwd=tmp_path)
    monkeypatch.setattr(records, "_CHECKOUT", checkout)
    assert records.commit() is None
    git("init", cwd=checkout)
    (checkout / "file").write_text("1")
    git("add", "file", cwd=checkout)
    git("commit", "-m", "ours", cwd=checkout)
    head = git("rev-parse", "HEAD", cwd=checkout).strip()
    assert records.commit() == head
    (checkout / "file").write_text("2")
    assert records.commit() == f"{head}-dirty"


def test_a_new_or_empty_directory_is_taken(tmp_path):
    assert records.claim(tmp_path) == tmp_path
    assert records.claim(tmp_path / "deep" / "new").is_dir()


def test_another_run_is_refused_and_stays(tmp_path, record):
    records.write(tmp_path, record)
    with pytest.raises(ValueError, match="another run") as error:
        records.claim(tmp_path)
    assert str(error.value) == (
        "The run directory already holds another run. Expected a new or an empty directory. "
        f"Received: run_dir={str(tmp_path)!r}. Choose another one with --run-dir, another --seed, "
        "or delete it."
    )
    assert records.read(tmp_path) == record


def test_other_files_are_refused_too(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="already holds something else"):
        records.claim(tmp_path)
    with pytest.raises(ValueError, match="already holds something else"):
        records.claim(tmp_path / "thesis.tex")


def test_a_failed_write_leaves_the_old_record(tmp_path, record, monkeypatch):
    records.write(tmp_path, record)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        records.write(tmp_path, dataclasses.replace(record, seed=4))
    assert records.read(tmp_path) == record
    assert os.listdir(tmp_path) == [records.RECORD]


def test_the_file_is_json_that_others_can_read(tmp_path, record):
    records.write(tmp_path, record)
    content = json.loads((tmp_path / records.RECORD).read_text())
    assert content["recipe"]["milestones"] == [32_000, 48_000]
    assert content["seed"] == 3
    assert (tmp_path / records.RECORD).stat().st_mode & 0o444 == 0o444


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run") as error:
        records.read(tmp_path)
    assert str(error.value) == (
        "There is no run. Expected a directory with a record.json, as `train` makes it. "
        f"Received: {str(tmp_path)!r}"
    )
