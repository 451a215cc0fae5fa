"""What other libraries call the layers of these networks, and how they lay out their weights.

One row of `SCHEMES` per library and family. The same rows read a file and, for PyTorch, write one.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from keras_resnet.variants import Variant

_TORCH_WEIGHTS = {
    "kernel": ".weight",
    "bias": ".bias",
    "gamma": ".weight",
    "beta": ".bias",
    "moving_mean": ".running_mean",
    "moving_variance": ".running_var",
}
_KERAS_WEIGHTS = {name: f"/{name}" for name in _TORCH_WEIGHTS}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One library's way to write a network down.

    Args:
        name: Whose it is.
        layers: From the name of a layer here, of layers of stages without its numbers, to the name
            there: a string, or a function of the numbers (stage, block, position; all from 1).
            `None`: the layers are called as here.
        weights: From Keras's name of a weight to what follows the layer's name there.
        transposed: Whether kernels are `(filters, channels, height, width)`, as in PyTorch.
        epsilon: Of the batch normalisations there; `None`: as here.
        absorbs_biases: Whether each convolution stands before a batch normalisation, so that a
            bias there is a shift of the moving mean here.
        convolutional_head: Whether the classifier is a 1x1 convolution there.
        unbiased: Pattern of the biases that are missing there alone: zeros here.
        options: Fields of the `Variant` that no weight shows, and the values that make the graph
            there; the most usual one first.
    """

    name: str
    layers: Mapping[str, str | Callable] | None
    weights: Mapping[str, str]
    transposed: bool = False
    epsilon: float | None = None
    absorbs_biases: bool = False
    convolutional_head: bool = False
    unbiased: str = r"(?!)"
    options: Mapping[str, tuple] = dataclasses.field(default_factory=dict)

    def layer(self, name: str) -> str | None:
        """What a layer is called there; `None` if such a network has no such layer."""
        if self.layers is None:
            return name
        in_stage = name.startswith("stage")
        numbers = map(int, re.findall(r"\d+", name)) if in_stage else ()
        called = self.layers.get(re.sub(r"\d+", "", name) if in_stage else name)
        return called(*numbers) if callable(called) else called

    def key(self, path: str) -> str | None:
        """What the weight with a path, e.g. `"stem_bn/gamma"`, is called there."""
        if self.layers is None:
            return path
        name, _, weight = path.rpartition("/")
        layer = self.layer(name)
        return layer + self.weights[weight] if layer and weight in self.weights else None

    def read(self, path: str, tensor: np.ndarray) -> np.ndarray:
        """A tensor of the source in the layout of the weight with a path."""
        if self.transposed and path.endswith("/kernel") and tensor.ndim > 1:
            tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
        is_head = self.convolutional_head and path == "predictions/kernel"
        return tensor[0, 0] if is_head and tensor.shape[:-2] == (1, 1) else tensor

    def write(self, path: str, value: np.ndarray) -> np.ndarray:
        """The opposite of `read`."""
        if self.convolutional_head and path == "predictions/kernel":
            value = value[None, None]
        if self.transposed and path.endswith("/kernel"):
            value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
        return value

    def wrong_options(self, variant: Variant) -> dict[str, object]:
        """The options that the source's graph has and a network has not."""
        return {
            field: values[0]
            for field, values in self.options.items()
            if getattr(variant, field) not in values
            # A basic block begins with its 3x3 convolution, where the stride is anyway.
            and (field, variant.block) != ("stride_in_1x1", "basic")
        }


_PROJECTIONS = ("projection", "projection_all")


def _graph(order="original", **options):
    """What a graph has unless `options` say otherwise."""
    usual = {
        "activation_order": order,
        "shortcut": _PROJECTIONS,
        "stride_in_1x1": False,
        "stride_in_last_block": False,
    }
    return {
        field: value if isinstance(value, tuple) else (value,)
        for field, value in (usual | options).items()
    }


def _torch(name, layers, graph, **axes):
    return Scheme(
        name, layers, _TORCH_WEIGHTS, transposed=True, epsilon=1e-5, options=graph, **axes
    )


def _keras(name, layers, graph=None, **axes):
    return Scheme(name, layers, _KERAS_WEIGHTS, options=graph or {}, **axes)


