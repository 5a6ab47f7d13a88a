"""The measurements of the audit's attacks, and earlier results judged by three questions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from experiments.audits import attacks, rejudged
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
    attacks.TARGET.write_text(json.dumps(line) + "\n")
    table = attacks.attacks_table().splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in table[2:4]] == ["original", "retrained"]
    attacks.lines.cache_clear()


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
