"""Many tasks in processes, by joblib: loky's on this machine, or Ray's on a cluster."""

import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from expunge.errors import ExpungeError, ExpungeWarning, MissingExtraError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 0.25
"""Seconds between two calls of `idle`, and between two looks of a worker at whether its parent lives."""

KNOCK = 10
"""Seconds that a cluster has to answer in."""

ROUNDS = 3
"""Times in a row that processes may end before any task is begun, or on a cluster, before any is done."""


@dataclass(frozen=True)
class Died:
    """In place of a task's result: its process ended, and `why`."""

    why: str


@dataclass(frozen=True)
class _Call:
    """One task with what its process has to know."""

    function: Callable[[Any], Any]
    task: Any
    threads: int
    parent: int | None
    """Process id that the worker ends with; None on a cluster, where Ray sees to that."""
    mark: Path | None
    """An empty file that says that the task was begun."""

    def __call__(self) -> tuple[bool, Any]:
        """Whether the function returned, and what it returned or raised."""
        if self.parent is not None:
            _end_with(self.parent)
        if self.mark is not None:
            self.mark.touch()
        warnings.simplefilter("ignore", ExpungeWarning)  # what a run warns of is in the trace that it returns
        torch.set_num_threads(self.threads)
        try:
            return True, self.function(self.task)
        except ExpungeError as error:
            return False, error
        except Exception as error:  # whatever it is, the caller is to hear of it, and it may not be picklable
            return False, ExpungeError(f"a worker failed: {error!r}")