_TORCHVISION = {
    "stem_conv": "conv1",
    "stem_bn": "bn1",
    "stage_block_conv": lambda s, b, n: f"layer{s}.{b - 1}.conv{n}",
    "stage_block_bn": lambda s, b, n: f"layer{s}.{b - 1}.bn{n}",
    "stage_block_shortcut_conv": lambda s, b: f"layer{s}.{b - 1}.downsample.0",
    "stage_block_shortcut_bn": lambda s, b: f"layer{s}.{b - 1}.downsample.1",
    "stage_block_se_reduce": lambda s, b: f"layer{s}.{b - 1}.se.fc1",
    "stage_block_se_expand": lambda s, b: f"layer{s}.{b - 1}.se.fc2",
    "predictions": "fc",
}
# He et al. 2019: three convolutions in the stem, an average pool before the projection.
_TIMM_D = {name: layer for name, layer in _TORCHVISION.items() if not name.startswith("stem")} | {
    "stem_conv1": "conv1.0",
    "stem_bn1": "conv1.1",
    "stem_conv2": "conv1.3",
    "stem_bn2": "conv1.4",
    "stem_conv3": "conv1.6",
    "stem_bn3": "bn1",
    "stage_block_shortcut_conv": lambda s, b: f"layer{s}.{b - 1}.downsample.1",
    "stage_block_shortcut_bn": lambda s, b: f"layer{s}.{b - 1}.downsample.2",
}
_TIMM_V2 = {
    "stem_conv": "stem.conv",
    "stage_block_conv": lambda s, b, n: f"stages.{s - 1}.blocks.{b - 1}.conv{n}",
    "stage_block_bn": lambda s, b, n: f"stages.{s - 1}.blocks.{b - 1}.norm{n}",
    "stage_block_shortcut_conv": lambda s, b: f"stages.{s - 1}.blocks.{b - 1}.downsample.conv",
    "head_bn": "norm",
    "predictions": "head.fc",
}
_DENSENET = {
    "stem_conv": "features.conv0",
    "stem_bn": "features.norm0",
    "stage_block_conv": lambda s, b, n: f"features.denseblock{s}.denselayer{b}.conv{n}",
    "stage_block_bn": lambda s, b, n: f"features.denseblock{s}.denselayer{b}.norm{n}",
    "stage_transition_conv": lambda s: f"features.transition{s}.conv",
    "stage_transition_bn": lambda s: f"features.transition{s}.norm",
    "head_bn": "features.norm5",
    "predictions": "classifier",
}
_TRANSFORMERS_STAGE = "resnet.encoder.stages"
_TRANSFORMERS = {
    "stem_conv": "resnet.embedder.embedder.convolution",
    "stem_bn": "resnet.embedder.embedder.normalization",
    "stage_block_conv": lambda s, b, n: (
        f"{_TRANSFORMERS_STAGE}.{s - 1}.layers.{b - 1}.layer.{n - 1}.convolution"
    ),
    "stage_block_bn": lambda s, b, n: (
        f"{_TRANSFORMERS_STAGE}.{s - 1}.layers.{b - 1}.layer.{n - 1}.normalization"
    ),
    "stage_block_shortcut_conv": lambda s, b: (
        f"{_TRANSFORMERS_STAGE}.{s - 1}.layers.{b - 1}.shortcut.convolution"
    ),
    "stage_block_shortcut_bn": lambda s, b: (
        f"{_TRANSFORMERS_STAGE}.{s - 1}.layers.{b - 1}.shortcut.normalization"
    ),
    "predictions": "classifier.1",
}
_KERAS_APPLICATIONS = {
    "stem_conv": "conv1_conv",
    "stem_bn": "conv1_bn",
    "stage_block_conv": lambda s, b, n: f"conv{s + 1}_block{b}_{n}_conv",
    "stage_block_bn": lambda s, b, n: f"conv{s + 1}_block{b}_{n}_bn",
    "stage_block_shortcut_conv": lambda s, b: f"conv{s + 1}_block{b}_0_conv",
    "stage_block_shortcut_bn": lambda s, b: f"conv{s + 1}_block{b}_0_bn",
    "predictions": "predictions",
}
_KERAS_APPLICATIONS_V2 = _KERAS_APPLICATIONS | {
    "stage_block_bn": lambda s, b, n: f"conv{s + 1}_block{b}_{n - 1 or 'preact'}_bn",
    "head_bn": "post_bn",
}
_KERAS_HUB = {
    "stem_conv": "conv1_conv",
    "stem_bn": "conv1_bn",
    "stage_block_conv": lambda s, b, n: f"stack{s - 1}_block{b - 1}_{n}_conv",
    "stage_block_bn": lambda s, b, n: f"stack{s - 1}_block{b - 1}_{n}_bn",
    "stage_block_shortcut_conv": lambda s, b: f"stack{s - 1}_block{b - 1}_0_conv",
    "stage_block_shortcut_bn": lambda s, b: f"stack{s - 1}_block{b - 1}_0_bn",
    "predictions": "predictions",
}
_KERAS_HUB_D = {name: layer for name, layer in _KERAS_HUB.items() if "stem" not in name} | {
    f"stem_{kind}{n}": f"conv{n}_{kind}" for kind in ("conv", "bn") for n in (1, 2, 3)
}
_KERAS_HUB_V2 = _KERAS_HUB | {
    "stage_block_bn": lambda s, b, n: f"stack{s - 1}_block{b - 1}_{n - 1 or 'pre_activation'}_bn",
    "head_bn": "post_bn",
}


