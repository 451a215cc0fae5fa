"""The keywords that a recipe gives an augmentation, checked before anything runs."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from keras_resnet.errors import unknown_name

# keyword -> the words it may be, where its default is one
_WORDS = {"mode": ("constant", "reflect"), "fill": ("mean", "noise")}
# keyword -> smallest and largest value
_RANGES = {
    "padding": (0, math.inf),
    "shortest": (224, math.inf),
    "area": (0, 1),
    "aspect": (0.01, 100),
    "probability": (0, 1),
    "layers": (1, math.inf),
    "magnitude": (0, 10),
    "magnitude_std": (0, math.inf),
    "bins": (2, math.inf),
    "std": (0, math.inf),
    "alpha": (0.001, 1000),
    "fill": (0, 255),
}


def check_keywords(name: str, function: Callable, keywords: Mapping[str, Any]) -> None:
    """Raises a ValueError if an augmentation does not take a keyword, or not its value.

    Args:
        name: Name of the augmentation.
        function: What it does. It takes its keyword-only arguments from a recipe; where one of them
            has a pair, a whole number or a word as its default, the value must be one.
        keywords: What the recipe says.
    """
    accepted = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for keyword, value in keywords.items():
        if keyword not in accepted:
            raise unknown_name(f"keyword of {name!r}", keyword, accepted)
        is_word = isinstance(value, str) or keyword not in _RANGES
        if is_word and isinstance(accepted[keyword], str):
            if value not in _WORDS[keyword]:
                raise unknown_name(f"{keyword} of {name!r}", value, _WORDS[keyword])
        else:
            _check_range(name, keyword, value, accepted[keyword])


def _check_range(name, keyword, value, default):
    low, high = _RANGES[keyword]
    is_pair, is_colour = isinstance(default, tuple), keyword == "fill"
    numbers = int if isinstance(default, int) or is_colour else int | float
    several = isinstance(value, list | tuple) and (is_pair or is_colour)
    values = list(value) if several else [value]
    good = all(isinstance(each, numbers) and low <= each <= high for each in values)
    good = good and not any(isinstance(each, bool) for each in values)
    if is_pair:
        good = good and len(values) == 2 and values[0] <= values[1]
    if not good:
        what = "a rising pair" if is_pair else "whole numbers" if numbers is int else "a number"
        raise ValueError(
            f"A keyword of {name!r} is out of its range. Expected `{keyword}` as {what} from "
            f"{low} to {high}. Received: {value!r}."
        )
