"""Weights out of HDF5 files, read in a process of their own.

HDF5 is a C library that a damaged or hostile file can crash, hang or fill the memory with. This
file is run as a script: it reads HDF5 from its standard input and writes safetensors to its
standard output. It imports nothing of this package, so that it starts in a quarter of a second.
"""

import os
import subprocess
import sys

_TIMEOUT_SECONDS = 300
_MEMORY_FACTOR, _MEMORY_BYTES = 8, 2 * 2**30  # of the file's size, and besides

# Layers of Keras 3's own files count their weights.
_WEIGHTS = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read(content: bytes) -> bytes:
    """The floating-point weights of an HDF5 file as safetensors, called `layer/weight`.

    Two layouts are known: that of `keras.applications`, whose data sets carry the names of weights,
    and that of Keras 3's `.weights.h5`, whose groups carry the names of layers.

    Args:
        content: The file.

    Raises:
        ValueError: If it cannot be read, or reading crashes or does not end.
    """
    try:
        # The same packages as here, wherever they come from; `-P`: but none of this directory.
        result = subprocess.run(
            [sys.executable, "-P", __file__],
            input=content,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError("reading it does not end") from error
    if result.returncode:
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(last[0] if last else f"HDF5 crashes on it, code {result.returncode}")
    return result.stdout


def extract(content: bytes) -> dict:
    """What `read` does, in this process.

    Args:
        content: The file.

    Returns:
        Float32 or float64 arrays by name.
    """
    import h5py
    import numpy as np

    tensors, left = {}, len(content)
    with h5py.File.in_memory(content) as file:
        link = file.get("model_weights", getlink=True)  # of a whole model
        root = file["model_weights"] if isinstance(link, h5py.HardLink) else file
        for path, dataset in _datasets(root):
            if dataset.external or dataset.is_virtual:
                raise ValueError(f"{path} lies in another file")
            # A few bytes can claim any shape, or point at the same values again and again.
            left -= dataset.nbytes
            if left < 0 or dataset.id.get_storage_size() != dataset.nbytes:
                raise ValueError(f"{path} claims {dataset.nbytes} bytes that are not in the file")
            name = _name(path, dataset)
            if name in tensors:
                raise ValueError(f"{name} is there twice")
            values = dataset[()]
            if _is_bfloat16(dataset):  # the upper half of a float32
                values = (values.view("<u2").astype("<u4") << 16).view("<f4")
            tensors[name] = values.astype(np.result_type(values.dtype, "float32"))
    return tensors


def _is_bfloat16(dataset):
    """HDF5 has no such type: Keras writes the bytes, and beside them what they are."""
    return dataset.dtype == "V2" and dataset.attrs.get("dtype") == "bfloat16"


def _datasets(group):
    """The data sets with floating-point values below a group; links to elsewhere not followed."""
    import h5py

    found = []

    def visit(path, entry):
        is_state = path.startswith("optimizer")
        if not isinstance(entry, h5py.Dataset) or is_state:
            return
        if entry.dtype.kind == "f" or _is_bfloat16(entry):
            found.append((path, entry))

    group.visititems(visit)
    return found


def _name(path, dataset):
    """What a data set is called here: by its group in Keras 3's files, else by itself."""
    parts = path.split("/")
    if parts[-2:-1] != ["vars"]:
        return f"{parts[0]}/{parts[-1].removesuffix(':0')}"
    group = dataset.parent
    weights = _WEIGHTS.get(len(group))
    if weights is None or "name" not in group.attrs:
        return path
    return f"{group.attrs['name']}/{weights[int(parts[-1])]}"


def _limit_memory(size):
    if sys.platform == "linux":
        import resource

        # Libraries reserve addresses for each core before they begin: on large machines, gigabytes.
        with open("/proc/self/statm") as file:
            reserved = int(file.read().split()[0]) * resource.getpagesize()
        most = reserved + _MEMORY_FACTOR * size + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Reads standard input, writes standard output; an error is one line on standard error."""
    import safetensors.numpy

    content = sys.stdin.buffer.read()
    _limit_memory(len(content))
    try:
        tensors = extract(content)
    except Exception as error:  # h5py raises whatever the C library meets
        sys.exit(f"{type(error).__name__}: {error}".replace("\n", " "))
    sys.stdout.buffer.write(safetensors.numpy.save(tensors))


if __name__ == "__main__":
    main()
