"""The public constructors, with the signature of keras.applications: one line each."""

import inspect

from keras_resnet.axes import OPTIONS
from keras_resnet.models import ResNet, build, output_strides
from keras_resnet.variants import cifar_variant, get_variant

_DOCUMENTATION = """The {depth}-layer {kind} for {data}.

{reference}.

The arguments up to `name` are those of keras.applications, in its order; the others have this
network's own values as defaults.

Args:
    include_top: Whether to end in average pooling and a classifier.
    weights: `None` for random initialisation; the tag of a published set, see
        `keras_resnet.list_weights("{variant}")`; `"imagenet"` for the best of them;
        `"hf://OWNER/NAME"`, a repository of the Hugging Face hub; or the path of a weights file.
        Other classes than theirs begin a new classifier, other channels adapt the stem.
    input_tensor: Keras tensor to build upon, instead of a new input.
    input_shape: `(height, width, channels)`, or channels first by Keras's setting. Sizes may be
        `None` or odd, channels any number. Default: `{input_shape}`, or `(None, None, 3)`
        without the top.
    pooling: Without the top: `None` for the feature map, `"avg"` or `"max"` for a vector.
    classes: Number of classes, at least 1. Default: that of the weights, or {classes}.
    classifier_activation: Activation of the classifier; `None` gives logits. Always float32.
    name: Name of the model.
    shortcut: `"zero_padding"`, `"projection"` or `"projection_all"`: the paper's options A, B
        and C; `"none"`: no shortcuts, a plain network; `"average_pool"` (ResNet-D),
        `"average_pool_zero_padding"`; of He et al. 2016: `"constant_scaling"`,
        `"exclusive_gating"`, `"shortcut_only_gating"`, `"dropout"`; `"highway"`,
        `"concatenation"` (DenseNet).
    activation_order: `"original"`, `"bn_after_addition"`, `"relu_before_addition"`,
        `"relu_pre_activation"` or `"full_pre_activation"` (He et al. 2016, figure 4);
        `"no_normalization"`.
    stem: `"imagenet"`, `"imagenet_activated"` (DenseNet), `"imagenet_caffe"`,
        `"imagenet_zero_padded"`, `"deep"` (three 3x3) or `"cifar"`.
    attention: `"none"` or `"se"` (squeeze-and-excitation).
    dropout_rate: Of dropout inside the residuals, in [0, 1).
    gate_bias: Initial bias of gated shortcuts; the lower, the more is carried.
    stride_in_1x1: Whether a bottleneck down-samples in its first 1x1 convolution (the paper)
        instead of its 3x3 ("v1.5", torchvision). Without effect on basic blocks.
    stride_in_last_block: Whether stages end in their down-sampling, as those of keras.applications'
        pre-activation networks, instead of beginning with it.
    output_stride: Input size over size of the last feature map: {output_strides};
        strides beyond it become dilation.
    survival_probability: Of the last block in training, in (0, 1] (stochastic depth, Huang et
        al. 2016).
    survival_schedule: `"linear"`, falling from 1 with depth, or `"uniform"`.
    survival_per_image: Whether each image draws for itself, instead of the batch as one.
    zero_init_residual: Whether every block starts as the identity (last gamma 0).
    conv_bias: Whether convolutions have a bias.

Returns:
    A `keras_resnet.ResNet`, a Functional Keras model that maps images, preprocessed by
    `keras_resnet.preprocess_input(images, model)`, to an array of shape `(batch, classes)`.

Raises:
    ValueError: If an argument is not possible; nothing has been built then.

Example:

    model = keras_resnet.{constructor}(weights=None, classes=10)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
"""

_KINDS = {
    "none": "plain network (no shortcuts)",
    "highway": "highway network",
    "concatenation": "densely connected network",
}


def _constructor(name: str, variant_name: str):
    """The public function `name` that builds the row `variant_name`."""
    variant = get_variant(variant_name)

    def constructor(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=None,
        classifier_activation="softmax",
        name=variant.name,
        **options,
    ) -> ResNet:
        return build(
            variant,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            **options,
        )

    signature = inspect.signature(constructor)
    arguments = list(signature.parameters.values())[:-1]
    arguments += [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=getattr(variant, option))
        for option in OPTIONS
    ]
    constructor.__signature__ = signature.replace(parameters=arguments)
    constructor.__name__ = constructor.__qualname__ = name
    is_cifar = variant.stem == "cifar"
    constructor.__doc__ = _DOCUMENTATION.format(
        depth=variant.depth,
        kind=_KINDS.get(variant.shortcut, "residual network"),
        data="CIFAR" if is_cifar else "ImageNet",
        reference=variant.reference,
        input_shape=(*variant.preprocessing.size, len(variant.preprocessing.mean)),
        output_strides=", ".join(map(str, output_strides(variant))),
        constructor=name,
        variant=variant_name,
        classes=variant.classes,
    )
    return constructor


def CifarResNet(depth: int, **arguments) -> ResNet:
    """The CIFAR residual network of any depth 6n+2.

    Args:
        depth: Number of weighted layers: 8, 14, 20, ....
        **arguments: Those of `CifarResNet20`.

    Raises:
        ValueError: If the depth is not 6n+2, or another argument is not possible.

    Reference: He et al. 2015, section 4.2.

    >>> CifarResNet(depth=8).name
    'cifar_resnet8'
    """
    return build(cifar_variant(depth), **arguments)


