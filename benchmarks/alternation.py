"""Fair timing on a noisy machine: candidates take turns, and ratios are taken turn by turn."""

import statistics
import time
from collections.abc import Callable, Mapping

PEAK = "product of matrices"
_SIDE = 2048  # of these matrices
PEAK_OPERATIONS = 2 * _SIDE**3


def matrix_product() -> Callable[[], object]:
    """A function that multiplies two float32 matrices: about the fastest arithmetic there is."""
    import tensorflow as tf

    matrix = tf.random.normal((_SIDE, _SIDE))
    return lambda: tf.matmul(matrix, matrix).numpy()


def compare(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, per_call: int = 1
) -> dict[str, list[float]]:
    """Times candidates in alternation and prints a table.

    Args:
        candidates: Functions by name, already warm; the first is what the others are compared with.
        rounds: How often each has its turn.
        per_call: Steps that one call makes.

    Returns:
        Seconds per step by name, one for each round.
    """
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - start) / per_call)
    first = next(iter(seconds))
    print(f"{'':<24}{'ms per step':>14}{'ratio to ' + first:>36}")
    for name, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, seconds[first])]
        print(f"{name:<24}{1000 * statistics.median(times):>14.1f}{spread(ratios, 2):>36}")
    return seconds


def spread(values, digits: int) -> str:
    """The median, with the smallest and the largest behind it."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"
