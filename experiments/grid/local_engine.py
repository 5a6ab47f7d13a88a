"""Tasks in fresh processes of this machine. One that dies costs its task, and another takes its place."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from experiments.grid.cells import Original
from experiments.grid.measuring import Outcome, Task, failed, measure
from expunge import progress

Train = Callable[..., Any]
"""`expunge.commands.train`, or another function with its arguments; handed in, since it belongs to the commands."""

PATIENCE = 0.25  # seconds between two calls of `idle`


class LocalEngine:
    """Runs tasks in `workers` processes, which live until `close`. It trains in this process."""

    resumes = True

    def __init__(self, *, workers: int, device: str, train: Train) -> None:
        self.workers = workers
        self.device = device
        self._train = train
        self._idle: dict[Connection, BaseProcess] = {}
        self._busy: dict[Connection, tuple[BaseProcess, Task]] = {}

    def train(self, original: Original, directory: Path, idle: Callable[[], None], record: Path | None = None) -> None:
        """Trains an original into `directory`; `idle` is called all along, and what it raises ends the training.

        The next call goes on from its last whole epoch, which lies in a hidden file beside the directory; a training
        with an update log, of the examples whose ids the file `record` lists, begins anew.
        """
        state = directory.with_name(f".{directory.name}.training.pt")
        with progress.checked(idle):
            self._train(
                f"{original.dataset}:train",
                original.architecture,
                directory,
                settings=original.settings,
                seed=original.seed,
                device=self.device,
                record_updates=None if record is None else str(record),
                state=state if record is None else None,
            )
        state.unlink(missing_ok=True)  # of an earlier training, without a log

    def run(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Task, Outcome]]:
        """Yields tasks as they get done. What `idle` raises, or leaving the iterator early, ends those in flight."""
        waiting = deque(tasks)
        try:
            while waiting or self._busy:
                while waiting and len(self._busy) < self.workers:
                    link, process = self._worker()
                    task = waiting.popleft()
                    self._busy[link] = (process, task)
                    _send(link, replace(task, device=self._device_of(process)))
                idle()
                for ready in wait(list(self._busy), timeout=PATIENCE):
                    assert isinstance(ready, Connection)
                    yield self._received(ready, idle)
        finally:
            for link, (process, _) in self._busy.items():
                process.kill()
                process.join()
                link.close()
            self._busy.clear()

    def close(self) -> None:
        """Ends all processes."""
        for link, process in [*self._idle.items(), *((link, process) for link, (process, _) in self._busy.items())]:
            link.close()
            process.kill()
            process.join()
        self._idle.clear()
        self._busy.clear()

    def _worker(self) -> tuple[Connection, BaseProcess]:
        while self._idle:
            link, process = self._idle.popitem()
            if process.is_alive():
                return link, process
            link.close()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.workers)
        taken = {process.name for process, _ in self._busy.values()}
        name = next(name for name in (f"bench-{n}" for n in range(self.workers)) if name not in taken)
        process = context.Process(target=_work, args=(theirs, threads), daemon=True, name=name)
        process.start()
        theirs.close()
        return ours, process

    def _received(self, link: Connection, idle: Callable[[], None]) -> tuple[Task, Outcome]:
        process, task = self._busy.pop(link)
        try:
            outcome: Outcome = link.recv()
        except (EOFError, OSError):
            process.join()
            link.close()
            idle()  # what stops this process may have ended the other too: then it is no failure
            return task, failed(
                task, f"its worker process ended with code {process.exitcode} (out of memory, or killed)"
            )
        self._idle[link] = process
        return task, outcome

    def _device_of(self, process: BaseProcess) -> str:
        """Workers are spread over the GPUs."""
        count = torch.cuda.device_count() if self.device == "cuda" else 0
        return f"cuda:{int(process.name.rpartition('-')[2]) % count}" if count > 1 else self.device


def _send(link: Connection, task: Task) -> None:
    try:
        link.send(task)
    except OSError:  # it has died; reading from it will tell
        return


def _work(link: Connection, threads: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They reach every process of a terminal or job. The parent ends us, and knows that this is no failure.
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = os.getppid()
    while True:
        try:
            task = link.recv()
        except (EOFError, OSError):
            return
        with progress.checked(lambda: os._exit(1) if os.getppid() != parent else None):  # nobody is left to do it for
            outcome = measure(task)
        try:
            link.send(outcome)
        except OSError:
            return
