"""Several workers on this machine, started together, watched, and ended together."""

import contextlib
import ctypes
import math
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from training.cluster import Cluster

COMMAND = "TRAINING_COMMAND"  # variable with what the user typed, to repeat with --resume
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def launch(arguments: Sequence[str], *, workers: int = 2, timeout_seconds: float = 60.0) -> int:
    """Runs `python -m training train` as a cluster of processes on this machine.

    The chief prints to this terminal. When a worker ends too early, all others are ended: the chief
    is asked to, and killed in the end; the others hold nothing that could be lost.

    Args:
        arguments: `train` and what comes after it.
        workers: Number of processes, at least 1.
        timeout_seconds: How long the workers wait for each other at the start, and how long the
            chief may take to end.

    Returns:
        0, or 128 and the number of the signal that stopped it.

    Raises:
        ValueError: If a worker failed, with its number and where its output is.
    """
    if workers < 1 or list(arguments[:1]) != ["train"]:
        raise ValueError(
            "Nothing can be launched. Expected `launch --workers N train RECIPE ...` with N >= 1. "
            f"Received: workers={workers}, {' '.join(arguments)!r}"
        )
    addresses = tuple(f"127.0.0.1:{port}" for port in _free_ports(workers))
    logs = pathlib.Path(tempfile.mkdtemp(prefix="training-workers-"))
    command = [sys.executable, "-m", "training", "train", f"--start-timeout={timeout_seconds}"]
    environment = {**os.environ, COMMAND: shlex.join(sys.argv[1:])}
    processes: list[subprocess.Popen] = []
    with _forwarding_signals(processes) as received:
        try:
            for index in range(workers):
                cluster = Cluster(addresses, index)
                environment["TF_CONFIG"] = cluster.to_tf_config()
                output = None if cluster.is_chief else _log(logs, index)
                processes.append(_start([*command, *arguments[1:]], environment, output))
            failed = _wait(processes, received, timeout_seconds)
        finally:
            _end(processes, timeout_seconds)
    if received:
        shutil.rmtree(logs)
        return 128 + received[0]
    if failed is not None:
        raise _failure(failed, processes, logs)
    shutil.rmtree(logs)
    return 0


def _free_ports(count):
    with contextlib.ExitStack() as stack:  # all at once, so that no two are the same
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]


def _start(command, environment, output):
    """One worker, in a process group of its own: signals reach it through the launcher alone."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_launcher():
        if prctl:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with open(output, "wb") if output else contextlib.nullcontext() as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=end_with_launcher,
        )


@contextlib.contextmanager
def _forwarding_signals(processes):
    """Gives SIGTERM and Ctrl-C to the chief, which knows how to stop; yields those received."""
    received = []

    def forward(number, _):
        received.append(number)
        for chief in processes[:1]:
            chief.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes, received, timeout_seconds):
    """The number of the first worker that failed, or nothing when the chief is through."""
    deadline = math.inf
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if codes[0] == 0 and None not in codes:
            return None
        failed = [index for index, code in enumerate(codes) if code]
        if failed and codes[0] != 0:
            return failed[0]
        if deadline == math.inf and (codes[0] == 0 or received):
            # The others have this long to end as well, or the chief to save a checkpoint.
            deadline = time.monotonic() + timeout_seconds
        time.sleep(0.1)
    return None


def _end(processes, timeout_seconds):
    """Leaves no process behind."""
    for chief in processes[:1]:
        if chief.poll() is None:
            chief.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            chief.wait(timeout_seconds)
    for process in processes:
        process.kill()  # which does nothing to one that has ended
        process.wait()


def _failure(index, processes, logs):
    code = processes[index].returncode
    end = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    log = _log(logs, index)
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    said = next((line for line in reversed(lines) if line.strip()), "")
    return ValueError(
        f"Worker {index} of {len(processes)} failed, and the others were ended. Expected exit code "
        f"0. Received: {end}{f' ({said.strip()})' if said else ''}. What the workers other than "
        f"the chief have printed is in {logs}. `train --resume` continues the run."
    )


def _log(logs, index):
    return logs / f"worker-{index}.log"
