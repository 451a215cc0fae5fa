"""The one form in which this package says that a name is not known."""

import difflib
from collections.abc import Iterable


def unknown_name(what: str, received: str, expected: Iterable[str]) -> ValueError:
    """A `ValueError` that lists what exists and proposes the nearest name.

    Args:
        what: The kind of thing that was looked for, e.g. `"variant"`.
        received: The name that was given.
        expected: The names that exist.

    Returns:
        The error, for the caller to raise.
    """
    expected = [str(name) for name in expected]
    known = f"one of {', '.join(expected)}" if expected else "none, for there are none"
    message = f"Unknown {what}. Expected {known}. Received: {received!r}."
    nearest = difflib.get_close_matches(str(received).lower(), expected, n=1, cutoff=0.5)
    return ValueError(f"{message} Did you mean {nearest[0]!r}?" if nearest else message)
