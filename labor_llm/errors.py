"""What a user did wrong, in words that name the thing, the value, what is allowed and the likely fix."""

import difflib
from collections.abc import Iterable


class LaborLLMError(Exception):
    """A mistake that the user can mend: printed as its message, without a traceback."""


class ConfigError(LaborLLMError):
    """The configuration names something that does not exist or cannot be."""


class DataError(LaborLLMError):
    """A data file or a table breaks its contract."""


class RunError(LaborLLMError):
    """A run folder is missing, incomplete, in use, or does not fit the others."""


def unknown(kind: str, value: str, known: Iterable[str], where: str = "") -> str:
    """A sentence that names an unknown value, its near misses and what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(value, names, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    rest = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f"unknown {kind} {value!r}{where}.{hint} Known: {', '.join(names[:8])}{rest}."


def wrong_number(key: str, value: object, least: int, most: int | None = None) -> list[str]:
    """A sentence if a setting is no whole number of that size; true and false are none."""
    if type(value) is int and least <= value and (most is None or value <= most):
        return []
    limit = f"at least {least}" if most is None else f"{least} to {most}"
    return [f"{key} must be a whole number of {limit}, got {value!r}"]


def wrong_switch(key: str, value: object) -> list[str]:
    """A sentence if a setting is neither true nor false."""
    return [] if isinstance(value, bool) else [f"{key} must be true or false, got {value!r}"]
