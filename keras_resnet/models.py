"""Stem -> stages -> head: one builder for every row of the table, and the model it makes."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterable
from numbers import Integral

import keras
from keras import layers

from keras_resnet.axes import SURVIVAL_SCHEDULES, resolve
from keras_resnet.blocks import Geometry, residual_block
from keras_resnet.parts import ACTIVATION_ORDERS, activate_part
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.stems import STEMS, TRANSITIONS
from keras_resnet.variants import Variant, check_classes
from keras_resnet.weights import WeightSet, fetch, find_weights, load_weights, spread_channels


def _base_model():
    """`keras.Model`; on TensorFlow with the training step of `replica_xla`."""
    if keras.backend.backend() != "tensorflow":
        return keras.Model
    from keras_resnet.replica_xla import ReplicaModel

    return ReplicaModel


@keras.saving.register_keras_serializable("keras_resnet")
class ResNet(_base_model()):
    """A Functional Keras model that remembers which network it is and how it sees images.

    Made by `build` and by the constructors of this package; saves, loads and clones as any
    Functional model does, of any depth. (`keras.models.clone_model` makes copies without `variant`
    and `preprocessing`; `ResNet.from_config(model.get_config())` keeps them.)

    What is built upon one, or holds one, for several replicas should be a `ResNet(inputs, outputs)`
    as well: a `keras.Model` trains by Keras's step, without XLA, with wrong means where the shares
    differ, and with the moving statistics of the first replica alone.

    Args:
        inputs: Keras tensor of shape `(batch, height, width, channels)`, or channels first.
        outputs: Keras tensor computed from `inputs`.
        name: Name of the model.
        variant: The resolved `Variant`, or its fields as a dict.
        preprocessing: The `Preprocessing` its images go through, or its fields as a dict.
        dtype: Dtype policy, by which `compile` scales the loss; default: Keras's setting.
    """

    def __init__(
        self, inputs, outputs, name=None, *, variant=None, preprocessing=None, dtype=None, **kwargs
    ):
        _permit_depth(outputs)
        super().__init__(inputs, outputs, name=name, **kwargs)
        is_dict = isinstance(preprocessing, dict)
        self.preprocessing = Preprocessing(**preprocessing) if is_dict else preprocessing
        self.variant = _variant_from_dict(variant) if isinstance(variant, dict) else variant
        if dtype is not None:
            self.dtype_policy = dtype

    @property
    def pyramid_outputs(self) -> dict:
        """The last feature map of each stage by level: `"P2"` is 4 times smaller than the image.

        Returns:
            Keras tensors, e.g. `{"P2": ..., "P3": ..., "P4": ..., "P5": ...}`; levels of a CIFAR
            network count from its first stage, `"P0"`. Dilation does not change the names.

        Raises:
            ValueError: If `variant` is not set.
        """
        if self.variant is None:
            raise ValueError(
                f"The model {self.name!r} does not know its stages. Expected a `Variant` in "
                "`model.variant`. Received: None. Set it to that of the model this one was made of."
            )
        first_level = int(math.log2(STEMS[self.variant.stem].strides))
        return {
            f"P{first_level + stage}": self.get_layer(f"stage{stage + 1}_block{count}_out").output
            for stage, count in enumerate(self._last_blocks())
        }

    def _last_blocks(self):
        """The last block of each stage that has the stage's size."""
        *counts, last = self.variant.blocks
        return [*(count - self.variant.stride_in_last_block for count in counts), last]

    def get_config(self):
        config = super().get_config()
        for key in ("variant", "preprocessing"):
            record = getattr(self, key)
            config[key] = record and dataclasses.asdict(record)
        return config | {"dtype": keras.dtype_policies.serialize(self.dtype_policy)}


