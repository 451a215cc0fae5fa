"""A run's directory and its record."""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import types

import keras
import pytest
import tensorflow as tf

from training import files, records
from training.recipes import get_recipe

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent

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


def test_the_gpus_are_those_of_the_backend(monkeypatch):
    """A TensorFlow for CPUs, as it often stands beside JAX, knows none."""
    devices = [
        types.SimpleNamespace(platform=platform, device_kind=kind)
        for platform, kind in (("gpu", "NVIDIA H100"), ("cpu", "cpu"))
    ]
    jax = types.SimpleNamespace(local_devices=lambda: devices)
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert records.hardware()["gpus"] == ["NVIDIA H100"]


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


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("saved_models/*/record.json")), ids=str)
def test_the_records_of_earlier_versions_can_be_read(tmp_path, path):
    fields = json.loads(path.read_text())["run"]
    (tmp_path / records.RECORD).write_text(json.dumps(fields))
    record = records.read(tmp_path)
    assert record.resumed == fields.get("resumed", 0)
    assert record.to_dict()["results"] == fields["results"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_or_empty_directory_is_taken(tmp_path, resume):
    with records.claimed(tmp_path, resume=resume) as run_dir:
        assert run_dir == tmp_path
    with records.claimed(tmp_path / "deep" / "new", resume=resume) as run_dir:
        assert run_dir.is_dir()


def test_what_a_process_left_that_was_killed_at_once_is_no_run(tmp_path):
    (tmp_path / files.LOCK).touch()
    partial = tmp_path / f"{files.PARTIAL}7-{records.RECORD}"
    partial.write_text("{")
    with records.claimed(tmp_path):
        assert not partial.exists()


def test_another_run_is_refused_and_stays(tmp_path, record):
    records.write(tmp_path, record)
    with pytest.raises(ValueError, match="another run") as error, records.claimed(tmp_path):
        pass
    assert str(error.value) == (
        "The run directory already holds another run. Expected a new or an empty directory. "
        f"Received: run_dir={str(tmp_path)!r}. Continue it with --resume, choose another one with "
        "--run-dir, another --seed, or delete it."
    )
    assert records.read(tmp_path) == record
    assert os.listdir(tmp_path) == [records.RECORD]


@pytest.mark.parametrize("resume", [False, True])
def test_other_files_are_refused_too(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with (
            pytest.raises(ValueError, match="already holds something else"),
            records.claimed(path, resume=resume),
        ):
            pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_directory_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(files.WriteError, match="Not a directory"),
        records.claimed(tmp_path / "file" / "run"),
    ):
        pass


def test_a_run_belongs_to_one_process_until_that_is_killed(tmp_path, record):
    records.write(tmp_path, record)
    program = (
        "import sys, time\n"
        "from training import records\n"
        "with records.claimed(sys.argv[1], resume=True):\n"
        "    print('claimed', flush=True)\n"
        "    time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "claimed\n"
            with (
                pytest.raises(ValueError, match="Another process") as error,
                records.claimed(tmp_path, resume=True),
            ):
                pass
        finally:
            other.kill()
    assert str(error.value) == (
        "Another process works on this run. Expected a run directory of its own for each process. "
        f"Received: {str(tmp_path)!r}. Wait for the other one to end, or choose another "
        "--run-dir."
    )
    with records.claimed(tmp_path, resume=True):
        assert records.read(tmp_path) == record


def test_a_run_that_goes_on_keeps_its_record_and_counts(tmp_path, record):
    assert records.begin(tmp_path, record) == record
    later = dataclasses.replace(record, started="later", commit="another")
    for times in (1, 2):
        expected = dataclasses.replace(record, resumed=times)
        assert records.begin(tmp_path, later) == expected == records.read(tmp_path)
    finished = expected.finished(10.0, {"test": {}})
    records.write(tmp_path, finished)
    assert records.begin(tmp_path, later) == finished == records.read(tmp_path)


def test_a_run_goes_on_as_it_was_started_or_not_at_all(tmp_path, record):
    records.begin(tmp_path, record)
    recipe = dataclasses.replace(record.recipe.scaled(640), measured_accuracy=0.5)
    wanted = dataclasses.replace(record, recipe=recipe, seed=4)
    with pytest.raises(ValueError, match="started differently") as error:
        records.begin(tmp_path, wanted)
    assert str(error.value) == (
        "The run directory holds a run that was started differently. Expected steps=64000, "
        "milestones=[32000, 48000], warmup_steps=400, seed=3. Received: steps=640, "
        "milestones=[320, 480], warmup_steps=4, seed=4. Repeat the options it was started with, or "
        "choose another directory with --run-dir."
    )
    assert records.read(tmp_path) == record
    with pytest.raises(ValueError, match=r"Expected accumulation_steps=1\. Received: accum"):
        records.begin(tmp_path, dataclasses.replace(record, accumulation_steps=4))
    with pytest.raises(ValueError, match=r"Expected xla=False\. Received: xla=True"):
        records.begin(tmp_path, dataclasses.replace(record, xla=True))
    on_jax = dataclasses.replace(record, versions={**record.versions, "jax": "0.9"})
    with pytest.raises(ValueError, match=r"Expected backend='tensorflow'.*backend='jax'"):
        records.begin(tmp_path, on_jax)
    remarks = dataclasses.replace(record.recipe, measured_accuracy=0.5, reference="ours")
    records.begin(tmp_path, dataclasses.replace(record, recipe=remarks))


def test_a_failed_write_leaves_the_old_record(tmp_path, record, monkeypatch):
    records.write(tmp_path, record)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(files.WriteError, match="No space"):
        records.write(tmp_path, dataclasses.replace(record, seed=4))
    assert records.read(tmp_path) == record
    assert os.listdir(tmp_path) == [records.RECORD]


def test_the_file_is_json_that_others_can_read(tmp_path, record):
    records.write(tmp_path, record)
    content = json.loads((tmp_path / records.RECORD).read_text())
    assert content["recipe"]["milestones"] == [32_000, 48_000]
    assert content["seed"] == 3
    assert (tmp_path / records.RECORD).stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"recipe": 3}', b"\xff\x00"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / records.RECORD).write_bytes(content)
    with pytest.raises(ValueError, match=r"record of a run cannot be read.*record\.json"):
        records.read(tmp_path)


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run") as error:
        records.read(tmp_path)
    assert str(error.value) == (
        "There is no run. Expected a directory with a record.json, as `train` makes it. "
        f"Received: {str(tmp_path)!r}"
    )
