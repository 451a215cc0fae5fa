"""Values of a recipe: read from the command line, and of the kind that their field has."""

import ast
import json
import types
import typing
from collections.abc import Mapping
from typing import Any


def literal(text: str) -> Any:
    """The value that a word of the command line stands for, in JSON or Python; or else the word.

    Args:
        text: `"0.1"`, `"false"` or `"False"`, `"null"` or `"None"`, `"[1, 2]"`, `"cosine"`. Quotes
            make a word of anything: `'"5"'`.

    >>> [literal(text) for text in ("1e-4", "False", "[1, 2]", "none")]
    [0.0001, False, [1, 2], 'none']
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError):
            pass
    return text


def check_kind(name: str, value: Any, kind: Any) -> None:
    """Raises a ValueError if a value is not of the kind that its field has.

    Args:
        name: Name of the field, for the error.
        value: The value. JSON knows no tuples: a list is as good as one.
        kind: A type, as a dataclass annotates its fields.
    """
    if not _is_of_kind(value, kind):
        expected = kind.__name__ if isinstance(kind, type) else str(kind)
        for module in ("collections.abc.", "typing."):
            expected = expected.replace(module, "")
        raise ValueError(
            f"A value is of another kind than its field. Expected `{name}` as {expected}. "
            f"Received: {value!r}."
        )


def _is_of_kind(value, kind):
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if outer is types.UnionType:
        return any(_is_of_kind(value, each) for each in inner)
    if outer is tuple:
        return isinstance(value, list | tuple) and _are_of_kinds(value, inner)
    if outer is Mapping:
        return isinstance(value, Mapping) and (
            _are_of_kinds(value, (inner[0], ...)) and _are_of_kinds(value.values(), (inner[1], ...))
        )
    if isinstance(value, bool):  # which Python counts among the whole numbers
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _are_of_kinds(values, kinds):
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(values)
    return len(values) == len(kinds) and all(map(_is_of_kind, values, kinds))
