"""Settings, which are the fields of frozen dataclasses: their types and ranges."""

import types
from dataclasses import fields
from math import isfinite
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from expunge.errors import SettingError

_WORDS = {int: "whole number", float: "number", bool: "true or false"}


def require_types(settings: Any) -> None:
    """Gives each field of a frozen dataclass the type that it asks for: text, NumPy's and tensors' numbers become so.

    Raises:
        SettingError: one has no such meaning (2.5 for a whole number); names the field.
    """
    hints = _hints(type(settings))
    for field in fields(settings):
        if field.name in hints:
            value = _converted(field.name, getattr(settings, field.name), hints[field.name])
            object.__setattr__(settings, field.name, value)


def _hints(cls: type) -> dict[str, Any]:
    """The fields' types, where they can be told: a user's subclass may name some that only a type checker knows."""
    for base in cls.__mro__:
        try:
            return get_type_hints(base)
        except NameError:
            continue
    return {}


def require(settings: object, ranges: dict[str, bool]) -> None:
    """Raises `SettingError` for the first field whose value is not within its range."""
    for name, within in ranges.items():
        if not within:
            raise SettingError(f"{name}={getattr(settings, name)!r} is out of range; see `expunge methods`")


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