def CifarPlainNet(depth: int, **arguments) -> ResNet:
    """`CifarResNet` without its shortcuts: the plain twin, with the same parameters."""
    return build(cifar_variant(depth, plain=True), **arguments)


ResNet18 = _constructor("ResNet18", "resnet18")
ResNet34 = _constructor("ResNet34", "resnet34")
ResNet50 = _constructor("ResNet50", "resnet50")
ResNet101 = _constructor("ResNet101", "resnet101")
ResNet152 = _constructor("ResNet152", "resnet152")
PlainNet18 = _constructor("PlainNet18", "plainnet18")
PlainNet34 = _constructor("PlainNet34", "plainnet34")
CifarResNet20 = _constructor("CifarResNet20", "cifar_resnet20")
CifarResNet32 = _constructor("CifarResNet32", "cifar_resnet32")
CifarResNet44 = _constructor("CifarResNet44", "cifar_resnet44")
CifarResNet56 = _constructor("CifarResNet56", "cifar_resnet56")
CifarResNet110 = _constructor("CifarResNet110", "cifar_resnet110")
CifarResNet1202 = _constructor("CifarResNet1202", "cifar_resnet1202")
CifarPlainNet20 = _constructor("CifarPlainNet20", "cifar_plainnet20")
CifarPlainNet32 = _constructor("CifarPlainNet32", "cifar_plainnet32")
CifarPlainNet44 = _constructor("CifarPlainNet44", "cifar_plainnet44")
CifarPlainNet56 = _constructor("CifarPlainNet56", "cifar_plainnet56")
CifarPlainNet110 = _constructor("CifarPlainNet110", "cifar_plainnet110")

ResNet50V2 = _constructor("ResNet50V2", "resnet50v2")
ResNet101V2 = _constructor("ResNet101V2", "resnet101v2")
ResNet152V2 = _constructor("ResNet152V2", "resnet152v2")
ResNet200V2 = _constructor("ResNet200V2", "resnet200v2")
CifarResNet110V2 = _constructor("CifarResNet110V2", "cifar_resnet110v2")
CifarResNet164V2 = _constructor("CifarResNet164V2", "cifar_resnet164v2")
CifarResNet1001V2 = _constructor("CifarResNet1001V2", "cifar_resnet1001v2")

WideResNet16_4 = _constructor("WideResNet16_4", "wide_resnet16_4")
WideResNet16_8 = _constructor("WideResNet16_8", "wide_resnet16_8")
WideResNet16_10 = _constructor("WideResNet16_10", "wide_resnet16_10")
WideResNet22_8 = _constructor("WideResNet22_8", "wide_resnet22_8")
WideResNet28_10 = _constructor("WideResNet28_10", "wide_resnet28_10")
WideResNet28_12 = _constructor("WideResNet28_12", "wide_resnet28_12")
WideResNet40_1 = _constructor("WideResNet40_1", "wide_resnet40_1")
WideResNet40_2 = _constructor("WideResNet40_2", "wide_resnet40_2")
WideResNet40_4 = _constructor("WideResNet40_4", "wide_resnet40_4")
WideResNet40_8 = _constructor("WideResNet40_8", "wide_resnet40_8")
WideResNet40_10 = _constructor("WideResNet40_10", "wide_resnet40_10")
WideResNet50_2 = _constructor("WideResNet50_2", "wide_resnet50_2")
WideResNet101_2 = _constructor("WideResNet101_2", "wide_resnet101_2")

ResNeXt50_32x4d = _constructor("ResNeXt50_32x4d", "resnext50_32x4d")
ResNeXt101_32x8d = _constructor("ResNeXt101_32x8d", "resnext101_32x8d")
ResNet18D = _constructor("ResNet18D", "resnet18d")
ResNet34D = _constructor("ResNet34D", "resnet34d")
ResNet50D = _constructor("ResNet50D", "resnet50d")
ResNet101D = _constructor("ResNet101D", "resnet101d")
ResNet152D = _constructor("ResNet152D", "resnet152d")
SEResNet50 = _constructor("SEResNet50", "se_resnet50")
SEResNet101 = _constructor("SEResNet101", "se_resnet101")
SEResNet152 = _constructor("SEResNet152", "se_resnet152")

DenseNet40_12 = _constructor("DenseNet40_12", "densenet40_12")
DenseNet100_12 = _constructor("DenseNet100_12", "densenet100_12")
DenseNet100_24 = _constructor("DenseNet100_24", "densenet100_24")
DenseNetBC40_36 = _constructor("DenseNetBC40_36", "densenet_bc40_36")
DenseNetBC40_48 = _constructor("DenseNetBC40_48", "densenet_bc40_48")
DenseNetBC40_60 = _constructor("DenseNetBC40_60", "densenet_bc40_60")
DenseNetBC100_12 = _constructor("DenseNetBC100_12", "densenet_bc100_12")
DenseNetBC250_24 = _constructor("DenseNetBC250_24", "densenet_bc250_24")
DenseNetBC190_40 = _constructor("DenseNetBC190_40", "densenet_bc190_40")
DenseNet121 = _constructor("DenseNet121", "densenet121")
DenseNet169 = _constructor("DenseNet169", "densenet169")
DenseNet201 = _constructor("DenseNet201", "densenet201")
DenseNet264 = _constructor("DenseNet264", "densenet264")

HighwayNet19 = _constructor("HighwayNet19", "highwaynet19")
HighwayNet32 = _constructor("HighwayNet32", "highwaynet32")
