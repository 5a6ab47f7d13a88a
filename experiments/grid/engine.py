"""Where cells are measured: in processes of this machine, or on a Ray cluster."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import torch

from experiments.grid.cells import Original
from experiments.grid.measuring import Outcome, Task, failed, measure, model_digest
from experiments.grid.small_maps import small_maps_by_products
from expunge import progress, tasks
from expunge.errors import ExpungeError, InputError
from expunge.files import written_whole
from expunge.training_state import OtherTrainingError

Train = Callable[..., Any]
"""`expunge.trainer.train`, or another function with its arguments."""


class Engine:
    """Measures cells in processes, and trains originals in this one.

    Args:
        workers: processes of this machine; of a cluster all are used.
        device: `cpu` or `cuda`; a cluster's is its own.
        train: trains an original.
        ray: the address of a cluster, or `local`, which starts one here and ends it. Its nodes need expunge and the
            datasets; originals travel there by themselves.
    """

    def __init__(self, *, workers: int, device: str, train: Train, ray: str | None = None) -> None:
        self.workers, self.device, self._train = workers, device, train
        self._open = ExitStack()
        self._cluster = None if ray is None else self._open.enter_context(tasks.cluster(ray))
        if self._cluster is not None:
            self.workers, self.device = self._cluster.workers, self._cluster.device
        self._shared: dict[str, Any] = {}

    def train(self, original: Original, directory: Path, idle: Callable[[], None], record: Path | None = None) -> None:
        """Trains an original into `directory`; `idle` is called all along, and what it raises ends the training.

        The next call goes on from its last whole epoch, which lies in a hidden file beside the directory; a training
        with an update log, of the examples whose ids the file `record` lists, begins anew.
        """
        state = directory.with_name(f".{directory.name}.training.pt")
        train = partial(
            self._train,
            f"{original.dataset}:train",
            original.architecture,
            directory,
            settings=original.settings,
            seed=original.seed,
            device=self.device if self._cluster is None else "auto",
            record_updates=None if record is None else str(record),
            state=state if record is None else None,
        )
        with progress.checked(idle), small_maps_by_products():
            try:
                train()
            except OtherTrainingError:  # an earlier version began it
                state.unlink()
                train()
        state.unlink(missing_ok=True)  # of an earlier training, without a log

    def run(self, todo: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Task, Outcome]]:
        """Yields tasks as they get done. What `idle` raises, or leaving the iterator early, ends those in flight."""
        function: Callable[[Task], Outcome] = _measure_here
        threads = max(1, torch.get_num_threads() // self.workers)
        if self._cluster is not None:
            threads = 1
            function = partial(_measure_there, weights={n: self._on_cluster(t) for n, t in _models(todo).items()})
        todo = [replace(task, device=self.device) for task in todo]
        how: dict[str, Any] = {"workers": self.workers, "threads": threads, "cluster": self._cluster, "idle": idle}
        for task, outcome in tasks.in_processes(function, todo, **how):
            yield task, failed(task, outcome.why) if isinstance(outcome, tasks.Died) else outcome

    def close(self) -> None:
        """Ends the processes, or leaves the cluster."""
        if self._cluster is None:
            tasks.end()
        self._open.close()

    def _on_cluster(self, task: Task) -> Any:
        """A reference to the checkpoint's content in Ray's object store, put there once."""
        if task.model_digest not in self._shared:
            import ray

            self._shared = {task.model_digest: ray.put(task.model.read_bytes())}
        return self._shared[task.model_digest]


def _models(todo: Sequence[Task]) -> dict[str, Task]:
    return {task.model_digest: task for task in todo}


def _measure_here(task: Task) -> Outcome:
    """`measure`, on the GPU of this process where there are several and the task names none: workers are spread."""
    count = torch.cuda.device_count() if task.device == "cuda" else 0
    number = current_process().name.rpartition("-")[2]
    return measure(replace(task, device=f"cuda:{int(number) % count}") if count > 1 and number.isdigit() else task)


def _measure_there(task: Task, weights: dict[str, Any]) -> Outcome:
    """`measure` on a node, with the checkpoint in a file of the node's own. `weights` holds references by digest."""
    import ray

    path = Path(tempfile.gettempdir()) / f"expunge-{os.getuid()}" / f"{task.model_digest}.safetensors"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if _digest(path) != task.model_digest:
            with written_whole(path) as temporary:
                temporary.write_bytes(ray.get(weights[task.model_digest]))
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