def in_processes(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    threads: int = 1,
    cluster: "Cluster | None" = None,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R | Died]]:
    """Yields (task, result) as tasks get done, each in a process that goes on to others.

    A process that dies costs the task that it had: that one is `Died`, and the others of that moment are run again.
    What `idle` or `function` raises, or leaving the iterator early, ends all processes; they end with this one too.

    Args:
        function: is run with one task; pickled.
        tasks: pickled one by one.
        workers: ≥ 1 processes.
        threads: of torch, in each process.
        cluster: where they run instead of this machine. There a death costs nothing but time: tasks are run again.
        idle: called every `PATIENCE` seconds.

    Raises:
        ExpungeError: what `function` raised; its message, where it was of another type. Or no process can be had.
    """
    left = dict(enumerate(tasks))
    failures = 0
    with TemporaryDirectory(prefix="expunge-tasks-") as marks:
        while left:
            parent = os.getpid() if cluster is None else None
            calls = {
                n: _Call(function, task, threads, parent, Path(marks, str(n)) if cluster is None else None)
                for n, task in left.items()
            }
            broken = None
            for n, done in _round(calls, workers, cluster, idle):
                if n is None:
                    broken = str(done)
                    break
                returned, result = done
                if not returned:
                    raise result
                failures = 0
                yield left.pop(n), result
            if broken is None:
                return
            begun = [n for n in left if Path(marks, str(n)).exists()]
            failures += not begun
            if failures == ROUNDS:
                raise ExpungeError(f"processes ended {ROUNDS} times before they did anything: {broken}")
            if len(begun) == 1:
                yield left.pop(begun[0]), Died(broken)
                continue
            for n in begun:  # one of them ended the process of all: by itself each shows whether it was it
                Path(marks, str(n)).unlink()
                for _, done in _round({n: calls[n]}, 1, cluster, idle):
                    if isinstance(done, str):
                        yield left.pop(n), Died(done)
                    elif done[0]:
                        yield left.pop(n), done[1]
                    else:
                        raise done[1]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to: its `device`, `cpu` or `cuda`, and how many `workers` it has."""

    device: str
    workers: int


@contextmanager
def cluster(address: str) -> Iterator[Cluster]:
    """Connects to the Ray cluster at `address`, for the block; `local` starts one here, and ends it.

    Its nodes need expunge, and the data that tasks read.

    Raises:
        ExpungeError: nothing answers there.
        MissingExtraError: Ray is not installed.
    """
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--ray needs Ray: pip install '.[ray]' in expunge's sources") from error
    with redirect_stdout(sys.stderr):  # Ray prints of dead workers, at any time
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # Ray raises many types
            raise ExpungeError(f"cannot reach a Ray cluster at {address}: {' '.join(str(error).split())}") from error
        try:
            resources = ray.cluster_resources()
            device = "cuda" if resources.get("GPU", 0) >= 1 else "cpu"
            yield Cluster(device, max(1, int(resources.get("GPU" if device == "cuda" else "CPU", 1))))
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises `ExpungeError` where nothing listens at `HOST:PORT`: Ray itself would go on trying for half an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # `local` and `auto`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()
    except (OSError, OverflowError) as error:
        raise ExpungeError(f"nothing answers at {address} ({error}); `ray start --head` prints the address") from error


def of_worker(device: str) -> str:
    """The GPU of this process where there are several and `device` names none: workers are spread over them."""
    count = torch.cuda.device_count() if device == "cuda" else 0
    number = current_process().name.rpartition("-")[2]
    return f"cuda:{int(number) % count}" if count > 1 and number.isdigit() else device


def _round(
    calls: dict[int, _Call], workers: int, cluster: Cluster | None, idle: Callable[[], None]
) -> Iterator[tuple[int | None, Any]]:
    """Yields (number, (returned, result)) of calls as they get done, and last (None, why) if a process died."""
    found: Any = queue.SimpleQueue()
    done: Any = found
    if cluster is not None:
        from ray.util.queue import Queue

        done = Queue(actor_options={"num_cpus": 0})  # Ray's backend hands results over all at once, this one by one
    thread = threading.Thread(target=_fill, args=(found, done, calls, workers, cluster), daemon=True)
    thread.start()
    left = set(calls)
    try:
        while left:
            number, outcome = _next(found, done)
            if number in left:
                left.remove(number)
                yield number, outcome
            elif outcome is not None:
                yield None, outcome
                return
            idle()
    finally:
        if cluster is not None:
            done.shutdown(force=True)
        else:
            if left:
                end()
            thread.join()


def _next(found: Any, done: Any) -> tuple[int | None, Any]:
    """What came of a call, else why the processes ended, else (None, None) after `PATIENCE`."""
    try:
        number, outcome = done.get(timeout=PATIENCE)
        return number, outcome
    except queue.Empty:
        pass
    try:
        return (None, None) if found is done else found.get_nowait()
    except queue.Empty:
        return None, None


def _fill(found: Any, done: Any, calls: dict[int, _Call], workers: int, cluster: Cluster | None) -> None:
    """Runs the calls in joblib's processes. What comes of them goes into `done`, why that ended into `found`."""
    from joblib import Parallel, delayed, parallel_config

    # One process alone joblib would do without: it is never given more than `workers` tasks at once.
    how: dict[str, Any] = {"n_jobs": max(2, workers), "pre_dispatch": workers, "batch_size": 1}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of processes that end early, which is what we ask of them
            if cluster is not None:
                from ray.util.joblib import register_ray

                register_ray()
                with parallel_config(
                    backend="ray", ray_remote_args={"num_gpus": int(cluster.device == "cuda"), "num_cpus": 1}
                ):
                    Parallel(**{**how, "n_jobs": workers})(
                        delayed(_put)(done, number, call) for number, call in calls.items()
                    )
            else:
                # Also one that is given no task is to end with this process.
                parent = {"initializer": _end_with, "initargs": (os.getpid(),)}
                outcomes = Parallel(**how, **parent, backend="loky", return_as="generator_unordered")
                for outcome in outcomes(delayed(_numbered)(number, call) for number, call in calls.items()):
                    done.put(outcome)
    except BaseException as error:
        found.put((None, _why(error)))


def _numbered(number: int, call: _Call) -> tuple[int, tuple[bool, Any]]:
    return number, call()


def _put(done: Any, number: int, call: _Call) -> None:
    done.put((number, call()))


def _why(error: BaseException) -> str:
    if not isinstance(error, BrokenProcessPool):
        return str(error).strip().splitlines()[-1]  # of a remote traceback, what was raised
    code = re.search(r"\((-?\d+)\)", str(error).partition("exit codes")[2])
    return f"its worker process ended{f' with code {code[1]}' if code else ''} (out of memory, or killed)"


def end() -> None:
    """Ends the processes that wait for more tasks, and those at work."""
    from joblib.executor import MemmappingExecutor
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(reuse=True)
    if isinstance(executor, MemmappingExecutor):  # joblib's, which has folders of its own to remove
        executor.terminate(kill_workers=True)
    else:
        executor.shutdown(wait=True, kill_workers=True)


_watched: set[int] = set()


def _end_with(parent: int) -> None:
    """Lets this process end as soon as `parent` has, and leave signals that reach both to it."""
    if parent in _watched:
        return
    _watched.add(parent)
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
