"""Where the parts of the checkout are."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
GRIDS = ROOT / "grids"
DOCS = ROOT / "docs"


def read(path: Path) -> str:
    """The text of a file of results, where presets may have been called protocols."""
    return re.sub(r'(?<=[+"])protocol(?==|\\?":)', "preset", path.read_text())
