"""The results of a directory, one measurement a cell, to be looked up by setting."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from experiments.grid.cells import BEFORE
from experiments.grid.results import Result, read_results
from experiments.paper.printed import ARCHITECTURES, DATASETS, OURS, ROWS, SIZES, TABLES
from expunge.errors import InputError

MEASURES: dict[str, Callable[[Result], float | None]] = {
    "forget": lambda result: result.forget_accuracy,
    "retain": lambda result: result.retain_accuracy,
    "test": lambda result: result.test_accuracy,
    "l1": lambda result: result.delta_l1,
    "l1_last_layer": lambda result: result.delta_l1_last_layer,
}
"""{measure: of a result}. Accuracies in [0, 1], and ‖Δθ‖₁ of all parameters and ‖Δφ‖₁ of the last layer."""

Setting = tuple[str, str, str, int]
"""(dataset, architecture, row, size)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured, one result a setting and seed.

    Attributes:
        cells: {setting: {seed: result}}, without those that failed.
        failures: {setting: {seed: why}}.
        notes: one sentence each on results that were left out, and on cells that differ in more than they should.
    """

    cells: dict[Setting, dict[int, Result]]
    failures: dict[Setting, dict[int, str]]
    notes: tuple[str, ...]

    def values(self, dataset: str, architecture: str, row: str, size: int, measure: str) -> dict[int, float]:
        """{seed: what was measured}, ascending; empty where nothing was."""
        found = self.cells.get((dataset, architecture, row, size), {})
        return {seed: value for seed, result in found.items() if (value := MEASURES[measure](result)) is not None}

    def pairs(self) -> list[tuple[str, str]]:
        """(dataset, architecture) with any result, in the paper's order."""
        seen = {(dataset, architecture) for dataset, architecture, _, _ in (*self.cells, *self.failures)}
        return [pair for pair in TABLES.values() if pair in seen]

    def points(self, dataset: str, architecture: str) -> list[tuple[str, int, Result]]:
        """(row, size, result) of the paper's own method, all sizes and seeds."""
        return [
            (row, size, result)
            for row in OURS
            for size in SIZES
            for result in self.cells.get((dataset, architecture, row, size), {}).values()
        ]


def load_measured(directory: str | Path) -> Measured:
    """Reads the results of `python -m experiments run`.

    Of one dataset and architecture, only results of one recipe of the original, measured in one way, can be compared,
    of one seed only those of one original model, and of one row only those of one choice of settings: the most frequent
    counts. A cell that was run again counts as its last measurement, a failure only where there is none.

    Raises:
        InputError: there is no result, or a line that is none.
    """
    results = read_results(Path(directory))
    if not results:
        raise InputError(f"there are no results in {directory}; `python -m experiments run` writes them")
    notes: list[str] = []
    known = [
        r
        for r in results
        if r.dataset in DATASETS and r.architecture in ARCHITECTURES and r.row in ROWS and r.forget_size in SIZES
    ]
    if len(known) < len(results):
        others = sorted({r.row for r in results if r.row not in ROWS})
        rows = f" (rows {', '.join(others)})" if others else ""
        notes.append(f"{_counted(len(results) - len(known))} of settings that the paper does not have{rows}.")
    images = {r.model_digest: r.data_digest for r in known if r.data_digest}  # where a process died there is none
    kept = _most(
        known,
        lambda r: (r.dataset, r.architecture),
        lambda r: dumps([dict(r.original), r.heldout], sort_keys=True),
        "another recipe of the original, or measured on one half of the test set",
        notes,
    )
    kept = _most(
        kept,
        lambda r: (r.dataset, r.architecture, str(r.method == BEFORE)),
        lambda r: dumps([r.retain_subset, r.test_subset, dict(r.conditions)], sort_keys=True),
        "other subsets or conditions",
        notes,
    )
    kept = _most(
        kept,
        lambda r: (r.dataset, r.architecture, str(r.seed)),
        lambda r: dumps([r.model_digest, r.data_digest or images.get(r.model_digest)]),
        "another original model or other images",
        notes,
    )
    kept = _most(
        kept,
        lambda r: (r.dataset, r.architecture, r.row),
        lambda r: dumps([r.method, dict(r.settings)], sort_keys=True),
        "other settings of the same row",
        notes,
    )
    cells: dict[Setting, dict[int, Result]] = {}
    failures: dict[Setting, dict[int, str]] = {}
    again = 0
    for result in sorted(kept, key=lambda r: r.seed):  # stable: of one seed, the last written stays last
        setting = (result.dataset, result.architecture, result.row, result.forget_size)
        if result.failed is not None:
            failures.setdefault(setting, {})[result.seed] = result.failed
        else:
            again += result.seed in cells.get(setting, {})
            cells.setdefault(setting, {})[result.seed] = result
    for setting, seeds in failures.items():
        failures[setting] = {seed: why for seed, why in seeds.items() if seed not in cells.get(setting, {})}
    if again:
        notes.append(f"{_counted(again)} of a cell that was measured again later.")
    notes += _subsets(cells)
    return Measured(cells=cells, failures={key: why for key, why in failures.items() if why}, notes=tuple(notes))


def _counted(number: int) -> str:
    return f"Left out: {number:,} {'result' if number == 1 else 'results'}"


def _most(
    results: list[Result],
    group: Callable[[Result], tuple[str, ...]],
    variant: Callable[[Result], str],
    what: str,
    notes: list[str],
) -> list[Result]:
    """The results of each group's variant with the most cells that did not fail; of equals, the one written last."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    seen: set[tuple[str, str]] = set()
    for result in reversed(results):
        here = (result.cell, variant(result))
        new = result.failed is None and here not in seen
        counts.setdefault(group(result), Counter())[variant(result)] += new
        seen |= {here} if new else set()
    chosen = {key: count.most_common(1)[0][0] for key, count in counts.items()}
    kept = [result for result in results if variant(result) == chosen[group(result)]]
    if len(kept) < len(results):
        where = sorted({"-".join(group(r)[:2]) for r in results if variant(r) != chosen[group(r)]})
        notes.append(f"{_counted(len(results) - len(kept))} with {what} ({', '.join(where)}).")
    return kept


def _subsets(cells: dict[Setting, dict[int, Result]]) -> Iterable[str]:
    """Where the retain accuracy is not of all retained examples."""
    by_subset: dict[int, set[str]] = {}
    for (dataset, architecture, _, _), seeds in cells.items():
        for result in seeds.values():
            if result.retain_subset is not None:
                by_subset.setdefault(result.retain_subset, set()).add(f"{dataset}-{architecture}")
    for subset, where in sorted(by_subset.items()):
        yield f"Retain accuracy is of a fixed subset of {subset:,} retained examples ({', '.join(sorted(where))})."
