"""What a thousand layers cost before the first image is learnt: from building to the first step.

    python -m benchmarks.deep_networks [--depths 110 1202] [--repeats 3] [--stock]

Each network runs in a process of its own, `repeats` times; printed are medians in seconds, with the
smallest and the largest. The stock row is what Keras does with the same layers: its own batch
normalisation, and a training step that is traced twice.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import alternation
from benchmarks.train_step import stock_twin

NETWORKS = {
    "110": "cifar_resnet110",
    "1202": "cifar_resnet1202",
    "1001": "cifar_resnet1001v2",
}
PHASES = ("build", "save", "load", "clone", "first step", "later step")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depths", nargs="+", default=["110"], choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stock", action="store_true", help="add stock Keras's training step")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    kinds = ["ours", "stock"] if arguments.stock else ["ours"]
    runs = {(depth, kind): [] for depth in arguments.depths for kind in kinds}
    for _ in range(arguments.repeats):
        for (depth, kind), durations in runs.items():  # in alternation: machines drift
            durations.append(in_a_process(NETWORKS[depth], kind))
    print(f"{'network':<22}" + "".join(f"{phase:>22}" for phase in PHASES))
    for (depth, kind), durations in runs.items():
        cells = [cell([run[phase] for run in durations if phase in run]) for phase in PHASES]
        print(f"{NETWORKS[depth] + ' ' + kind:<22}" + "".join(f"{cell:>22}" for cell in cells))


def cell(seconds):
    return alternation.spread(seconds, 1) if seconds else "-"


def in_a_process(network, kind):
    command = [sys.executable, "-m", "benchmarks.deep_networks", "--measure", network, kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(network, kind):
    """Seconds of each phase."""
    import keras
    import numpy as np

    import keras_resnet

    seconds = {}

    def timed(phase, call):
        start = time.perf_counter()
        result = call()
        seconds[phase] = time.perf_counter() - start
        return result

    keras_resnet.CifarResNet(depth=8)  # TensorFlow has started
    if kind == "stock":
        model = timed("build", lambda: stock_twin(network))
    else:
        model = timed("build", lambda: keras_resnet.build(network))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            timed("save", lambda: model.save(path))
            timed("load", lambda: keras.models.load_model(path))
        timed("clone", lambda: keras.models.clone_model(model))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    images, labels = np.zeros((2, 32, 32, 3), "float32"), np.zeros(2, "int32")
    timed("first step", lambda: model.train_on_batch(images, labels))
    timed("later step", lambda: model.train_on_batch(images, labels))
    return seconds


if __name__ == "__main__":
    main()
