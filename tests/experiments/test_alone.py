"""What forgetting costs with nothing but the forget set: the tables, from lines as they are measured."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from experiments.comparisons import alone, rivals, unlabelled

from experiments import places


def line(row: str, size: int, seed: int, *, right: float, before: float, after: float) -> dict[str, Any]:
    accuracies = {"forget_accuracy": right, "test_accuracy_before": before, "test_accuracy": after}
    return {"row": row, "size": size, "seed": seed, **accuracies, "device": "d", "torch": "t", "commit": "c"}


def test_a_table_tells_points_lost_and_what_is_still_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    lost = [0.01, 0.02, 0.03, 0.02, 0.02]
    lines = [line("held_boundary", 16, n, right=0, before=0.9, after=0.9 - x) for n, x in enumerate(lost)]
    lines += [line("targeted1", 16, n, right=0.5, before=0.9, after=0.7) for n in range(2)]
    (tmp_path / "alone-digits.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    head, _, ours, paper, *_ = alone.alone_table("digits").splitlines()
    assert "16 forgotten" in head
    assert "64 forgotten" not in head
    # 2.776 is the t quantile of four degrees of freedom; the sample standard deviation of the five is √0.5.
    assert f"2.0 ± {2.776 * 0.5**0.5 / 5**0.5:.1f}" in ours
    assert "20.0" in paper
    assert "n=2" in paper
    assert "50% still right" in paper
    cells: list[Any] = alone.alone_cells("digits", 16)
    assert cells == [
        ("held_boundary", pytest.approx(100 * fmean(lost)), 0),
        ("targeted1", pytest.approx(20), 0.5),
    ]


@pytest.mark.parametrize("right", [0.0, 0.3])
def test_a_rivals_best_run_counts_among_those_that_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: float
) -> None:
    runs = [(1, 5, 1.0, 0.85), (30, 5, right, 0.5), (1000, 5, right, 0.6), (1000, 50, 0.0, 0.1)]
    rows = [
        {
            "strategy": "scrub", "times": times, "epochs": epochs, "seed": seed, "forget_accuracy": forget,
            "test_accuracy": test, "before": 0.86, "device": "d", "torch": "t", "commit": "c",
        }
        for times, epochs, forget, test in runs
        for seed in (1, 2, 3)
    ]  # fmt: skip
    monkeypatch.setattr(rivals, "TARGET", tmp_path / "rivals.json")
    rivals.TARGET.write_text(json.dumps(rows))
    (row,) = [each for each in rivals.rivals_table().splitlines() if "scrub" in each]
    best = ("26.0", "1000 ×, 5 epochs") if right == 0 else ("76.0", "1000 ×, 50 epochs")
    assert all(text in row for text in best)
    assert "wga" not in rivals.rivals_table(), "what was not run is not said to fail"
    assert "Draws of erasus: 3" in rivals.rivals_table()


def test_what_unlabelled_images_are_worth_is_a_row_a_kind_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"forget_accuracy": 0.25, "before": 0.86, "steps": 100, "device": "d", "torch": "t", "commit": "c"}
    lines = [
        {"kind": kind, "number": number, "seed": seed, "test_accuracy": 0.86 - lost, **told}
        for kind, number, losses in (("none", 0, (0.01, 0.03)), ("another", 1000, (0.005,)))
        for seed, lost in enumerate(losses)
    ]
    monkeypatch.setattr(unlabelled, "TARGET", tmp_path / "unlabelled.jsonl")
    assert "Not measured" in unlabelled.unlabelled_table()
    unlabelled.TARGET.write_text("".join(json.dumps(each) + "\n" for each in lines))
    _, _, none, another, *_ = unlabelled.unlabelled_table().splitlines()
    # 12.706 is the t quantile of one degree of freedom; the sample standard deviation of 1 and 3 is √2.
    assert [part.strip() for part in none.split("|")[1:-1]] == ["none", "0", f"2.0 ± {12.706:.1f}", "25", "100", "2"]
    assert [part.strip() for part in another.split("|")[1:-1]] == ["another", "1,000", "0.5", "25", "100", "1"]


def test_a_reader_ignores_what_comes_after_the_text() -> None:
    torch.manual_seed(0)
    reader, ids = alone.Reader(20, 4), torch.zeros(2, alone.WORDS, dtype=torch.int64)
    ids[:, :5] = torch.arange(1, 6)
    assert reader(ids).shape == (2, 4)
    assert torch.equal(reader(ids)[0], reader(ids)[1])
    empty = reader(torch.zeros(1, alone.WORDS, dtype=torch.int64))
    assert bool(empty.isfinite().all())
