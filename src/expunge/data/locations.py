"""Where data lies on this machine."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from expunge.errors import ExpungeError, InputError


def cache_dir() -> Path:
    """The directory that expunge keeps data in: $XDG_CACHE_HOME/expunge, else ~/.cache/expunge.

    Raises:
        ExpungeError: the user has no home directory, as in some containers.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "expunge"
    except RuntimeError as error:
        raise ExpungeError("this user has no home directory to keep data in; set XDG_CACHE_HOME") from error


def find(name: str, folders: Iterable[str], marker: str, system: Iterable[Path] = ()) -> Path:
    """The first directory that holds a file or folder called `marker`.

    Looked through in this order: $EXPUNGE_DATA and its sub-directories `folders`, the cache directory's `data`
    and the same sub-directories of it, then the directories in `system`.

    Raises:
        InputError: nowhere; the message says where it was sought and how to get it.
    """
    bases = [Path(os.environ["EXPUNGE_DATA"])] if os.environ.get("EXPUNGE_DATA") else []
    with suppress(ExpungeError):
        bases.append(cache_dir() / "data")
    candidates = [base / folder for base in bases for folder in (*folders, ".")] + list(system)
    for candidate in candidates:
        with suppress(OSError):  # a directory that one may not look into has it not
            if (candidate / marker).exists() or (candidate / f"{marker}.gz").exists():
                return candidate
    raise InputError(
        f"{name} is not on this machine: `expunge data get {name}` downloads it, or set EXPUNGE_DATA to the "
        f"directory that holds {marker} (sought in {', '.join(str(base) for base in bases)})"
    )
