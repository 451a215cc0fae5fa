"""Processes that train one model together: how they find each other, and what they learn."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnet  # noqa: F401  registers the layers of saved networks
from training import cluster, datasets, loop, pipeline, records
from training.cluster import Cluster
from training.recipes import get_recipe, write_recipe

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
TINY = dataclasses.replace(
    get_recipe("digits-resnet20"),
    name="tiny",
    variant="cifar_resnet8",
    batch_size=32,
    steps=6,
    learning_rate=0.01,
    milestones=(),
    synchronized_batch_norm=True,
)


def free_addresses(count=2):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)


def environment(**variables):
    return {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "COLUMNS": "200",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **variables,
    }


def training(*arguments, cwd, **variables):
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


# How a cluster is described.

JOB = {  # as `salloc` and `sbatch` set it
    "SLURM_JOB_ID": "5",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NODELIST": "gpu[06-08]",
    "SLURM_TASKS_PER_NODE": "1,2,1",
}
SLURM = JOB | {  # and `srun`, for a step of a part of the job
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
TF_CONFIG = {"TF_CONFIG": Cluster(("a:1", "b:2"), 1).to_tf_config()}


def test_the_command_line_goes_before_tf_config_and_tf_config_before_slurm():
    everything = SLURM | TF_CONFIG
    assert cluster.resolve("c:3,d:4", 0, environment=everything).workers == ("c:3", "d:4")
    assert cluster.resolve("c:3, d:4", 1, environment={}).workers == ("c:3", "d:4")
    assert cluster.resolve(environment=everything) == Cluster(("a:1", "b:2"), 1)
    assert cluster.resolve(environment=SLURM).index == 1
    assert cluster.resolve(environment={}) is None


def test_tf_config_is_what_tensorflow_reads(monkeypatch):
    described = Cluster(("a:1", "b:2", "c:3"), 2)
    monkeypatch.setenv("TF_CONFIG", described.to_tf_config())
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    assert resolver.cluster_spec().as_dict() == {"worker": list(described.workers)}
    assert (resolver.task_type, resolver.task_id) == ("worker", 2)
    assert cluster.resolve() == described


def test_a_chief_in_tf_config_is_the_first_worker():
    jobs = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
    for task, index in (("chief", 0), 0), (("worker", 0), 1), (("worker", 1), 2):
        config = {"cluster": jobs, "task": dict(zip(("type", "index"), task))}
        found = cluster.resolve(environment={"TF_CONFIG": json.dumps(config)})
        assert found == Cluster(("a:1", "b:2", "c:3"), index)
        assert found.is_chief == (index == 0)


@pytest.mark.parametrize(
    ("nodes", "tasks_per_node"),
    [("a,b,c", "1(x3)"), ("n[07-09]", "2,1(x2)"), ("gpu[1,3-4],login", "2(x3),1"), ("n1", "4")],
)
def test_slurm_gives_the_addresses_of_tensorflows_own_resolver(monkeypatch, nodes, tasks_per_node):
    """Where that one works: with as many GPUs as tasks, and nodes in the order of the alphabet."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks_per_node)
    tasks = {"1(x3)": 3, "2,1(x2)": 4, "2(x3),1": 7, "4": 4}[tasks_per_node]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(tasks))
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=9000, gpus_per_node=8, gpus_per_task=1, auto_set_gpu=False
    )
    expected = resolver.cluster_spec().as_dict()["worker"]
    assert list(cluster.resolve(port=9000).workers) == expected


def test_slurm_counts_ten_after_nine():
    assert cluster.expand_nodes("n[8-11]") == ["n8", "n9", "n10", "n11"]
    assert cluster.expand_nodes("r[1-2]n[01,10]") == ["r1n01", "r1n10", "r2n01", "r2n10"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "n1"},
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"TF_CONFIG": Cluster(("a:1",), 0).to_tf_config()},
    ],
    ids=["nothing", "slurm", "step", "tf_config"],
)
def test_one_process_trains_alone(variables):
    assert cluster.resolve(environment=variables) is None


