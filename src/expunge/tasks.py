"""Many tasks in processes: joblib's loky on this machine, or Ray on a cluster."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import torch

from expunge.errors import ExpungeError, ExpungeWarning, optional
from expunge.files import scratch_directory

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


def in_processes(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    threads: int = 1,
    cluster: "Cluster | None" = None,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R | Died]]:
    """Yields (task, result) as tasks get done, each in a process of `threads` that goes on to others.

    A process that dies costs the task that it had: that one is `Died`, and the others of that moment are run again. On
    a cluster a death costs nothing but time: tasks are run again. What `idle`, which is called every `PATIENCE`
    seconds, or `function` raises, or leaving the iterator early, ends all processes; they end with this one too.

    Raises:
        ExpungeError: what `function` raised; its message, where it was of another type. Or no process can be had.
    """
    left = dict(enumerate(tasks))
    failures = 0
    with scratch_directory() as directory:
        marks = [None if cluster is not None else directory / str(n) for n in left]
        while left:
            calls = {n: (function, task, threads, marks[n]) for n, task in left.items()}
            broken = None
            for n, done in _round(calls, workers, cluster, idle):
                if n is None:
                    broken = str(done)
                    break
                yield left.pop(n), _result(done)
                failures = 0
            if broken is None:
                return
            begun = [n for n in left if (mark := marks[n]) is not None and mark.exists()]
            failures += not begun
            if failures == ROUNDS:
                raise ExpungeError(f"processes ended {ROUNDS} times before they did anything: {broken}")
            if len(begun) == 1:
                yield left.pop(begun[0]), Died(broken)
                continue
            for n in begun:  # one of them ended the process of all: by itself each shows whether it was it
                for number, done in _round({n: calls[n]}, 1, cluster, idle):
                    yield left.pop(n), Died(done) if number is None else _result(done)


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
    ray = optional("ray", "--ray needs Ray", "ray")
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


def _round(
    calls: dict[int, tuple[Any, ...]], workers: int, cluster: Cluster | None, idle: Callable[[], None]
) -> Iterator[tuple[int | None, Any]]:
    """Yields (number, what `_run` returned) of calls as they get done, and last (None, why) if a process died."""
    submit, ready, result, stop = _here(workers) if cluster is None else _there(cluster)
    waiting = list(calls)
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            outcomes, why = [], ""
            try:
                while waiting and len(running) < workers:
                    number = waiting.pop(0)
                    running[submit(_run, *calls[number])] = number
                for future in ready(list(running)):
                    outcomes.append((running.pop(future), result(future)))
            except Exception as error:  # of processes that ended; what a task raises is an outcome
                why = _why(error)
            yield from outcomes
            if why:
                yield None, why
                return
            idle()
    finally:
        if running:
            stop(list(running))


def _here(workers: int) -> tuple[Callable[..., Any], ...]:
    """How loky's processes are given a call, which of some calls are done, what came of one, and what ends them."""
    from joblib import cpu_count
    from joblib.externals.loky import get_reusable_executor

    threads = str(max(1, cpu_count() // max(2, workers)))
    executor = get_reusable_executor(
        max_workers=workers,
        timeout=300,
        initializer=_end_with,  # also one that is given no task is to end with this process
        initargs=(os.getpid(),),
        env={
            f"{name}_NUM_THREADS": os.environ.get(f"{name}_NUM_THREADS", threads) for name in ("OMP", "OPENBLAS", "MKL")
        },
    )

    def ready(running: list[Any]) -> list[Any]:
        done = futures.wait(running, PATIENCE, futures.FIRST_COMPLETED).done
        return sorted(done, key=lambda future: future.exception() is not None)

    _end_at_exit(os.getpid())
    return executor.submit, ready, lambda future: future.result(), lambda _: end()


def _there(cluster: Cluster) -> tuple[Callable[..., Any], ...]:
    """The same of a Ray cluster."""
    import ray

    def ready(running: list[Any]) -> list[Any]:
        return ray.wait(running, timeout=PATIENCE)[0]

    def stop(running: list[Any]) -> None:
        for call in running:
            ray.cancel(call, force=True)

    remote = ray.remote(num_cpus=1, num_gpus=int(cluster.device == "cuda"))(_run)
    return lambda _, *given: remote.remote(*given), ready, ray.get, stop


def _run(function: Callable[[Any], Any], task: Any, threads: int, mark: Path | None) -> tuple[bool, Any]:
    """Whether the function returned, and what it returned or raised. `mark` is a file that says that it was begun."""
    if mark is not None:
        mark.touch()
    warnings.simplefilter("ignore", ExpungeWarning)  # what a run warns of is in the trace that it returns
    torch.set_num_threads(threads)
    try:
        return True, function(task)
    except ExpungeError as error:
        return False, error
    except Exception as error:  # whatever it is, the caller is to hear of it, and it may not be picklable
        return False, ExpungeError(f"a worker failed: {error!r}")


def _result(outcome: tuple[bool, Any]) -> Any:
    """What the function returned. Raises what it raised."""
    returned, result = outcome
    if not returned:
        raise result
    return result


def _why(error: BaseException) -> str:
    if not isinstance(error, BrokenProcessPool):
        return str(error).strip().splitlines()[-1]  # of a remote traceback, what was raised
    code = re.search(r"\((-?\d+)\)", str(error).partition("exit codes")[2])
    return f"its worker process ended{f' with code {code[1]}' if code else ''} (out of memory, or killed)"


def end() -> None:
    """Ends the processes that wait for more tasks, and those at work."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown(kill_workers=True)


@cache
def _end_at_exit(process: int) -> None:
    """Has idle workers ended before the queues that would tell them to: a forked `process` would wait for ever."""
    Finalize(None, end, exitpriority=10)


def _end_with(parent: int) -> None:
    """Lets this process end as soon as `parent` has, and leave signals that reach both to it."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
