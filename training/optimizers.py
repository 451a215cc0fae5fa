"""The optimizer and the learning-rate schedule of a recipe, in steps."""

import keras

from training.recipe import Recipe


@keras.saving.register_keras_serializable(package="training")
class CoupledSGD(keras.optimizers.SGD):
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


def make_optimizer(recipe: Recipe) -> CoupledSGD:
    """The optimizer of a recipe, not built yet.

    Args:
        recipe: The recipe.
    """
    return CoupledSGD(
        learning_rate_schedule(recipe),
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        exclude=recipe.decay_exclude,
    )
