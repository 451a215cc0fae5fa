"""Strategies over logical CPU devices, and replicas that stay one model."""

import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from training import strategy as strategies
from training.cluster import Cluster
from training.strategy import check_batch_size, make_strategy

without_gpu = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="is about a machine without a GPU"
)


@without_gpu
def test_replicas_are_logical_cpu_devices():
    strategy = make_strategy(2)
    assert strategy.num_replicas_in_sync == 2
    assert all("CPU" in device for device in strategy.extended.worker_devices)
    assert make_strategy().num_replicas_in_sync == 1


@without_gpu
def test_two_strategies_live_in_one_process():
    for width in (3, 5):  # the default all-reduce mixes up their gradients
        with make_strategy(2).scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(width)])
            model.compile("sgd", "mse")
        model.fit(np.ones((8, 2)), np.ones((8, width)), verbose=0)


@pytest.mark.parametrize("replicas", [0, -1])
def test_no_device_is_refused(replicas):
    with pytest.raises(ValueError, match="one device") as error:
        make_strategy(replicas)
    assert str(error.value) == (
        "A strategy needs at least one device. Expected `replicas` >= 1. "
        f"Received: replicas={replicas}"
    )


@without_gpu
def test_dividing_too_late_is_refused():
    program = (
        "import tensorflow as tf; tf.constant(1) + 1\n"
        "from training.strategy import make_strategy\n"
        "make_strategy(2)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stderr.strip().endswith(
        "ValueError: TensorFlow already runs and can no longer divide the CPU. Expected `replicas` "
        "<= 1. Received: replicas=2. Make the strategy before anything else, in a fresh process "
        "(in a notebook: restart the kernel)."
    )


@without_gpu
def test_in_the_scope_of_a_strategy_it_is_that_one():
    with make_strategy(2).scope():
        assert make_strategy().num_replicas_in_sync == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tpu": "local"},
            "The TPU does not answer. Expected the name of a Cloud TPU, or 'local' on its own "
            "machine. Received: 'local' (TPUs not found in the cluster.",
        ),
        (
            {"tpu": "local", "cluster": Cluster(("a:1", "b:2"), 0)},
            "A run has a cluster or a TPU. Expected one of them. Received: a:1, b:2 and 'local'",
        ),
        (
            {"tpu": "local", "replicas": 2},
            "A TPU is trained on as a whole. Expected no number of replicas beside it. Received: "
            "replicas=2, tpu='local'.",
        ),
    ],
    ids=["missing", "both", "divided"],
)
def test_a_tpu_that_cannot_be_used_is_refused(options, message):
    with pytest.raises(ValueError, match="TPU") as error:
        make_strategy(**options)
    assert message in str(error.value)


def test_channels_first_is_refused_where_images_have_them_last():
    keras.config.set_image_data_format("channels_first")
    with pytest.raises(ValueError, match="image_data_format") as error:
        make_strategy()
    assert str(error.value) == (
        "The images that training reads have their channels last. Expected Keras's "
        "image_data_format 'channels_last'. Received: 'channels_first'. Change it in "
        "~/.keras/keras.json, or by keras.config.set_image_data_format."
    )


@without_gpu
def test_the_cpu_of_a_worker_is_not_divided():
    with pytest.raises(ValueError, match="divide") as error:
        make_strategy(2, cluster=Cluster(("127.0.0.1:1", "127.0.0.1:2"), 0))
    assert str(error.value) == (
        "TensorFlow does not divide the CPU of a worker. Expected `replicas` <= 1 in a cluster "
        "without GPUs. Received: replicas=2. Start more workers instead."
    )


@without_gpu
def test_a_worker_may_wait_for_ever(monkeypatch):
    monkeypatch.setattr(strategies, "wait_for_workers", lambda _: None)
    monkeypatch.setattr(
        tf.distribute, "MultiWorkerMirroredStrategy", lambda cluster_resolver: cluster_resolver
    )
    cluster = Cluster(("a:1", "b:2"), 1, start_timeout_seconds=math.inf)
    assert make_strategy(cluster=cluster).task_id == 1


@pytest.mark.parametrize(("batch_size", "remedy"), [(127, "126 or 128"), (1, "2")])
def test_batches_that_do_not_divide_are_refused(batch_size, remedy):
    with pytest.raises(ValueError, match="share") as error:
        check_batch_size(batch_size, make_strategy(2))
    assert str(error.value) == (
        "2 replicas cannot share the batch evenly. Expected a batch size that is a multiple of 2. "
        f"Received: batch_size={batch_size}. Use {remedy}."
    )


@pytest.mark.parametrize("accumulation_steps", [0, -1])
def test_a_share_in_no_parts_is_refused(accumulation_steps):
    with pytest.raises(ValueError, match=f"Received: accumulation_steps={accumulation_steps}."):
        check_batch_size(32, make_strategy(1), accumulation_steps)
