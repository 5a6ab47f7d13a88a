"""What a run of a grid did, as a record and as a table."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.grid.cells import BEFORE
from experiments.grid.results import Result


@dataclass(frozen=True, kw_only=True)
class OriginalSummary:
    """How far the cells of one original are.

    Attributes:
        name: DATASET-ARCHITECTURE.
        cells: how many were asked for.
        new: results that this run added.
        failed: cells whose result is a failure.
        left: cells without a result.
        reached: the original's `retain_accuracy` (over its training set) and `test_accuracy`, in [0, 1]; empty where
            it is not known.
        target: the same as the paper has them.
        why: why some are left; "" where none are, or where the time was up in the middle of cells.
    """

    name: str
    cells: int
    new: int
    failed: int
    left: int
    reached: Mapping[str, float]
    target: Mapping[str, float]
    why: str


@dataclass(frozen=True, kw_only=True)
class BenchSummary:
    """What a run of a grid did.

    Attributes:
        directory: where the results are.
        originals: one entry each.
        seconds: wall clock.
        limit_reached: it ended because the time was up.
        nodes: {Ray node: results from it}; empty without Ray.
    """

    directory: str
    originals: tuple[OriginalSummary, ...]
    seconds: float
    limit_reached: bool
    nodes: Mapping[str, int]

    @property
    def problems(self) -> tuple[str, ...]:
        """Why cells are left, a line an original."""
        return tuple(f"{o.name}: {o.left:,} cells are left: {o.why}" for o in self.originals if o.left and o.why)

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps({"format": "expunge-bench-run/1", **asdict(self)}, indent=2)

    def table(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """The head and the rows of a table, as text; accuracies in percent beside the paper's."""
        head = ["original", "cells", "new", "failed", "left", "D_r %", "paper", "test %", "paper"]
        rows = [
            (
                o.name,
                *(f"{count:,}" for count in (o.cells, o.new, o.failed, o.left)),
                *(
                    f"{100 * found[key]:.2f}" if key in found else "–"
                    for key in ("retain_accuracy", "test_accuracy")
                    for found in (o.reached, o.target)
                ),
            )
            for o in self.originals
        ]
        return head, rows


def reached(checkpoint: Path, results: Iterable[Result]) -> dict[str, float]:
    """An original's accuracies: as its training recorded them, else those of a `before` result."""
    try:
        told = json.loads((checkpoint.parent / "training.json").read_text(encoding="utf-8"))
        return {"retain_accuracy": told["train_accuracy"], "test_accuracy": told["test_accuracy"]}
    except (OSError, ValueError, KeyError):
        pass
    for result in results:
        if result.method == BEFORE and result.retain_accuracy is not None and result.test_accuracy is not None:
            return {"retain_accuracy": result.retain_accuracy, "test_accuracy": result.test_accuracy}
    return {}
