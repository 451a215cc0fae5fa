"""How far a model is from the one its weights came from, in numbers."""

import dataclasses

import keras
import numpy as np

from keras_resnet.weights.padding import channel_orders, check_padding, is_padded

# What the last block of a stage is called, here and in other Keras models (stage and block from 1).
_KERAS_STAGES = (
    lambda s, b: f"stage{s}_block{b}_out",
    lambda s, b: f"conv{s + 1}_block{b}_out",  # keras.applications
    lambda s, b: f"stack{s - 1}_block{b - 1}_out",  # KerasHub
)
# What a stage is called in PyTorch: torchvision and CIFAR networks, timm's pre-activation ones,
# DenseNets, transformers.
_TORCH_STAGES = (
    lambda s: f"layer{s}",
    lambda s: f"stages.{s - 1}",
    lambda s: f"features.denseblock{s}",
    lambda s: f"resnet.encoder.stages.{s - 1}",
)


@dataclasses.dataclass(frozen=True)
class Verification:
    """How far a model is from its reference on the same images: largest absolute differences.

    Args:
        logits: Of the classifier's outputs before the softmax; `None` without a classifier.
        largest_logit: Largest absolute logit of the reference, to compare with.
        stages: Of the last feature map of each stage.
        largest_features: Largest absolute value of these maps of the reference.
        shape: Of the images, `(batch, height, width, channels)`.
    """

    logits: float | None
    largest_logit: float | None
    stages: tuple[float, ...]
    largest_features: tuple[float, ...]
    shape: tuple[int, ...]

    def __str__(self):
        rows = [
            (f"stage {stage}", *pair)
            for stage, pair in enumerate(zip(self.stages, self.largest_features), start=1)
        ]
        if self.logits is not None:
            rows.append(("logits", self.logits, self.largest_logit))
        lines = [f"{'':8} {'difference':>10} {'largest':>10}   images {self.shape}"]
        return "\n".join(lines + [f"{name:8} {a:10.2g} {b:10.3g}" for name, a, b in rows])


def verify(
    model: keras.Model,
    reference,
    images: np.ndarray | None = None,
    *,
    shortcut_padding: str | None = None,
) -> Verification:
    """Compares a model with the one its weights came from: the logits, and each stage's output.

    Args:
        model: A model of this package.
        reference: A PyTorch module of torchvision, timm or transformers, or of the usual CIFAR
            networks; a model of keras.applications or KerasHub; another model of this package.
        images: Preprocessed images of shape `(batch, height, width, channels)`. Default: two of
            normally distributed noise, of the model's input size.
        shortcut_padding: What `load_weights` was told. With `"both"`, the channels of the stages
            stand in another order here, and are compared in that of the reference.

    Returns:
        A `Verification`, which prints as a table.

    Raises:
        ValueError: If the reference's stages are not found, or differ in number or shape; if
            `shortcut_padding` is given for a network without zero-padded shortcuts.
    """
    check_padding(shortcut_padding)
    if shortcut_padding and not is_padded(model):
        raise ValueError(
            "`shortcut_padding` is for networks with zero-padded shortcuts. Expected None. "
            f"Received: {shortcut_padding!r} for {model.name!r}."
        )
    if images is None:
        images = np.random.default_rng(0).normal(size=(2, *_image_shape(model)))
    images = np.asarray(images, "float32")
    is_torch = not isinstance(reference, keras.Model)
    ours = _keras_outputs(model, images)
    theirs = (_torch_outputs if is_torch else _keras_outputs)(reference, images)
    shapes = [[None if each is None else each.shape for each in side] for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The reference is another network. Expected outputs of the shapes "
            f"{shapes[0]} (stages, logits). Received: {shapes[1]}."
        )
    if shortcut_padding:
        theirs = [*_reordered(theirs[:-1], model, shortcut_padding), theirs[-1]]
    differences = [_largest(a, b) for a, b in zip(ours, theirs)]
    sizes = [_largest(b) for b in theirs]
    return Verification(
        differences[-1], sizes[-1], tuple(differences[:-1]), tuple(sizes[:-1]), images.shape
    )


def _reordered(stages, model, shortcut_padding):
    """The reference's feature maps with their channels in the model's order."""
    orders = {  # by stage, the last block's
        block.partition("_")[0]: order
        for block, order in channel_orders(model, shortcut_padding).items()
    }
    return [stage[..., orders[f"stage{number}"]] for number, stage in enumerate(stages, 1)]


def _largest(array, other=0.0):
    return None if array is None else float(np.abs(np.float64(array) - other).max())


def _image_shape(model):
    shape = model.input_shape[1:]
    if keras.config.image_data_format() == "channels_first":
        shape = (*shape[1:], shape[0])
    size = model.preprocessing.size if None in shape[:2] else shape[:2]
    return (*size, shape[2])


def _channels_last(array):
    is_first = keras.config.image_data_format() == "channels_first" and array.ndim == 4
    return array.transpose(0, 2, 3, 1) if is_first else array


def _keras_outputs(model, images):
    """The stages' outputs, and the logits or `None`."""
    backbone = getattr(model, "backbone", model)  # KerasHub's classifiers have one
    stages = _keras_stages(backbone)
    head = next((each for each in model.layers[::-1] if isinstance(each, keras.layers.Dense)), None)
    if keras.config.image_data_format() == "channels_first":
        images = images.transpose(0, 3, 1, 2)
    outputs = keras.Model(backbone.input, stages)(images, training=False)
    outputs = [_channels_last(keras.ops.convert_to_numpy(output)) for output in outputs]
    if head is None:
        return [*outputs, None]
    features = keras.Model(model.input, head.input)(images, training=False)
    features, kernel, bias = map(keras.ops.convert_to_numpy, (features, *head.weights))
    return [*outputs, features @ kernel + bias]


def _keras_stages(model):
    names = {layer.name for layer in model.layers}
    for name in _KERAS_STAGES:
        stages = []
        while blocks := [b for b in range(1, 1000) if name(len(stages) + 1, b) in names]:
            stages.append(model.get_layer(name(len(stages) + 1, blocks[-1])).output)
        if stages:
            return stages
    raise _no_stages(model, [name(1, 1) for name in _KERAS_STAGES])


def _torch_outputs(module, images):
    modules = dict(getattr(module, "named_modules", dict)())  # whatever else: none
    name = next((each for each in _TORCH_STAGES if each(1) in modules), None)
    if name is None:
        raise _no_stages(type(module), [name(1) for name in _TORCH_STAGES])
    import torch

    outputs, was_training, stage = {}, module.training, 1
    hooks = []
    while name(stage) in modules:
        hooks.append(
            modules[name(stage)].register_forward_hook(
                lambda _, __, output, stage=stage: outputs.update({stage: output.clone()})
            )
        )
        stage += 1
    try:
        with torch.inference_mode():
            logits = module.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    logits = getattr(logits, "logits", logits)
    stages = [outputs[stage].numpy().transpose(0, 2, 3, 1) for stage in sorted(outputs)]
    return [*stages, logits.numpy()]


def _no_stages(received, expected):
    return ValueError(
        f"The stages of the reference are not found. Expected one of {', '.join(expected)} in it. "
        f"Received: {received}."
    )
