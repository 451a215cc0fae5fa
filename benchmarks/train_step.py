"""Training step of a network of this package, its stock Keras twin and PyTorch, on this machine.

    python benchmarks/train_step.py [--network NAME] [--batch 128] [--rounds 9] [--steps 4]

The stock twin has the same layers but Keras's own batch normalisation and training step; PyTorch
runs where it is installed, in its faster memory format (channels last). All alternate in one
process, on the same images, in float32, with SGD, momentum and coupled weight decay.
"""

import argparse
import functools
import importlib.util

import alternation
import keras
import numpy as np

import keras_resnet
from keras_resnet import parts
from training.optimizers import CoupledSGD


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="cifar_resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()

    ours = keras_resnet.build(arguments.network)
    shape = (arguments.batch * arguments.steps, *ours.input_shape[1:])
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    labels = np.arange(len(images)) % 10
    candidates = {}
    for name, model in {"keras_resnet": ours, "stock": stock_twin(arguments.network)}.items():
        optimizer = CoupledSGD(0.01, momentum=0.9, weight_decay=1e-4)
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
        candidates[name] = functools.partial(
            model.fit, images, labels, batch_size=arguments.batch, shuffle=False, verbose=0
        )
    if importlib.util.find_spec("torch"):
        import torch_twins

        network = torch_twins.twin(ours.variant, ours.output_shape[-1])
        count = sum(weight.numel() for weight in network.parameters())
        assert count == sum(np.prod(weight.shape) for weight in ours.trainable_weights)
        candidates["pytorch"] = torch_twins.training_steps(network, images, labels, arguments.batch)
    for steps in candidates.values():
        steps()
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
