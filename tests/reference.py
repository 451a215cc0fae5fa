"""Residual networks in NumPy float64, written from the papers' equations, to test against.

Nothing here comes from `keras_resnet`: the blocks are those of He et al. 2016, figure 4, spelled as
in the figure; the convolutions pad symmetrically, as Caffe and torch do.
"""

import numpy as np

BN_EPSILON = 1e-5

# W a convolution, B batch normalisation, R ReLU, + the addition of the shortcut.
PROGRAMS = {
    ("basic", "original"): "WBRWB+R",
    ("basic", "bn_after_addition"): "WBRW+BR",
    ("basic", "relu_before_addition"): "WBRWBR+",
    ("basic", "relu_pre_activation"): "RWBRWB+",
    ("basic", "full_pre_activation"): "BRWBRW+",
    ("bottleneck", "original"): "WBRWBRWB+R",
    ("bottleneck", "bn_after_addition"): "WBRWBRW+BR",
    ("bottleneck", "relu_before_addition"): "WBRWBRWBR+",
    ("bottleneck", "relu_pre_activation"): "RWBRWBRWB+",
    ("bottleneck", "full_pre_activation"): "BRWBRWBRW+",
}


def conv2d(x, kernel, bias=0.0, strides=1, dilation=1):
    """Cross-correlation of (N, H, W, C) with (k, k, C, F), padded by `dilation * (k // 2)`.

    A kernel of (k, k, C / groups, F) sees the channels, and makes its own, group by group.
    """
    groups = x.shape[-1] // kernel.shape[2]
    if groups > 1:
        pairs = zip(np.split(x, groups, axis=-1), np.split(kernel, groups, axis=-1))
        parts = [conv2d(*pair, strides=strides, dilation=dilation) for pair in pairs]
        return np.concatenate(parts, axis=-1) + bias
    size = kernel.shape[0]
    reach, padding = dilation * (size - 1), dilation * (size // 2)
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = x.shape[1] - reach, x.shape[2] - reach
    return bias + sum(
        x[:, i : i + height : strides, j : j + width : strides]
        @ kernel[i // dilation, j // dilation]
        for i in range(0, reach + 1, dilation)
        for j in range(0, reach + 1, dilation)
    )


def max_pool(x):
    """3x3 of stride 2; the padding never wins."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = x.shape[1] - 2, x.shape[2] - 2
    taps = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return np.max(taps, axis=0)


def average_pool(x):
    """2x2 of stride 2; at an odd border the average of the pixels that there are."""
    rows = [x[:, i : i + 2].mean(axis=1) for i in range(0, x.shape[1], 2)]
    return np.stack(
        [
            np.stack([row[:, j : j + 2].mean(axis=1) for j in range(0, x.shape[2], 2)], axis=1)
            for row in rows
        ],
        axis=1,
    )


def relu(x):
    return np.maximum(x, 0.0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def batch_norm(x, gamma, beta, mean, variance, training=False):
    """Ioffe & Szegedy 2015, algorithm 1 (training) and 2."""
    if training:
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return gamma * (x - mean) / np.sqrt(variance + BN_EPSILON) + beta


def shortcut(x, weights, kind, strides, filters, changes, training):
    """Options A, B, C of He et al. 2015, section 4.1; A also as it is padded elsewhere."""
    if kind.startswith("zero_padding"):
        x = x[:, ::strides, ::strides]
        new = filters - x.shape[-1]
        before = new // 2 if kind == "zero_padding_both" else 0
        return np.pad(x, ((0, 0), (0, 0), (0, 0), (before, new - before)))
    if kind == "projection" and not changes:
        return x
    x = conv2d(x, *weights["shortcut_conv"], strides=strides)
    has_bn = "shortcut_bn" in weights
    return batch_norm(x, *weights["shortcut_bn"], training=training) if has_bn else x


def block(
    x,
    weights,
    program,
    kind,
    *,
    strides=1,
    strided_conv=1,
    dilations=(1, 1),
    is_first=False,
    training=False,
):
    """One block; `weights` maps "conv1", "bn2", "shortcut_conv", ... to lists of arrays.

    `strided_conv` counts from 1; `dilations` are those up to and including it, and after it.
    """
    convs = bns = 0
    filters = weights[f"conv{program.count('W')}"][0].shape[-1]
    changes = strides > 1 or x.shape[-1] != filters
    carried = x
    for letter in program:
        if letter == "W":
            convs += 1
            if convs == 1 and (changes or is_first):
                carried = x  # He et al. 2016, appendix: here the shortcut sees the activated tensor
            x = conv2d(
                x,
                *weights[f"conv{convs}"],
                strides=strides if convs == strided_conv else 1,
                dilation=dilations[convs > strided_conv],
            )
        elif letter == "B":
            bns += 1
            x = batch_norm(x, *weights[f"bn{bns}"], training=training)
        elif letter == "R":
            x = relu(x)
        elif kind != "none":
            x = x + shortcut(carried, weights, kind, strides, filters, changes, training)
    return x


def randomize(model, seed=0):
    """Gives every weight a random value such that features keep their size; gammas stay off 0."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(size=weight.shape) / np.sqrt(np.prod(weight.shape[:-1])))
        else:
            low = 0.5 if weight.name in ("gamma", "moving_variance") else -0.5
            weight.assign(rng.uniform(low, 1.5, size=weight.shape))


def weights_of(model, prefix):
    """The weights of the layers called `{prefix}_...`, in float64, by the rest of their name."""
    return {
        layer.name.removeprefix(prefix + "_"): [np.float64(w) for w in layer.get_weights()]
        for layer in model.layers
        if layer.name.startswith(prefix + "_") and layer.weights
    }


def network(x, model, blocks, program, kind, *, imagenet_stem, strided_conv=1):
    """Logits of a whole post-activation network: stem, stages, average, classifier."""
    stem = weights_of(model, "stem")
    x = conv2d(x, *stem["conv"], strides=2 if imagenet_stem else 1)
    x = relu(batch_norm(x, *stem["bn"]))
    x = max_pool(x) if imagenet_stem else x
    for stage, count in enumerate(blocks, 1):
        for position in range(1, count + 1):
            strides = 2 if stage > 1 and position == 1 else 1
            weights = weights_of(model, f"stage{stage}_block{position}")
            x = block(x, weights, program, kind, strides=strides, strided_conv=strided_conv)
    kernel, bias = (np.float64(w) for w in model.get_layer("predictions").get_weights())
    return x.mean(axis=(1, 2)) @ kernel + bias
