"""JSON and TOML from files that nobody vouches for: limits on size and depth, and records checked by their types."""

import json
import re
import stat
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from expunge.errors import InputError

R = TypeVar("R")

MAX_BYTES = 64 * 2**20
"""Of a text that is parsed: a report with a million ids takes less."""
MAX_TOML_BYTES = 2**18
"""A grid is written by hand, and its parser is slow."""
MAX_DEPTH = 32
"""Levels of lists and objects within each other. No file of expunge has more than ten."""
MAX_INTEGER = 2**63
"""Whole numbers are below it: counts and seeds fit 64 bits."""


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `InputError` for anything else at `path`.

    A pipe could keep the reader waiting for ever, and a device never ends.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is no regular file; give one")
        if found.st_size > limit:
            raise InputError(f"{path} has {found.st_size:,} bytes, over the limit of {limit:,}; give another file")
        with path.open("rb") as file:
            return file.read(found.st_size)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: of a path with a NUL
        raise InputError(f"cannot read {path}: {error}") from error


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """As `read_bytes`, of text in UTF-8; a mark of its byte order, which editors on Windows write, is left out."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); save it as such") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `InputError` where it is none, too long, too deep, or has too large numbers."""
    if len(text) > MAX_BYTES:
        raise InputError(f"it is longer than {MAX_BYTES:,} characters")
    try:
        content = json.loads(text, parse_int=_integer)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON: {error}") from error
    _check_depth(content)
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises `InputError` as `parse_json` does."""
    if any(part.count(".") > MAX_DEPTH for part in re.split(r"[=,{}\[\]\n]", text)):
        raise InputError(f"a key has more than {MAX_DEPTH} parts")  # the parser would take minutes
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not TOML: {error}") from error
    _check_depth(content)
    return content


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) < 20 else MAX_INTEGER  # Python refuses to read thousands of digits
    if abs(number) >= MAX_INTEGER:
        raise InputError("it holds a whole number of more than 64 bits")
    return number


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    raise InputError(f"its lists and objects are more than {MAX_DEPTH} levels deep")


def record(kind: type[R], content: Any, where: str = "it") -> R:
    """A record of the dataclass `kind` from JSON values, with the records in it.

    Raises:
        InputError: `content` is no object, lacks a field, has one more, or one of another type.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{where} must be an object, not {_told(content)}")
    known = _fields(kind)  # type: ignore[arg-type]  # a class is hashable
    if unknown := [key for key in content if key not in known]:
        raise InputError(f"{where} has an unknown entry {str(unknown[0])[:80]!r}")
    needed = (name for name, (part, _) in known.items() if part.default is part.default_factory is MISSING)
    if missing := [name for name in needed if name not in content]:
        raise InputError(f"{where} lacks {missing[0]!r}")
    return kind(**{key: _value(known[key][1], value, key) for key, value in content.items()})


@cache
def _fields(kind: type) -> dict[str, tuple[Field[Any], Any]]:
    hints = get_type_hints(kind)
    return {part.name: (part, hints[part.name]) for part in fields(kind)}


def _value(kind: Any, value: Any, name: str) -> Any:
    """The value as the type `kind` has it: lists become tuples, objects records. Raises `InputError` for others."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in {Union, types.UnionType}:
        if value is None and type(None) in inner:
            return None
        return _value(next(one for one in inner if one is not type(None)), value, name)
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else record(kind, value, name)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            return tuple(_value(one, part, name) for one, part in zip(kinds, value, strict=True))
    elif origin is not None and origin is not tuple and isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _value(inner[1], part, name) for key, part in value.items()}
    elif type(value) is kind or (kind is float and type(value) is int):
        return value
    raise InputError(f"{name} must be of type {getattr(kind, '__name__', kind)}, not {_told(value)}")


def _told(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return shown if len(shown) <= 80 else f"{shown[:77]}…"
