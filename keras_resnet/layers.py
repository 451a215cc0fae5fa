"""The few layers that Keras lacks, all registered, so that saved models load by themselves."""

import math

import keras
import numpy as np
from keras import ops

PACKAGE = "keras_resnet"

# More are slower by the zeros between them, fewer by the number of operations.
_CHANNELS_TOGETHER = 32


@keras.saving.register_keras_serializable(PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation, on TensorFlow's fused kernel where there is one.

    The same function, arguments and weights. Keras composes it of elementary operations, in
    float32 whatever the policy; the kernel is one operation forth and one back. Other backends,
    ranks, axes and dtypes, masks, synchronisation and renormalisation take Keras's road.
    """

    def call(self, inputs, training=None, mask=None):
        if mask is not None or not self._is_fusible(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        training = bool(training and self.trainable)
        statistics = [self.moving_mean, self.moving_variance]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32"),
            offset=ops.cast(self.beta, "float32"),
            mean=[] if training else ops.convert_to_tensor(statistics[0]),
            variance=[] if training else ops.convert_to_tensor(statistics[1]),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            # The kernel returns the sample variance (over n - 1), Keras averages the biased one.
            count = ops.cast(ops.size(inputs) // inputs.shape[-1], "float32")
            variance = variance * (ops.maximum(count - 1, 1) / count)
            for moving, batch in zip(statistics, (mean, variance)):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs

    def _is_fusible(self, inputs):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (3, -1)
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "bfloat16", "float16")
            and self.variable_dtype == "float32"
            and self.scale
            and self.center
            and not self.renorm
            and not self.synchronized
        )


@keras.saving.register_keras_serializable(PACKAGE)
class GroupedConv2D(keras.layers.Conv2D):
    """Keras's convolution in groups, on TensorFlow's own operation.

    The same function and weights. Keras hides the operation in a program of XLA, since TensorFlow
    cannot differentiate it on every CPU: exporters do not look into that program, and its gradient
    takes XLA some hundred times as long as that of an ordinary convolution. Here the gradient on
    CPUs is that of ordinary convolutions of a few groups each, with zeros between the groups.
    Other backends and channels first take Keras's road.

    Args:
        differentiable: Whether it has a gradient on every CPU. Without, it is one operation and
            nothing else, as exporters know it.
        *args: As of `keras.layers.Conv2D`, as are the keywords.

    Reference: Xie et al. 2017, figure 3 (c).
    """

    def __init__(self, *args, differentiable=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.differentiable = differentiable

    def get_config(self):
        return super().get_config() | {"differentiable": self.differentiable}

    def convolution_op(self, inputs, kernel):
        if keras.backend.backend() != "tensorflow" or self.data_format == "channels_first":
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        def convolve(inputs, kernel):
            return tf.nn.convolution(
                inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate
            )

        @tf.custom_gradient
        def convolve_on_cpu(inputs, kernel):
            def gradient(upstream):
                with tf.GradientTape() as tape:
                    tape.watch((inputs, kernel))
                    outputs = _in_ordinary_convolutions(convolve, inputs, kernel)
                return tape.gradient(outputs, (inputs, kernel), upstream)

            return convolve(inputs, kernel), gradient

        kinds = {device.device_type for device in tf.config.list_logical_devices()}
        run = convolve_on_cpu if self.differentiable and kinds == {"CPU"} else convolve
        return run(inputs, tf.convert_to_tensor(kernel))


def _in_ordinary_convolutions(convolve, inputs, kernel):
    """A convolution in groups as ordinary ones of about `_CHANNELS_TOGETHER` channels each."""
    import tensorflow as tf

    channels, (depth, filters) = inputs.shape[-1], kernel.shape[-2:]
    groups = channels // depth
    together = math.gcd(groups, max(1, _CHANNELS_TOGETHER // depth))
    parts = groups // together
    own = np.kron(np.eye(together), np.ones((depth, filters // groups)))
    outputs = [
        convolve(part, tf.tile(weights, [1, 1, together, 1]) * tf.cast(own, kernel.dtype))
        for part, weights in zip(tf.split(inputs, parts, -1), tf.split(kernel, parts, -1))
    ]
    return tf.concat(outputs, -1)


@keras.saving.register_keras_serializable(PACKAGE)
class ZeroPadShortcut(keras.layers.Layer):
    """The parameter-free shortcut across a change of size: subsample, then append zero channels.

    Maps `(batch, height, width, channels)` to `(batch, ceil(height / strides),
    ceil(width / strides), filters)`; with `channels_first` the channels stand second.

    Args:
        filters: Number of output channels, at least that of the input.
        strides: Every how-manieth row and column is kept, starting with the first.
        data_format: `"channels_last"` or `"channels_first"`; default: Keras's setting.

    Raises:
        ValueError: When called on more channels than `filters`.

    Reference: He et al. 2015, section 3.3, option A.
    """

    def __init__(self, filters, strides=1, data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.data_format = data_format or keras.config.image_data_format()

    def _missing_channels(self, shape):
        channels = shape[1 if self.data_format == "channels_first" else -1]
        if channels > self.filters:
            raise ValueError(
                "A zero-padded shortcut cannot reduce channels. "
                f"Expected at most {self.filters} input channels. Received: {channels}."
            )
        return self.filters - channels

    def call(self, inputs):
        missing = [0, self._missing_channels(inputs.shape)]
        # Means of one pixel: TensorFlow slices with strides on one core only.
        kept = ops.average_pool(inputs, 1, self.strides, data_format=self.data_format)
        if self.data_format == "channels_first":
            return ops.pad(kept, [[0, 0], missing, [0, 0], [0, 0]])
        return ops.pad(kept, [[0, 0], [0, 0], [0, 0], missing])

    def compute_output_shape(self, input_shape):
        self._missing_channels(input_shape)
        first = self.data_format == "channels_first"
        batch, *sides = (input_shape[0], *(input_shape[2:] if first else input_shape[1:3]))
        sides = [None if side is None else -(-side // self.strides) for side in sides]
        return (batch, self.filters, *sides) if first else (batch, *sides, self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "strides": self.strides,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class StochasticDepth(keras.layers.Layer):
    """Drops a whole residual at random in training, and scales it by its survival otherwise.

    The shape of the input, of any rank, is kept.

    Args:
        survival_probability: Probability in (0, 1] with which the residual is kept in training.
        per_image: Whether each image of the batch draws for itself; the paper draws once per
            mini-batch.
        seed: Seed of the draws; default: from `keras.utils.set_random_seed`.

    Reference: Huang et al. 2016, equations 2 and 5. (Scaling happens at test time, as in the
    paper, not as inverse scaling in training.)
    """

    def __init__(self, survival_probability, per_image=False, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 < survival_probability <= 1:
            raise ValueError(
                "A survival probability lies in (0, 1]. "
                f"Received: survival_probability={survival_probability}"
            )
        self.survival_probability = survival_probability
        self.per_image = per_image
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        if not training:
            return inputs * self.survival_probability
        draws = ops.shape(inputs)[0] if self.per_image else 1
        kept = self.draw((draws,) + (1,) * (len(inputs.shape) - 1))
        return inputs * ops.cast(kept, inputs.dtype)

    def draw(self, shape=()):
        """Draws whether to keep: booleans of `shape`, True with the survival probability."""
        uniform = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        return uniform < self.survival_probability

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "survival_probability": self.survival_probability,
            "per_image": self.per_image,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class GatedAdd(keras.layers.Layer):
    """Mixes a shortcut and a residual by a gate: `gate * residual + (1 - gate) * shortcut`.

    Called on `[shortcut, residual, gate]`, three tensors of one shape, with gates in [0, 1].

    Args:
        exclusive: Whether the gate also scales the residual; if not:
            `residual + (1 - gate) * shortcut`.

    Reference: Srivastava et al. 2015, equation 3; He et al. 2016, section 3.1.
    """

    def __init__(self, exclusive=True, **kwargs):
        super().__init__(**kwargs)
        self.exclusive = exclusive

    def call(self, inputs):
        shortcut, residual, gate = inputs
        return (residual * gate if self.exclusive else residual) + (1 - gate) * shortcut

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return super().get_config() | {"exclusive": self.exclusive}
