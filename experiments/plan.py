"""The order of the experiments: a list of steps in `grids/background-steps.toml`."""

from dataclasses import dataclass
from pathlib import Path

from experiments import places
from experiments.grid import Cell, load_grid, only
from expunge.errors import InputError
from expunge.parsing import MAX_TOML_BYTES, parse_toml, read_text, record

PLAN = places.ROOT / "grids" / "background-steps.toml"


@dataclass(frozen=True, kw_only=True)
class Step:
    """Some cells of one grid.

    Attributes:
        grid: name of a file in the plan's directory.
        results: name of a directory in `results/`.
        only: which of the grid's cells, as `--only` takes them.
        originals: name of the directory of its originals; grids with the same recipes share one.
        hours: how long all of it takes on two cores, by arithmetic, until there are measurements.
    """

    grid: str
    results: str
    only: tuple[str, ...] = ()
    originals: str
    hours: float

    def cells(self, plan: Path, profile: str = "cpu") -> list[Cell]:
        """The cells of this step."""
        return only(load_grid(plan.parent / self.grid).cells(profile), self.only)

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.grid.removesuffix('.toml')} {' '.join(self.only)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that the file holds."""

    steps: tuple[Step, ...]


def load_plan(path: Path) -> list[Step]:
    """Reads the steps. Raises `InputError` where the file is no plan."""
    text = read_text(path, MAX_TOML_BYTES)
    try:
        return [*record(_Plan, parse_toml(text)).steps]
    except InputError as error:
        raise InputError(f"{path} is no plan of experiments: {error}") from error