def build(
    variant,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=None,
    classifier_activation="softmax",
    name=None,
    **options,
) -> ResNet:
    """Builds any network of the table.

    Args:
        variant: A name of `list_variants()`, or a `Variant`.
        include_top: Whether to end in average pooling and a classifier.
        weights: `None` for random initialisation; the tag of a published set, see
            `keras_resnet.list_weights(variant)`; `"imagenet"` for the best of them; the address
            `"hf://OWNER/NAME"` of a repository of the Hugging Face hub; or the path of a file.
            Other `classes` than the set's keep the backbone and begin a new classifier; other
            channels get a stem that sees grey images as before (`weights.spread_channels`). The
            set's preprocessing becomes the model's.
        input_tensor: Keras tensor to build upon, instead of a new input.
        input_shape: `(height, width, channels)`, or channels first by Keras's setting; sizes may
            be `None` or odd, and channels any number. Default: the size the network or its weights
            were made for, or `(None, None, 3)` without the top.
        pooling: What follows the last stage without the top: `None` (the feature map), `"avg"` or
            `"max"`.
        classes: Number of classes; default that of the weights, or 1000 for ImageNet networks and
            10 for CIFAR ones.
        classifier_activation: Activation of the classifier; `None` gives logits. Always float32
            (or wider), whatever the dtype policy.
        name: Name of the model.
        **options: Fields of the `Variant` to replace, of `keras_resnet.OPTIONS`: `shortcut`,
            `output_stride`, `survival_probability`, ...

    Returns:
        A `ResNet` that maps `(batch, height, width, channels)` to `(batch, classes)`; without the
        top to `(batch, height / stride, width / stride, filters)`, or `(batch, filters)` pooled.

    Raises:
        ValueError: If a name, a shape or a value is not possible; before anything is built.
        TypeError: If an option does not exist.

    >>> model = build("cifar_resnet20", weights=None)
    >>> model.count_params()
    271098
    """
    variant = resolve(variant, options)
    _check_arguments(include_top, pooling, classes)
    weight_set = find_weights(variant, weights)
    variant = _as_weights_want(variant, weight_set, options)
    stages = _stage_geometries(variant)
    record = weight_set.preprocessing if weight_set else variant.preprocessing
    inputs, x = _input(variant, record, include_top, input_tensor, input_shape)
    size, channels = _size_and_channels(inputs, x)

    x = STEMS[variant.stem].draw(x, variant, variant.stem_filters or variant.filters[0])
    for stage, geometries in enumerate(stages, start=1):
        transition = TRANSITIONS[variant.transition]
        if transition and stage > 1:
            x = transition(x, variant, geometries[0].strides, f"stage{stage - 1}_transition")
            geometries = [dataclasses.replace(geometry, strides=1) for geometry in geometries]
        for block, geometry in enumerate(geometries, start=1):
            x = residual_block(x, variant, geometry, f"stage{stage}_block{block}")
    of_weights = weight_set.classes if weight_set else None
    head = include_top and (classes is None or of_weights in (None, classes))
    classes = int(classes or of_weights or variant.classes)
    x = _head(x, variant, include_top, pooling, classes, classifier_activation)

    preprocessing = record.adapted(size=size, channels=channels)
    model = ResNet(inputs, x, name or variant.name, variant=variant, preprocessing=preprocessing)
    if weight_set:
        _load(model, weight_set, head=head, include_top=include_top, classes=classes)
        model.preprocessing = preprocessing  # the set's, whatever its file says
    return model


def _as_weights_want(variant, weight_set, options):
    """The variant with the options that its weights were trained with."""
    wanted = weight_set.options if weight_set else {}
    for option, value in wanted.items():
        if options.get(option, value) != value:
            raise ValueError(
                f"The weights {weight_set.tag!r} are for another {variant.name}. Expected "
                f"{option}={value!r}, or no {option} at all. Received: {option}={options[option]!r}"
            )
    return dataclasses.replace(variant, **wanted)


def _load(model, weight_set: WeightSet, *, head, include_top, classes):
    """Puts the weights of a set into a model, whatever its number of channels."""
    path = fetch(weight_set)
    channels, known = len(model.preprocessing.mean), len(weight_set.preprocessing.mean)
    if channels == known:
        load_weights(model, path, head=head)
    else:
        shape = _with_channels((None, None), known)
        coloured = build(model.variant, include_top, input_shape=shape, classes=classes)
        load_weights(coloured, path, head=head)
        variables = {variable.path: variable for variable in model.variables}
        for variable in coloured.weights:
            value, target = keras.ops.convert_to_numpy(variable), variables[variable.path]
            fits = tuple(target.shape) == value.shape
            target.assign(value if fits else spread_channels(value, channels))


def _check_arguments(include_top, pooling, classes):
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"Unknown `pooling`. Expected None, 'avg' or 'max'. Received: {pooling!r}")
    if include_top and classes is not None:
        check_classes(classes)


