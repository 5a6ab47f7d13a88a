"""The table of readings, from results as the grid writes them."""

import shutil
from pathlib import Path

import pytest
from experiments.grid import load_grid
from experiments.paper import readings

from experiments import places

NAME = "fashion-mnist-resnet18.jsonl"


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    target = tmp_path / "protocol" / "standard" / NAME
    target.parent.mkdir(parents=True)
    shutil.copy(places.RESULTS / "protocol" / "standard" / NAME, target)
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    return target


def test_distances_are_those_of_the_means_from_the_paper_s_table(measured: Path) -> None:
    # By hand, from the paper's Table 11, Bad Teacher and Amnesiac at 16 and 128: D_f, D_r, D_t.
    paper = {
        ("bad_teacher", 16): (12.5, 86.49, 85.18),
        ("bad_teacher", 128): (9.84, 80.54, 78.98),
        ("amnesiac", 16): (0.0, 85.68, 84.37),
        ("amnesiac", 128): (0.0, 76.38, 74.67),
    }
    reading = "until forgotten or 20 passes of 32"
    results = readings.found("standard")
    squares = []
    for (row, size), wanted in paper.items():
        draws = results[reading, row, size]
        for split, mean in zip(("forget", "retain", "test"), wanted, strict=True):
            ours = 100 * sum(getattr(draw, f"{split}_accuracy") for draw in draws) / len(draws)
            squares.append((ours - mean) ** 2)
    (line,) = [text for text in readings.readings_table("standard").splitlines() if text.startswith(f"| {reading} ")]
    assert line.split("|")[-2].strip() == f"{(sum(squares) / len(squares)) ** 0.5:.1f}"
    assert len(squares) == 12


def test_a_reading_without_all_rows_has_no_distance(measured: Path) -> None:
    kept = [line for line in measured.read_text().splitlines() if '"amnesiac: until forgotten or 20' not in line]
    measured.write_text("".join(f"{line}\n" for line in kept))
    (line,) = [
        x
        for x in readings.readings_table("standard").splitlines()
        if x.startswith("| until forgotten or 20 passes of 32 ")
    ]
    assert line.split("|")[-2].strip() == "–"


def test_what_is_not_measured_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    assert readings.readings_table("small-stem") == "Not measured yet."


def test_both_grids_ask_the_same_of_other_originals() -> None:
    asked = []
    for name in readings.STEMS.values():
        cells = load_grid(places.ROOT / "grids" / name).cells("cpu")
        asked.append([(c.row, c.method, dict(c.settings), dict(c.conditions), c.forget_size, c.seed) for c in cells])
    assert asked[0] == asked[1]
