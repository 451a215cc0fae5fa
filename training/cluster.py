"""Many machines: which processes train one model together, and how they wait for each other.

Nothing here imports TensorFlow, so that a launcher is light. TensorFlow's `SlurmClusterResolver`
does not fit anyway: it fails without GPUs, and sorts n10 before n9, where SLURM counts the other
way.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Mapping

PORT = 8888  # TensorFlow's choice for the first process on a node of SLURM
START_TIMEOUT = 300.0  # machines are not always given out at the same moment
_EXAMPLE = '{"cluster": {"worker": ["a:8888", "b:8888"]}, "task": {"type": "worker", "index": 0}}'
# A list of SLURM such as `n[1-3,07],login`.
_NODE = r"(?:[^,\[\]\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train one model together, and which of them this one is.

    Args:
        workers: Address `host:port` of each, in the same order everywhere. The first is the chief:
            it alone writes files.
        index: Which of them this process is, from 0 for the chief.
        start_timeout_seconds: How long this process waits for the others to start.

    Raises:
        ValueError: If an address is not one, or stands there twice, or there is no such worker.
    """

    workers: tuple[str, ...]
    index: int
    start_timeout_seconds: float = START_TIMEOUT

    def __post_init__(self):
        for worker in self.workers:
            host, _, port = worker.rpartition(":")
            if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
                raise ValueError(
                    "A worker has no valid address. Expected host:port with a port from 1 to "
                    f"65535. Received: {worker!r} among {', '.join(self.workers)}"
                )
        twice = sorted({worker for worker in self.workers if self.workers.count(worker) > 1})
        if twice:
            raise ValueError(
                "Two workers cannot share an address. Expected a host:port of its own for each. "
                f"Received: {', '.join(twice)} more than once. Give those on one machine "
                "different ports."
            )
        if not 0 <= self.index < len(self.workers):
            raise ValueError(
                f"There is no worker of this number. Expected 0 (the chief) to "
                f"{len(self.workers) - 1}. Received: {self.index}"
            )

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.index == 0

    def to_tf_config(self) -> str:
        """The cluster as the value of the environment variable `TF_CONFIG`."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": self.workers}, "task": task})


def resolve(
    workers: str | None = None,
    worker_index: int | None = None,
    *,
    port: int = PORT,
    start_timeout_seconds: float = START_TIMEOUT,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The cluster that the user, `TF_CONFIG` or SLURM describes: the first of them that does.

    Args:
        workers: Comma-separated addresses `host:port`, the chief's first.
        worker_index: Which of them this process is.
        port: Of the first process on each node of SLURM; the next ones count up.
        start_timeout_seconds: How long to wait for the others, at least 0.
        environment: Where the variables are.

    Returns:
        The cluster, or `None` if this process trains alone.

    Raises:
        ValueError: If the description is not complete, or not valid.
    """
    if (workers is None) != (worker_index is None):
        raise ValueError(
            "A cluster is described in half. Expected all addresses in --workers and which of them "
            "this process is in --worker-index, or neither. "
            f"Received: workers={workers!r}, worker_index={worker_index}"
        )
    if workers is not None:
        addresses, index = [each.strip() for each in workers.split(",")], worker_index
    elif environment.get("TF_CONFIG"):
        addresses, index = _from_tf_config(environment["TF_CONFIG"])
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        addresses, index = _from_slurm(environment, port)
    else:
        _check_tasks_are_started(environment)
        return None
    cluster = Cluster(tuple(addresses), index, start_timeout_seconds)
    return cluster if len(addresses) > 1 else None


def _from_tf_config(text):
    """Addresses and index; a chief is the first worker, as TensorFlow has it."""
    try:
        config = json.loads(text)
        jobs = {job: list(addresses) for job, addresses in config["cluster"].items()}
        job, index = config["task"]["type"], int(config["task"]["index"])
        for words in (*config["cluster"].values(), [job]):
            if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
                raise TypeError(f"{words!r} is no list of words")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"TF_CONFIG describes no cluster. Expected JSON such as {_EXAMPLE}. Received: {text} "
            f"({type(error).__name__}: {error})"
        ) from None
    others = sorted({*jobs, job} - {"chief", "worker"})
    if others:
        raise ValueError(
            "TF_CONFIG has jobs that do not train. Expected 'chief' and 'worker' alone. "
            f"Received: {', '.join(map(repr, others))}"
        )
    chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
    if not 0 <= index < len(jobs.get(job, [])):
        raise ValueError(
            f"TF_CONFIG has no place for this process. Expected an index below the number of "
            f"addresses of {job!r}, {len(jobs.get(job, []))}. Received: {index}"
        )
    return [*chiefs, *workers], index + (len(chiefs) if job == "worker" else 0)


