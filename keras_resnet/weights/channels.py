"""Kernels that were learnt on colours, for images of another number of channels."""

import numpy as np


def spread_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The kernel of a first convolution for another number of input channels.

    An image whose channels are all alike gives the same output before and after. One channel has
    the sum of the kernels, two share it. More take the kernels in turn, and those that share one
    have equal parts of it. (timm scales all of them alike, which keeps the output for multiples of
    three channels only.)

    Args:
        kernel: Array of shape `(height, width, channels, filters)`.
        channels: Number of channels of the result, at least 1.

    Returns:
        Array of shape `(height, width, channels, filters)`.
    """
    known = kernel.shape[2]
    if channels < known:
        total = kernel.sum(axis=2, keepdims=True, dtype="float64") / channels
        return np.repeat(total, channels, axis=2).astype(kernel.dtype)
    sources = np.arange(channels) % known
    shares = np.bincount(sources)[sources]
    return (kernel[:, :, sources] / shares[:, None]).astype(kernel.dtype)
