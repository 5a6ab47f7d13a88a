"""Measuring cells: what a worker does, wherever it runs."""

import copy
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.grid.cells import BEFORE, Cell
from experiments.grid.conditions import Conditions, adam_moments
from experiments.grid.results import Result, result_of
from experiments.grid.small_maps import small_maps_by_products
from expunge.data import Examples, ImageSet, audit_side, digests, draw_ids, load_data
from expunge.errors import ExpungeError, InputError
from expunge.methods import Needs, method_of
from expunge.metrics import logit_scaled_confidence, score_test
from expunge.models import as_float, computes_in_bf16, device_name, load_model
from expunge.randomness import stream
from expunge.records import Trace
from expunge.training import quickest_layout
from expunge.unlearning import unlearn
from expunge.update_log import UPDATES

TOLERANCE = 0.0005
"""Accuracies in bf16 must be within 0.05 points of those in fp32, or fp32 is used."""

BATCHES = (64, 128, 256, 1000)
"""Images a forward pass, of which the quickest is taken."""

CHECKED = 10_000
"""Training images that the comparison of precisions is made on, beside the test set."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Cells that one worker measures in one go: all `before` cells of an original, or one other cell.

    Attributes:
        cells: of one original.
        model: the original's checkpoint, on the machine where the task runs.
        model_digest: what `model_digest` says of that file.
        device: `cpu`, `cuda` or `cuda:N`.
        commit: what the results are to be marked with.
    """

    cells: tuple[Cell, ...]
    model: Path
    model_digest: str
    device: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task.

    Attributes:
        results: one a cell, failed or not; empty where `unavailable`.
        unavailable: why none of this original's cells can be measured: data or checkpoint cannot be read, or do not
            fit into memory.
        died: the worker process died.
        node: the Ray node that it ran on.
    """

    results: tuple[Result, ...] = ()
    unavailable: str | None = None
    died: bool = False
    node: str = ""


def measure(task: Task) -> Outcome:
    """Measures the cells of a task. What goes wrong in a cell is its result; nothing is raised for it."""
    with small_maps_by_products():
        return _measured(task)


def _measured(task: Task) -> Outcome:
    original = task.cells[0].original
    try:
        stage = _stage(original.dataset, task.model, task.model_digest, task.device)
    except Exception as error:  # no cell's fault, so that it is nobody's result
        return Outcome(unavailable=str(error) if isinstance(error, OSError) else _in_a_line(error))
    told: dict[str, Any] = {"model_digest": task.model_digest, "versions": versions(), "commit": task.commit}
    results: list[Result] = []
    for cell in task.cells:
        try:
            results.append(result_of(cell, **told, **stage.measured(cell)))
        except Exception as error:  # whatever it is, it belongs into the record
            known: dict[str, Any] = {"device": stage.told, "data_digest": stage.data_digest}
            results.append(result_of(cell, **told, **known, failed=_in_a_line(error)))
            if stage.device.type == "cuda":
                torch.cuda.empty_cache()
    return Outcome(results=tuple(results))


def failed(task: Task, why: str) -> Outcome:
    """The outcome of a task whose worker died."""
    told: dict[str, Any] = {"model_digest": task.model_digest, "versions": versions(), "commit": task.commit}
    return Outcome(results=tuple(result_of(cell, **told, failed=why) for cell in task.cells), died=True)


def versions() -> dict[str, str]:
    """Of expunge, torch and Python."""
    return {"expunge": version("expunge"), "torch": torch.__version__, "python": platform.python_version()}


def model_digest(path: Path) -> str:
    """SHA-256 of a checkpoint's weights and description, hexadecimal: the same wherever the same model is written.

    The file itself also holds a history, and its metadata in no fixed order. Names count as the files of results have
    them, which began with `network.`.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            tensors = json.loads(file.read(length))
            told = json.loads(tensors.pop("__metadata__")["expunge"])["spec"]
            named = {f"network.{name.removeprefix('network.')}": value for name, value in tensors.items()}
            digest = sha256(json.dumps([told, named], sort_keys=True).encode())
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a whole checkpoint that expunge wrote; take another copy") from error
    return digest.hexdigest()


def order_of_subset(size: int) -> Tensor:
    """The order in which training images are taken to measure retain accuracy on: the same for every cell."""
    return torch.randperm(size, generator=stream("retain-measured", 0), device="cpu")


@dataclass(frozen=True)
class Seen:
    """What a model says of N examples: whether it is `right`, bool (N,) on the CPU, and its float64 `margins` (N,)."""

    right: Tensor
    margins: NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return float(self.right.double().mean())