def _check_tasks_are_started(environment):
    """The shell of `salloc` and the script of `sbatch` are one process, whatever the tasks."""
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks > 1 and "SLURM_STEP_NUM_TASKS" not in environment:
        raise ValueError(
            f"SLURM has a place for {tasks} tasks, and has not started them. Expected a command "
            f"that srun starts. Received: SLURM_NTASKS={tasks} without SLURM_STEP_NUM_TASKS. Train "
            "on all tasks with `srun python -m training train ...`, or alone in this process with "
            f"--workers localhost:{PORT} --worker-index 0."
        )


def _from_slurm(environment, port):
    """Addresses and index of a step's tasks, which fill one node after the other: the default.

    `srun` starts a step, which may have fewer nodes and tasks than its job.
    """
    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    hosts = expand_nodes(environment["SLURM_STEP_NODELIST"])
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE")
    if counts:  # such as 2(x3),1
        parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
        shares = [int(count) for count, times in parts for _ in range(int(times or 1))]
    else:
        shares = [tasks // len(hosts)] * len(hosts)
    if len(shares) != len(hosts) or sum(shares) != tasks:
        raise ValueError(
            f"The variables of SLURM contradict each other. Expected {tasks} tasks on "
            f"{len(hosts)} nodes ({', '.join(hosts)}). Received: {shares} tasks per node. "
            "Start the processes with srun, or name them with --workers."
        )
    addresses = [f"{host}:{port + n}" for host, share in zip(hosts, shares) for n in range(share)]
    return addresses, int(environment["SLURM_PROCID"])


def expand_nodes(nodes: str) -> list[str]:
    """The names in a list of nodes as SLURM writes it, in its order.

    Args:
        nodes: Names, with ranges of numbers in brackets.

    Raises:
        ValueError: If it is not such a list.

    >>> expand_nodes("n[8-10],gpu[07,09]a")
    ['n8', 'n9', 'n10', 'gpu07a', 'gpu09a']
    """
    if not re.fullmatch(f"{_NODE}(?:,{_NODE})*", nodes):
        raise ValueError(
            "SLURM's list of nodes cannot be read. Expected one such as n[1-3,07],login. "
            f"Received: {nodes!r}. Name the processes with --workers."
        )
    names = []
    for node in re.findall(_NODE, nodes):
        pieces = re.split(r"\[(.+?)\]", node)  # every second one was in brackets
        choices = [_numbers(piece) if n % 2 else [piece] for n, piece in enumerate(pieces)]
        names += map("".join, itertools.product(*choices))
    return names


def _numbers(ranges):
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))


def wait_for_workers(cluster: Cluster) -> None:
    """Returns when every worker has started, or says which one has not.

    TensorFlow would wait an hour, and hear neither signals nor Python's own threads meanwhile. So
    before it takes its port, a plain socket listens there. Each worker calls all others, and is
    through when it has reached them and has been called by them.

    Args:
        cluster: Who has to be there.

    Raises:
        ValueError: If this process cannot listen, or another one is not there in time.
    """
    deadline = time.monotonic() + cluster.start_timeout_seconds
    silent = set(range(len(cluster.workers))) - {cluster.index}
    unreached = dict.fromkeys(silent)
    with _listening(cluster.workers[cluster.index]) as listener:
        while silent or unreached:
            reasons = {n: _call(cluster.workers[n], cluster.index) for n in unreached}
            unreached = {n: reason for n, reason in reasons.items() if reason}
            silent -= _callers(listener)
            if time.monotonic() > deadline:
                break
    missing = dict.fromkeys(silent, "it did not call") | unreached
    if missing:
        who = "; ".join(f"worker {n}, {cluster.workers[n]}: {missing[n]}" for n in sorted(missing))
        raise ValueError(
            f"Not all workers have started. Expected {len(cluster.workers)} within "
            f"{cluster.start_timeout_seconds:g} seconds. Received: all but {who}. Start each with "
            "the same command and its own --worker-index, or wait longer with --start-timeout."
        )


def _listening(address):
    port = int(address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise ValueError(
            f"This worker cannot use its port. Expected {port} to be free. Received: {error}. "
            "End the process that uses it, or choose another port."
        ) from None


def _call(address, index):
    """Tells another worker who calls; returns why that was not possible."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1) as call:
            call.sendall(str(index).encode())
    except OSError as error:
        return error.strerror or str(error)
    return None


def _callers(listener):
    """The workers that have called since, or do so within a moment."""
    callers = set()
    listener.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while True:
            call, _ = listener.accept()
            with call, contextlib.suppress(OSError, ValueError):  # others may know the port, too
                call.settimeout(1)
                callers.add(int(call.recv(16)))
    return callers
