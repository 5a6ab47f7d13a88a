"""How quick the benchmark's cells are: against the plain way, and against the machine's own convolutions.

    python -m experiments grid-speed --model runs/grid/originals/paper/fashion-mnist-resnet18 [--device cuda]

Both ratios are of things measured in turn in this one run. Writes results/bench_speed.json.

The plain way is what one would write by hand: fp32 throughout, a DataLoader that takes each image through torchvision's
transforms, and an update loop with its own forward pass for every accuracy. It makes the same cell: 128 images
forgotten in 20 steps, then accuracy on the same retained and test images. The plain way has all processors for one
cell; the runner makes a cell on each.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from experiments import places
from experiments.commit import origin
from experiments.grid import Result, load_grid
from experiments.grid.engine import Engine
from experiments.grid.measuring import Stage, Task, model_digest
from experiments.markdown import sourced
from experiments.speed.library import bare_loop
from expunge.data import ImageSet, draw_ids
from expunge.markdown import markdown
from expunge.methods import make_method, settings_of
from expunge.trainer import train

TARGET = places.ROOT / "results" / "bench_speed.json"
SIZE = 128
ROUNDS = 3
AT_ONCE = 4
"""Cells of the runner that are timed together, by as many processes as there are processors."""


class Plain(Dataset[tuple[Tensor, int]]):
    """Images as Pillow's, through transforms one by one."""

    def __init__(self, images: ImageSet) -> None:
        from torchvision import transforms

        self.images = images
        self.transform = transforms.Compose([transforms.ToPILImage(), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images.images[index]), int(self.images.labels[index])


def plain_cell(network: nn.Module, forget: ImageSet, retain: ImageSet, test: ImageSet) -> list[float]:
    """The cell by hand: accuracies on the three sets."""
    device = next(network.parameters()).device
    model = bare_loop(copy.deepcopy(network), forget, 20).eval()
    found = []
    for images in (forget, retain, test):
        right = 0
        with torch.no_grad():
            for inputs, labels in DataLoader(Plain(images), batch_size=128):
                right += int((model(inputs.to(device)).argmax(1).cpu() == labels).sum())
        found.append(right / len(images))
    return found


def seconds_of(work: Callable[[], Any]) -> float:
    """Of one call, to the end of what it started on a GPU."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each, measured in turn after one call of each."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds_of(work))
    return {name: statistics.median(values) for name, values in taken.items()}


def convolutions(model: nn.Module, inputs: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every convolution with the input that it is given."""
    met: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda own, given, _: met.append((own, given[0].detach())))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.inference_mode(), torch.autocast(inputs.device.type, torch.bfloat16):
        model(inputs)
    for hook in hooks:
        hook.remove()
    return met


