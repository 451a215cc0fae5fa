"""The optimizer and the learning-rate schedule of a recipe, in steps."""

import keras

from training.recipe import Recipe

_SUMS_LATER = keras.backend.backend() == "tensorflow"  # JAX hands over gradients already summed


class _ClipsTheSum:
    """Clips the gradients of all replicas together; Keras clips each replica's before the sum."""

    clips_the_sum = True  # which networks of this package otherwise do for their optimizers

    def _clip_gradients(self, grads):
        return grads if _SUMS_LATER else super()._clip_gradients(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        grads, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars))
        return list(zip(super()._clip_gradients(list(grads)), variables))


@keras.saving.register_keras_serializable(package="training")
class CoupledSGD(_ClipsTheSum, keras.optimizers.SGD):
    """SGD whose weight decay is part of the gradient, as in the paper, Caffe and torch.

    `keras.optimizers.SGD(weight_decay=...)` is decoupled: it shrinks the weights outside of the
    momentum. A weight that gets no gradient for 200 steps (rate 0.1, momentum 0.9, decay 1e-4)
    ends at 0.9980 there and at 0.9811 here. Clipping acts on the gradient before the decay.

    Args:
        learning_rate: Positive float or a schedule.
        momentum: Float in [0, 1].
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Non-negative float; this fraction of a weight is added to its gradient.
        exclude: Words; a variable whose name contains one of them is not decayed, e.g.
            `("gamma", "beta", "bias")`. The paper excludes nothing.
        **kwargs: As `keras.optimizers.SGD`.

    Raises:
        ValueError: If `weight_decay` is negative.

    Reference: He et al. 2015, section 3.4; Loshchilov and Hutter 2019, algorithm 1, for the
    difference.
    """

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        exclude=(),
        name="coupled_sgd",
        **kwargs,
    ):
        if weight_decay < 0:
            raise ValueError(
                "Weight decay cannot grow the weights. Expected `weight_decay` >= 0. "
                f"Received: weight_decay={weight_decay}"
            )
        # The decay of the base class is the decoupled one, so it is never given to it.
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, name=name, **kwargs)
        self.coupled_weight_decay = weight_decay
        self.exclude = tuple(exclude)
        self.exclude_from_weight_decay(var_names=self.exclude)

    def update_step(self, gradient, variable, learning_rate):
        """Adds the decay to the gradient, then does what SGD does."""
        if self.coupled_weight_decay and self._use_weight_decay(variable):
            gradient = gradient + self.coupled_weight_decay * keras.ops.cast(
                variable, gradient.dtype
            )
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        """The arguments, with the coupled decay in the place of the decoupled one."""
        return {
            **super().get_config(),
            "weight_decay": self.coupled_weight_decay,
            "exclude": list(self.exclude),
        }


@keras.saving.register_keras_serializable(package="training")
class Lamb(_ClipsTheSum, keras.optimizers.Lamb):
    """LAMB with the weight decay inside the update that the trust ratio scales, as published.

    `keras.optimizers.Lamb(weight_decay=...)` shrinks the weights outside of it. Weights that do not
    decay are not scaled either (they take Adam's step), as in timm, which trained "ResNet strikes
    back".

    Args:
        learning_rate: Positive float or a schedule.
        weight_decay: Non-negative float.
        exclude: Words; a variable whose name contains one of them does not decay.
        **kwargs: As `keras.optimizers.Lamb`.

    Reference: You et al. 2020, algorithm 2.
    """

    def __init__(
        self,
        learning_rate=0.005,
        weight_decay=0.02,
        exclude=(),
        epsilon=1e-6,
        name="lamb",
        **kwargs,
    ):
        super().__init__(learning_rate, epsilon=epsilon, name=name, **kwargs)
        self.inner_weight_decay = weight_decay
        self.exclude = tuple(exclude)
        self.exclude_from_weight_decay(var_names=self.exclude)

    def update_step(self, gradient, variable, learning_rate):
        """Adam's direction, the decay added, at the length of the weights."""
        ops, dtype = keras.ops, variable.dtype
        rate, gradient = ops.cast(learning_rate, dtype), ops.cast(gradient, dtype)
        step = ops.cast(self.iterations + 1, dtype)
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        self.assign(first, self.beta_1 * first + (1 - self.beta_1) * gradient)
        self.assign(second, self.beta_2 * second + (1 - self.beta_2) * ops.square(gradient))
        mean = first / (1 - ops.power(ops.cast(self.beta_1, dtype), step))
        variance = second / (1 - ops.power(ops.cast(self.beta_2, dtype), step))
        update = mean / (ops.sqrt(variance) + self.epsilon)
        if self.inner_weight_decay and self._use_weight_decay(variable):
            update = update + self.inner_weight_decay * variable
            length, of_update = (ops.sqrt(ops.sum(ops.square(each))) for each in (variable, update))
            ratio = ops.where(
                ops.logical_and(length > 0, of_update > 0),
                length / ops.maximum(of_update, keras.config.epsilon()),
                1.0,
            )
            update = ratio * update
        self.assign_sub(variable, rate * update)

    def get_config(self):
        """The arguments, with the inner decay in the place of Keras's."""
        return {
            **super().get_config(),
            "weight_decay": self.inner_weight_decay,
            "exclude": list(self.exclude),
        }


