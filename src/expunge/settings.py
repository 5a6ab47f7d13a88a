"""Settings, which are the fields of frozen dataclasses: their types and ranges."""

import operator
import re
import types
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from expunge.errors import SettingError

Ranges = Mapping[str, str]
"""What a class says of its fields: by name, such as "at least 0, below 1". None is in every range."""

_BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
_BOUND = re.compile(f"({'|'.join(_BOUNDS)}) ([0-9.]+)")

_WORDS = {int: "whole number", float: "number", bool: "true or false"}


def check_settings(settings: Any) -> None:
    """Gives each field of a frozen dataclass the type that it asks for, and checks its range.

    Text and the numbers of NumPy and torch are converted. Ranges are those of `ranges_of`.

    Raises:
        SettingError: a value has no such meaning (2.5 for a whole number), or is out of range; names the field.
    """
    hints = _hints(type(settings))
    for field in fields(settings):
        if field.name in hints:
            value = _converted(field.name, getattr(settings, field.name), hints[field.name])
            object.__setattr__(settings, field.name, value)
    for name, text in ranges_of(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, int | float) and not is_within(value, text):
            raise SettingError(f"{name}={value!r} is out of range: it must be {text}")


def ranges_of(cls: type) -> dict[str, str]:
    """The range of each field that has one: its class's `ranges`, those of its bases, and "at least 1" of `*_size`."""
    sizes = {field.name: "at least 1" for field in fields(cls) if field.name.endswith("_size")}
    return sizes | {name: text for base in cls.__mro__[::-1] for name, text in vars(base).get("ranges", {}).items()}


def is_within(value: float, text: str) -> bool:
    """Whether a number is in a range.

    >>> is_within(0, "above 0"), is_within(1, "above 0, at most 1")
    (False, True)
    """
    return all(_BOUNDS[kind](value, float(bound)) for kind, bound in _BOUND.findall(text))


def _hints(cls: type) -> dict[str, Any]:
    """The fields' types, where they can be told: a user's subclass may name some that only a type checker knows."""
    for base in cls.__mro__:
        try:
            return get_type_hints(base)
        except NameError:
            continue
    return {}


def _converted(name: str, value: Any, hint: Any) -> Any:
    options = get_args(hint)
    if get_origin(hint) in {Union, types.UnionType}:
        if value is None or (isinstance(value, str) and value in {"none", "None"}):
            return None
        hint = next(option for option in options if option is not type(None))
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in options:
            raise SettingError(f"{name}={value!r}: it is one of {', '.join(map(str, options))}")
        return str(value)
    if hint not in _WORDS:
        return value
    try:
        plain = value.item() if hasattr(value, "item") else value
        if hint is bool:
            return bool(plain) if plain in (0, 1) else {"true": True, "false": False}[str(plain).lower()]
        converted = hint(plain)
        if hint is int and not isinstance(plain, str) and converted != plain:
            raise ValueError
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise SettingError(f"{name}={value!r} is not a {_WORDS.get(hint, hint)}") from error
    if hint is float and not isfinite(converted):  # JSON has neither, and NaN compares false with any range
        raise SettingError(f"{name}={value!r} is not a finite number")
    return converted
