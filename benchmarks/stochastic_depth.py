"""Step time of stochastic depth against constant depth, on this machine.

    python -m benchmarks.stochastic_depth [--depth 56] [--batch 64] [--rounds 9] [--steps 4]

Alternates, in one process: constant depth, stochastic depth per batch (a dropped residual is not
computed), and per image (all are computed, and multiplied by 0 or 1). With linear survival down to
0.5 three quarters of the residuals are computed on average (Huang et al. 2016: (3L-1)/4 of L).
"""

import argparse
import functools

import numpy as np
import tensorflow as tf

import keras_resnet
from benchmarks import alternation
from training import pipeline

KINDS = {
    "constant depth": {},
    "dropped per batch": {"survival_probability": 0.5},
    "dropped per image": {"survival_probability": 0.5, "survival_per_image": True},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    images = rng.normal(size=(arguments.batch * arguments.steps, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, len(images))
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(arguments.batch)
    batches = pipeline.ready(batches)
    candidates = {}
    for kind, options in KINDS.items():
        model = keras_resnet.CifarResNet(depth=arguments.depth, **options)
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        epoch = functools.partial(model.fit, batches, shuffle=False, verbose=0)
        epoch()
        candidates[kind] = epoch
    print(f"CifarResNet(depth={arguments.depth}), batch {arguments.batch}")
    alternation.compare(candidates, rounds=arguments.rounds, per_call=arguments.steps)


if __name__ == "__main__":
    main()
