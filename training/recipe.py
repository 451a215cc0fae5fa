"""What a training recipe is: all the numbers that decide a result.

It says which network learns from which images, and how, and nothing about the machine it runs on.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from keras_resnet import OPTIONS, Preprocessing, Variant
from keras_resnet.errors import unknown_name
from training.kinds import check_kind

OPTIMIZERS = ("sgd", "lamb")
SCHEDULES = ("step", "cosine", "one_cycle")
WARMUPS = ("constant", "linear")
LOSSES = ("categorical_crossentropy", "binary_crossentropy")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# field -> the words it may be
_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "warmup": WARMUPS,
    "loss": LOSSES,
    "precision": PRECISIONS,
}
# fields that lie in [0, 1)
_SHARES = ("momentum", "label_smoothing", "weight_decay", "ema_momentum", "target_threshold")
# field -> what may stand inside, and its kind
_INSIDE = {
    "options": {
        field.name: field.type for field in dataclasses.fields(Variant) if field.name in OPTIONS
    },
    "preprocessing": {field.name: field.type for field in dataclasses.fields(Preprocessing)},
}


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
        schedule: How the rate falls after the warm-up: `"step"` at the milestones, `"cosine"` or
            `"one_cycle"` (a straight line) to zero after the last step.
        milestones: Steps at which `"step"` multiplies the rate by `decay_factor`, rising.
        decay_factor: In (0, 1).
        warmup: How the rate begins: `"constant"` at `warmup_learning_rate`, or `"linear"`, from
            there to `learning_rate`.
        warmup_steps: Length of that first period.
        warmup_learning_rate: Its rate, or its first rate; not negative.
        optimizer: `"sgd"` or `"lamb"`.
        momentum: Of SGD, in [0, 1).
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: For SGD coupled: this fraction of every weight is added to its gradient. For
            LAMB part of the update that its trust ratio scales.
        decay_exclude: Words; weights whose names contain one of them do not decay.
        clip_norm: Largest norm of all gradients together. `None`: not clipped.
        ema_momentum: Of an average of the weights over the steps, and of the moving statistics,
            which is what is evaluated and kept; in [0, 1). `None`: no average.
        loss: `"categorical_crossentropy"`, or `"binary_crossentropy"` of each class on its own
            (ResNet strikes back).
        target_threshold: With binary cross-entropy: of mixed images, the classes with a larger
            share than this, in [0, 1), count as wholly there, and the others as not there. `None`:
            a class counts by its share.
        label_smoothing: Share of a label that is spread over all classes, in [0, 1).
        augmentation: What is done to the training images, in this order: names of
            `training.augment.AUGMENTATIONS`, each with its keywords.
        repeats: How often each image that is drawn stands in a batch, each time augmented anew
            (repeated augmentation); an epoch then sees one in `repeats` images.
        image_sizes: Side of the training images in pixels as the run goes on, as pairs of the
            share of the steps done and the side: `((0, 160), (0.5, 192))`. Empty: the dataset's.
        validation_examples: Number of training images that are held out for validation. `None`:
            as many as `datasets.load` holds out.
        preprocessing: Fields of `Preprocessing` that differ from the dataset's, e.g.
            `{"resize_size": 232}`.
        precision: Keras dtype policy.
        synchronized_batch_norm: Whether replicas share the statistics of their images, see
            `keras_resnet.surgery.synchronize_batch_norm`.
        options: Options for `keras_resnet.build`.
        weights: What the network begins with, see `keras_resnet.build`; their preprocessing then
            takes the place of the dataset's. `None`: random.
        freeze: The last part of the network that keeps its weights and statistics: `"stem"`,
            `"stage1"`, ..., see `keras_resnet.surgery.freeze`. `None`: all learns.
        reference: Where the recipe comes from, and what it reaches there.
        measured_accuracy: Top-1 accuracy on the test split that a run of this recipe reached here,
            in [0, 1]. `None`: not run.

    Raises:
        ValueError: If a value is of another kind than its field, a choice is not known, the
            milestones do not fit the steps, or a number is out of its range.
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
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_exclude: tuple[str, ...] = ()
    clip_norm: float | None = None
    ema_momentum: float | None = None
    loss: str = "categorical_crossentropy"
    target_threshold: float | None = None
    label_smoothing: float = 0.0
    augmentation: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    repeats: int = 1
    image_sizes: tuple[tuple[float, int], ...] = ()
    validation_examples: int | None = None
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    precision: str = "float32"
    synchronized_batch_norm: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    freeze: str | None = None
    reference: str = ""
    measured_accuracy: float | None = None

    def __post_init__(self):
        self._check_kinds()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # Keras's cosine rounds a rate that is a whole number, and its SGD refuses a momentum.
            if value is not None and field.type in (float, float | None):
                object.__setattr__(self, field.name, float(value))
        # JSON has lists where these are tuples.
        for field in ("milestones", "decay_exclude"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "image_sizes", tuple(map(tuple, self.image_sizes)))
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise unknown_name(field, getattr(self, field), choices)
        self._check_lengths()
        self._check_ranges()

    def _check_kinds(self):
        for field in dataclasses.fields(self):
            check_kind(field.name, getattr(self, field.name), field.type)
        for field, kinds in _INSIDE.items():
            for name, value in getattr(self, field).items():
                if name not in kinds:
                    raise unknown_name(f"field of `{field}`", name, kinds)
                check_kind(f"{field}.{name}", value, kinds[name])

    @property
    def images(self) -> int:
        """How many training images a run is shown, again and again: its cost."""
        return self.steps * self.batch_size

    def _check_lengths(self):
        for field in ("batch_size", "steps", "repeats"):
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
        sizes = self.image_sizes
        starts = [start for start, _ in sizes]
        rising = all(before < after for before, after in zip(starts, [*starts[1:], 1]))
        if starts and not (starts[0] == 0 and rising and all(side > 0 for _, side in sizes)):
            raise ValueError(
                "The image sizes are out of order. Expected pairs of a rising share of the steps, "
                f"from 0 to below 1, and a side of 1 or more. Received: image_sizes={sizes}."
            )

    def _check_ranges(self):
        positive = ("learning_rate", "clip_norm")
        for field in positive:
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"A run that cannot learn. Expected a finite `{field}` > 0. "
                    f"Received: {field}={value}."
                )
        if not 0 <= self.warmup_learning_rate < math.inf:
            raise ValueError(
                "A warm-up that leads away. Expected a finite `warmup_learning_rate` >= 0. "
                f"Received: warmup_learning_rate={self.warmup_learning_rate}."
            )
        if not 0 < self.decay_factor < 1:
            raise ValueError(
                "A rate that does not fall at its milestones, or falls to nothing. Expected 0 < "
                f"`decay_factor` < 1. Received: decay_factor={self.decay_factor}."
            )
        if self.target_threshold is not None and self.loss != "binary_crossentropy":
            raise ValueError(
                "Only binary cross-entropy has targets of several whole classes. Expected "
                f"target_threshold=None with loss={self.loss!r}. "
                f"Received: target_threshold={self.target_threshold}."
            )
        for field in _SHARES:
            value = getattr(self, field)
            if value is not None and not 0 <= value < 1:
                raise ValueError(
                    f"A share is out of its range. Expected 0 <= `{field}` < 1. "
                    f"Received: {field}={value}."
                )

    def scaled(self, steps: int) -> "Recipe":
        """The same recipe in another number of steps: milestones and warm-up move along.

        Args:
            steps: Number of steps, at least 1.

        >>> from training.recipes import get_recipe
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

    def with_batch_size(self, batch_size: int, *, scale_learning_rate: bool = False) -> "Recipe":
        """The same recipe with another batch size and as many images: the steps are scaled.

        Args:
            batch_size: Images per step over all replicas together, at least 1.
            scale_learning_rate: Whether the learning rate grows with the batch (Goyal et al. 2017,
                section 2.1), that of the warm-up too, or stays.

        >>> from training.recipes import get_recipe
        >>> recipe = get_recipe("cifar10-resnet20").with_batch_size(256)
        >>> recipe.steps, recipe.milestones, recipe.learning_rate
        (32000, (16000, 24000), 0.1)
        """
        factor = batch_size / self.batch_size if scale_learning_rate else 1
        resized = dataclasses.replace(
            self,
            batch_size=batch_size,
            learning_rate=self.learning_rate * factor,
            warmup_learning_rate=self.warmup_learning_rate * factor,
        )
        return resized.scaled(max(1, round(self.steps * self.batch_size / batch_size)))

    def changed(self, changes: Mapping[str, Any]) -> "Recipe":
        """The same recipe with other values; a dot leads into a mapping.

        Args:
            changes: Names of fields, such as `"learning_rate"`, `"options.shortcut"` or
                `"augmentation.rand_augment.magnitude"`, with their new values.

        Raises:
            ValueError: If there is no such field, or a value does not fit.

        >>> from training.recipes import get_recipe
        >>> get_recipe("cifar10-resnet20").changed({"options.shortcut": "projection"}).options
        {'shortcut': 'projection'}
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for path, value in changes.items():
            field, *inner = path.split(".")
            if field not in fields:
                raise unknown_name("recipe field", field, fields)
            fields[field] = _with_inner(path, fields[field], inner, value) if inner else value
        return Recipe(**fields)  # checked when all is said: a schedule fits its steps as a whole


def _with_inner(path, mapping, keys, value):
    """A copy of nested mappings with one value set."""
    if not isinstance(mapping, Mapping):
        raise ValueError(
            "A recipe field has nothing inside it. Expected a dot after `options`, "
            f"`augmentation` or `preprocessing` only. Received: {path!r}."
        )
    key, *inner = keys
    if inner:
        value = _with_inner(path, mapping.get(key, {}), inner, value)
    return {**mapping, key: value}