def _caffe(block_name):
    """He's names; `block_name` is a function of (stage, block)."""
    return {
        "stem_conv": "conv1",
        "stem_bn": "bn_conv1",
        "stage_block_conv": lambda s, b, n: f"res{block_name(s, b)}_branch2{_letter(n)}",
        "stage_block_bn": lambda s, b, n: f"bn{block_name(s, b)}_branch2{_letter(n)}",
        "stage_block_shortcut_conv": lambda s, b: f"res{block_name(s, b)}_branch1",
        "stage_block_shortcut_bn": lambda s, b: f"bn{block_name(s, b)}_branch1",
        "predictions": "fc1000",
    }


def _letter(number):
    return chr(ord("a") + number - 1)


def _numbered(stage, block):
    """The two long stages of the networks of 101 and 152 layers count `a`, `b1`, `b2`, ..."""
    return f"{stage + 1}{'a' if block == 1 else f'b{block - 1}'}"


def _lettered(stage, block):
    return f"{stage + 1}{_letter(block)}"


# One graph by three names: behind a ReLU, zeros around the image never win in the pool.
_STEMS = ("imagenet", "imagenet_zero_padded", "imagenet_activated")
_CLASSIC = _graph(stem=_STEMS)
_DEEP = _graph(shortcut="average_pool")
SCHEMES = (
    _keras("keras_resnet", None),
    _torch(
        "torchvision",
        _TORCHVISION,
        _graph(stem=(*_STEMS, "cifar"), shortcut=(*_PROJECTIONS, "zero_padding")),
    ),
    _torch(
        "cifar",
        _TORCHVISION | {"predictions": "linear"},
        _graph(stem=("cifar", *_STEMS), shortcut=("zero_padding", *_PROJECTIONS)),
    ),
    _torch("timm_d", _TIMM_D, _DEEP),
    _torch(
        "timm_v2",
        _TIMM_V2,
        _graph("full_pre_activation", stem=("imagenet", "cifar")),
        convolutional_head=True,
    ),
    _torch("densenet", _DENSENET, {}),  # its names and shapes show all
    _torch("transformers", _TRANSFORMERS, _CLASSIC),
    _keras(
        "keras_applications",
        _KERAS_APPLICATIONS,
        _graph(stem=_STEMS, stride_in_1x1=True),
        epsilon=1.001e-5,
        absorbs_biases=True,
    ),
    _keras(
        "keras_applications_v2",
        _KERAS_APPLICATIONS_V2,
        _graph(
            "full_pre_activation",
            conv_bias=True,
            stride_in_last_block=True,
            stem="imagenet_zero_padded",
        ),
        epsilon=1.001e-5,
        unbiased=r"stage\d+_block\d+_conv[12]/bias",
    ),
    _keras("keras_hub", _KERAS_HUB, _CLASSIC, epsilon=1e-5),
    _keras("keras_hub_d", _KERAS_HUB_D, _DEEP, epsilon=1e-5),
    _keras(
        "keras_hub_v2",
        _KERAS_HUB_V2,
        _graph("full_pre_activation", stem="imagenet"),
        epsilon=1e-5,
    ),
    *(
        _keras(
            "caffe",
            _caffe(name),
            _graph(stride_in_1x1=True, stem="imagenet_caffe"),
            epsilon=1e-5,
            absorbs_biases=True,
        )
        for name in (_lettered, lambda s, b: (_numbered if s in (2, 3) else _lettered)(s, b))
    ),
)
