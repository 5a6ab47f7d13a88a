"""The model and the examples to forget, and nothing else: what test accuracy it costs to get them all wrong.

    python -m experiments alone

Measures rows of numbers and a network that keeps no statistics: scikit-learn's digits, into results/alone-digits.jsonl.
What is there already is not done again. Images are of grids/alone-sample.toml and grids/alone.toml.
"""

import json
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments import places
from experiments.commit import origin
from experiments.grid import current, load_grid, read_results
from expunge.markdown import markdown
from expunge.methods import make_method
from expunge.unlearning import unlearn

RESULTS = places.RESULTS / "alone"
DIGITS = places.RESULTS / "alone-digits.jsonl"
GRIDS = {"sample": "alone-sample.toml", "fashion-mnist": "alone.toml", "cifar10": "alone.toml"}
SIZES = (16, 64, 128, 512)
SEEDS = range(5)
FORGOTTEN = {"stop": "forgotten", "epochs": 1000}
ROWS: dict[str, dict[str, Any]] = {
    "held_boundary": {},
    "masked_distillation": {},
    "targeted1": {"preset": "paper", "lam": 1.0, **FORGOTTEN},
    "targeted3": {"preset": "paper", "lam": 3.0, **FORGOTTEN},
    "delete": FORGOTTEN,
    "boundary_shrink": {},
    "salsa": {},
}
"""Settings by row, as in the grids, with a larger budget: steps are small for this network."""


def main() -> None:
    """Runs what is missing."""
    known = _digits()
    made = origin()
    for seed in SEEDS:
        model, train, test = trained(seed)
        for size in SIZES:
            for row, settings in ROWS.items():
                place = {"row": row, "size": size, "seed": seed}
                if any(place.items() <= found.items() for found in known):
                    continue
                method = make_method(row.removesuffix("1").removesuffix("3"), **settings)
                gone = [part[:size] for part in train]
                done = unlearn(model, TensorDataset(*gone), method=method, seed=seed)
                measured = {
                    "forget_accuracy": accuracy(done.model, gone),
                    "test_accuracy": accuracy(done.model, test),
                    "test_accuracy_before": accuracy(model, test),
                    "seconds": done.trace.seconds,
                    "steps": done.trace.steps,
                }
                with DIGITS.open("a") as file:
                    file.write(json.dumps({**place, **measured, "settings": done.trace.settings, **made}) + "\n")
    print(alone_table("digits"))


def trained(seed: int) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A network of rows of 64 numbers, its 1,200 training examples and the 597 others: inputs and labels each."""
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    data = load_digits()
    inputs, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(inputs))
    train, test = ([inputs[part], labels[part]] for part in (order[:1200], order[1200:]))
    model = nn.Sequential(
        nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    )
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        for batch in torch.randperm(1200).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
            adam.step()
    return model.eval(), train, test


def accuracy(model: nn.Module, examples: Sequence[Tensor]) -> float:
    """In [0, 1]."""
    with torch.no_grad():
        return float((model(examples[0]).argmax(1) == examples[1]).double().mean())


def alone_table(dataset: str) -> str:
    """A row a method, a column a size: points of test accuracy lost, and what is still right of the forgotten."""
    found, told = _of_digits() if dataset == "digits" else _of_grid(dataset)
    rows = []
    for row in ROWS:
        cells = [found.get((row, size), []) for size in SIZES]
        if any(cells):
            rows.append([f"`{row}`", *map(_cell, cells)])
    if not rows:
        return "Not measured yet."
    return markdown(["test points lost", *(f"{size} forgotten" for size in SIZES)], rows) + f"\n\n{told}"


def _cell(values: Sequence[tuple[float, float]]) -> str:
    """The mean with its 95% interval, how many draws where not all, and the forget accuracy where it is not 0."""
    if not values:
        return "–"
    lost, right = [one for one, _ in values], fmean(one for _, one in values)
    text = f"{fmean(lost):.1f}"
    if len(lost) > 1:
        text += f" ± {stats.t.ppf(0.975, len(lost) - 1) * stdev(lost) / len(lost) ** 0.5:.1f}"
    text += f" n={len(lost)}" if len(lost) < len(SEEDS) else ""
    return text + (f" ({100 * right:.0f}% still right)" if right > 0 else "")


Found = dict[tuple[str, int], list[tuple[float, float]]]
"""(points of test accuracy lost, forget accuracy), one a seed."""


def _digits() -> list[dict[str, Any]]:
    return [json.loads(line) for line in places.read(DIGITS).splitlines()] if DIGITS.exists() else []


def _of_digits() -> tuple[Found, str]:
    found: Found = {}
    for r in _digits():
        lost = 100 * (r["test_accuracy_before"] - r["test_accuracy"])
        found.setdefault((r["row"], r["size"]), []).append((lost, r["forget_accuracy"]))
    return found, _told("alone", _digits())


def _of_grid(dataset: str) -> tuple[Found, str]:
    cells = [c for c in load_grid(places.ROOT / "grids" / GRIDS[dataset]).cells("cpu") if c.original.dataset == dataset]
    known = current(cells, read_results(RESULTS)) if RESULTS.exists() else {}
    done = [(cell, known[cell.id]) for cell in cells if cell.id in known and known[cell.id].failed is None]
    before = {(cell.forget_size, cell.seed): r.test_accuracy for cell, r in done if cell.row == "before"}
    found: Found = {}
    for cell, result in done:
        was, now = before.get((cell.forget_size, cell.seed)), result.test_accuracy
        if cell.row != "before" and was is not None and now is not None:
            found.setdefault((cell.row, cell.forget_size), []).append((100 * (was - now), result.forget_accuracy or 0))
    models = " --models results/better/originals" if dataset == "sample" else ""
    sources = [{"device": r.device, "commit": r.commit, "torch": r.versions.get("torch", "")} for _, r in done]
    return found, _told(f"run grids/{GRIDS[dataset]} --out results/alone{models}", sources)


def _told(command: str, sources: Iterable[dict[str, Any]]) -> str:
    parts = [", ".join(sorted({source[key] for source in sources})) for key in ("device", "torch", "commit")]
    of = f"{parts[0]} · torch {parts[1]} · commit {parts[2]}"
    return f"Means with 95% intervals. `python -m experiments {command}` · {of}"
