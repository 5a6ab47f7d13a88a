"""The measurements of the audit's attacks, and earlier results judged by three questions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiments.audits import attacks, nearer, rejudged
from experiments.grid.results import read_results

from experiments import places
from expunge.auditing.attacks import FALSE_ALARMS
from expunge.errors import ExpungeWarning


def test_a_draw_is_measured_and_makes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "TARGET", tmp_path / "attacks.jsonl")
    attacks.lines.cache_clear()
    assert attacks.attacks_table() == ""
    with pytest.warns(ExpungeWarning):
        found = attacks.measured("digits, MLP", 0, with_methods=False)
    assert set(found) == {"original", "retrained"}
    for audited in found.values():
        assert set(audited["after"]) == set(audited["before"]) == set(FALSE_ALARMS)
    assert found["original"]["after"] == found["original"]["before"] == found["retrained"]["before"]
    alike = attacks.drawn(0)
    assert set(alike["after"]) == set(FALSE_ALARMS)
    line = {"kind": "digits, MLP", "draw": 0, "audits": found, "device": "d", "torch": "t", "commit": "c"}
    attacks.TARGET.write_text("".join(json.dumps({**line, "draw": n}) + "\n" for n in range(10)))
    table = attacks.attacks_table().splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in table[2:4]] == ["original", "retrained"]
    attacks.lines.cache_clear()


def test_lines_of_models_make_a_row_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearer, "TARGET", tmp_path / "nearer.jsonl")
    assert nearer.nearer_table() == ""
    rng = np.random.default_rng(0)
    made = {"device": "d", "torch": "t", "commit": "c"}
    kinds = {nearer.REFERENCE: 0, nearer.CONTROL: 0, "calibrated": 1, nearer.ORIGINAL: 3}
    with nearer.TARGET.open("w") as file:
        for model in range(16):
            for row, mean in kinds.items():
                line = {"draw": 3, "row": row, "model": model, "scores": rng.normal(mean, 1, 32).tolist(), **made}
                line |= {"forget_accuracy": 0.9, "test_accuracy": 0.8, "verdict": "FAIL", "seconds": 2.0}
                file.write(json.dumps(line) + "\n")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in nearer.nearer_table().splitlines()[2:5]]
    assert [row[1] for row in rows] == [nearer.ORIGINAL, nearer.CONTROL, "calibrated"]
    areas = [float(row[2].split()[0]) for row in rows]
    assert areas[0] > 0.9 > areas[2] > 0.6 > areas[1]
    assert [row[3:] for row in rows] == [["90.0", "80.0", "0 / 0 / 16", cell, "16"] for cell in ("", "", "2")]


def test_a_model_of_each_kind_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearer, "train", lambda *_, **__: None)
    monkeypatch.setattr(nearer, "student_confidence", lambda model, forget, *_: forget.labels)
    quick = {name: replace(method, epochs=1, rank="margin") for name, method in nearer.METHODS.items()}
    monkeypatch.setattr(nearer, "METHODS", quick)
    bench = nearer.Bench(tmp_path, 3)
    with pytest.warns(ExpungeWarning):
        found = {row: bench.measured(row, 0) for row in (nearer.REFERENCE, nearer.ORIGINAL, nearer.CONTROL, *quick)}
    assert len({tuple(line["scores"]) for line in found.values()}) >= 4  # the methods may agree on untrained networks
    assert [row for row, line in found.items() if line["seconds"] is not None] == [*quick]
    assert bench.measured(nearer.ORIGINAL, 0) == found[nearer.ORIGINAL]
    assert {name: len(values) for name, values in bench.targets(0).items()} == dict.fromkeys(bench.targets(0), 32)


def test_three_questions_pass_no_original_and_nothing_that_lost_five_points() -> None:
    pairs = [pair for name in rejudged.SETS for pair in rejudged._pairs(places.RESULTS / name)]
    assert len(pairs) > 1000
    passed = [(original, result) for original, result in pairs if rejudged.judged(original, result) == "PASS"]
    assert passed
    assert all(original is not result for original, result in passed)
    assert all((original.test_accuracy or 0) - (result.test_accuracy or 0) < 0.05 for original, result in passed)


def test_a_verdict_follows_from_the_original_the_network_and_its_loss() -> None:
    some = next(r for r in read_results(places.RESULTS / "better") if r.method == "before")
    seen, unseen = (replace(some, audit_verdict=word, test_accuracy=0.9) for word in ("FAIL", "INCONCLUSIVE"))
    forgot = replace(some, audit_verdict="PASS", test_accuracy=0.89)
    assert rejudged.judged(seen, forgot) == "PASS"
    assert rejudged.judged(unseen, forgot) == "INCONCLUSIVE"
    assert rejudged.judged(seen, replace(forgot, test_accuracy=0.8)) == "FAIL"
    assert rejudged.judged(seen, replace(forgot, audit_verdict="FAIL")) == "FAIL"