def evaluation(stage: Stage) -> dict[str, Any]:
    """Operations a second of evaluation, of the network's own convolutions alone, and of one large convolution."""
    model = copy.deepcopy(stage.network).eval().to(memory_format=torch.channels_last)
    images = stage.resident["test"].inputs[:2500]
    batch = images[:250].contiguous(memory_format=torch.channels_last)
    met = convolutions(model, batch)
    layers = [(copy.deepcopy(layer).bfloat16(), given.bfloat16()) for layer, given in met]
    large = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(batch.device, torch.bfloat16)
    large = large.to(memory_format=torch.channels_last)
    square = torch.rand(32, 64, 56, 56, device=batch.device).bfloat16()
    square = square.contiguous(memory_format=torch.channels_last)

    def evaluate() -> None:
        stage._seen(model, stage.resident["test"].take(torch.arange(len(images), device=batch.device)), "bf16")

    def convolve() -> None:
        with torch.inference_mode():
            for layer, given in layers:
                for _ in range(len(images) // len(batch)):
                    layer(given)

    def convolve_large() -> None:
        with torch.inference_mode():
            for _ in range(10):
                large(square)

    counts = {}
    for name, work in (("evaluation", lambda: model(batch)), ("large", lambda: large(square))):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            work()  # type: ignore[no-untyped-call]
        counts[name] = counter.get_total_flops()
    taken = in_turn({"evaluation": evaluate, "convolutions": convolve, "large": convolve_large}, 5)
    per_pass = counts["evaluation"] * len(images) // len(batch)
    rates = {
        "evaluation": per_pass / taken["evaluation"],
        "convolutions": per_pass / taken["convolutions"],
        "large": 10 * counts["large"] / taken["large"],
    }
    return {"operations_a_second": rates, "share": rates["evaluation"] / rates["convolutions"]}


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="a directory of an original of the benchmark")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    made = origin()
    if arguments.device == "cuda":
        made["device"] = torch.cuda.get_device_name()
    stage = Stage("fashion-mnist", arguments.model / "model.safetensors", arguments.device)
    cells = load_grid(places.ROOT / "grids" / "paper.toml").cells("cpu")  # the same cell on either device
    cells = [
        replace(c, settings=settings_of(make_method("targeted", preset="paper")))  # 20 full-batch steps, as by hand
        for c in cells
        if (c.original.name, c.row, c.forget_size) == ("fashion-mnist-resnet18", "targeted1", SIZE)
    ][:AT_ONCE]
    model = arguments.model / "model.safetensors"
    told: dict[str, Any] = {"model": model, "model_digest": model_digest(model), "commit": made["commit"]}
    todo = [Task(cells=(cell,), device=arguments.device, **told) for cell in cells]
    forget = stage.train.select(draw_ids(stage.train, SIZE, cells[0].seed))
    retain = stage.train.take(stage._subset(stage._kept(forget), cells[0].retain_subset or len(stage.train)))
    test = stage.test.take(stage._audited_on(cells[0]))
    ours: dict[int, Result] = {}
    theirs: list[float] = []
    engine = Engine(workers=os.cpu_count() or 1, device=arguments.device, train=train)

    def measure() -> None:
        for task, outcome in engine.run(todo, lambda: None):
            ours[task.cells[0].seed] = outcome.results[0]

    works: dict[str, Callable[[], Any]] = {
        "ours": measure,
        "plain": lambda: theirs.__setitem__(slice(None), plain_cell(stage.network, forget, retain, test)),
    }
    taken = in_turn(works, ROUNDS)
    engine.close()
    taken["ours"] /= len(todo)
    first = ours[cells[0].seed]
    record = {
        "cell": {
            "seconds": taken,
            "cells_an_hour": {name: 3600 / value for name, value in taken.items()},
            "ratio": taken["plain"] / taken["ours"],
            "test_accuracy": {"ours": first.test_accuracy, "plain": theirs[2]},
            "evaluated_in": first.evaluated_in,
        },
        "evaluation": evaluation(stage),
        **made,
    }
    TARGET.write_text(json.dumps(record, indent=2) + "\n")
    print(bench_speed_table())


def bench_speed_table() -> str:
    """What was measured, and the aims."""
    record = json.loads(TARGET.read_text())
    cell, found = record["cell"], record["evaluation"]
    rates = {name: rate / 1e9 for name, rate in found["operations_a_second"].items()}
    rows = [
        ["cells an hour, the plain way", f"{cell['cells_an_hour']['plain']:,.0f}", ""],
        [
            f"cells an hour, `python -m experiments run` (evaluated in {cell['evaluated_in']})",
            f"{cell['cells_an_hour']['ours']:,.0f}",
            "",
        ],
        ["ratio", f"{cell['ratio']:.2f}", "≥ 3"],
        ["evaluation, 10⁹ operations a second", f"{rates['evaluation']:.0f}", ""],
        ["the network's convolutions alone, likewise", f"{rates['convolutions']:.0f}", ""],
        ["share of the convolutions' rate that evaluation reaches", f"{100 * found['share']:.0f}%", "≥ 60%"],
        ["one large convolution (64 channels, 56 × 56), likewise", f"{rates['large']:.0f}", ""],
    ]
    command = "`python -m experiments grid-speed --model runs/grid/originals/paper/fashion-mnist-resnet18`"
    return sourced(markdown(["what", "measured", "aim"], rows), record, command)
