"""The public constructors, with the signature of keras.applications: one line each."""

from keras_resnet.models import ResNet, build
from keras_resnet.variants import Variant, cifar_variant, get_variant

_DOCUMENTATION = """{headline}

{reference}. Arguments up to `name` are those of keras.applications, in its order.

Args:
    include_top: Whether to end in average pooling and a classifier.
    weights: `None` for random initialisation, or the path of a weights file.
    input_tensor: Keras tensor to build upon, instead of a new input.
    input_shape: `(height, width, channels)`, or channels first by Keras's setting. Sizes may be
        `None` or odd, channels any number. Default: `{input_shape}`, or `(None, None, 3)`
        without the top.
    pooling: Without the top: `None` for the feature map, `"avg"` or `"max"` for a vector.
    classes: Number of classes, at least 1.
    classifier_activation: Activation of the classifier; `None` gives logits. Always float32.
    name: Name of the model.
    shortcut: `"zero_padding"`, `"projection"` or `"projection_all"`: the paper's options A, B
        and C; `"none"`: no shortcuts, a plain network.
    activation_order: `"original"`, `"bn_after_addition"`, `"relu_before_addition"`,
        `"relu_pre_activation"` or `"full_pre_activation"` (He et al. 2016, figure 4).
    stride_in_1x1: Whether a bottleneck down-samples in its first 1x1 convolution (the paper)
        instead of its 3x3 ("v1.5", torchvision). Without effect on basic blocks.
    output_stride: Input size over size of the last feature map: {output_strides}; strides
        beyond it become dilation.
    survival_probability: Of the last block in training, in (0, 1]; falls linearly with depth
        (stochastic depth, Huang et al. 2016).
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


def _constructor(name: str, variant: Variant):
    """The public function `name` that builds `variant`."""

    def constructor(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=variant.classes,
        classifier_activation="softmax",
        name=variant.name,
        *,
        shortcut=variant.shortcut,
        activation_order=variant.activation_order,
        stride_in_1x1=False,
        output_stride=None,
        survival_probability=1.0,
        zero_init_residual=False,
        conv_bias=False,
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
            shortcut=shortcut,
            activation_order=activation_order,
            stride_in_1x1=stride_in_1x1,
            output_stride=output_stride,
            survival_probability=survival_probability,
            zero_init_residual=zero_init_residual,
            conv_bias=conv_bias,
        )

    is_cifar = variant.stem == "cifar"
    kind = "plain network (no shortcuts)" if variant.shortcut == "none" else "residual network"
    constructor.__name__ = constructor.__qualname__ = name
    constructor.__doc__ = _DOCUMENTATION.format(
        headline=f"The {variant.depth}-layer {kind} for {'CIFAR' if is_cifar else 'ImageNet'}.",
        reference=variant.reference,
        input_shape=(*variant.preprocessing.size, len(variant.preprocessing.mean)),
        output_strides="4 (default), 2 or 1" if is_cifar else "32 (default), 16 or 8",
        constructor=name,
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


ResNet18 = _constructor("ResNet18", get_variant("resnet18"))
ResNet34 = _constructor("ResNet34", get_variant("resnet34"))
ResNet50 = _constructor("ResNet50", get_variant("resnet50"))
ResNet101 = _constructor("ResNet101", get_variant("resnet101"))
ResNet152 = _constructor("ResNet152", get_variant("resnet152"))
PlainNet18 = _constructor("PlainNet18", get_variant("plainnet18"))
PlainNet34 = _constructor("PlainNet34", get_variant("plainnet34"))
CifarResNet20 = _constructor("CifarResNet20", get_variant("cifar_resnet20"))
CifarResNet32 = _constructor("CifarResNet32", get_variant("cifar_resnet32"))
CifarResNet44 = _constructor("CifarResNet44", get_variant("cifar_resnet44"))
CifarResNet56 = _constructor("CifarResNet56", get_variant("cifar_resnet56"))
CifarResNet110 = _constructor("CifarResNet110", get_variant("cifar_resnet110"))
CifarResNet1202 = _constructor("CifarResNet1202", get_variant("cifar_resnet1202"))
CifarPlainNet20 = _constructor("CifarPlainNet20", get_variant("cifar_plainnet20"))
CifarPlainNet32 = _constructor("CifarPlainNet32", get_variant("cifar_plainnet32"))
CifarPlainNet44 = _constructor("CifarPlainNet44", get_variant("cifar_plainnet44"))
CifarPlainNet56 = _constructor("CifarPlainNet56", get_variant("cifar_plainnet56"))
CifarPlainNet110 = _constructor("CifarPlainNet110", get_variant("cifar_plainnet110"))