class Stage:
    """One original and its data in memory, images as uint8 on the device: what every cell of it shares."""

    def __init__(self, dataset: str, model: Path, device: str) -> None:
        self.device = torch.device(device)
        self.updates = model.parent / UPDATES
        self.train, self.test = load_data(f"{dataset}:train"), load_data(f"{dataset}:test")
        network, header = load_model(str(model))
        wanted = (header.spec.in_channels, header.spec.image_size, header.spec.image_size)
        if tuple(self.train.images.shape[1:]) != wanted or len(self.train.class_names) != header.spec.num_classes:
            raise InputError(f"{model} was not trained on images such as those of {dataset}")
        self.network = network.to(self.device).to(memory_format=quickest_layout(network))
        self.pixels = digests(self.train.images)
        self.test_pixels = digests(self.test.images)
        labels = torch.cat([self.train.labels, self.test.labels]).numpy().tobytes()
        self.data_digest = sha256(b"".join([*self.pixels, *self.test_pixels, labels])).hexdigest()
        self.position = {name: n for n, name in enumerate(self.train.ids)}
        self.order = order_of_subset(len(self.train))
        self.resident = {
            name: Examples(images.images.to(self.device), images.labels.to(self.device))
            for name, images in (("train", self.train), ("test", self.test))
        }
        self.original_l1 = sum(float(p.detach().double().abs().sum()) for p in network.parameters())
        self.num_parameters = sum(p.numel() for p in network.parameters())
        self._batches: dict[str, int] = {}
        self._before: dict[str, tuple[Seen, Seen, float]] = {}
        self._carried: dict[str, dict[str, Tensor]] | None = None

    @property
    def told(self) -> str:
        """The device in words."""
        return device_name(self.device)

    def measured(self, cell: Cell) -> dict[str, Any]:
        """Runs a cell: the fields of its result."""
        forget = self.train.select(draw_ids(self.train, cell.forget_size, cell.seed))
        kept = self._kept(forget)
        positions = kept if cell.retain_subset is None else self._subset(kept, cell.retain_subset)
        shared: dict[str, Any] = {
            "original_l1": self.original_l1,
            "num_parameters": self.num_parameters,
            "retain_measured": len(positions),
            "forget_digest": _digest_of_ids(forget),
            "data_digest": self.data_digest,
            "device": self.told,
        }
        audited = self._audited_on(cell)
        conditions = Conditions(**cell.conditions)
        shared["test_measured"] = len(audited)
        if cell.method == BEFORE:
            return {**shared, **self._as_it_is(forget, positions, audited, conditions.precision)}
        precision = "bf16" if conditions.precision == "bf16" else self.precision
        where: dict[str, Any] = {"updates": self.updates} if cell.reads_updates else {}
        method = method_of(cell.method, {**cell.settings, **where})
        retain = self._retained(kept, cell) if Needs.RETAIN in method.needs else None
        reads_test = Needs.TEST in method.needs
        batch = cell.settings.get("batch_size") or math.inf
        passed = cell.forget_size + (0 if retain is None else len(retain))
        with conditions.applied(cell.settings.get("epochs", 0) * math.ceil(max(1.0, passed / batch)), self._moments):
            result = unlearn(
                conditions.network(self.network),
                forget,
                method=method,
                retain=retain,
                test=self.test.without(forget) if cell.heldout and not cell.withheld and reads_test else None,
                seed=cell.seed,
            )
        started = time.perf_counter()
        model = result.model.to(memory_format=torch.channels_last)
        retained = self._seen(model, self._at(positions), precision)
        tested = self._seen(model, self.resident["test"].take(audited.to(self.device)), precision)
        gone = self._seen(model, self._at(self._positions(forget)), precision)
        return {
            **shared,
            "forget_accuracy": result.trace.forget_accuracy_after,
            "retain_accuracy": retained.accuracy,
            "test_accuracy": tested.accuracy,
            **self._audited(gone.margins, tested.margins, forget, audited),
            "seconds_evaluating": time.perf_counter() - started,
            "evaluated_in": precision,
            "retain_digest": None if retain is None else _digest_of_ids(retain),
            **_of_trace(result.trace),
        }

    def _audited_on(self, cell: Cell) -> Tensor:
        """Positions of the test images that the cell is measured on, ascending."""
        left = audit_side(self.test.images, [cell.seed] if cell.heldout else [])
        if cell.test_subset is None:
            return left.nonzero()[:, 0]
        order = order_of_subset(len(self.test))
        return order[left[order]][: cell.test_subset].sort().values

    def _as_it_is(self, forget: ImageSet, positions: Tensor, audited: Tensor, precision: str) -> dict[str, Any]:
        """The original's own fields, from one pass over all images that serves every forget set."""
        if precision not in self._before:
            started = time.perf_counter()
            everything = self._seen(self.network, self.resident["train"], precision)
            tested = self._seen(self.network, self.resident["test"], precision)
            self._before[precision] = everything, tested, time.perf_counter() - started
        everything, tested, seconds = self._before[precision]
        gone = self._positions(forget)
        return {
            "forget_accuracy": _share(everything.right[gone]),
            "retain_accuracy": _share(everything.right[positions]),
            "test_accuracy": _share(tested.right[audited]),
            **self._audited(everything.margins[gone.numpy()], tested.margins[audited.numpy()], forget, audited),
            **dict.fromkeys(("delta_l1", "delta_l1_last_layer", "delta_l2", "delta_l2_last_layer"), 0.0),
            "steps": 0,
            "examples_seen": 0,
            "seconds": 0.0,
            "seconds_evaluating": seconds,
            "evaluated_in": precision,
        }

    def _kept(self, forget: ImageSet) -> Tensor:
        """Positions of the training images that no forgotten image equals, ascending: D_r."""
        gone = set(digests(forget.images))
        return torch.tensor([n for n, digest in enumerate(self.pixels) if digest not in gone])

    def _subset(self, kept: Tensor, size: int) -> Tensor:
        """The first `size` of `kept` in the order that all cells share."""
        within = torch.zeros(len(self.train), dtype=torch.bool)
        within[kept] = True
        return self.order[within[self.order]][:size]

    def _retained(self, kept: Tensor, cell: Cell) -> ImageSet:
        """The retained examples that a method is handed: the first of a permutation that the seed draws."""
        size = cell.settings.get("retain_size")
        if size is None:
            return self.train.take(kept)
        order = torch.randperm(len(self.train), generator=stream("retain", cell.seed), device="cpu")
        within = torch.zeros(len(self.train), dtype=torch.bool)
        within[kept] = True
        return self.train.take(order[within[order]][:size])

    def _positions(self, images: ImageSet) -> Tensor:
        """Where these training images stand in the training set."""
        return torch.tensor([self.position[name] for name in images.ids])

    def _audited(
        self, gone: NDArray[np.float64], tested: NDArray[np.float64], forget: ImageSet, audited: Tensor
    ) -> dict[str, str | float]:
        """The default audit's score test on margins of forgotten and of test images, less those that are both."""
        twins = set(digests(forget.images))
        unseen = np.array([self.test_pixels[n] not in twins for n in audited.tolist()])
        labels = self.test.labels[audited].numpy()[unseen]
        test = score_test(gone, tested[unseen], forget_labels=forget.labels.numpy(), test_labels=labels)
        return {"audit_verdict": test.verdict, "audit_a1": test.a1, "audit_a2": test.a2, "audit_auc": test.auc}

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's moments at the end of training, by parameter."""
        if self._carried is None:
            self._carried = adam_moments(self.network, self.resident["train"])
        return self._carried

    def _at(self, positions: Tensor) -> Examples:
        return self.resident["train"].take(positions.to(self.device))

    def _seen(self, model: nn.Module, examples: Examples, precision: str) -> Seen:
        """One pass over examples that lie on the device, in batches of the size that is quickest."""
        if precision not in self._batches:
            self._batches[precision] = self._best_batch(precision)
        return self._seen_in(model, examples, precision, self._batches[precision])

    def _seen_in(self, model: nn.Module, examples: Examples, precision: str, size: int) -> Seen:
        model.eval()
        parts = []
        with torch.inference_mode():
            for images in examples.inputs.split(size):
                given = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    parts.append(as_float(model(given)))
        logits, labels = torch.cat(parts).cpu(), examples.labels.cpu()
        margins = logit_scaled_confidence(logits.double().numpy(), labels.numpy())
        return Seen(logits.argmax(1) == labels, margins)

    def _best_batch(self, precision: str) -> int:
        """The quickest of `BATCHES` to run this network in; on a GPU the largest."""
        if self.device.type == "cuda":
            return BATCHES[-1]
        network = copy.deepcopy(self.network).to(memory_format=torch.channels_last)
        paces = {}
        for size in BATCHES:
            examples = self._at(self.order[:size])
            self._seen_in(network, examples, precision, size)  # the first pass of a shape is slower
            started = time.perf_counter()
            self._seen_in(network, examples, precision, size)
            paces[size] = (time.perf_counter() - started) / size
        return min(paces, key=paces.__getitem__)

    @cached_property
    def precision(self) -> str:
        """`bf16` where the device computes in it and the original's accuracies stay within `TOLERANCE`, else `fp32`."""
        if not computes_in_bf16(self.device):
            return "fp32"
        network = copy.deepcopy(self.network).to(memory_format=torch.channels_last)
        found = [
            [self._seen(network, examples, precision).accuracy for precision in ("bf16", "fp32")]
            for examples in (self.resident["test"], self._at(self.order[:CHECKED]))
        ]
        same = all(abs(quick - exact) <= TOLERANCE for quick, exact in found)
        return "bf16" if same else "fp32"


@lru_cache(maxsize=1)
def _stage(dataset: str, model: Path, digest: str, device: str) -> Stage:
    """The stage that the last task had, where this one has it too. `digest` tells a new checkpoint from an old one."""
    if model_digest(model) != digest:
        raise InputError(f"{model} was changed while the benchmark ran; run it again")
    return Stage(dataset, model, device)


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def _digest_of_ids(images: ImageSet) -> str:
    return sha256("\n".join(images.ids).encode()).hexdigest()


def _of_trace(trace: Trace) -> Mapping[str, Any]:
    return {
        "delta_l1": trace.change.l1,
        "delta_l1_last_layer": trace.change.l1_last_layer,
        "delta_l2": trace.change.l2,
        "delta_l2_last_layer": trace.change.l2_last_layer,
        "steps": trace.steps,
        "examples_seen": trace.examples_seen,
        "first_step_all_reached": trace.first_step_all_reached,
        "seconds": trace.seconds,
        "warnings": trace.warnings,
    }


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ExpungeError) else f"{type(error).__name__}: {text}"
