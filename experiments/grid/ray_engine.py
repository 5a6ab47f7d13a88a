"""Tasks on a Ray cluster. Ray places them, and repeats those whose process or node dies; the driver alone writes."""

import os
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.grid.cells import Original
from experiments.grid.local_engine import PATIENCE, Train
from experiments.grid.measuring import Outcome, Task, failed, measure, model_digest
from expunge.errors import ExpungeError, InputError, MissingExtraError, one_line
from expunge.files import new_directory, written_whole

RETRIES = 3
"""How often Ray repeats a task whose process or node died."""

KNOCK = 10
"""Seconds that a cluster has to answer in."""


class RayEngine:
    """Runs tasks on the cluster at `address`; `local` starts one here, and ends it.

    Nodes need expunge and the datasets; originals travel there by themselves.
    """

    resumes = False

    def __init__(self, *, address: str, train: Train) -> None:
        _check_reachable(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("--ray needs Ray: pip install '.[bench]' in expunge's sources") from error
        self._ray: Any = ray
        self._quiet = ExitStack()
        self._quiet.enter_context(redirect_stdout(sys.stderr))  # Ray prints of dead workers, at any time
        self._train = train
        try:
            self._ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except Exception as error:  # Ray raises many types
            self._quiet.close()
            raise ExpungeError(f"cannot reach a Ray cluster at {address}: {' '.join(str(error).split())}") from error
        resources = self._ray.cluster_resources()
        self.device = "cuda" if resources.get("GPU", 0) >= 1 else "cpu"
        self._gpus = 1 if self.device == "cuda" else 0
        self.workers = max(1, int(resources.get("GPU" if self._gpus else "CPU", 1)))
        self._weights: dict[str, Any] = {}

    def train(self, original: Original, directory: Path, idle: Callable[[], None], record: Path | None = None) -> None:
        """Trains an original on the cluster, and writes what came of it to `directory` here."""
        assert record is None, "an update log does not travel"
        job = self._remote(_train_there).remote(self._train, original, self.device)
        try:
            while not self._ray.wait([job], timeout=PATIENCE)[0]:
                idle()
        except BaseException:
            self._ray.cancel(job, force=True)
            raise
        made = self._get(job)
        if isinstance(made, Exception):
            raise made
        with new_directory(directory) as temporary:
            for name, content in made.items():
                (temporary / name).write_bytes(content)

    def run(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Task, Outcome]]:
        """Yields tasks as they get done. What `idle` raises, or leaving the iterator early, ends those in flight."""
        remote = self._remote(_measure_there)
        waiting = deque(tasks)
        flying: dict[Any, Task] = {}
        try:
            while waiting or flying:
                while waiting and len(flying) < 2 * self.workers:  # one at work, one at hand
                    task = waiting.popleft()
                    sent = replace(task, device=self.device)
                    flying[remote.remote(sent, [self._shared(task)])] = task
                idle()
                for job in self._ray.wait(list(flying), timeout=PATIENCE)[0]:
                    task = flying.pop(job)
                    yield task, self._outcome(task, job)
        finally:
            for job in flying:
                self._ray.cancel(job, force=True)

    def close(self) -> None:
        """Leaves the cluster."""
        self._ray.shutdown()
        self._quiet.close()

    def _remote(self, function: Callable[..., Any]) -> Any:
        return self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=RETRIES)(function)

    def _shared(self, task: Task) -> Any:
        """The checkpoint's content in Ray's object store, put there once."""
        if task.model_digest not in self._weights:
            self._weights = {task.model_digest: self._ray.put(task.model.read_bytes())}
        return self._weights[task.model_digest]

    def _outcome(self, task: Task, job: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(job)
        except self._ray.exceptions.RayTaskError as error:  # `measure` raises nothing: it is the node's fault
            return Outcome(unavailable=f"a node cannot run it: {one_line(error.cause)}")
        except self._ray.exceptions.RayError as error:
            return failed(task, self._gave_up(error))
        return outcome

    def _get(self, job: Any) -> Any:
        try:
            return self._ray.get(job)
        except self._ray.exceptions.RayTaskError as error:
            raise ExpungeError(f"it failed on a node: {one_line(error.cause)}") from error
        except self._ray.exceptions.RayError as error:
            raise ExpungeError(self._gave_up(error)) from error

    @staticmethod
    def _gave_up(error: Exception) -> str:
        first = str(error).strip().partition("\n")[0]
        return f"Ray gave it up after {RETRIES} retries ({type(error).__name__}: {first})"


def _check_reachable(address: str) -> None:
    """Raises `ExpungeError` where nothing listens at `HOST:PORT`: Ray itself would go on trying for half an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # `local` and `auto`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()
    except (OSError, OverflowError) as error:
        raise ExpungeError(f"nothing answers at {address} ({error}); `ray start --head` prints the address") from error


def _measure_there(task: Task, weights: list[Any]) -> Outcome:
    """`measure` on a node, with the checkpoint in a file of the node's own. `weights` holds a reference to it."""
    import ray

    path = Path(tempfile.gettempdir()) / f"expunge-{os.getuid()}" / f"{task.model_digest}.safetensors"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if _digest(path) != task.model_digest:
            with written_whole(path) as temporary:
                temporary.write_bytes(ray.get(weights[0]))
    except (ExpungeError, OSError) as error:  # the node's fault, not the cell's
        return Outcome(unavailable=f"a node cannot keep the checkpoint: {error}")
    outcome = measure(replace(task, model=path))
    return replace(outcome, node=ray.get_runtime_context().get_node_id())


def _digest(path: Path) -> str | None:
    """Of a checkpoint that an earlier task left, if it is whole."""
    try:
        return model_digest(path)
    except InputError:
        return None


def _train_there(train: Train, original: Original, device: str) -> dict[str, bytes] | Exception:
    """Trains on a node: the files of the checkpoint's directory, or what went wrong."""
    place = Path(tempfile.mkdtemp(prefix="expunge-"))
    try:
        out = place / original.name
        train(
            f"{original.dataset}:train",
            original.architecture,
            out,
            settings=original.settings,
            seed=original.seed,
            device=device,
        )
        return {path.name: path.read_bytes() for path in out.iterdir()}
    except ExpungeError as error:
        return error
    finally:
        shutil.rmtree(place, ignore_errors=True)
