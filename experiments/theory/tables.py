"""What `python -m experiments theory` measured, as tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.theory.report import TheoryReport
    from experiments.theory.updates import UpdateMeasurement

MEASURES = {
    "pair_share": "pair share",
    "pr_rows": "PR, rows",
    "pr_entries": "PR, entries",
    "gini_rows": "Gini, rows",
    "gini_entries": "Gini, entries",
}
SINGLE_STEPS = {
    "targeted": "targeted",
    "gradient_ascent": "gradient ascent",
    "random_label": "random label",
}
METHODS = {
    "targeted": "targeted, λ = 1",
    "targeted_lam3": "targeted, λ = 3",
    "neg_grad": "gradient ascent",
    "random_label": "random label",
}
RUNS = {
    ("sgd", "all"): "One SGD step, all parameters",
    ("adam", "last_layer"): "Adam, last layer alone",
    ("adam", "all"): "Adam, all parameters",
}
CELLS: Mapping[str, Callable[["UpdateMeasurement"], float | None]] = {
    "PR, rows": lambda entry: entry.pr_rows,
    "PR, entries": lambda entry: entry.pr_entries,
    "‖Δθ‖₁": lambda entry: entry.l1,
    "‖Δφ‖₁": lambda entry: entry.l1_last_layer,
    "ratio": lambda entry: entry.l1_last_layer / entry.l1 if entry.l1 else None,
}
ALL_PARAMETERS = {"‖Δθ‖₁", "ratio"}
"""Columns that say nothing where the last layer is all that may change."""
SHOWN = (5, 25, 50, 75, 95)
SCOPE = """\
Theorem 4.1 covers the single steps alone: one example, predicted right, one step of SGD. It says
nothing of batches, of Adam, of further steps or of other layers: the runs are neither for nor
against it."""


@dataclass(frozen=True)
class Table:
    """Text in cells; `columns` are the heads."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(report: "TheoryReport") -> tuple[Table, ...]:
    """All tables, in the order of reading."""
    return (facts(report), single_steps(report), *runs(report))


def facts(report: "TheoryReport") -> Table:
    """Where the theorem's order holds, and how certain the model is."""
    single = report.single
    wrong = single.num_examples - single.num_predicted
    p = single.label_probability
    rows = [
        ("examples", f"{single.num_examples:,}"),
        ("predicted right, where the theorem applies", _share(single.num_predicted, single.num_examples)),
        (
            "… of these, targeted majorizes gradient ascent",
            _share(single.num_majorized_predicted, single.num_predicted),
        ),
        ("mispredicted: targeted majorizes gradient ascent", _share(single.num_majorized_mispredicted, wrong)),
        ("probability of the label, median (5 % to 95 %)", f"{p[50]:.4g} ({p[5]:.4g} to {p[95]:.4g})"),
        ("L1 to the boundary over gradient ascent's, median", f"{single.l1_ratio[50]:.3f}" if single.l1_ratio else "–"),
        ("closed form against autograd, largest relative difference", f"{single.disagreement:.1g}"),
    ]
    return Table("Single steps: one SGD step on one example (theorem 4.1)", ("", ""), tuple(rows))


def single_steps(report: "TheoryReport") -> Table:
    """Percentiles of each measure by method."""
    rows = [
        (
            MEASURES[measure] if first else "",
            SINGLE_STEPS[method],
            *(number(measures[measure][percent]) for percent in SHOWN),
        )
        for measure in MEASURES
        for first, (method, measures) in zip((True, False, False), report.single.percentiles.items(), strict=True)
    ]
    columns = ("measure", "what", *("median" if percent == 50 else f"{percent} %" for percent in SHOWN))
    return Table("Distribution over the examples", columns, tuple(rows))


def runs(report: "TheoryReport") -> tuple[Table, ...]:
    """The trajectories, one table for each kind of run."""
    return tuple(_run(report, optimizer, scope) for optimizer, scope in RUNS)


def _run(report: "TheoryReport", optimizer: str, scope: str) -> Table:
    mine = [entry for entry in report.trajectory if (entry.optimizer, entry.scope) == (optimizer, scope)]
    columns = ["method", "steps", *(name for name in CELLS if scope == "all" or name not in ALL_PARAMETERS), "forget %"]
    rows = []
    for method, entries in groupby(mine, key=lambda entry: entry.method):
        for n, entry in enumerate(entries):
            cells = [CELLS[name](entry) for name in columns[2:-1]]
            shown = ["–" if value is None else number(value) for value in cells]
            forgotten = f"{100 * entry.forget_accuracy:.1f}"
            rows.append((METHODS[method] if n == 0 else "", str(entry.steps), *shown, forgotten))
    right = f"{100 * report.forget_accuracy_before:.1f} % right before"
    title = f"{RUNS[optimizer, scope]}, on a batch of {report.batch:,}, {right}"
    return Table(title, tuple(columns), tuple(rows))


def number(value: float) -> str:
    """Four significant figures, all of a whole number; three below 0.001."""
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        return f"{value:#.3g}"
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:#.4g}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / whole:.1f} %)" if whole else "none"