@pytest.mark.parametrize("variables", [JOB, JOB | {"SLURM_PROCID": "0"}], ids=["salloc", "sbatch"])
def test_without_srun_nobody_waits_for_tasks_that_were_not_started(variables):
    with pytest.raises(ValueError, match="srun") as error:
        cluster.resolve(environment=variables)
    assert str(error.value) == (
        "SLURM has a place for 4 tasks, and has not started them. Expected a command that srun "
        "starts. Received: SLURM_NTASKS=4 without SLURM_STEP_NUM_TASKS. Train on all tasks with "
        "`srun python -m training train ...`, or alone in this process with --workers "
        "localhost:8888 --worker-index 0."
    )
    assert cluster.resolve("localhost:8888", 0, environment=variables) is None


@pytest.mark.parametrize(
    ("workers", "index", "message"),
    [
        (
            "a:1,b",
            0,
            "A worker has no valid address. Expected host:port with a port from 1 to 65535. "
            "Received: 'b' among a:1, b",
        ),
        (
            "a:1,b:65536",
            0,
            "A worker has no valid address. Expected host:port with a port from 1 to 65535. "
            "Received: 'b:65536' among a:1, b:65536",
        ),
        (
            "a:1,b:2,a:1",
            0,
            "Two workers cannot share an address. Expected a host:port of its own for each. "
            "Received: a:1 more than once. Give those on one machine different ports.",
        ),
        (
            "a:1,b:2",
            2,
            "There is no worker of this number. Expected 0 (the chief) to 1. Received: 2",
        ),
        (
            "a:1,b:2",
            None,
            "A cluster is described in half. Expected all addresses in --workers and which of them "
            "this process is in --worker-index, or neither. Received: workers='a:1,b:2', "
            "worker_index=None",
        ),
    ],
    ids=["no_port", "large_port", "twice", "index", "half"],
)
def test_addresses_that_do_not_hold_are_refused(workers, index, message):
    with pytest.raises(ValueError, match="Expected") as error:
        cluster.resolve(workers, index, environment={})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG describes no cluster. Expected JSON such as"),
        ({"TF_CONFIG": '{"cluster": {"worker": 3}}'}, "TF_CONFIG describes no cluster."),
        (
            {"TF_CONFIG": TF_CONFIG["TF_CONFIG"].replace('["a:1", "b:2"]', '"b:2"')},
            "(TypeError: 'b:2' is no list of words)",
        ),
        (
            {"TF_CONFIG": TF_CONFIG["TF_CONFIG"].replace('"b:2"', "2")},
            "(TypeError: ['a:1', 2] is no list of words)",
        ),
        (
            {"TF_CONFIG": TF_CONFIG["TF_CONFIG"].replace('"index": 1', '"index": 2')},
            "Expected an index below the number of addresses of 'worker', 2. Received: 2",
        ),
        (
            {"TF_CONFIG": TF_CONFIG["TF_CONFIG"].replace('"worker"', '"ps"')},
            "TF_CONFIG has jobs that do not train. Expected 'chief' and 'worker' alone. "
            "Received: 'ps'",
        ),
        (SLURM | {"SLURM_STEP_NODELIST": "n[1-"}, "SLURM's list of nodes cannot be read."),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,2"},
            "The variables of SLURM contradict each other. Expected 3 tasks on 2 nodes (gpu07, "
            "gpu08). Received: [2, 2] tasks per node.",
        ),
    ],
    ids=["no_json", "no_list", "one_word", "a_number", "index", "job", "nodes", "tasks"],
)
def test_variables_that_do_not_hold_are_refused(variables, message):
    with pytest.raises(ValueError, match="Expected") as error:
        cluster.resolve(environment=variables)
    assert message in str(error.value)


