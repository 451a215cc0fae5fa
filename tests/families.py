"""One small network of each family: its row of the table, shortened and thinned to milliseconds."""

import dataclasses

from keras_resnet.variants import VARIANTS


def small(name, filters=(16, 24), **fields):
    """A row with two stages of two blocks: a first, a changing and two ordinary blocks.

    Not below 16 channels: the gradient of a strided 1x1 convolution of fewer overwrites memory on
    CPUs (oneDNN, issue 6035).
    """
    return dataclasses.replace(
        VARIANTS[name], blocks=(2, 2), filters=filters, classes=3, **{"stem_filters": 16} | fields
    )


SMALL = {
    "pre_activation": small("resnet50v2"),
    "pre_activation_cifar": small("cifar_resnet164v2"),
    "wide": small("wide_resnet28_10", (32, 48), dropout_rate=0.3),
    "wide_bottleneck": small("wide_resnet50_2"),
    "resnext": small("resnext50_32x4d", groups=8),
    "resnet_d": small("resnet50d"),
    "se": small("se_resnet50"),
    "dense": small("densenet40_12", (12, 12), compression=1.0),
    "dense_bottleneck": small("densenet121", (16, 16)),
    "highway": small("highwaynet19"),
    "constant_scaling": small("cifar_resnet20", shortcut="constant_scaling"),
    "exclusive_gating": small("cifar_resnet20", shortcut="exclusive_gating"),
    "shortcut_only_gating": small("cifar_resnet20", shortcut="shortcut_only_gating"),
    "dropout_shortcut": small("cifar_resnet20", shortcut="dropout"),
    "stochastic_depth": small(
        "cifar_resnet110", shortcut="average_pool_zero_padding", survival_probability=0.5
    ),
}
