"""Workers that are started together end together, whatever happens to one of them."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from test_cluster import TINY, environment, free_addresses, training

import keras_resnet  # noqa: F401  registers the layers of saved networks
from training import launch, records
from training.recipes import write_recipe

PATIENCE = 200  # seconds, on a machine that does other things, too


def workers_of(launcher):
    """The processes that a launcher has started, the chief first."""
    proc = pathlib.Path("/proc")
    pids = (proc / f"{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    # Those whose program is still to be loaded are copies of the launcher.
    return [int(n) for n in pids if "--start-timeout" in (proc / n / "cmdline").read_text()]


def is_alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints_in(run_dir):
    return {path.name for path in (run_dir / "checkpoints").glob("step-*")}


def start(*arguments, cwd, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        cwd=cwd,
        env=environment(TMPDIR=str(cwd)),  # where the logs of failed jobs stay
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def job(tmp_path):
    """The arguments of a run of 120 steps, which saves a checkpoint after each."""
    write_recipe(TINY, tmp_path / "recipe.json")
    return ["train", "recipe.json", "--steps", "120", "--run-dir", "run", "--checkpoint-every", "0"]


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        (["evaluate", "run"], "workers=2, 'evaluate run'"),
        (["--workers", "0", "train"], "workers=0"),
    ],
)
def test_what_cannot_be_launched_is_refused(tmp_path, arguments, received):
    answer = training("launch", *arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert (
        "Error: Nothing can be launched. Expected `launch --workers N train RECIPE ...` with N >= "
        f"1. Received: {received}"
    ) in answer.stderr


def test_launching_needs_no_tensorflow():
    program = (
        "import sys, training.launch; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)


@pytest.mark.slow
def test_a_worker_that_fails_is_named_and_ends_the_others(tmp_path):
    command = ("launch", "--workers", "2", "train", "digits-resnet21")
    answer = training(*command, cwd=tmp_path, TMPDIR=str(tmp_path))
    assert answer.returncode == 2
    failed = re.search(
        r"Error: Worker (\d) of 2 failed, and the others were ended. Expected exit code 0. "
        r"Received: exit code 2(.*). What the workers other than the chief have printed is in "
        r"(\S+)\.",
        answer.stderr,
    )
    said = answer.stderr if failed[1] == "0" else failed[2]  # the chief speaks for itself
    assert "Did you mean 'digits-resnet20'?" in said
    assert (pathlib.Path(failed[3]) / "worker-1.log").is_file()


def disturb(job, tmp_path, index, number):
    """Starts a job, sends a signal to one of its processes, and returns what it ends with."""
    before = checkpoints_in(tmp_path / "run")
    launcher = start("launch", "--timeout", "60", *job, cwd=tmp_path)
    wait_until(lambda: checkpoints_in(tmp_path / "run") - before)
    workers = workers_of(launcher)
    assert len(workers) == 2
    target = launcher.pid if index is None else workers[index]
    subprocess.run(["kill", f"-{number}", str(target)], check=True)
    output, errors = launcher.communicate(timeout=PATIENCE)
    wait_until(lambda: not any(map(is_alive, workers)))
    return launcher.returncode, output, errors


@pytest.mark.slow
def test_a_run_that_is_disturbed_again_and_again_ends_with_the_weights_of_a_quiet_one(
    tmp_path, job
):
    for index in (0, 1):
        code, _, errors = disturb([*job, "--resume"], tmp_path, index, signal.SIGKILL)
        assert code == 2
        assert f"Error: Worker {index} of 2 failed, and the others were ended." in errors
        assert "Received: signal SIGKILL" in errors
    code, output, _ = disturb([*job, "--resume"], tmp_path, None, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    again = "python -m training launch --timeout 60 " + " ".join(job) + " --resume"
    assert again in " ".join(output.split())
    for run_dir in ("run", "quiet"):
        job[job.index("--run-dir") + 1] = run_dir
        answer = training("launch", *job[:-2], "--resume", cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
    assert records.read(tmp_path / "run").resumed == 3
    network, quiet = (
        keras.saving.load_model(tmp_path / run_dir / records.LAST) for run_dir in ("run", "quiet")
    )
    for variable, expected in zip(network.variables, quiet.variables):
        np.testing.assert_allclose(variable, expected, atol=1e-5, err_msg=variable.path)


@pytest.mark.slow
def test_a_worker_that_never_starts_ends_the_job(tmp_path, job):
    launcher = start("launch", "--timeout", "5", *job, cwd=tmp_path)
    wait_until(lambda: len(workers_of(launcher)) == 2)
    workers = workers_of(launcher)
    subprocess.run(["kill", "-STOP", str(workers[1])], check=True)
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 2
    assert "Error: Not all workers have started. Expected 2 within 5 seconds." in errors
    assert "all but worker 1" in errors
    assert "Error: Worker 0 of 2 failed" in errors
    assert not any(map(is_alive, workers))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="is about a call of Linux")
def test_a_launcher_that_is_killed_leaves_no_orphans(tmp_path):
    launcher = start("launch", "train", "digits-resnet20", "--steps", "1000000", cwd=tmp_path)
    wait_until(lambda: len(workers_of(launcher)) == 2)
    workers = workers_of(launcher)
    launcher.kill()
    try:
        wait_until(lambda: not any(map(is_alive, workers)))
    finally:
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)
        launcher.communicate()


@pytest.fixture
def pair(tmp_path, job):
    """Two workers without a launcher, in the middle of their training."""
    addresses = ",".join(free_addresses())
    workers = [
        start(*job, "--workers", addresses, "--worker-index", str(index), cwd=tmp_path)
        for index in range(2)
    ]
    wait_until(lambda: checkpoints_in(tmp_path / "run"))
    yield workers
    for worker in workers:
        worker.kill()
        worker.communicate()


def check_lost(worker):
    """The worker has ended with one message."""
    _, errors = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 2
    assert "Error: Another worker was lost. Expected all of them to stay until the end." in errors
    assert ". Start all of them again; with --resume they go on" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_without_a_launcher_the_chief_notices_a_lost_worker(pair):
    pair[1].kill()
    check_lost(pair[0])


@pytest.mark.slow
def test_a_signal_to_all_stops_the_chief_in_order_and_the_others_after_it(pair):
    """As a batch system sends it: who stopped first would stop the chief in the middle."""
    for worker in reversed(pair):
        worker.terminate()
    output, _ = pair[0].communicate(timeout=PATIENCE)
    assert pair[0].returncode == 128 + signal.SIGTERM
    assert "Continue with:" in output
    check_lost(pair[1])


def test_the_chief_is_through_before_the_others_are_ended():
    """Others that do not end by themselves do not make a finished job fail."""
    programs = ("import time; time.sleep(0.5)", "import time; time.sleep(1000)")
    processes = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    assert launch._wait(processes, [], 1.0) is None
    launch._end(processes, 1.0)
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL]
