"""Writing to disk so that what is there is whole: a temporary name first, synced, then renamed."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError

from expunge.errors import ExpungeError, InputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


MARK = ".expunge-"
"""In the name of what is not whole yet."""


@contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it is synced and renamed to `path`, else removed.

    What is `private` nobody but the user can read: it names examples that are to be deleted.
    """
    _remove_dead_once(path.parent.absolute())
    with _clear_disk_errors(path):
        handle, directory = _locked(lambda: _opened_directory(path))
    temporary = directory / path.name  # in a locked directory: whoever writes may put another file in its place
    try:
        with _clear_disk_errors(path):
            yield temporary
            temporary.chmod(0o600 if private else 0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        if handle >= 0:
            os.close(handle)
        shutil.rmtree(directory, ignore_errors=True)


def write_private(path: Path, text: str) -> None:
    """Writes text that nobody but the user can read, into a directory that is not whole yet."""
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Gives a temporary directory beside `path`; on success it becomes `path`, else it is removed.

    What earlier runs left there when they were killed is removed first.

    Raises:
        InputError: `path` is there already.
    """
    path = Path(path)
    check_unused(path)
    made = [parent for parent in path.parents if not parent.exists()]  # the innermost first
    try:
        with _clear_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_dead(path.parent)
            with suppress(OSError):  # there need be no place for temporary files
                _remove_dead_once(_temporary_files())
            handle, temporary = _locked(lambda: _opened_directory(path))
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
        if handle >= 0:
            os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Gives a directory of the user's own among the system's temporary files, and removes it afterwards.

    If the run is killed, the next one that needs such a directory, or writes a new one anywhere, removes it.
    """
    with _clear_disk_errors(Path("temporary files")):
        place = _temporary_files()
        _remove_dead_once(place)
        handle, directory = _locked(lambda: _opened_directory(place / "scratch"))
    try:
        yield directory
    finally:
        if handle >= 0:
            os.close(handle)
        shutil.rmtree(directory, ignore_errors=True)


def remove_dead(directory: Path) -> None:
    """Removes from a directory what runs that were killed left there half-written; living ones hold a lock on theirs.

    Without such locks, as on Windows, everything stays.
    """
    if fcntl is None:
        return
    for path in directory.glob(f".*{MARK}*.part"):
        with suppress(OSError):  # it went away, or is another user's
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid != os.geteuid():
                    continue
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(handle)


@cache
def _remove_dead_once(directory: Path) -> None:
    """Once a process: an update log writes thousands of files into one directory."""
    remove_dead(directory)


def _temporary_files() -> Path:
    """Where the system has them: `TMPDIR`, or /tmp. Raises `OSError` where nothing can be written anywhere."""
    return Path(tempfile.gettempdir()).absolute()


def _opened_directory(path: Path) -> tuple[int, str]:
    name = tempfile.mkdtemp(prefix=f".{path.name}{MARK}", suffix=".part", dir=path.parent)
    return (os.open(name, os.O_RDONLY) if fcntl is not None else -1), name


def _locked(make: Callable[[], tuple[int, str]]) -> tuple[int, Path]:
    """What `make` makes, open and locked. Another run that looks for what is dead may come first: then it is anew."""
    while True:
        handle, name = make()
        if fcntl is None:
            return handle, Path(name)
        with suppress(OSError):  # a file system without locks: what is left behind there stays
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)


def check_unused(path: str | Path) -> None:
    """Raises `InputError` when something is at `path` already, or safetensors could not read what is written there."""
    path = Path(path)
    if not is_utf8(str(path)):
        raise InputError(f"{path} is not UTF-8; choose another --out")
    if path.exists() or path.is_symlink():
        raise InputError(f"--out {path}: this exists already; choose another, or remove it first")


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
