"""Which fields of a recipe are searched, and where: what `--field` says."""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import keras_tuner

from keras_resnet.errors import unknown_name
from training.kinds import check_kind, literal
from training.recipe import Recipe

# What a recipe is about, how long it is and what it says of itself is not for a search to change.
_KEPT = ("name", "dataset", "validation_examples", "steps", "reference", "measured_accuracy")
_INNER = ("augmentation.NAME.KEYWORD", "options.OPTION", "preprocessing.FIELD")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a recipe, and the values it may take: a range or some choices.

    Args:
        name: As `Recipe.changed` takes it, e.g. `"options.shortcut"`.
        low: Smallest value of the range.
        high: Largest value.
        step: Distance between the values. `None`: any value in between.
        is_log: Whether equal ratios are equally probable, instead of equal distances.
        choices: The values, as they were written, in the place of a range.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    is_log: bool = False
    choices: tuple[str, ...] = ()

    def __str__(self):
        """As `parse_field` reads it."""
        if self.choices:
            return f"{self.name}={','.join(self.choices)}"
        rest = [f":{self.step}"] if self.step is not None else [":log"] if self.is_log else []
        return f"{self.name}={self.low}:{self.high}{''.join(rest)}"

    @property
    def is_whole(self) -> bool:
        """Whether the range has whole numbers only."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    @property
    def extremes(self) -> tuple:
        """Values that stand for all: the ends of the range, or every choice."""
        return tuple(map(literal, self.choices)) or (self.low, self.high)

    def declare(self, hyperparameters: keras_tuner.HyperParameters) -> None:
        """Tells keras-tuner what there is to choose from.

        Args:
            hyperparameters: Where the field is added.
        """
        if self.choices:  # as text: keras-tuner wants one type, and makes 1 of True
            hyperparameters.Choice(self.name, list(self.choices))
            return
        high = self.high
        if self.step is not None and not self.is_whole:  # keras-tuner would miss 0.3 in 0:0.3:0.1
            count = _width(self.low, self.high) // _exact(self.step)
            high = self.low + (float(count) + 0.5) * self.step
        add = hyperparameters.Int if self.is_whole else hyperparameters.Float
        sampling = "log" if self.is_log else "linear"
        add(self.name, self.low, high, step=self.step, sampling=sampling)

    def value(self, proposed: Any) -> Any:
        """What goes into a recipe, and into JSON: a plain Python value.

        Args:
            proposed: keras-tuner's value, which may be one of NumPy's.
        """
        if self.choices:
            return literal(proposed)
        if self.step is not None:
            count = round((float(proposed) - self.low) / self.step)
            proposed = _exact(self.low) + count * _exact(self.step)
        return int(proposed) if self.is_whole else float(proposed)


def parse_field(text: str) -> Field:
    """Reads `FIELD=LOW:HIGH`, `FIELD=LOW:HIGH:log`, `FIELD=LOW:HIGH:STEP` or `FIELD=A,B,C`.

    A range has whole numbers only if all its numbers are written so. Choices are read as
    `training.kinds.literal` does: `true`, `False` and `None` are no words; `none` is one.

    Args:
        text: One of them.

    Raises:
        ValueError: If it is something else, or leaves nothing to choose from.

    >>> parse_field("weight_decay=1e-5:1e-3:log").extremes
    (1e-05, 0.001)
    >>> parse_field("clip_norm=None,1.0").extremes
    (None, 1.0)
    """
    name, equals, values = text.partition("=")
    parts = [part.strip() for part in values.split(":" if ":" in values else ",")]
    if not (name and equals and all(parts) and len(parts) <= (3 if ":" in values else math.inf)):
        raise _misread(text)
    if ":" not in values:
        if len(set(parts)) < 2:
            raise _nothing_to_choose(name, "two different values, or a range LOW:HIGH", values)
        return Field(name, choices=tuple(dict.fromkeys(parts)))
    is_log = parts[-1] == "log"
    numbers = [literal(part) for part in (parts[:-1] if is_log else parts)]
    if len(numbers) < 2 or not all(_is_number(number) for number in numbers):
        raise _misread(text)
    low, high, step = (*numbers, None)[:3]
    if not low < high:
        raise _nothing_to_choose(name, "LOW < HIGH", values)
    if is_log and low <= 0:
        raise _nothing_to_choose(name, "LOW > 0 in a logarithmic range", values)
    if step is not None and not 0 < _exact(step) <= _width(low, high):
        raise _nothing_to_choose(name, f"0 < STEP <= {_width(low, high)}", values)
    return Field(name, low, high, step, is_log)


def default_fields(recipe: Recipe) -> list[Field]:
    """What is searched if nothing is asked for: learning rate and weight decay, by a factor of ten.

    Args:
        recipe: Its own values are in the middle.
    """
    return [
        Field(name, float(f"{middle / 10:g}"), min(float(f"{middle * 10:g}"), highest), is_log=True)
        for name, middle, highest in (
            ("learning_rate", recipe.learning_rate, math.inf),
            ("weight_decay", recipe.weight_decay or 1e-4, 0.99),  # a share
        )
    ]


def check_fields(fields: Sequence[Field], recipe: Recipe) -> None:
    """Raises a ValueError if a field cannot be searched, or not there.

    Args:
        fields: What is to be searched.
        recipe: Of which recipe.
    """
    kinds = typing.get_type_hints(Recipe)
    searchable = [
        name
        for name in kinds
        if name not in _KEPT and not isinstance(getattr(recipe, name), Mapping | tuple)
    ]
    patterns = {pattern.partition(".")[0]: pattern for pattern in _INNER}
    for field in fields:
        outer = field.name.partition(".")[0]
        if outer in patterns and field.name.count(".") == patterns[outer].count("."):
            continue
        if field.name not in searchable:
            raise unknown_name("field of a search", field.name, [*searchable, *_INNER])
        for value in field.extremes:
            check_kind(field.name, value, kinds[field.name])
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"A field is given twice. Expected one --field for each. Received: {name!r} in "
                f"{', '.join(names)}."
            )


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with the values of a trial; another batch size sees as many images.

    Args:
        recipe: The recipe.
        values: Field -> value.

    Raises:
        ValueError: If a value does not fit.
    """
    others = dict(values)
    batch_size = others.pop("batch_size", recipe.batch_size)
    return recipe.with_batch_size(batch_size).changed(others)


def _exact(number):
    """What is written, not the binary fraction that is nearest to it."""
    return Decimal(str(number))


def _width(low, high):
    return _exact(high) - _exact(low)


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _misread(text):
    return ValueError(
        "A field of the search cannot be read. Expected FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, "
        f"FIELD=LOW:HIGH:STEP or FIELD=A,B,C. Received: {text!r}."
    )


def _nothing_to_choose(name, expected, received):
    return ValueError(
        f"The search has nothing to choose from for {name!r}. Expected {expected}. "
        f"Received: {received}."
    )
