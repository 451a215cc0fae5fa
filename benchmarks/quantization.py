"""What int8 costs each family of networks, and what each remedy gains, on CIFAR-10.

    TFDS_DATA_DIR=... python -m benchmarks.quantization [FAMILY ...] [--remedies] [--models DIR]

Trains a small member of each family with our recipe, exports it in 8 bits, and compares on the test
images; with `--remedies` also without each of the library's remedies. `--models` keeps the
networks, so that a second call does not train them again.
"""

import argparse
import contextlib
import dataclasses
import importlib
import pathlib
import tempfile
from unittest import mock

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_resnet
from keras_resnet import export
from keras_resnet.export import conversion, ranges
from keras_resnet.variants import VARIANTS
from training import datasets, pipeline
from training.optimizers import make_optimizer
from training.recipes import get_recipe

# The function of this module hides the module itself behind its name.
tflite_module = importlib.import_module("keras_resnet.export.tflite")

CALIBRATION_IMAGES = 500


def small(name, blocks=(2, 2, 2), filters=(16, 32, 64), **fields):
    """A row of the table as a small network for CIFAR-10."""
    fields = {"stem": "cifar", "stem_filters": 16, "classes": 10, **fields}
    fields["preprocessing"] = keras_resnet.preprocessing.CIFAR10
    return dataclasses.replace(VARIANTS[name], blocks=blocks, filters=filters, **fields)


FAMILIES = {
    "original": small("cifar_resnet20"),
    "projection": small("cifar_resnet20", shortcut="projection"),
    "plain": small("cifar_plainnet20"),
    "bottleneck": small("resnet50"),
    "pre-activation": small("cifar_resnet110v2"),
    "pre-activation bottleneck": small("cifar_resnet164v2"),
    "wide": small("wide_resnet40_2", filters=(32, 64, 128)),
    "wide bottleneck": small("wide_resnet50_2"),
    "resnext": small("resnext50_32x4d", filters=(16, 32, 64), groups=8),
    "resnet-d": small("resnet50d"),
    "squeeze-and-excitation": small("se_resnet50"),
    "dense": small("densenet40_12", (4, 4, 4), (12, 12, 12)),
    "dense bottleneck": small("densenet_bc100_12", (4, 4, 4), (12, 12, 12), stem_filters=24),
    "highway": small("highwaynet19"),
    "exclusive gating": small("cifar_resnet20", shortcut="exclusive_gating"),
    "shortcut-only gating": small("cifar_resnet20", shortcut="shortcut_only_gating"),
    "stochastic depth": small("cifar_resnet110", survival_probability=0.8),
}

# Each takes one remedy of the library away.
REMEDIES = {
    "with ranges from minimum to maximum": lambda: mock.patch.object(
        ranges, "narrowed_ranges", lambda content, images: [content]
    ),
    "with the magnitudes of channels as they are": lambda: mock.patch.object(
        tflite_module, "equalize_channels", lambda model: model
    ),
    "with multiplications for batch normalisation": lambda: mock.patch.object(
        conversion, "as_convolution", lambda norm: norm
    ),
}


def trained(variant, dataset, *, steps: int, seed: int) -> keras.Model:
    """The network after our recipe for CIFAR-10, shortened."""
    keras.utils.set_random_seed(seed)
    recipe = get_recipe("cifar10-resnet20-fast").scaled(steps)
    if variant.activation_order == "no_normalization":  # diverges at the rates of the others
        recipe = recipe.changed({"learning_rate": 0.02, "warmup_learning_rate": 0.002})
    model = keras_resnet.build(variant)
    batches = pipeline.training_batches(
        dataset,
        batch_size=recipe.batch_size,
        augmentation=recipe.augmentation,
        preprocessing=model.preprocessing,
        seed=seed,
    )
    model.compile(make_optimizer(recipe), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(batches, steps_per_epoch=steps, verbose=0)
    return model


def test_images(dataset, model, count: int):
    """Test images as the network wants them, and their labels."""
    examples = dataset.splits["test"].examples().take(count).batch(1000).as_numpy_iterator()
    images, labels = (np.concatenate(parts) for parts in zip(*examples))
    return np.asarray(keras_resnet.preprocess_input(images, model)), labels


def measure(model, dataset, *, count: int, remedies: bool) -> dict[str, export.ExportReport]:
    """The report of the export as it is, and with `remedies` one for each row of `REMEDIES`."""
    images, labels = test_images(dataset, model, count)
    batches = pipeline.training_batches(
        dataset, batch_size=100, augmentation={}, preprocessing=model.preprocessing, seed=0
    )
    calibration = [images for images, _ in batches.take(CALIBRATION_IMAGES // 100)]
    reports = {}
    ways = {"as exported": contextlib.nullcontext} | (REMEDIES if remedies else {})
    for name, taken_away in ways.items():
        with tempfile.TemporaryDirectory() as folder, taken_away():
            reports[name] = export.tflite(
                model,
                pathlib.Path(folder) / "model.tflite",
                quantization="int8",
                representative_data=calibration,
                examples=images,
                labels=labels,
                tolerance=export.Tolerance(),  # whatever comes out is what is wanted here
            )
    return reports


def main():
    """Prints a table as the families come in, and the worst layers of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], help="default: all")
    parser.add_argument("--remedies", action="store_true", help="also without each of them")
    parser.add_argument("--steps", type=int, default=2000, help="of training, 128 images each")
    parser.add_argument("--images", type=int, default=10_000, help="how many test images")
    parser.add_argument("--models", type=pathlib.Path, help="folder to keep the networks in")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    dataset = datasets.load("cifar10")
    console = Console(width=120)
    table = Table(title=f"int8 after {arguments.steps:,} steps, {arguments.images:,} test images")
    for heading in ("family", "export", "float32", "int8", "loss, points", "agreement", "bytes"):
        table.add_column(heading, justify="left" if heading in ("family", "export") else "right")
    for family in arguments.families or FAMILIES:
        kept = arguments.models and arguments.models / f"{family.replace(' ', '_')}.keras"
        if kept and kept.exists():
            model = keras.saving.load_model(kept, compile=False)
        else:
            model = trained(FAMILIES[family], dataset, steps=arguments.steps, seed=arguments.seed)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                model.save(kept)
        reports = measure(model, dataset, count=arguments.images, remedies=arguments.remedies)
        for name, report in reports.items():
            loss = report.keras_accuracy - report.accuracy
            table.add_row(
                family,
                name,
                f"{report.keras_accuracy:.2%}",
                f"{report.accuracy:.2%}",
                f"{100 * loss:.2f}",
                f"{report.top1_agreement:.2%}",
                f"{report.bytes:,}",
            )
            worst = ", ".join(f"{layer} {error:.3f}" for layer, error in report.worst_layers(3))
            console.print(f"{family}, {name}: loss {100 * loss:.2f} points; {worst}")
    console.print(table)


if __name__ == "__main__":
    main()