def output_strides(variant) -> list[int]:
    """What `output_stride` may be, the network's own stride first."""
    full_stride = STEMS[variant.stem].strides * 2 ** (len(variant.blocks) - 1)
    # Dilation replaces strides, not averages over neighbours.
    averages = variant.transition == "pool" or variant.shortcut.startswith("average_pool")
    fixed = averages or variant.stride_in_last_block
    removable = 0 if fixed else min(2, len(variant.blocks) - 1)
    return [full_stride // 2**removed for removed in range(removable + 1)]


def _stage_geometries(variant) -> list[list[Geometry]]:
    """The geometry of every block, by stage."""
    possible = output_strides(variant)
    if variant.output_stride not in (None, *possible):
        raise ValueError(
            f"{variant.name} cannot have this output stride. Expected one of "
            f"{', '.join(map(str, possible))}. Received: output_stride={variant.output_stride!r}"
        )
    survival = SURVIVAL_SCHEDULES[variant.survival_schedule]
    stride, stages, dilation, position = STEMS[variant.stem].strides, [], 1, 0
    for stage, (count, filters) in enumerate(zip(variant.blocks, variant.filters, strict=True)):
        strides, before = 1 if stage == 0 else 2, dilation
        if stride * strides > (variant.output_stride or possible[0]):
            dilation, strides = dilation * strides, 1
        stride *= strides
        stages.append([])
        for block in range(count):
            position += 1
            stages[-1].append(
                Geometry(
                    filters=filters,
                    strides=strides if block == 0 else 1,
                    dilation=dilation,
                    dilation_before=before if block == 0 else dilation,
                    is_first=position == 1,
                    survival_probability=survival(
                        variant.survival_probability, position, sum(variant.blocks)
                    ),
                )
            )
    if variant.stride_in_last_block:
        for stage, following in itertools.pairwise(stages):
            stage[-1] = dataclasses.replace(stage[-1], strides=following[0].strides)
            following[0] = dataclasses.replace(following[0], strides=1)
    return stages


def _input(variant, record, include_top, input_tensor, input_shape):
    """The model's inputs, and the tensor that the stem is drawn upon."""
    if input_tensor is not None and keras.utils.is_keras_tensor(input_tensor):
        _check_input_shape(variant, input_tensor.shape[1:])
        sources = keras.utils.get_source_inputs(input_tensor)
        # A list of one would make Keras warn at every call with a bare array.
        return (sources[0] if len(sources) == 1 else sources), input_tensor
    if input_shape is None:
        size = record.size if include_top else (None, None)
        input_shape = _with_channels(size, len(record.mean))
    _check_input_shape(variant, input_shape)
    inputs = layers.Input(shape=input_shape, tensor=input_tensor, name="image")
    return inputs, inputs


def _size_and_channels(inputs, x):
    """Height and width (`None` unless both are known), and channels, of a model's images."""
    # What is no image, or several at once, becomes one before the stem.
    shape = (inputs if len(getattr(inputs, "shape", ())) == 4 else x).shape[1:]
    if keras.config.image_data_format() == "channels_first":
        shape = (*shape[1:], shape[0])
    *size, channels = shape
    return None if None in size else tuple(size), channels


def _with_channels(size, channels):
    channels_first = keras.config.image_data_format() == "channels_first"
    return (channels, *size) if channels_first else (*size, channels)


def _check_input_shape(variant, input_shape):
    """A shape must name its channels, and leave more than one pixel to the last stage."""
    sides = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if len(sides) != 3 or not all(isinstance(side, Integral | None) for side in sides):
        raise ValueError(
            f"`input_shape` must be a tuple of three integers. Received: input_shape={input_shape}"
        )
    axis = 0 if keras.config.image_data_format() == "channels_first" else 2
    if not (sides[axis] or 0) > 0:
        raise ValueError(
            "The number of input channels must be known. Expected it on axis "
            f"{axis} of `input_shape` ({keras.config.image_data_format()}). "
            f"Received: input_shape={tuple(input_shape)}"
        )
    stride = output_strides(variant)[0]
    smallest = min(stride // 2, variant.output_stride or stride) + 1
    if any(side is not None and side < smallest for side in sides[:axis] + sides[axis + 1 :]):
        raise ValueError(
            f"Input size must be at least {smallest}x{smallest}, or the last stage of "
            f"{variant.name} sees a single pixel. Received: input_shape={tuple(input_shape)}"
        )


def _head(x, variant, include_top, pooling, classes, classifier_activation):
    order = ACTIVATION_ORDERS[variant.activation_order]
    x = activate_part(x, order.head, "head")
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="head_pool")(x)
    if not include_top:
        return x
    policy = keras.config.dtype_policy()
    half = policy.compute_dtype in ("float16", "bfloat16")
    return layers.Dense(
        classes,
        activation=classifier_activation,
        dtype="float32" if half else policy,
        name="predictions",
    )(x)


def _permit_depth(outputs):
    """Raises Python's recursion limit to what Keras needs for this graph.

    Keras 3 walks a graph of layers recursively; about 1,000 in a row end in `RecursionError`. The
    limit stays raised, because later calls of Keras (a sub-model, a plot) walk the graph again.
    """
    tensor, length = keras.tree.flatten(outputs)[0], 0
    while tensor is not None and hasattr(tensor, "_keras_history"):
        parents = tensor._keras_history.operation._inbound_nodes[
            tensor._keras_history.node_index
        ].input_tensors
        # The last input of an addition is the residual: the long way.
        tensor, length = (parents[-1] if parents else None), length + 1
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 4 * length))


def _variant_from_dict(fields):
    fields = dict(fields) | {"preprocessing": Preprocessing(**fields["preprocessing"])}
    return Variant(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
