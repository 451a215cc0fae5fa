"""From a residual network to an identical plain one.

He et al. 2015 argue that a plain network could do what a residual one does. In a block of one layer
that is literally so: the shortcut is a tap of the kernel. In a longer block a ReLU stands between
the ends of the shortcut, so the plain network needs more channels: they carry the block's input.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import layers

from keras_resnet.macs import count_macs
from keras_resnet.surgery.folding import find_folds, fold_batch_norm, passed, scale_and_bias
from keras_resnet.surgery.graph import Edit, Graph, functional, rewrite
from keras_resnet.surgery.pattern import Block, find_blocks


@dataclasses.dataclass(frozen=True)
class PlainCost:
    """What a network costs, and what its plain twin would cost.

    Args:
        parameters: Weights of the model as it is, moving statistics included.
        multiply_adds: Of the model, for one image; `None` where its input size is open.
        plain_parameters: Weights of the plain network: batch normalisation is folded, and every
            convolution that had one, or that ends a block, has a bias.
        plain_multiply_adds: Of the plain network.
    """

    parameters: int
    multiply_adds: int | None
    plain_parameters: int
    plain_multiply_adds: int | None

    @property
    def growth(self) -> float:
        """How many times larger the plain network is: in parameters or multiply-adds, the worse."""
        growth = self.plain_parameters / self.parameters
        if self.multiply_adds:
            growth = max(growth, self.plain_multiply_adds / self.multiply_adds)
        return growth

    def __str__(self):
        text = f"{self.parameters:,} -> {self.plain_parameters:,} parameters"
        if self.multiply_adds:
            text += f", {self.multiply_adds:,} -> {self.plain_multiply_adds:,} multiply-adds"
        return f"{text}, {self.growth:.1f} times"


def plain_cost(model: keras.Model) -> PlainCost:
    """What `to_plain` would cost; nothing is built.

    Args:
        model: As for `to_plain`.

    Returns:
        A `PlainCost`; `print` it.

    Raises:
        ValueError: If the model has no graph, or an addition that is no residual block.

    >>> import keras_resnet
    >>> print(plain_cost(keras_resnet.CifarResNet20()))
    271,098 -> 502,026 parameters, 40,551,040 -> 77,120,128 multiply-adds, 1.9 times
    """
    graph = Graph(model)
    folds = find_folds(graph)
    biased = {conv: norm.moving_mean.shape[0] for norm, conv in folds.items()}
    parameters = model.count_params() + sum(
        _parameters(conv, biased) - conv.count_params() - norm.count_params()
        for norm, conv in folds.items()
    )
    multiply_adds = 0
    for block in _blocks_or_error(model, graph, folds):
        for link, (inputs, outputs) in zip(block.links, _widths(block)):
            size = math.prod(link.kernel_size) * inputs * outputs
            parameters += size + outputs - _parameters(link.layer, biased)
            multiply_adds += (link.positions or 0) * (size - _kernel_size(link.layer))
        if block.shortcut:
            parameters -= _parameters(block.shortcut, biased)
            multiply_adds -= (block.links[-1].positions or 0) * _kernel_size(block.shortcut)
    is_open = None in functional(model).inputs[0].shape[1:]
    before = None if is_open else count_macs(model)
    return PlainCost(
        parameters=model.count_params(),
        multiply_adds=before,
        plain_parameters=parameters,
        plain_multiply_adds=None if is_open else before + multiply_adds,
    )


def to_plain(model: keras.Model, *, max_cost: float = 3.0) -> keras.Model:
    """An identical network without shortcuts.

    Batch normalisation is folded first. A block relu(conv(x) + x) becomes one convolution: the
    shortcut is a 1 in its kernel. In longer blocks every convolution but the last gets channels
    that carry x past the ReLUs, and the last one adds them ("reserve and merge"). Zero-padded and
    projected shortcuts, with strides, are kernels of the same kind. Where x may be negative, as in
    pre-activation networks, relu(x) and relu(-x) are carried; where a pre-activation stands in
    front of the first convolution, a 1x1 convolution is put there.

    This is about the function at inference: trained further, the two networks differ, and a
    two-layer block cannot be converted at equal width.

    Args:
        model: Functional or built Sequential residual network, of this package or not. Residuals
            are chains of (not grouped) Conv2D, batch normalisation and ReLU; shortcuts are the
            identity, zero-padded or a 1x1 convolution.
        max_cost: How many times larger the plain network may be, in parameters or multiply-adds.
            Basic blocks cost 2 times, bottlenecks about 11, pre-activated basic blocks 5.

    Returns:
        A copy, not compiled, whose outputs at inference are those of `model` up to rounding. Layers
        keep their names. A `ResNet` stays one, with the shortcut `"none"` in its `variant`.

    Raises:
        ValueError: If the model has no graph, an addition that is no residual block, or a cost
            above `max_cost`; nothing has been built then.

    Reference: He et al. 2015, section 3.1; Meng et al. 2021 (RMNet).

    Example:
        print(keras_resnet.surgery.plain_cost(model))
        plain = keras_resnet.surgery.to_plain(model)
    """
    cost = plain_cost(model)
    if cost.growth > max_cost:
        raise ValueError(
            "The plain network would be too large. Expected at most "
            f"`max_cost`={max_cost:g} times the parameters and multiply-adds. "
            f"Received: {model.name!r}, {cost}. "
            f"Pass `max_cost={math.ceil(cost.growth)}` to build it all the same."
        )
    model = fold_batch_norm(model)
    edits, calls = {}, {}
    for block in _blocks_or_error(model, Graph(model)):
        calls[block.addition] = _merged(block)
        if block.drop:
            calls[block.drop] = passed
        for link, (kernel, bias) in zip(block.links, _kernels(block)):
            filters = kernel.shape[-1]
            if isinstance(link.layer, layers.Conv2D):
                config = {"filters": filters, "use_bias": True}
                edits[link.layer] = Edit(config, [kernel, bias])
            else:
                calls[link.layer] = _preceded(block, link.layer, kernel, bias)
    # Survival is a factor of the kernels now, and nothing starts at zero.
    plain = {"shortcut": "none", "survival_probability": 1.0, "zero_init_residual": False}
    return rewrite(model, edits, calls, lambda variant: dataclasses.replace(variant, **plain))


def _blocks_or_error(model, graph, folds=()):
    blocks, others = find_blocks(graph, folds)
    if others or not blocks:
        received = f"{model.name!r}, " + (
            f"where these additions are none: {', '.join(others)}"
            if others
            else "which has no addition"
        )
        raise ValueError(
            "The model is not made of blocks that can become plain. Expected additions of a chain "
            "of Conv2D, batch normalisation and ReLU, and a shortcut that is the identity, "
            f"zero-padded or a 1x1 convolution. Received: {received}."
        )
    return blocks


def _parameters(layer, biased):
    """Weights of a layer when batch normalisation has been folded and brought it a bias."""
    gets_bias = layer in biased and not layer.use_bias
    return layer.count_params() + (biased[layer] if gets_bias else 0)


def _kernel_size(layer):
    return math.prod(layer.kernel.shape) if isinstance(layer, layers.Conv2D) else 0


def _carried(block: Block):
    """How x is carried: `(channels, carried)`, so that x is relu(x @ carry) @ carry.T."""
    if len(block.links) == 1:
        return np.zeros((block.links[0].channels[0], 0))
    identity = np.eye(block.links[0].channels[0])
    return np.hstack([identity, -identity]) if block.signed else identity


def _widths(block: Block) -> list[tuple[int, int]]:
    """Channels in and out of each convolution of the plain block."""
    carried = _carried(block).shape[1]
    last = len(block.links) - 1
    return [
        (link.channels[0] + carried * (i > 0), link.channels[1] + carried * (i < last))
        for i, link in enumerate(block.links)
    ]


def _kernels(block: Block):
    """Kernel and bias of each convolution of the plain block, in float64."""
    carry = _carried(block)
    shortcut, shortcut_bias = _shortcut_matrix(block)
    last = len(block.links) - 1
    for i, (link, (inputs, outputs)) in enumerate(zip(block.links, _widths(block))):
        kernel, bias = _weights(link)
        if i == last:
            survival = block.drop.survival_probability if block.drop else 1.0
            kernel, bias = kernel * survival, bias * survival + shortcut_bias
        plain = np.zeros((*link.kernel_size, inputs, outputs))
        plain[:, :, : link.channels[0], : link.channels[1]] = kernel
        # What the tap does for x: takes it up, hands it on, or lets it arrive.
        arriving = carry.T @ shortcut if i else shortcut
        matrix = arriving if i == last else np.eye(carry.shape[1]) if i else carry
        rows = slice(link.channels[0], None) if i else slice(None)
        columns = slice(None) if i == last else slice(link.channels[1], None)
        plain[link.tap][rows, columns] += matrix
        yield plain, np.concatenate([bias, np.zeros(outputs - len(bias))])


def _weights(link):
    """Kernel and bias of a link's layer; what stands before a convolution is a diagonal one."""
    if isinstance(link.layer, layers.Conv2D):
        kernel, *bias = (np.float64(weight) for weight in link.layer.get_weights())
        return kernel, bias[0] if bias else np.zeros(kernel.shape[-1])
    if isinstance(link.layer, layers.BatchNormalization):
        scale, bias = scale_and_bias(link.layer)
    else:
        scale, bias = np.ones(link.channels[0]), np.zeros(link.channels[0])
    return np.diag(scale)[None, None], bias


