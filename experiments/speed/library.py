"""What `unlearn` costs: against a bare loop, against retraining, and what importing costs.

    python -m experiments speed

Every figure is a ratio of two things measured in turn in this one run. Writes results/speed.json.
"""

import copy
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments import places
from experiments.commit import commit
from expunge.data import Examples, ImageSet, load_data
from expunge.methods import Targeted, make_method
from expunge.models import ModelSpec, build
from expunge.training import Recipe, train
from expunge.unlearning import unlearn

TARGET = places.RESULTS / "speed.json"
RESNET18 = ModelSpec(
    architecture="resnet18",
    num_classes=10,
    in_channels=1,
    image_size=28,
    mean=(0.286,),
    std=(0.353,),
    options={"stem": "standard"},
)
STEPS = 20


def bare_loop(model: nn.Module, forget: ImageSet, steps: int) -> nn.Module:
    """What one would write by hand: pseudo-labels once, then full-batch Adam. Changes `model`."""
    device = next(model.parameters()).device
    images, truth = forget.images.to(device), forget.labels.to(device)
    model.eval()
    with torch.no_grad():
        logits = model(images)
    best, second = logits.topk(2).indices.T
    labels = torch.where(best == truth, second, best)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def ours(model: nn.Module, forget: ImageSet, steps: int) -> nn.Module:
    """The same steps by `unlearn`."""
    return unlearn(model, forget, method=make_method("targeted", preset="paper", epochs=steps)).model


def seconds(run: Callable[..., Any], *arguments: Any) -> float:
    """Wall clock of one call."""
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def overhead(repeats: int = 5) -> list[dict[str, float]]:
    """Time of `unlearn` over that of the bare loop: the median of ratios of neighbouring runs."""
    data = load_data("sample")
    rows = []
    for size in (16, 128, 512):
        forget = data.take(range(size))
        model = build(RESNET18)
        bare_loop(copy.deepcopy(model), forget, 2)
        pairs = []
        for _ in range(repeats):
            own = copy.deepcopy(model)
            pairs.append((seconds(bare_loop, own, forget, STEPS), seconds(ours, model, forget, STEPS)))
        ratios = [b / a for a, b in pairs]
        rows.append(
            {
                "forget_size": size,
                "steps": STEPS,
                "bare_seconds": statistics.median(a for a, _ in pairs),
                "unlearn_seconds": statistics.median(b for _, b in pairs),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def memory() -> dict[str, float]:
    """Peak resident memory of each in a process of its own, in bytes; the model's size beside them."""
    code = (
        "import resource, sys; from experiments.speed.library import *; "
        "forget = load_data('sample').take(range(128)); model = build(RESNET18); "
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; {run}(model, forget, 5); "
        "print(start * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    peaks: dict[str, float] = {}
    for run in ("bare_loop", "ours"):
        values = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", code.format(run=run)], capture_output=True, text=True, check=True
            )
            values.append(int(done.stdout.split()[1]))
        peaks[run] = statistics.median(values)
    size = sum(p.numel() * p.element_size() for p in build(RESNET18).parameters())
    return {**peaks, "model_bytes": size, "ratio": (peaks["ours"] - size) / peaks["bare_loop"]}


def growth() -> list[dict[str, float]]:
    """Seconds for forget set × steps, and the share of their variance that a straight line explains."""
    data = load_data("sample")
    model = build(RESNET18)
    rows: list[dict[str, float]] = []
    for size in (64, 128, 256, 512):
        for steps in (5, 10, 20):
            forget = data.take(range(size))
            taken = seconds(ours, model, forget, steps)
            rows.append({"forget_size": size, "steps": steps, "seconds": taken})
    return rows


def straightness(rows: list[dict[str, float]]) -> float:
    """R² of seconds against forget set × steps."""
    work = [row["forget_size"] * row["steps"] for row in rows]
    return float(np.corrcoef(work, [row["seconds"] for row in rows])[0, 1] ** 2)


def training_set_sizes() -> list[dict[str, float]]:
    """`unlearn` of 32 examples and one epoch of retraining, for models of three training-set sizes."""

    def one_epoch(model: nn.Module, examples: Examples) -> None:
        train(model, examples, Recipe(epochs=1), rng=torch.Generator().manual_seed(0))

    data = load_data("sample")
    rows = []
    spec = ModelSpec(
        architecture="small_resnet", num_classes=10, in_channels=1, image_size=28, mean=(0.286,), std=(0.353,)
    )
    for size in (500, 1000, 2000):
        examples = data.take(range(size)).examples
        model = build(spec)
        epoch = seconds(one_epoch, model, examples)
        forget = data.take(range(32))
        unlearn(model, forget, method=Targeted(epochs=1))
        times = [seconds(ours, model, forget, STEPS) for _ in range(5)]
        rows.append({"training_set": size, "unlearn_seconds": statistics.median(times), "epoch_seconds": epoch})
    return rows


def imports(repeats: int = 7) -> dict[str, float]:
    """Seconds that `import expunge` (with `unlearn` loaded) adds to `import torch`, and of `expunge --help`."""
    timed = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"

    def once(code: str) -> float:
        done = subprocess.run([sys.executable, "-c", timed.format(code)], capture_output=True, text=True, check=True)
        return float(done.stdout)

    command = [str(Path(sys.executable).parent / "expunge"), "--help"]
    bare, with_expunge, added, help_seconds = [], [], [], []
    for _ in range(repeats):
        bare.append(once("import torch"))
        with_expunge.append(once("import torch, expunge; expunge.unlearn"))
        added.append(once("import torch; t = time.perf_counter(); import expunge; expunge.unlearn"))
        help_seconds.append(seconds(lambda: subprocess.run(command, capture_output=True, check=True)))
    return {
        "torch_seconds": statistics.median(bare),
        "torch_and_expunge_seconds": statistics.median(with_expunge),
        "added_seconds": statistics.median(added),
        "help_seconds": statistics.median(help_seconds),
    }


def main() -> None:
    """Measures everything and writes it down."""
    report: dict[str, Any] = {
        "command": "python -m experiments speed",
        "commit": commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    for name, measure in (
        ("imports", imports),
        ("memory", memory),
        ("overhead", overhead),
        ("growth", growth),
        ("training_set_sizes", training_set_sizes),
    ):
        report[name] = measure()
        print(name, json.dumps(report[name], indent=1), flush=True)
    report["growth_r_squared"] = straightness(report["growth"])
    report["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    TARGET.write_text(json.dumps(report, indent=2) + "\n")
