"""The errors that expunge raises on purpose, each one line that says what is wrong and what to do, and its warnings."""

import warnings
from collections.abc import Iterable
from importlib import import_module
from typing import Any
from unicodedata import category


class ExpungeError(Exception):
    """Something could not be done. Base of every error that expunge raises on purpose.

    The command line prints it and exits with `exit_code`; nothing has been written by then.
    """

    exit_code = 1


class InputError(ExpungeError, ValueError):
    """Data, labels, ids or a checkpoint that cannot be used as given."""


class SettingError(ExpungeError, ValueError):
    """An unknown method, setting or name, or a value out of its range."""

    exit_code = 2


class NonFiniteError(ExpungeError, ArithmeticError):
    """A weight or a loss became NaN or infinite. The caller's model is untouched."""


class NotEnoughMemoryError(ExpungeError, MemoryError):
    """What was to be computed at once does not fit into the memory of the device. The caller's model is untouched."""


class MissingExtraError(ExpungeError, ImportError):
    """A feature needs a package that is not installed."""


class ExpungeWarning(UserWarning):
    """What a user must know of a result. It is in the trace or the report too."""


def caution(sentences: Iterable[str]) -> None:
    """Sends each sentence once as an `ExpungeWarning` that points at the caller's caller."""
    for sentence in dict.fromkeys(sentences):
        warnings.warn(sentence, ExpungeWarning, stacklevel=3)


def optional(module: str, need: str, extra: str) -> Any:
    """The module of an optional package. Raises `MissingExtraError`, which says what needs the package, without it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{need}: pip install '.[{extra}]' in expunge's sources") from error


def one_line(error: BaseException) -> str:
    """What another's code raised, for a message of ours: its type and the first line of its text."""
    if isinstance(error, OSError) and error.strerror:  # without its number, which says nothing to a reader
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


MOST_SHOWN = 4000
"""Characters of a message or a line of a terminal: names that come from a file may be of any length."""


def printable(text: str, *, lines: bool = True, most: int | None = None) -> str:
    """The text with control characters and marks of writing direction written out: names may hold them.

    A class or a file may be called by what would command a terminal, or turn round what a page says. Joiners, which
    some scripts need, stay.

    Args:
        text: from anywhere.
        lines: whether the ends of lines stay as they are.
        most: characters to keep; of a longer text, the beginning and the end.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most * 2 // 3]} … {text[-(most // 3) :]}"
    kept = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"} | ({"\n"} if lines else set())
    hidden = {"Cc", "Cs", "Cf", "Zl", "Zp"}
    return "".join(repr(c)[1:-1] if category(c) in hidden and c not in kept else c for c in text)
