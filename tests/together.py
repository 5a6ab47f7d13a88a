"""What `tests/test_distributed.py` starts in two processes, and calls in one: some runs, and what came of them."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from expunge.methods import Recorder, Task, make_method

SGD = {"optimizer": "sgd", "weight_decay": 0.0}  # Adam turns rounding into steps
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "targeted": ("targeted", {**SGD, "lr": 0.05, "batch_size": 7, "epochs": 2}),
    "parts": ("targeted", {**SGD, "lr": 0.05, "batch_size": 7, "micro_batch_size": 4, "epochs": 2}),
    "one": ("targeted", {**SGD, "lr": 0.05, "batch_size": 16, "epochs": 2}),  # the last batch holds one example
    "calibrated": ("calibrated", {**SGD, "epochs": 3, "retention_size": 24, "batch_size": 16}),
    "held_boundary": (
        "held_boundary",
        {**SGD, "pace": None, "lr": 1e-3, "retention": 1.0, "max_steps": 6, "retention_size": 34, "batch_size": 16},
    ),
    "scrub": ("scrub", {**SGD, "lr": 0.01, "epochs": 2, "batch_size": 16}),
    "jit": ("jit", {**SGD, "lr": 0.01, "epochs": 2, "draws": 2, "batch_size": 8, "accumulate": True}),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.InstanceNorm2d(6, track_running_stats=True), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), Unused(),
    )  # fmt: skip


class Unused(nn.Identity):
    """Hands on what it gets, and has parameters that no gradient reaches, and buffers of other types."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("none", torch.empty(0))


def examples(size: int, seed: int) -> TensorDataset:
    rng = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(size, 1, 8, 8, generator=rng), torch.randint(4, (size,), generator=rng))


@dataclass(frozen=True, kw_only=True)
class Drawing(expunge.GradientMethod):
    """Draws within a step, which splits."""

    name = "drawing"

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        descent = self.descent(model, task, rng=rng, record=record)
        for _, logits in descent:
            descent.step(logits.mean(1) * torch.rand(len(logits), generator=rng))
        return model


def outcome(name: str) -> dict[str, Any]:
    """What a run leaves: weights, and the numbers of its trace."""
    method, settings = RUNS[name]
    more: dict[str, Any] = {"retain": examples(40, 2)} if method == "scrub" else {}
    more |= {"test": examples(120, 1)} if method == "calibrated" else {}
    done = expunge.unlearn(network(), examples(17, 0), method=make_method(method, **settings), **more)
    return {"weights": done.model.state_dict(), "trace": done.trace.to_json(), "steps": done.trace.steps}


def audited() -> tuple[dict[str, Tensor], str | None, list[str]]:
    """What `forget` says of the whole."""
    method = make_method("targeted", **RUNS["targeted"][1])
    done = expunge.forget(network(), examples(17, 0), test=examples(60, 1), method=method)
    assert done.report is not None
    return done.model.state_dict(), done.report.verdict, [str(done.before), str(done.after)]


def main(rank: int, port: str, out: Path) -> None:
    """Makes all runs as one of two processes, and writes what came of them to the directory `out`."""
    warnings.simplefilter("ignore", expunge.ExpungeWarning)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found: dict[str, Any] = {name: outcome(name) for name in RUNS}
    found["forget"] = audited()
    try:
        expunge.unlearn(network(), examples(17, rank), method="targeted")
    except expunge.InputError as error:
        found["error"] = str(error)
    try:
        expunge.unlearn(network(), examples(17, 0), method=Drawing(epochs=1))
    except expunge.SettingError as error:
        found["drawn"] = str(error)
    torch.save(found, out / f"{rank}.pt")
    torch.distributed.destroy_process_group()
