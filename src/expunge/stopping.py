"""Ctrl-C and the like: work ends between two of its steps, and the command says what is kept.

It imports next to nothing: a signal that comes before the handlers are there ends Python in Python's way.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

_finished: list[bool] = []
"""Holds something once the work of this process is done."""


class Stopped(BaseException):
    """Ctrl-C and the like. Its own type: what typer makes of KeyboardInterrupt changes from version to version."""


_STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_HAS_TIMER = hasattr(signal, "setitimer")  # Windows has none
_PATIENCE = 3.0  # seconds for the work to come to a point where it can be stopped, before it is stopped anywhere
_GRACE = 5.0  # seconds in which a second signal does not cut the cleaning up short
_AGAIN = 0.1  # seconds until it is tried again to stop what could not be stopped
_asked = False  # to stop, and not yet stopped
_ever_asked = False
_last = float("-inf")


def stop_on_signals() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP ask the work to stop, unless they are ignored, as under nohup.

    `Stopped` is raised between two steps of the work where there are any: an exception in the midst of native code that
    has called back into Python would abort the process. Nothing is raised inside an import: what is imported may
    swallow it, or stay half there.
    """
    if _HAS_TIMER:
        signal.signal(signal.SIGALRM, _try_to_stop)
    for number in _STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)
    sys.unraisablehook = _not_lost


def _ask(_number: int, frame: FrameType | None) -> None:
    global _asked, _ever_asked, _last
    now = time.monotonic()
    if now - _last > _GRACE:
        _last, _asked, _ever_asked = now, True, True
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        else:
            _try_to_stop(_number, frame)


def _try_to_stop(_number: int, frame: FrameType | None) -> None:
    """Stops the work where it is, unless something is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            if _HAS_TIMER:
                signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        frame = frame.f_back
    _stop_if_asked()


def _not_lost(unraisable: sys.UnraisableHookArgs) -> None:
    """Asks again where `Stopped` was raised in what cannot raise, such as a destructor."""
    global _asked
    if unraisable.exc_type is not Stopped:
        sys.__unraisablehook__(unraisable)
        return
    _asked = True
    if _HAS_TIMER:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)


@contextmanager
def work(kept: str | None = None) -> Iterator[None]:
    """Draws progress bars inside the block, and lets it be stopped at each of their steps.

    Args:
        kept: where a stop leaves what was finished, for the next run to go on from; None: nowhere.
    """
    from expunge import progress

    try:
        _stop_if_asked()
        with progress.show(check=_stop_if_asked) if is_first() else progress.checked(_stop_if_asked):
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
    _ignore_signals()
    fail(f"stopped; {what}", 1)


def finish(code: int) -> NoReturn:
    """Ends the process after its work. A stop that was asked for too late is told all the same."""
    if _ever_asked:
        stopped_outside()
    _ignore_signals()
    sys.exit(code)


def _ignore_signals() -> None:
    """On its way out Python puts the defaults back, but not in place of this."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    if _HAS_TIMER:
        signal.setitimer(signal.ITIMER_REAL, 0)


def launched() -> bool:
    """Whether this is one of several processes that a launcher started, such as `torchrun`."""
    return "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def is_first() -> bool:
    """Whether this process prints and writes: of several that a launcher started, the first does."""
    return not launched() or os.environ.get("RANK") == "0"


def let_speak(may_speak: Callable[[], bool]) -> None:
    """From here on a failure is told where `may_speak` says so: of several processes, the one that failed first."""
    global _may_speak
    _may_speak = may_speak


_may_speak: Callable[[], bool] = is_first


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with one line on standard error."""
    from expunge.errors import MOST_SHOWN, printable

    if not _may_speak():
        sys.exit(code)
    print(f"expunge: error: {printable(' '.join(message.split()), most=MOST_SHOWN)}", file=sys.stderr)
    sys.exit(code)


def _stop_if_asked() -> None:
    global _asked
    if _asked:
        _asked = False
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise Stopped
