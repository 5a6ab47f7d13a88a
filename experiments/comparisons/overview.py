"""The comparison of methods in short: a row a method over all datasets, and every number of it as CSV."""

import csv
from collections import Counter
from io import StringIO
from statistics import mean, stdev

from experiments.comparisons.better import SHOWN, SHOWN_GRIDS, lost, results, verdicts
from experiments.grid import Result
from expunge.markdown import markdown
from expunge.methods import METHODS, Needs

NAMES = {"sample": "sample", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
VERDICTS = ("PASS", "INCONCLUSIVE", "FAIL")

MEASURES = {
    "forget_accuracy_percent": ("forget_accuracy", 100),
    "retain_accuracy_percent": ("retain_accuracy", 100),
    "a1": ("audit_a1", 1),
    "a2": ("audit_a2", 1),
    "steps": ("steps", 1),
    "seconds": ("seconds", 1),
}
"""{column: (field of a result, in which unit)}."""


def main_table() -> str:
    """Points of test accuracy lost, forgotten examples still right, and verdicts, where `SHOWN` are forgotten."""
    rows = []
    for name in dict.fromkeys(row for dataset in SHOWN_GRIDS for row, _ in results(dataset)):
        if " " in name:  # a variant: the tables of each dataset have it
            continue
        shown = [cost(dataset, name) for dataset in SHOWN_GRIDS]
        if any(cells[0] != "–" for cells in shown):
            rows.append([name, _reads(name), *(cell for cells in shown for cell in cells)])
    parts = ("points lost", "still right %", "verdicts")
    head = ["method", "reads", *(f"{NAMES[dataset]}: {part}" for dataset in SHOWN_GRIDS for part in parts)]
    return (
        markdown(head, rows, left=2) + "\n\n" + "[Every size, with command, machine and commit](comparisons-tables.md)"
    )


def cost(dataset: str, name: str) -> tuple[str, str, str]:
    """Points lost, percent still right and verdicts of a row where `SHOWN` are forgotten; dashes where not measured."""
    here = results(dataset).get((name, SHOWN), {})
    if not here:
        return "–", "–", "–"
    counts = Counter(verdicts(dataset, name, SHOWN))
    right = mean(100 * (result.forget_accuracy or 0) for result in here.values())
    points = "0" if name == "before" else f"{mean(lost(dataset, name, SHOWN)):.1f}".replace("-0.0", "0.0")
    return points.replace("-", "−"), f"{right:.0f}", "/".join(str(counts[v]) for v in VERDICTS)


def _reads(name: str) -> str:
    method = {"targeted3": "targeted"}.get(name, name)
    if method not in METHODS:
        return ""
    needs = METHODS[method].needs
    told = [word for need, word in ((Needs.RETAIN, "retained"), (Needs.TEST, "test")) if need in needs]
    return ", ".join(told) or "nothing"


def comparisons_csv() -> str:
    """A line a dataset, size and row: means and sample standard deviations over draws."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}_{what}" for name in ("points_lost", *MEASURES) for what in ("mean", "sd")]
    writer.writerow(["dataset", "forgotten", "row", "method", "n", *columns, "pass", "inconclusive", "fail"])
    for dataset in SHOWN_GRIDS:
        for (row, size), here in sorted(results(dataset).items(), key=lambda item: item[0][1]):
            several = list(here.values())
            values = [lost(dataset, row, size), *(_measured(several, *of) for of in MEASURES.values())]
            counts = Counter(verdicts(dataset, row, size))
            numbers: list[str] = [cell for of in values for cell in _mean_and_sd(of)]
            writer.writerow(
                [
                    dataset,
                    size,
                    row,
                    several[0].method,
                    len(several),
                    *numbers,
                    *(counts[verdict] for verdict in VERDICTS),
                ]
            )
    return out.getvalue()


def _measured(here: list[Result], name: str, factor: float) -> list[float]:
    return [factor * value for result in here if (value := getattr(result, name)) is not None]


def _mean_and_sd(values: list[float]) -> tuple[str, str]:
    return f"{mean(values):.4g}" if values else "", f"{stdev(values):.3g}" if len(values) > 1 else ""