@keras.saving.register_keras_serializable(package="training")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A first period of smaller rates before another schedule, which begins after it.

    Args:
        after: The schedule that follows; its step 0 is the first step after the warm-up.
        steps: Length of the warm-up, at least 1.
        start: Rate at step 0.
        end: Rate that the warm-up rises to, in a straight line; equal to `start` for a constant
            warm-up.

    Reference: He et al. 2015, section 4.2 (constant); Goyal et al. 2017, section 2.2 (linear).
    """

    def __init__(self, after, *, steps: int, start: float, end: float):
        self.after, self.steps, self.start, self.end = after, steps, start, end

    def __call__(self, step):
        """The rate at a step.

        Args:
            step: Number of updates before this one.
        """
        done = keras.ops.cast(step, "float32")
        risen = self.start + (self.end - self.start) * done / self.steps
        return keras.ops.where(
            done < self.steps, risen, self.after(keras.ops.maximum(done - self.steps, 0.0))
        )

    def get_config(self):
        """The arguments."""
        return {
            "after": keras.saving.serialize_keras_object(self.after),
            "steps": self.steps,
            "start": self.start,
            "end": self.end,
        }

    @classmethod
    def from_config(cls, config):
        """Reads the inner schedule first."""
        return cls(**{**config, "after": keras.saving.deserialize_keras_object(config["after"])})


def learning_rate_schedule(recipe: Recipe) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate at every step: the warm-up, then the fall.

    Args:
        recipe: The recipe.

    Returns:
        A schedule over steps, the first of which is number 0.
    """
    schedules, rate = keras.optimizers.schedules, recipe.learning_rate
    falling_steps = max(1, recipe.steps - recipe.warmup_steps)
    if recipe.schedule == "cosine":
        fall = schedules.CosineDecay(rate, falling_steps)
    elif recipe.schedule == "one_cycle":
        fall = schedules.PolynomialDecay(rate, falling_steps, end_learning_rate=0.0, power=1.0)
    else:
        fall = _steps_down(recipe)
    if not recipe.warmup_steps:
        return fall
    start = recipe.warmup_learning_rate
    end = rate if recipe.warmup == "linear" else start
    return WarmUp(fall, steps=recipe.warmup_steps, start=start, end=end)


def _steps_down(recipe):
    turns = [milestone - recipe.warmup_steps for milestone in recipe.milestones] or [0]
    rates = [recipe.learning_rate * recipe.decay_factor**n for n in range(len(turns) + 1)]
    if not recipe.milestones:
        rates[1] = rates[0]
    # Keras keeps the old rate up to and including the boundary.
    return keras.optimizers.schedules.PiecewiseConstantDecay([turn - 1 for turn in turns], rates)


def make_optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe, not built yet.

    Args:
        recipe: The recipe.
    """
    common = {
        "weight_decay": recipe.weight_decay,
        "exclude": recipe.decay_exclude,
        "global_clipnorm": recipe.clip_norm,
        "use_ema": recipe.ema_momentum is not None,
        "ema_momentum": recipe.ema_momentum or 0.0,
    }
    rates = learning_rate_schedule(recipe)
    if recipe.optimizer == "lamb":
        return Lamb(rates, **common)
    return CoupledSGD(rates, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
