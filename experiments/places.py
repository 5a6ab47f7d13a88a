"""Where the parts of the checkout are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
GRIDS = ROOT / "grids"
DOCS = ROOT / "docs"
