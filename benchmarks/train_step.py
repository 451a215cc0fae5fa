"""Training step of a network of this package, its stock Keras twin and PyTorch, on this machine.

    python -m training benchmark train [NETWORK] [--batch-size 128] [--rounds 7] [--steps 6]

The stock twin has the same layers but Keras's own batch normalisation and training step. PyTorch
runs where it is installed, in its faster memory format (channels last), and in float32 in its
default one too. All alternate in one process, on the same images, with SGD, momentum and coupled
weight decay; in float32, and with convolutions in bfloat16, which is faster only on processors with
instructions for it. A product of matrices in the same run tells how much of the arithmetic that the
machine can do is done.
"""

import functools
import importlib.util

import keras
import numpy as np
import tensorflow as tf

import keras_resnet
from benchmarks import alternation
from keras_resnet import parts
from training import pipeline
from training.optimizers import CoupledSGD

# Which is compared with which.
PAIRS = (
    ("keras_resnet", "stock"),
    ("keras_resnet", "pytorch"),
    ("keras_resnet", "pytorch channels first"),
    ("keras_resnet bfloat16", "stock bfloat16"),
    ("keras_resnet bfloat16", "pytorch bfloat16"),
    ("keras_resnet bfloat16", "keras_resnet"),
    ("keras_resnet bfloat16", "pytorch"),
)


def compare(network: str, *, batch_size: int, steps: int, rounds: int) -> None:
    """Prints the milliseconds of a step of each, and the ratios.

    Args:
        network: Name of the network.
        batch_size: Images per step.
        steps: Steps per turn.
        rounds: Turns of each candidate.
    """
    ours = keras_resnet.build(network)
    shape = (batch_size * steps, *ours.input_shape[1:])
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    labels = np.arange(len(images)) % 10
    models = {
        "keras_resnet": ours,
        "keras_resnet bfloat16": in_bfloat16(lambda: keras_resnet.build(network)),
        "stock": stock_twin(network),
        "stock bfloat16": in_bfloat16(lambda: stock_twin(network)),
    }
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size)
    batches = pipeline.ready(batches)
    compiles = keras.backend.backend() == "jax"  # TensorFlow's steps are faster without on CPUs
    candidates = {}
    for name, model in models.items():
        optimizer = CoupledSGD(0.01, momentum=0.9, weight_decay=1e-4)
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=compiles)
        candidates[name] = functools.partial(model.fit, batches, shuffle=False, verbose=0)
    if importlib.util.find_spec("torch"):
        from benchmarks import torch_twins

        kinds = {
            "pytorch": {},
            "pytorch channels first": {"channels_last": False},
            "pytorch bfloat16": {"bfloat16": True},
        }
        if not torch_twins.has_twin(ours.variant):
            print(f"{network} is not written in PyTorch: left out.")
            kinds = {}
        for name, options in kinds.items():
            twin = torch_twins.twin(ours.variant, ours.output_shape[-1])
            count = sum(weight.numel() for weight in twin.parameters())
            assert count == sum(np.prod(weight.shape) for weight in ours.trainable_weights)
            candidates[name] = torch_twins.training_steps(
                twin, images, labels, batch_size, **options
            )
    multiply = alternation.matrix_product()
    candidates[alternation.PEAK] = lambda: [multiply() for _ in range(steps)]
    for each in candidates.values():
        each()
    print(f"{network}, batch {batch_size}")
    seconds = alternation.compare(candidates, rounds=rounds, per_call=steps)
    products = seconds.pop(alternation.PEAK)
    # Forwards once, backwards twice: with respect to the features, and to the weights.
    operations = 3 * 2 * keras_resnet.count_macs(ours) * batch_size
    for name, times in seconds.items():
        shares = [
            operations / time / (alternation.PEAK_OPERATIONS / product)
            for time, product in zip(times, products)
        ]
        print(f"{name:<24}{alternation.spread(shares, 2)} of the arithmetic of that product")
    for ours, other in PAIRS:
        if other in seconds:
            ratios = [theirs / mine for mine, theirs in zip(seconds[ours], seconds[other])]
            print(f"{ours} is {alternation.spread(ratios, 2)} times as fast as {other}")


def in_bfloat16(build):
    """What `build` builds, with its convolutions in bfloat16."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(policy)


def stock_twin(network):
    """The same network as a plain Keras model of plain Keras layers."""
    ours, parts.BatchNormalization = parts.BatchNormalization, keras.layers.BatchNormalization
    try:
        model = keras_resnet.build(network)
    finally:
        parts.BatchNormalization = ours
    return keras.Model(model.inputs, model.outputs)