def _shortcut_matrix(block):
    """The shortcut as a matrix `(channels in, channels out)` and a bias."""
    inputs, outputs = block.links[0].channels[0], block.links[-1].channels[1]
    if not isinstance(block.shortcut, layers.Conv2D):  # identity, or zeros appended
        return np.eye(inputs, outputs), 0.0
    kernel, *bias = (np.float64(weight) for weight in block.shortcut.get_weights())
    return kernel[0, 0], bias[0] if bias else 0.0


def _merged(block):
    """Where the addition was, the last convolution alone; under its name if it ended the block."""
    name = block.addition.name

    def call(addition, *tensors, **kwargs):
        x = keras.tree.flatten(tensors)[block.residual_input]
        return layers.Identity(name=name)(x) if name.endswith("_out") else x

    return call


def _preceded(block, layer, kernel, bias):
    """A 1x1 convolution instead of a batch normalisation, or before a ReLU."""

    def call(copy, x, **kwargs):
        conv = layers.Conv2D(
            kernel.shape[-1],
            1,
            data_format=block.links[-1].layer.data_format,
            dtype=layer.dtype_policy,
            name=f"{layer.name}_conv",
        )
        x = conv(x)
        conv.set_weights([kernel, bias])
        return x if isinstance(layer, layers.BatchNormalization) else copy(x)

    return call
