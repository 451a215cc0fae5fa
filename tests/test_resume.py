"""Nothing is lost: runs that are killed, stopped or run out of disk end as if they had not been.

Each part of a run is a process of its own, as a user starts it.
"""

import json
import os
import pathlib
import random
import resource
import shlex
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from training import checkpoints, files, optimizers, records

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
RECIPE = {
    "name": "tiny",
    "variant": "cifar_resnet8",
    "dataset": "digits",
    "batch_size": 128,
    "steps": 24,  # two epochs of ten steps, and the start of a third
    "learning_rate": 0.05,
    "augmentation": {"shift": {}},
    "options": {"survival_probability": 0.8},
}


class Run:
    """A run in a directory of its own, in as many parts as it takes."""

    def __init__(self, folder, *options):
        self.dir = folder / "run"
        (folder / "tiny.json").write_text(json.dumps(RECIPE))
        self.command = ["train", "tiny.json", "--run-dir", "run", "--resume", *options]
        self.process = None

    def start(self, *command):
        """Starts the next part."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "training", *(command or self.command)],
            cwd=self.dir.parent,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def newest_step(self):
        names = [path.name for path in self.dir.glob("checkpoints/step-*")]
        return int(max(names).split("-")[1]) if names else 0

    def wait_for(self, condition):
        """Returns once something is true, or the part has ended."""
        while self.process.poll() is None and not condition():
            time.sleep(0.001)

    def wait_for_steps(self, steps):
        target = self.newest_step() + steps
        self.wait_for(lambda: self.newest_step() >= target)

    def end(self, number=None):
        """Sends a signal, if any, and returns the exit code and what the part has said."""
        if number is not None:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=600)
        return self.process.returncode, output

    def finish(self):
        """Runs the last part to its end."""
        self.start()
        code, output = self.end()
        assert code == 0, output
        return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that nothing happens to."""
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    run.finish()
    return run.dir


def load(path):
    return keras.saving.load_model(path, custom_objects={"CoupledSGD": optimizers.CoupledSGD})


def assert_equal_runs(found, expected, resumed):
    for name in (records.BEST, records.LAST):
        models = [load(run / name) for run in (found, expected)]
        weights, others = (
            [v.numpy() for v in (*model.weights, *model.optimizer.variables)] for model in models
        )
        for one, other in zip(weights, others, strict=True):
            np.testing.assert_array_equal(one, other)
    for name in ("metrics.csv", "curves.png"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    record, other = records.read(found), records.read(expected)
    assert record.results == other.results
    assert (record.resumed, other.resumed) == (resumed, 0)
    assert record.seconds > 0
    names = {path.name for path in expected.iterdir()}
    assert {path.name for path in found.iterdir()} == names
    assert "checkpoints" not in names


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_the_same(undisturbed, tmp_path):
    run = Run(tmp_path, "--checkpoint-every", "0")
    run.start()
    run.wait_for_steps(3)
    run.wait_for(lambda: [*run.dir.glob(f"checkpoints/{files.PARTIAL}*")])
    code, output = run.end(signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    reached = run.newest_step()

    run.start()
    run.wait_for(lambda: run.newest_step() >= 9)
    time.sleep(0.5)  # in the validation, whose first batch takes longer
    code, output = run.end(signal.SIGTERM)
    assert code == 143, output
    assert run.newest_step() >= 10
    assert f"Continuing after step {reached} of 24." in output
    command = "train tiny.json --run-dir run --resume --checkpoint-every 0"
    assert output.endswith(f"Stopped by SIGTERM. Continue with:\n  python -m training {command}\n")

    run.finish()
    assert_equal_runs(run.dir, undisturbed, resumed=2)


@pytest.mark.slow
def test_whatever_happens_a_run_ends_the_same(undisturbed, tmp_path):
    run = Run(tmp_path, "--checkpoint-every", "0")
    run.start(*(word for word in run.command if word != "--resume"))
    run.wait_for_steps(2)
    code, output = run.end(signal.SIGINT)
    assert code == 130
    command = output.splitlines()[-1].removeprefix("  python -m training ")
    assert command == "train tiny.json --run-dir run --checkpoint-every 0 --resume"

    run.start(*shlex.split(command))
    run.wait_for_steps(2)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk
    code, output = run.end()
    assert code == 2
    assert "Error: A file cannot be written. Expected room for it" in output
    assert output.endswith(f"Then continue with: python -m training {command}\n")
    assert "Traceback" not in output
    assert not [*run.dir.rglob(f"{files.PARTIAL}*")]
    assert checkpoints.load_newest(run.dir / checkpoints.FOLDER)[0].step == run.newest_step()

    newest = max(run.dir.glob("checkpoints/step-*"))
    os.truncate(newest, newest.stat().st_size - 100)
    run.start()
    run.wait_for(lambda: [*run.dir.glob(f"{files.PARTIAL}*{records.BEST}")])  # just validated
    code, output = run.end(signal.SIGKILL)
    assert f"{newest.name} is damaged; the one before it is used." in output

    run.start()
    run.wait_for(lambda: (run.dir / "curves.png").exists())  # in the evaluation on the test images
    run.end(signal.SIGKILL)
    assert not records.read(run.dir).results

    assert "Continuing after step 24 of 24." in run.finish()
    assert_equal_runs(run.dir, undisturbed, resumed=4)
    assert "has finished already" in run.finish()


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2], ids=["one_replica", "two_replicas"])
def test_a_run_that_is_killed_at_random_moments_ends_the_same(tmp_path, replicas):
    whole = Run(tmp_path, "--replicas", str(replicas))
    whole.finish()
    (tmp_path / "killed").mkdir()
    run = Run(tmp_path / "killed", "--replicas", str(replicas), "--checkpoint-every", "0")
    moments, resumed = random.Random(replicas), -1
    for _ in range(8):
        run.start()
        run.wait_for((run.dir / files.LOCK).exists)
        time.sleep(moments.uniform(0, 1))
        if moments.random() < 0.7:  # else before the first new checkpoint
            run.wait_for_steps(1)
            time.sleep(moments.uniform(0, 0.4))
        run.end(signal.SIGKILL)
        if (run.dir / records.RECORD).exists():
            resumed = records.read(run.dir).resumed
            if records.read(run.dir).results:
                break
    else:
        run.finish()
        resumed += 1
    assert resumed >= 3
    assert_equal_runs(run.dir, whole.dir, resumed)


def test_a_run_that_another_process_works_on_is_refused(tmp_path):
    run = Run(tmp_path)
    run.dir.mkdir()
    (run.dir / records.RECORD).write_text("being written")  # by the other one: nobody else reads it
    with records.claimed(run.dir, resume=True):
        run.start()
        code, output = run.end()
    assert code == 2
    assert "Error: Another process works on this run. Expected a run directory of its own" in output
    assert "Traceback" not in output