# How workers wait for each other.


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_workers_wait_until_the_last_has_come(host):
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    addresses = tuple(address.replace("127.0.0.1", host) for address in free_addresses(3))
    arrived = []

    def join(index):
        cluster.wait_for_workers(Cluster(addresses, index, start_timeout_seconds=60))
        arrived.append(index)

    early = [threading.Thread(target=join, args=[index]) for index in (0, 2)]
    for thread in early:
        thread.start()
    early[0].join(1)
    assert not arrived
    join(1)
    for thread in early:
        thread.join(60)
    assert sorted(arrived) == [0, 1, 2]


def test_a_worker_that_does_not_come_is_named():
    here, there = free_addresses()
    with pytest.raises(ValueError, match="started") as error:
        cluster.wait_for_workers(Cluster((here, there), 0, start_timeout_seconds=0.2))
    assert str(error.value) == (
        "Not all workers have started. Expected 2 within 0.2 seconds. Received: all but worker 1, "
        f"{there}: Connection refused. Start each with the same command and its own "
        "--worker-index, or wait longer with --start-timeout."
    )


def test_another_program_on_the_port_is_no_worker():
    here, there = free_addresses()
    with (
        socket.create_server(("", int(there.rpartition(":")[2]))),
        pytest.raises(ValueError, match=f"all but worker 1, {there}: it did not call"),
    ):
        cluster.wait_for_workers(Cluster((here, there), 0, start_timeout_seconds=0.2))


def test_a_port_that_is_in_use_is_named():
    addresses = free_addresses()
    port = int(addresses[1].rpartition(":")[2])
    with socket.create_server(("", port)), pytest.raises(ValueError, match="its port") as error:
        cluster.wait_for_workers(Cluster(addresses, 1))
    assert f"Expected {port} to be free. Received: [Errno" in str(error.value)


