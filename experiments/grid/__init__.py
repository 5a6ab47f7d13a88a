"""The paper's experiments as data: a grid of cells, a runner that does what is missing, one JSON line a result.

grid = load_grid(Path("grids/paper.toml"))
results = current(grid.cells("gpu"), read_results(Path("results/paper")))
"""

from experiments.grid.cells import BEFORE, Cell, Original, only
from experiments.grid.grid import Grid, Row, load_grid
from experiments.grid.results import Result, current, read_results
from experiments.grid.summary import BenchSummary, OriginalSummary

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
