"""The paper's experiments as data: a grid of cells, a runner that does what is missing, one JSON line a result.

grid = load_grid(Path("grids/paper.toml"))
results = current(grid.cells("gpu"), read_results(Path("results/paper")))
"""

from expunge.bench.cells import BEFORE, Cell, Original, only
from expunge.bench.grid import Grid, Row, load_grid
from expunge.bench.results import Result, current, read_results
from expunge.bench.summary import BenchSummary, OriginalSummary

__all__ = [
    "BEFORE",
    "BenchSummary",
    "Cell",
    "Grid",
    "Original",
    "OriginalSummary",
    "Result",
    "Row",
    "current",
    "load_grid",
    "only",
    "read_results",
]
