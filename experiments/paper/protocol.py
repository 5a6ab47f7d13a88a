"""Under which reading of the paper's protocol do its rows come out closest? Fashion-MNIST, ResNet-18.

    python -m experiments protocol run --workers 2
    python -m experiments protocol figures

The paper gives the optimizer of its own method (Adam, 1e-4, weight decay 1e-5), which all rows get here. It gives
neither batch, budget, stop rule, normalisation mode nor how the original was trained. Each reading here fills that in
otherwise. One JSON line a cell goes to results/protocol/ORIGINAL/, by the runner of `expunge bench`: what is there
already is not done again.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import places
from experiments.grid import Cell, Original, Result, read_results
from experiments.grid.engine import Engine
from experiments.grid.runner import run_cells
from experiments.paper.printed import printed
from expunge.markdown import markdown
from expunge.methods import make_method, settings_of
from expunge.trainer import train
from expunge.training import recipe_for

RESULTS = places.RESULTS / "protocol"
TABLE = 11  # the paper's: Fashion-MNIST, ResNet-18
SIZES = (16, 128)
RETAIN_MEASURED = 10_000
ORIGINALS: dict[str, dict[str, Any]] = {
    "sgd": {"precision": "bf16"},
    "adam": {"precision": "bf16", "optimizer": "adam", "lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-5},
}
READINGS: dict[str, dict[str, Any]] = {
    "20 full-batch steps": {},
    "until forgotten, at most 60 full-batch steps": {"stop": "forgotten", "epochs": 60},
    "until forgotten, at most 20 passes in batches of 32": {"stop": "forgotten", "epochs": 20, "batch_size": 32},
    "until forgotten, at most 60 passes in batches of 32": {"stop": "forgotten", "epochs": 60, "batch_size": 32},
    "as the second, normalisation in eval mode": {"stop": "forgotten", "epochs": 60, "norm": "eval"},
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "neg_grad": ("neg_grad", {}),
    "random_label": ("random_label", {}),
    "bad_teacher": ("bad_teacher", {}),
    "amnesiac": ("amnesiac", {}),
    "targeted1": ("targeted", {"lam": 1.0}),
    "targeted3": ("targeted", {"lam": 3.0}),
}


def cells(name: str) -> Iterator[Cell]:
    """All runs from one original."""
    recipe, options = recipe_for("fashion-mnist", "resnet18")
    changed = make_method("retrain", **{**recipe.to_dict(), **ORIGINALS[name]})  # it has the recipe's fields
    original = Original(
        dataset="fashion-mnist",
        architecture="resnet18",
        recipe=settings_of(changed),
        options=options,
        seed=0,
        settings={**ORIGINALS[name], **options},
        target={},
    )
    common: dict[str, Any] = {"original": original, "seed": 0, "retain_subset": RETAIN_MEASURED}
    for size in SIZES:
        yield Cell(row="before", method="before", settings={}, forget_size=size, **common)
    for reading in READINGS.values():
        for row, (method, settings) in ROWS.items():
            chosen = make_method(method, preset="paper", **settings, **reading)
            for size in SIZES:
                yield Cell(row=row, method=method, settings=settings_of(chosen), forget_size=size, **common)


def run(workers: int, models: Path) -> None:
    """Does what is missing."""
    for name in ORIGINALS:
        summary = run_cells(
            list(cells(name)),
            RESULTS / name,
            models / name,
            Engine(workers=workers, device="cpu", train=train),
            announce=lambda line: print(line, file=sys.stderr),
            beat=60,
        )
        print(summary.table())


def found(name: str) -> dict[tuple[str, str, int], Result]:
    """{(reading, row, size): result} from one original; `before` has the reading ""."""
    results = {result.cell: result for result in read_results(RESULTS / name)}
    wanted = list(cells(name))
    labels = ["", *(reading for reading in READINGS for _ in ROWS)]
    keys = [(labels[n // len(SIZES)], cell.row, cell.forget_size) for n, cell in enumerate(wanted)]
    return {key: results[cell.id] for key, cell in zip(keys, wanted, strict=True) if cell.id in results}


def distance(of_reading: dict[tuple[str, int], Result]) -> float:
    """Root mean square difference from the paper's Table 11 in points, over forget, retain and test accuracy."""
    gaps = [
        100 * accuracy - printed_mean
        for (row, size), result in of_reading.items()
        for split in ("forget", "retain", "test")
        if (printed_mean := printed()[TABLE, split, row, size].mean) is not None
        and (accuracy := getattr(result, f"{split}_accuracy")) is not None
    ]
    return float((sum(gap**2 for gap in gaps) / len(gaps)) ** 0.5)


def protocol_table(size: int) -> str:
    """A row a reading: forget and test accuracy of every method, and how far all are from the paper's."""
    lines = []
    for name in ORIGINALS:
        results = found(name)
        for reading in READINGS:
            keys = [(row, n) for row in ROWS for n in SIZES]
            chosen = {(row, n): results[reading, row, n] for row, n in keys if (reading, row, n) in results}
            whole = len(chosen) == len(keys) and all(r.failed is None for r in chosen.values())
            shown = [chosen.get((row, size)) for row in ROWS]
            lines.append(
                [
                    f"{name}: {reading}",
                    *(_pair(r.forget_accuracy, r.test_accuracy) if r else "–" for r in shown),
                    f"{distance(chosen):.1f}" if whole else "–",
                ]
            )
    paper = [[printed()[TABLE, split, row, size].mean for split in ("forget", "test")] for row in ROWS]
    lines.append(["the paper", *(f"{forget:.0f} / {test:.1f}" for forget, test in paper), ""])
    before = [found(name)["", "before", size] for name in ORIGINALS]
    commits = sorted({r.commit for name in ORIGINALS for r in found(name).values()})
    told = (
        "forget / test accuracy, %; distance: RMS over both sizes, all rows and D_f, D_r, D_t, points; original "
        + ", ".join(f"{n} {_pair(r.retain_accuracy, r.test_accuracy)}" for n, r in zip(ORIGINALS, before, strict=True))
        + f" (retain / test) · `python -m experiments protocol run` · {before[0].device} · torch "
        f"{before[0].versions['torch']} · commit {', '.join(commits)}"
    )
    return markdown(["original: reading", *ROWS, "distance"], lines) + "\n\n" + told


def _pair(forget: float | None, test: float | None) -> str:
    return "failed" if forget is None or test is None else f"{100 * forget:.0f} / {100 * test:.1f}"


def main() -> None:
    """Runs the missing cells, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "figures"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--models", type=Path, default=Path("runs/originals"), help="where the originals are kept")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.workers, arguments.models)
    for size in SIZES:
        print(protocol_table(size))
