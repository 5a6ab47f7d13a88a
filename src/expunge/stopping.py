"""Ctrl-C and the like: work ends between two of its steps, and the command says what is kept."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from expunge.errors import MOST_SHOWN, printable

_finished: list[bool] = []
"""Holds something once the work of this process is done."""


class Stopped(BaseException):
    """Ctrl-C and the like. Its own type: what typer makes of KeyboardInterrupt changes from version to version."""


_STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_HAS_TIMER = hasattr(signal, "setitimer")  # Windows has none
_PATIENCE = 3.0  # seconds for the work to come to a point where it can be stopped, before it is stopped anywhere
_GRACE = 5.0  # seconds in which a second signal does not cut the cleaning up short
_asked = False  # to stop, and not yet stopped


def stop_on_signals() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP raise `Stopped`, unless they are ignored, as under nohup.

    It is raised between two steps of the work where there are any: an exception in the midst of native code that has
    called back into Python would abort the process. Without a timer it is raised at once.
    """
    last = float("-inf")

    def ask(*_: object) -> None:
        nonlocal last
        global _asked
        now = time.monotonic()
        if now - last > _GRACE:
            last, _asked = now, True
            if not _HAS_TIMER:
                _stop_if_asked()
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)

    if _HAS_TIMER:
        signal.signal(signal.SIGALRM, lambda *_: _stop_if_asked())
    for number in _STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)


@contextmanager
def work(kept: str | None = None) -> Iterator[None]:
    """Draws progress bars inside the block, and lets it be stopped at each of their steps.

    Args:
        kept: where a stop leaves what was finished, for the next run to go on from; None: nowhere.
    """
    from expunge import progress

    try:
        with progress.show(check=_stop_if_asked):
            yield
        _finished.append(True)
    except (Stopped, KeyboardInterrupt):
        if kept is None:
            raise
        stopped(f"what was finished is kept in {kept}, run it again to go on")


def stopped_outside() -> NoReturn:
    """`stopped`, for a stop that `work` did not see to: before it, inside of it, or while its results are printed."""
    stopped("the work was done before" if _finished else "nothing was written")


def stopped(what: str) -> NoReturn:
    """Ends the process after a stop, with a line that says what is kept."""
    for number in _STOPS:  # on its way out Python puts the defaults back, but not in place of this
        signal.signal(number, signal.SIG_IGN)
    fail(f"stopped; {what}", 1)


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with one line on standard error."""
    print(f"expunge: error: {printable(' '.join(message.split()), most=MOST_SHOWN)}", file=sys.stderr)
    sys.exit(code)


def _stop_if_asked() -> None:
    global _asked
    if _asked:
        _asked = False
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise Stopped
