"""The structure of a network as a short record, and the writer of `golden/*.json`.

`python tests/structure.py` writes them all anew; look at the difference before you commit it.
"""

import functools
import gc
import itertools
import json
import pathlib
import re

import keras

import keras_resnet

GOLDEN = pathlib.Path(__file__).parent / "golden"
COMMAND = "python tests/structure.py"


@functools.cache
def build_unallocated(name, **options):
    """The network without values for its weights: their names, shapes and graph, in little time."""
    with keras.StatelessScope(initialize_variables=False):
        model = keras_resnet.build(name, **options)
    keras.utils.clear_session(free_memory=False)  # forgets that the weights wait to be given values
    gc.freeze()  # or every later collection walks these large graphs
    return model


def structure(model):
    """Name, shape and dtype of every weight in order, equal blocks in a row written once.

    Returns:
        Dict from a part, e.g. `"stem"` or `"stage1_block2..18"`, to lines such as
        `"conv1/kernel float32 3x3x16x16"`.
    """
    rows = []
    for weight in model.weights:
        part, name = re.match(r"(stage\d+(?:_block\d+)?|[a-z]+)[_/]?(.+)", weight.path).groups()
        shape = "x".join(map(str, weight.shape))
        rows.append((part, f"{name} {weight.dtype} {shape}"))
    parts = [
        (part, [line for _, line in lines])
        for part, lines in itertools.groupby(rows, key=lambda row: row[0])
    ]
    record = {}
    for (stage, lines), run in itertools.groupby(
        parts, key=lambda part: (part[0].split("_block")[0], part[1])
    ):
        names = [name for name, _ in run]
        last = names[-1].removeprefix(f"{stage}_block")
        key = names[0] if len(names) == 1 else f"{names[0]}..{last}"
        assert key not in record, f"the weights of {key} do not stand together"
        record[key] = lines
    return record


def write():
    """Writes the record of every variant to `golden/`."""
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name in keras_resnet.list_variants():
        record = structure(build_unallocated(name))
        (GOLDEN / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    write()
