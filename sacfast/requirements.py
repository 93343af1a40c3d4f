"""What a value must be, with the sentence that says so: bad input gets an error that names the value and the remedy."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import SACError

FLOAT32_MAX = float(np.finfo(np.float32).max)


def whole(value: Any) -> int | None:
    """`value` as a Python int where it is a whole number; NumPy integers are welcome, bools are not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def fits_float32(array: np.ndarray) -> bool:
    """Whether every entry is a number that float32, in which it is stored, has: no NaN, no infinity, no 1e39."""
    # A sum of squares is quicker to find than a mask, and bounds each of them; in float32 it may overflow.
    return float(np.vdot(array, array)) <= FLOAT32_MAX**2 or bool(float32_has(array).all())


def float32_has(values: Any) -> np.ndarray:
    """Which of `values` float32 has."""
    with np.errstate(over="ignore"):
        return np.isfinite(np.asarray(values).astype(np.float32))


def check_whole(
    name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf, remedy: str = ""
) -> int:
    """`value` as an int in [minimum, maximum]. Raises SACError naming the value, the range and the remedy."""
    number = whole(value)
    if number is None or not minimum <= number <= maximum:
        wanted = "a whole number"
        if minimum > -math.inf:
            wanted += f" of at least {minimum}"
        if maximum < math.inf:
            wanted += f" and at most {maximum}"
        raise SACError(f"{name}={value!r} must be {wanted}{remedy and '; '}{remedy}.")
    return number


def require_integer(config: Any, name: str, minimum: int) -> None:
    """Store the field as a Python int of at least `minimum`."""
    default = next(f.default for f in dataclasses.fields(config) if f.name == name)
    number = check_whole(name, getattr(config, name), minimum, remedy=f"the default is {default}")
    object.__setattr__(config, name, number)


def require_number(
    config: Any,
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    optional: bool = False,
) -> None:
    """Store the field as a finite Python float in [low, high], or in (low, high] with `open_low`.

    With `optional`, None stays as it is.
    """
    value = getattr(config, name)
    if optional and value is None:
        return
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        wanted = "a finite number"
        if low > -math.inf:
            wanted += f" {'above' if open_low else 'of at least'} {low:g}"
        if high < math.inf:
            wanted += f" and at most {high:g}"
        default = next(f.default for f in dataclasses.fields(config) if f.name == name)
        raise SACError(f"{name}={value!r} must be {wanted}; the default is {default}.")
    object.__setattr__(config, name, number)


def require_bool(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise SACError(f"{name}={value!r} must be True or False.")


def require_text(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, str) or not value.strip():
        raise SACError(f"{name}={value!r} must be a non-empty string.")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    check_choice(name, getattr(config, name), choices)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SACError(f"{name}={value!r} must be one of {', '.join(choices)}.")


def known_fields(cls: type, values: dict[str, Any]) -> None:
    if not isinstance(values, dict):
        raise SACError(f"{cls.__name__} expects a mapping of field names to values, not {values!r}.")
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise SACError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it was mistyped or written by another "
            f"version (fields: {', '.join(sorted(names))})."
        )
