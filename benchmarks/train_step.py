"""Training step of a network of this package against its stock twin, on this machine.

    python benchmarks/train_step.py [--network NAME] [--batch 128] [--rounds 9] [--steps 4]

The twin has the same layers but Keras's own batch normalisation and training step. Both alternate
in one process.
"""

import argparse
import functools

import alternation
import keras
import numpy as np

import keras_resnet
from keras_resnet import parts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="cifar_resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()

    stock, ours = stock_twin(arguments.network), keras_resnet.build(arguments.network)
    shape = (arguments.batch * arguments.steps, *ours.input_shape[1:])
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    labels = np.arange(len(images)) % 10
    candidates = {}
    for name, model in {"stock": stock, "keras_resnet": ours}.items():
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        epoch = functools.partial(model.fit, images, labels, batch_size=arguments.batch, verbose=0)
        epoch()
        candidates[name] = epoch
    print(f"{arguments.network}, batch {arguments.batch}, float32")
    alternation.compare(candidates, rounds=arguments.rounds, per_call=arguments.steps)


def stock_twin(network):
    """The same network as a plain Keras model of plain Keras layers."""
    ours, parts.BatchNormalization = parts.BatchNormalization, keras.layers.BatchNormalization
    try:
        model = keras_resnet.build(network)
    finally:
        parts.BatchNormalization = ours
    return keras.Model(model.inputs, model.outputs)


if __name__ == "__main__":
    main()
