"""Writing to disk so that what is there is whole: a temporary name first, synced, then renamed."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from expunge.errors import ExpungeError, InputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it is synced and renamed to `path`, else removed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _clear_disk_errors(path):
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Gives a temporary directory beside `path`; on success it becomes `path`, else it is removed.

    Raises:
        InputError: `path` is there already.
    """
    path = Path(path)
    check_unused(path)
    made = [parent for parent in path.parents if not parent.exists()]  # the innermost first
    try:
        with _clear_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except BaseException:
        _remove_empty(made)
        raise
    try:
        with _clear_disk_errors(path):
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


def check_unused(path: str | Path) -> None:
    """Raises `InputError` when something is at `path` already, or safetensors could not read what is written there."""
    path = Path(path)
    if not is_utf8(str(path)):
        raise InputError(f"{path} is not UTF-8; choose another --out")
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists already; choose another --out, or remove it first")


def is_regular(path: Path) -> bool:
    """Whether there is a file at `path` that can be read to its end: no directory, pipe or device."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False


def is_utf8(name: str) -> bool:
    """Whether a file's name is text: Python makes lone surrogates of bytes that are not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _remove_empty(directories: list[Path]) -> None:
    """Removes those of the directories that are empty, in this order."""
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def _umask() -> int:
    """The process's umask: mkstemp and mkdtemp ignore it and let nobody else read."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no directories
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs only what is open for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _clear_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, ExpungeError):
            raise
        number = getattr(error, "errno", None)
        full = number in {errno.ENOSPC, errno.EFBIG, errno.EDQUOT} or any(
            word in str(error) for word in ("No space left", "File too large", "quota exceeded")
        )
        why = "the disk is full (or a size limit is reached); free some room" if full else str(error)
        raise ExpungeError(f"cannot write {path}: {why}") from error
