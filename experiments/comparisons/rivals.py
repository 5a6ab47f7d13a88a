"""What another library costs in the same setting: erasus 0.2.0, with the model and the examples to forget alone.

    pip install erasus==0.2.0
    python -m experiments rivals

64 images of the embedded sample, the draws of grids/alone-sample.toml, into results/alone-rivals.json. Each strategy
runs at its own step size and at 30 and 1,000 times that, for 5 and for 50 epochs. The table takes the run that keeps
the most test accuracy among those that leave at most one image in twenty right: chosen on the test set, in its favour.
(torchunlearn 0.1.0 installs no methods; two of its repository's, `boundary_shrink` and `mu_mis`, are methods here.)
"""

import copy
import inspect
import json
from importlib import import_module
from importlib.metadata import version
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments import places
from experiments.commit import origin
from experiments.comparisons.alone import accuracy, alone_cells
from expunge.data import draw_ids, load_data
from expunge.errors import MissingExtraError
from expunge.markdown import markdown
from expunge.models import load_model

TARGET = places.RESULTS / "alone-rivals.json"
SIZE, SEEDS = 64, (1, 2, 3)
STRATEGIES = (
    "gradient_ascent",
    "negative_gradient",
    "saliency_unlearning",
    "knowledge_distillation",
    "fisher_forgetting",
    "amnesiac",
    "scrub",
    "wga",
    "layer_freezing",
    "parameter_subset",
    "sparse_aware",
    "mask_based",
    "neuron_pruning",
)
"""Those of its strategies that are for classifiers and take no retained examples to run."""
FORGOTTEN = 0.05


def main() -> None:
    """Runs what is missing."""
    try:
        import_module("erasus.strategies")
        registry = import_module("erasus.core.registry").strategy_registry
    except ImportError as error:
        raise MissingExtraError("this measures erasus: pip install erasus==0.2.0") from error
    rows = json.loads(TARGET.read_text()) if TARGET.exists() else []
    network, _ = load_model(str(places.RESULTS / "better" / "originals" / "sample-small_resnet"))
    train, test = load_data("sample:train"), load_data("sample:test")
    for seed in SEEDS:
        gone = train.select(draw_ids(train, SIZE, seed))
        forget = TensorDataset(gone.images, gone.labels)
        for name in STRATEGIES:
            for times in (1, 30, 1000):
                for epochs in (5, 50):
                    place = {"strategy": name, "times": times, "epochs": epochs, "seed": seed}
                    if any(place.items() <= row.items() for row in rows):
                        continue
                    found = run(registry.get(name), network, forget, times, epochs, seed)
                    if "failed" not in found:
                        model = found.pop("model")
                        found = {
                            "forget_accuracy": accuracy(model, [gone.images, gone.labels]),
                            "test_accuracy": accuracy(model, [test.images, test.labels]),
                        }
                    before = accuracy(network, [test.images, test.labels])
                    rows.append({**place, **found, "before": before, "erasus": version("erasus"), **origin()})
                    TARGET.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    print(rivals_table())


def run(
    strategy: type, network: nn.Module, forget: TensorDataset, times: float, epochs: int, seed: int
) -> dict[str, Any]:
    """The model that a strategy makes, or why there is none."""
    torch.manual_seed(seed)
    parameters = inspect.signature(strategy).parameters
    rates = {
        name: times * value.default
        for name, value in parameters.items()
        if name.endswith("lr") and isinstance(value.default, float)
    }
    loader = DataLoader(forget, batch_size=SIZE, shuffle=True)
    try:
        made = strategy(**rates).unlearn(copy.deepcopy(network), loader, epochs=epochs)
        model = made[0] if isinstance(made, tuple) else made
        return {"model": model.eval()}
    except Exception as error:  # their code may raise anything
        return {"failed": f"{type(error).__name__}: {error}"}


def rivals_table() -> str:
    """A row a strategy: its best run that forgets, else what it leaves right at its own settings."""
    rows = json.loads(TARGET.read_text()) if TARGET.exists() else []
    if not rows:
        return "Not measured yet."
    found = []
    for name in STRATEGIES:
        mine = [row for row in rows if row["strategy"] == name and "failed" not in row]
        runs: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in mine:
            runs.setdefault((row["times"], row["epochs"]), []).append(row)
        if not mine:
            if any(row["strategy"] == name for row in rows):
                found.append([f"erasus `{name}`", "fails", "–", "–"])
            continue
        forgets = {key: here for key, here in runs.items() if all(r["forget_accuracy"] <= FORGOTTEN for r in here)}
        worth, among = (_lost, forgets) if forgets else (_right, runs)
        key = min(among, key=lambda key: worth(among[key]))
        found.append(_line(f"erasus `{name}`", _lost(among[key]), _right(among[key]), f"{key[0]} ×, {key[1]} epochs"))
    found += [_line(f"`{name}`", lost, right, "own") for name, lost, right in alone_cells("sample", SIZE)]
    parts = [sorted({row[key] for row in rows}) for key in ("device", "torch", "commit")]
    told = " · ".join(", ".join(part) for part in parts)
    head = [f"{SIZE} forgotten", "test points lost", "still right, %", "step size and budget"]
    return (
        markdown(head, found)
        + f"\n\nDraws of erasus: {len({row['seed'] for row in rows})}. `python -m experiments rivals` · {told}"
    )


def _line(name: str, lost: float, right: float, how: str) -> list[str]:
    return [name, f"{lost:.1f}", f"{100 * right:.0f}", how]


def _lost(rows: list[dict[str, Any]]) -> float:
    return 100 * fmean(row["before"] - row["test_accuracy"] for row in rows)


def _right(rows: list[dict[str, Any]]) -> float:
    return fmean(row["forget_accuracy"] for row in rows)
