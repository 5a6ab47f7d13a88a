"""Running a function over tasks in fresh single-threaded processes, one of which may die without hanging the rest."""

import multiprocessing
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from expunge.errors import ExpungeError


def run_in_processes(
    function: Callable[[Any, int], None], job: Any, tasks: Sequence[int], workers: int
) -> Iterator[tuple[int, float]]:
    """Yields (task, seconds) as `function(job, task)` gets done, in the order in which that happens.

    Leaving the iterator early (an error, Ctrl-C) ends the processes at once. When this process is killed, each worker
    ends after the task in hand.

    Args:
        function: top-level, so that it can be named to a fresh interpreter.
        job: given to each worker once; pickled to bytes, so that tensors in it take no shared memory, which is scarce.
        tasks: numbers.
        workers: ≥ 1 processes at most.

    Raises:
        ExpungeError: a process died. What `function` raised is raised here.
    """
    context = multiprocessing.get_context("spawn")
    waiting, content = deque(tasks), pickle.dumps(job)
    busy: dict[Any, Any] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, function), daemon=True)
            process.start()
            busy[ours] = process
            theirs.close()
        for link in busy:
            # Not with its arguments: the pipe that those go through does not notice when the process dies.
            with suppress(BrokenPipeError, ConnectionResetError):  # it did, as the next read says
                link.send_bytes(content)
                link.send(waiting.popleft())
        while busy:
            for link in wait(list(busy)):
                assert isinstance(link, Connection)
                try:
                    outcome = link.recv()
                except (EOFError, ConnectionResetError) as error:
                    busy[link].join()
                    raise ExpungeError(
                        f"a worker process ended with code {busy[link].exitcode} (out of memory, killed, or a script "
                        'without `if __name__ == "__main__":`); what was finished is kept, run it again to go on'
                    ) from error
                if isinstance(outcome, BaseException):
                    raise outcome
                if waiting:
                    link.send(waiting.popleft())
                else:
                    link.close()
                    busy.pop(link).join()
                yield outcome
    finally:
        for process in busy.values():
            process.terminate()
        for link, process in busy.items():
            process.join()
            link.close()


def _work(link: Connection, function: Callable[[Any, int], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent ends us
    torch.set_num_threads(1)
    job = None
    while True:
        try:
            job = pickle.loads(link.recv_bytes()) if job is None else job  # noqa: S301  # our parent's
            task = link.recv()
        except (EOFError, OSError):  # there is nothing left to do, or nobody to do it for
            return
        started = time.perf_counter()
        try:
            function(job, task)
            outcome: Any = (task, time.perf_counter() - started)
        except Exception as error:  # whatever it is, the parent is to hear of it
            outcome = error if isinstance(error, ExpungeError) else ExpungeError(f"a worker failed: {error!r}")
        try:
            link.send(outcome)
        except OSError:
            return
