"""What each method and each choice does to a ResNet-18 trained on all of Fashion-MNIST.

    python -m experiments forgetting methods --model runs/fm-r18
    python -m experiments forgetting choices --model runs/fm-r18

One JSON line a run goes to results/forgetting/; runs that are there already are skipped, so a stopped benchmark goes
on where it was. `python -m experiments docs` writes the tables of the docs from those lines.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments import places
from experiments.commit import commit
from expunge.auditing import accuracy
from expunge.data import Examples, ImageSet, draw_ids, load_data
from expunge.errors import NonFiniteError
from expunge.methods import METHODS, Needs, make_method, settings_of
from expunge.models import load_model
from expunge.unlearning import unlearn

RESULTS = places.RESULTS / "forgetting"
SIZES = (16, 128, 512)


RETAIN_MEASURED = 10_000
"""Retain accuracy is over this many of the remaining images, the first ones: six times quicker than over all."""


def methods() -> Iterator[dict[str, Any]]:
    """Every method at three sizes; the reference once, since a retraining takes minutes."""
    for seed in range(3):
        for size in SIZES:
            common: dict[str, Any] = {"size": size, "seed": seed, "retain_measured": RETAIN_MEASURED}
            yield {"method": "targeted", "settings": {}, **common}
            for lam in (1, 3):
                yield {"method": "targeted", "preset": "paper", "settings": {"lam": lam}, **common}
            for method in ("neg_grad", "random_label", "bad_teacher", "amnesiac"):
                yield {"method": method, "preset": "paper", "settings": {}, **common}
            yield {"method": "finetune", "settings": {"retain_size": 10_000}, **common}
    for size in SIZES:
        common = {"size": size, "seed": 0, "retain_measured": RETAIN_MEASURED}
        # The log of a ResNet-18 on 60,000 images: 26 GB for 128 watched examples, 56 GB for 512.
        if size <= 128:
            yield {"method": "amnesiac_undo", "settings": {}, **common}
        yield {"method": "retrain", "settings": {}, **common}


def choices() -> Iterator[dict[str, Any]]:
    """What the paper leaves open, one factor at a time around its setting; retain accuracy on 10,000 examples."""
    base: dict[str, Any] = {"norm": "train", "stop": "budget", "epochs": 20, "batch_size": None, "lr": 1e-4}
    gentle = {"stop": "forgotten", "epochs": 200}
    variants: list[dict[str, Any]] = [
        {},
        gentle,
        {**gentle, "norm": "eval"},
        {**gentle, "lr": 3e-5, "epochs": 1000},
        {**gentle, "lr": 1e-5, "epochs": 1000},
        {**gentle, "optimizer": "sgd", "lr": 0.01},
        {**gentle, "norm": "eval", "optimizer": "sgd", "lr": 0.01},
        {"epochs": 5},
        {"norm": "eval"},
        {"stop": "epsilon", "epochs": 100, "epsilon": 0.05},
        {"batch_size": 16},
        {"weight_decay": 0.0},
        {"optimizer": "sgd", "lr": 0.01},
        {"reduction": "paper"},
        {"delta": 0.1},
    ]
    for size in (16, 128):
        for variant in variants:
            for lam in (1, 3):
                settings = {**base, **variant, "lam": lam}
                yield {
                    "method": "targeted",
                    "settings": settings,
                    "size": size,
                    "seed": 0,
                    "retain_measured": RETAIN_MEASURED,
                }


def main() -> None:
    """Runs the missing cells of one of the two lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", choices=("methods", "choices"))
    parser.add_argument("--model", required=True, help="a directory of `expunge train --data fashion-mnist`")
    parser.add_argument("--only", nargs="*", default=[], help="run only cells whose JSON holds each of these texts")
    arguments = parser.parse_args()
    cells = {"methods": methods, "choices": choices}[arguments.cells]()
    target = RESULTS / f"{arguments.cells}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["cell"] for line in places.read(target).splitlines()} if target.exists() else set()
    bench = Bench(arguments.model)
    for cell in cells:
        key = json.dumps(cell, sort_keys=True)
        if key in done or not all(text in key for text in arguments.only):
            continue
        try:
            record = {"cell": key, **bench.run(cell)}
        except NonFiniteError as error:  # a figure too: this setting does not work
            record = {"cell": key, **bench.told(), "forget_size": cell["size"], "failed": str(error)}
        with target.open("a") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")
        measured = ("failed", "forget_accuracy", "retain_accuracy", "test_accuracy")
        print(key, *(f"{name} {record[name]}" for name in measured if name in record), flush=True)


class Bench:
    """The model and the data, loaded once."""

    def __init__(self, directory: str) -> None:
        self.commit = commit()
        self.directory = Path(directory)
        self.model, self.header = load_model(directory)
        self.train, self.test = load_data("fashion-mnist:train"), load_data("fashion-mnist:test")
        self.digest = sha256((self.directory / "model.safetensors").read_bytes()).hexdigest()

    def run(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Runs one cell and measures it."""
        name = cell["method"]
        chosen = set(draw_ids(self.train, cell["size"], cell["seed"]))
        forget = self.train.select(draw_ids(self.train, cell["size"], cell["seed"]))
        retain = self.train.take([n for n, i in enumerate(self.train.ids) if i not in chosen]).without(forget)
        recipe = dict(self.header.recipe) if name == "retrain" else {}
        where: dict[str, Any] = {"updates": self.directory / "updates"} if Needs.UPDATES in METHODS[name].needs else {}
        # Its defaults when these were measured, before its step size came from the gradient.
        then: dict[str, Any] = {"lr": 3e-5} if name == "targeted" and "preset" not in cell else {}
        method = make_method(name, preset=cell.get("preset"), **{**recipe, **then, **cell["settings"], **where})
        result = unlearn(
            self.model,
            forget,
            method=method,
            retain=retain if Needs.RETAIN in METHODS[name].needs else None,
            seed=cell["seed"],
        )
        trace = result.trace
        measured = self._measured(retain, cell.get("retain_measured"))
        return {
            "dataset": "fashion-mnist",
            "architecture": self.header.spec.architecture,
            "method": name,
            "preset": cell.get("preset"),
            "settings": settings_of(method),
            "forget_size": cell["size"],
            "seed": cell["seed"],
            "forget_accuracy_before": trace.forget_accuracy_before,
            "forget_accuracy": trace.forget_accuracy_after,
            "retain_accuracy": accuracy(result.model, measured),
            "retain_measured": len(measured),
            "test_accuracy": accuracy(result.model, self.test.examples),
            "delta_l1": trace.change.l1,
            "delta_l1_last_layer": trace.change.l1_last_layer,
            "delta_l2": trace.change.l2,
            "steps": trace.steps,
            "first_step_all_reached": trace.first_step_all_reached,
            "examples_seen": trace.examples_seen,
            "seconds": trace.seconds,
            "warnings": list(trace.warnings),
            **self.told(),
        }

    def told(self) -> dict[str, Any]:
        """Where and with what a cell was measured."""
        return {
            "device": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {
                "expunge": version("expunge"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "commit": self.commit,
            "model_digest": self.digest,
        }

    def _measured(self, retain: ImageSet, size: int | None) -> Examples:
        return retain.examples if size is None else retain.take(list(range(size))).examples