@pytest.mark.slow
def test_a_missing_worker_ends_the_training_before_it_begins(tmp_path):
    workers = ",".join(free_addresses())
    arguments = ("--workers", workers, "--worker-index", "1", "--start-timeout", "0.5")
    answer = training("train", "digits-resnet20", *arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert "Error: Not all workers have started. Expected 2 within 0.5 seconds." in answer.stderr
    assert "Received: all but worker 0, 127.0.0.1:" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list(tmp_path.iterdir())


# What they do together.

MEMBER = """
import signal, sys
import keras, numpy as np, tensorflow as tf
from training import averaging, cluster, datasets, pipeline, workers
from training.strategy import make_strategy

member = cluster.resolve()
strategy = make_strategy(cluster=member)
digits = datasets.load("digits")

def shares(batches, steps):
    found = []
    for batch, _ in zip(strategy.experimental_distribute_dataset(batches), range(steps)):
        found += [strategy.experimental_local_results(part)[0].numpy() for part in batch]
    return found

training = pipeline.training_batches(
    digits, batch_size=32, augmentation={"shift": {}}, preprocessing=digits.preprocessing, seed=0
)
validation = pipeline.evaluation_batches(
    digits.splits["validation"], batch_size=50, preprocessing=digits.preprocessing
)
with strategy.scope():
    network = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
network.layers[0].moving_mean.assign([member.index, 1.0, 10.0 * member.index])
workers.average_moving_statistics(network)
with strategy.scope():
    network.compile(keras.optimizers.SGD(use_ema=True))
    network.optimizer.build(network.trainable_variables)
averages = {f"average/{network.layers[0].moving_mean.path}": np.full(3, 2.0 * member.index)}
swap = averaging.SwapAverages(averages, 0.9)
swap.set_model(network)
means = [network.layers[0].moving_mean.numpy()]
for switch in (swap.on_test_begin, swap.on_test_end):
    switch()
    means.append(network.layers[0].moving_mean.numpy())
try:
    workers.check_agreement(strategy, batch_size=32, step=member.index)
except ValueError as error:
    disagreement = str(error)
np.savez(
    f"{sys.argv[1]}/{member.index}.npz",
    *shares(training, 3), *shares(validation, 9),
    means=means, disagreement=disagreement,
)
signal.raise_signal(signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """What two processes found in one program."""
    folder = tmp_path_factory.mktemp("members")
    addresses = free_addresses()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, folder],
            env=environment(TF_CONFIG=Cluster(addresses, index).to_tf_config()),
        )
        for index in range(2)
    ]
    # TensorFlow's handler for the signal would let them go on.
    assert [process.wait(300) for process in processes] == [-signal.SIGTERM] * 2
    return [dict(np.load(folder / f"{index}.npz")) for index in range(2)]


def test_the_shares_of_all_workers_are_the_batches_of_one_process(members):
    digits = datasets.load("digits")
    common = {"preprocessing": digits.preprocessing}
    training = pipeline.training_batches(
        digits, batch_size=32, augmentation={"shift": {}}, seed=0, **common
    )
    validation = pipeline.evaluation_batches(digits.splits["validation"], batch_size=50, **common)
    expected = [*training.take(3).as_numpy_iterator(), *validation.as_numpy_iterator()]
    expected = [part for batch in expected for part in batch]
    shares = [sorted(name for name in member if name.startswith("arr_")) for member in members]
    assert len(shares[0]) == len(shares[1]) == len(expected)
    for number, whole in enumerate(expected):
        parts = [member[f"arr_{number}"] for member in members]
        assert len(parts[0]) == len(parts[1])
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_moving_statistics_are_averaged_over_the_workers(members):
    for member in members:
        latest, validated, afterwards = member["means"]
        np.testing.assert_allclose(latest, [0.5, 1.0, 5.0])
        np.testing.assert_allclose(validated, [1.0, 1.0, 1.0])
        np.testing.assert_allclose(afterwards, latest)


def test_workers_that_do_not_agree_say_so(members):
    for index, member in enumerate(members):
        assert str(member["disagreement"]) == (
            "The workers do not train the same. Expected one step for all of them. Received: "
            f"{index} on worker {index}, and something else on worker {1 - index}. Give all of "
            "them the same command, data, and run directory."
        )


def in_one_process(recipe, run_dir):
    """The same run on two replicas of this process, which see the same shares of each batch."""
    record = loop.train(recipe, replicas=2, run_dir=run_dir, verbose=0)
    return keras.saving.load_model(run_dir / records.LAST), record


def launched(recipe, folder):
    """A run of two processes."""
    write_recipe(recipe, folder / "recipe.json")
    answer = training("launch", "train", "recipe.json", "--run-dir", "run", cwd=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run_dir = folder / "run"
    return keras.saving.load_model(run_dir / records.LAST), records.read(run_dir), answer


@pytest.mark.parametrize("synchronized", [False, True], ids=["apart", "together"])
@pytest.mark.slow
def test_two_processes_learn_what_one_process_learns(tmp_path, synchronized):
    recipe = dataclasses.replace(TINY, synchronized_batch_norm=synchronized)
    network, record, answer = launched(recipe, tmp_path)
    expected, expected_record = in_one_process(recipe, tmp_path / "expected")
    for variable, other in zip(
        [*network.variables, *network.optimizer.variables],
        [*expected.variables, *expected.optimizer.variables],
    ):
        np.testing.assert_allclose(variable, other, atol=1e-5, err_msg=variable.path)
    assert record.replicas == expected_record.replicas == 2
    scores, expected_scores = record.results, expected_record.results
    assert scores["validation_accuracy"] == pytest.approx(expected_scores["validation_accuracy"])
    assert scores["test"]["confusion"] == expected_scores["test"]["confusion"]
    assert sum(map(sum, scores["test"]["confusion"])) == 360
    assert answer.stdout.count("python -m training evaluate") == 1
