"""Progress bars and log lines for anything that takes longer than two seconds.

Library code wraps its loops in `track`. Nothing is shown until a caller opens `show()`, which the command line
does when standard error is a terminal, or listens to the logger "expunge": phases are logged at INFO, epochs at DEBUG.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("expunge")
log.addHandler(logging.NullHandler())
_begun: set[str] = set()
"""Labels of phases that were logged as begun."""

_current: ContextVar[Callable[[str, int, int, str], None] | None] = ContextVar("expunge_progress", default=None)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yields `items` one by one, and reports how many of `total` are done under `label`."""
    for done, item in enumerate(items):
        advance(label, done, total)
        yield item
    advance(label, total, total)


def advance(label: str, done: int, total: int, note: str = "") -> None:
    """Says that `done` of `total` units of `label` are done. `note` is shown at the end of the bar."""
    if done == 0 or label not in _begun:
        _begun.add(label)
        log.info("%s begins: %d", label, total)
    if done >= total:
        _begun.discard(label)
        log.info("%s ends: %d of %d", label, done, total)
    report = _current.get()
    if report is not None:
        report(label, done, total, note)


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

        token = _current.set(report)
        try:
            yield
        finally:
            _current.reset(token)


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
