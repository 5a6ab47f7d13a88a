"""Progress bars and log lines for anything that takes longer than two seconds.

Library code wraps its loops in `track`. Nothing is shown until a caller opens `show()`, which the command line
does when standard error is a terminal, or listens to the logger "expunge": phases are logged at INFO, epochs at DEBUG.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

T = TypeVar("T")

log = logging.getLogger("expunge")
log.addHandler(logging.NullHandler())
LONG = 60.0
"""Seconds from which on a phase is said to take long."""
_SEEN = 1.0
"""Seconds of a phase that its pace is taken from, at least."""
AT_MOST = "at most"
"""The note of a phase that may end before its total."""

_begun: dict[str, tuple[float, int]] = {}
"""When each phase began, and what was done then, by its label; at infinity once it was said how long it will take."""

_current: ContextVar[Callable[[str, int, int, str], None] | None] = ContextVar("expunge_progress", default=None)
_say: ContextVar[Callable[[str], None]] = ContextVar("expunge_say", default=lambda _: None)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yields `items` one by one, and reports how many of `total` are done under `label`."""
    for done, item in enumerate(items):
        advance(label, done, total)
        yield item
    advance(label, total, total)


def advance(label: str, done: int, total: int, note: str = "") -> None:
    """Says that `done` of `total` units of `label` are done. `note` is shown at the end of the bar."""
    now = time.monotonic()
    if done == 0 or label not in _begun:
        _begun[label] = now, done
        log.info("%s begins: %d", label, total)
    if done >= total:
        del _begun[label]
        log.info("%s ends: %d of %d", label, done, total)
    elif (spent := now - _begun[label][0]) > (LONG if note == AT_MOST else _SEEN) and done > _begun[label][1]:
        pace = spent / (done - _begun[label][1])  # a training that is gone on with begins in its midst
        _begun[label] = float("inf"), done
        if spent + pace * (total - done) > LONG:
            bound = f"{AT_MOST} " if note == AT_MOST else ""
            left = _duration(pace * (total - done))
            (log.info if log.isEnabledFor(logging.INFO) else _say.get())(
                f"{label} takes {bound}{left} more; memory so far: {memory()}"
            )
    report = _current.get()
    if report is not None:
        report(label, done, total, note)


def memory() -> str:
    """The most that this process has held so far, in words, and on the GPU if there is one."""
    torch = sys.modules.get("torch")
    parts = []
    if resource is not None:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        parts.append(f"{held / 1e9:.1f} GB")
    if torch is not None and torch.cuda.is_initialized():
        parts.append(f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU")
    return ", ".join(parts) or "unknown"


def _duration(seconds: float) -> str:
    """Minutes or hours, in words.

    >>> _duration(95), _duration(7000)
    ('2 minutes', '1.9 hours')
    """
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'' if minutes == 1 else 's'}" if minutes < 100 else f"{seconds / 3600:.1f} hours"


def tell() -> None:
    """Writes what the logger says to standard error, a line each with its time; epochs too."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)


@contextmanager
def show(check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Draws bars on standard error, or in a notebook, for every `track` and `advance` inside the block.

    Args:
        check: called at each of them, on a terminal or not; what it raises ends the work there.

    >>> with show():
    ...     sum(track(range(3), "adding", 3))
    3
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    if console.is_jupyter:
        with _in_notebook(check):
            yield
        return
    if not console.is_terminal:  # until version 15, rich prints an empty line even where it is told to draw nothing
        with checked(check):
            yield
        return
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(label: str, done: int, total: int, note: str) -> None:
            check()
            if label not in tasks or (done == 0 and bars.tasks[tasks[label]].finished):
                tasks[label] = bars.add_task(label, total=total, note=note)
            bars.update(tasks[label], completed=done, total=total, note=note)

        def say(text: str) -> None:
            console.print(f"expunge: note: {text}", markup=False, highlight=False, soft_wrap=True)

        token, said = _current.set(report), _say.set(say)
        try:
            yield
        finally:
            _current.reset(token)
            _say.reset(said)


@contextmanager
def _in_notebook(check: Callable[[], None]) -> Iterator[None]:
    """One line a phase below the cell, which is written anew."""
    from IPython.display import display

    lines: dict[str, Any] = {}

    def report(label: str, done: int, total: int, note: str) -> None:
        check()
        if label not in lines or done == 0:
            lines[label] = display({"text/plain": label}, raw=True, display_id=True)
        lines[label].update({"text/plain": " ".join([label, f"{done} of {total}", note]).rstrip()}, raw=True)

    token = _current.set(report)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def hidden() -> Iterator[None]:
    """Shows nothing of what is tracked inside the block, for a caller that reports a coarser count of its own."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def checked(check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` wherever the work inside the block reports its progress, beside what is shown of it."""
    shown = _current.get()

    def report(label: str, done: int, total: int, note: str) -> None:
        check()
        if shown is not None:
            shown(label, done, total, note)

    token = _current.set(report)
    try:
        yield
    finally:
        _current.reset(token)
