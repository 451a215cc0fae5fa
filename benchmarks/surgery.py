"""Surgery on a trained CIFAR-10 network: what is kept of its predictions, and what it costs.

    TFDS_DATA_DIR=... python -m benchmarks.surgery model.keras

Folds, deepens by 18 blocks and makes plain; compares each with the network on the test images.
"""

import argparse

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_resnet
from keras_resnet import surgery
from training import datasets

BLOCKS = 18


def deepen(model):
    """Spreads the blocks evenly over the stages."""
    return surgery.deepen(model, BLOCKS // len(model.variant.blocks))


OPERATIONS = {
    "fold batch normalisation": surgery.fold_batch_norm,
    f"deepen by {BLOCKS} blocks": deepen,
    "to plain": surgery.to_plain,
}


def test_images(model, count):
    """The first test images of CIFAR-10 as the network wants them, and their labels."""
    examples = datasets.load("cifar10").splits["test"].examples().take(count)
    batches = list(examples.batch(1000).as_numpy_iterator())
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    return np.asarray(keras_resnet.preprocess_input(images, model)), labels


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a trained CIFAR-10 network, saved as .keras")
    parser.add_argument("--images", type=int, default=10_000, help="how many test images")
    arguments = parser.parse_args()

    model = keras.saving.load_model(arguments.model, compile=False)
    images, labels = test_images(model, arguments.images)
    before = model.predict(images, batch_size=500, verbose=0)
    accuracy = np.mean(before.argmax(-1) == labels)
    table = Table(title=f"{model.name}, accuracy {accuracy:.2%} on {len(images):,} test images")
    for heading in (
        "operation",
        f"predictions kept of {len(images):,}",
        "largest probability difference",
        "parameters",
        "multiply-adds",
    ):
        table.add_column(heading, justify="left" if heading == "operation" else "right")
    for name, operate in {"none": lambda model: model, **OPERATIONS}.items():
        result = operate(model)
        after = result.predict(images, batch_size=500, verbose=0)
        table.add_row(
            name,
            f"{np.sum(after.argmax(-1) == before.argmax(-1)):,}",
            f"{np.abs(after - before).max():.1e}",
            f"{result.count_params():,}",
            f"{keras_resnet.count_macs(result):,}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
