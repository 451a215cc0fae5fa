"""Every training recipe is one row of one table.

A recipe says which network learns from which images, and how: all the numbers that decide the
result, and nothing about the machine it runs on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.errors import unknown_name

SCHEDULES = ("step", "cosine", "one_cycle")
WARMUPS = ("constant", "linear")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Args:
        name: Name in the table; `python -m training train NAME` follows it.
        variant: Name of the network, one of `keras_resnet.list_variants()`.
        dataset: Name of the images: `"digits"`, `"folder:PATH"` or any TFDS name.
        batch_size: Images per step over all replicas together.
        steps: Number of weight updates.
        learning_rate: Rate at the start, or after the warm-up.
        schedule: How the rate falls after the warm-up, one of `SCHEDULES`: `"step"` at the
            milestones; `"cosine"` or `"one_cycle"` (a straight line) to zero at the last step.
        milestones: Steps at which `"step"` multiplies the rate by `decay_factor`, rising.
        decay_factor: In (0, 1).
        warmup: How the rate begins, one of `WARMUPS`: `"constant"` at `warmup_learning_rate`, or
            `"linear"`, from there to `learning_rate`.
        warmup_steps: Length of that first period.
        warmup_learning_rate: Its rate, or its first rate.
        momentum: In [0, 1).
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Coupled: this fraction of every weight is added to its gradient.
        decay_exclude: Words; weights whose names contain one of them do not decay.
        augmentation: Name of the augmentation, see `training.augment`.
        options: Options for `keras_resnet.build`.
        reference: Where the recipe comes from, and what it reaches there.
        measured_accuracy: Top-1 accuracy on the test split that a run of this recipe reached here,
            in [0, 1]. `None`: not run yet.

    Raises:
        ValueError: If the milestones do not fit the steps, or a size is not positive.
    """

    name: str
    variant: str
    dataset: str
    batch_size: int
    steps: int
    learning_rate: float
    schedule: str = "step"
    milestones: tuple[int, ...] = ()
    decay_factor: float = 0.1
    warmup: str = "constant"
    warmup_steps: int = 0
    warmup_learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_exclude: tuple[str, ...] = ()
    augmentation: str = "none"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: str = ""
    measured_accuracy: float | None = None

    def __post_init__(self):
        for field in ("milestones", "decay_exclude"):  # lists, out of JSON
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field, names in (("schedule", SCHEDULES), ("warmup", WARMUPS)):
            if getattr(self, field) not in names:
                raise unknown_name(field, getattr(self, field), names)
        for field in ("batch_size", "steps"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"A run needs at least one step of at least one image. Expected `{field}` >= "
                    f"1. Received: {field}={getattr(self, field)}."
                )
        turns = (self.warmup_steps, *self.milestones, self.steps)
        if list(turns) != sorted(turns) or turns[0] < 0:
            raise ValueError(
                "The learning-rate schedule is out of order. Expected 0 <= warmup_steps <= "
                f"milestones <= steps. Received: warmup_steps={self.warmup_steps}, "
                f"milestones={self.milestones}, steps={self.steps}."
            )

    def scaled(self, steps: int) -> "Recipe":
        """The same recipe in another number of steps: milestones and warm-up move along.

        Args:
            steps: Number of steps, at least 1.

        >>> get_recipe("cifar10-resnet20").scaled(steps=640).milestones
        (320, 480)
        """
        ratio = steps / self.steps
        return dataclasses.replace(
            self,
            steps=steps,
            milestones=tuple(round(step * ratio) for step in self.milestones),
            warmup_steps=round(self.warmup_steps * ratio),
        )

    def with_batch_size(self, batch_size: int) -> "Recipe":
        """The same recipe with another batch size and as many images: the steps are scaled.

        The learning rate stays as it is.

        Args:
            batch_size: Images per step over all replicas together, at least 1.

        >>> recipe = get_recipe("cifar10-resnet20").with_batch_size(256)
        >>> recipe.steps, recipe.milestones, recipe.learning_rate
        (32000, (16000, 24000), 0.1)
        """
        resized = dataclasses.replace(self, batch_size=batch_size)
        return resized.scaled(max(1, round(self.steps * self.batch_size / batch_size)))


def _cifar10(network: str, **changes) -> Recipe:
    """The CIFAR-10 recipe of He et al. 2015, section 4.2.

    Trained on the 45,000 images the paper chose its schedule on; the other 5,000 choose the
    weights that are kept.
    """
    return Recipe(
        name=f"cifar10-{network}",
        variant=f"cifar_{network}",
        dataset="cifar10",
        batch_size=128,
        steps=64_000,
        learning_rate=0.1,
        milestones=(32_000, 48_000),
        augmentation="pad_crop_flip",
        **changes,
    )


_NORM_AND_BIAS = ("gamma", "beta", "bias")
_TABLE_6 = "He et al. 2015, section 4.2, table 6: accuracy {}"
_FIGURE_6 = "He et al. 2015, section 4.2, figure 6"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits-resnet20",
            variant="cifar_resnet20",
            dataset="digits",
            batch_size=128,
            steps=500,
            learning_rate=0.1,
            milestones=(250, 375),
            weight_decay=1e-3,
            augmentation="shift",
            reference="ours: the paper's CIFAR-10 recipe, shortened to a minute on two cores",
            measured_accuracy=0.9861,  # seed 0, two replicas
        ),
        _cifar10("resnet20", reference=_TABLE_6.format("91.25%")),
        _cifar10("resnet32", reference=_TABLE_6.format("92.49%")),
        _cifar10("resnet44", reference=_TABLE_6.format("92.83%")),
        _cifar10("resnet56", reference=_TABLE_6.format("93.03%")),
        # The paper waits until the training error is below 80%, "about 400 iterations".
        _cifar10(
            "resnet110",
            warmup_steps=400,
            reference=_TABLE_6.format("93.57%, 93.39 ± 0.16 over five runs"),
        ),
        Recipe(
            name="cifar10-resnet20-fast",
            variant="cifar_resnet20",
            dataset="cifar10",
            batch_size=128,
            steps=16_000,
            learning_rate=0.2,
            schedule="one_cycle",
            warmup="linear",
            warmup_steps=3_200,
            warmup_learning_rate=0.02,
            nesterov=True,
            weight_decay=5e-4,
            decay_exclude=_NORM_AND_BIAS,
            augmentation="pad_crop_flip",
            reference="ours: the paper's 91.25% in a quarter of its steps; one-cycle policy of "
            "Smith and Topin 2018",
        ),
        _cifar10("plainnet20", reference=_FIGURE_6),
        _cifar10("plainnet32", reference=_FIGURE_6),
        _cifar10("plainnet44", reference=_FIGURE_6),
        _cifar10("plainnet56", reference=_FIGURE_6),
    )
}


def get_recipe(name: str) -> Recipe:
    """The row of a name.

    Args:
        name: A name of the table `RECIPES`.

    Raises:
        ValueError: If the name is not known; the nearest one is named.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]
