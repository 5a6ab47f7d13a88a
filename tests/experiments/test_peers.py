"""Other libraries beside ours: the tables, from lines as they are measured, and what is said where one is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.peers import adapters, candidates, main, measuring, steps, table
from torch import nn

from expunge.errors import MissingExtraError, SettingError

MADE = {"device": "d", "torch": "t", "commit": "c"}


def line(name: str, seed: int, **more: Any) -> dict[str, Any]:
    accuracies = {"forget_accuracy": 0.9, "retain_accuracy": 0.99, "test_accuracy": 0.88}
    rest = {"distance": 0.01, "divergence": 0.02, "verdict": "PASS", "cpu_seconds": 2.0, "seconds": 4.0}
    return {
        "name": name,
        "seed": seed,
        "data": "none",
        "lines": 2,
        **accuracies,
        **rest,
        "peak_bytes": 5e7,
        **more,
        **MADE,
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "peers.jsonl"
    monkeypatch.setattr(table, "TARGET", path)
    return path


def test_a_row_tells_means_verdicts_and_what_failed(results: Path) -> None:
    assert table.peers_table() == table.failures_table() == table.steps_table() == table.NOT_MEASURED
    mended = {"mended": "patched", "as_installed": "RuntimeError: no GPU"}
    lines = [
        line("unlearn-lib SCRUB", 1, failed="NameError: sys", **mended),
        line("unlearn-lib SALSA", 1, **mended),
        line("torchunlearn MUMis", 1, divergence=float("nan"), verdict="–"),
        line("expunge calibrated", 1),
        line("expunge calibrated", 2, cpu_seconds=4.0, distance=0.03, verdict="FAIL"),
        {"name": "no unlearning", "seed": 1, **{k: v for k, v in line("", 1).items() if k.endswith("accuracy")}}
        | {"distance": 0.5, "divergence": 0.1, "verdict": "FAIL", **MADE},
    ]
    results.write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"name": "cut sho')
    head, _, before, ours, mu_mis, salsa, scrub, *_ = table.peers_table().splitlines()
    assert head.count("|") == before.count("|") == ours.count("|") == scrub.count("|")
    assert before.startswith("| no unlearning |  |  |")
    cells = "expunge calibrated | none | 3.00 | 4.00 | 50 | 90.0 | 99.0 | 88.0 | 2.0 | 0.020 | 1/0/1 | 2 | 2"
    assert ours == f"| {cells} |"
    assert "| NaN | no outputs |" in mu_mis
    assert "| fails |" in scrub
    assert "| 1/0/0 |" in salsa
    assert "| unlearn-lib SALSA | RuntimeError: no GPU | patched | runs |" in table.failures_table()
    assert "| unlearn-lib SCRUB | RuntimeError: no GPU | patched | NameError: sys |" in table.failures_table()
    assert "`python -m experiments peers` · d · torch t · commit c" in table.peers_table()


def test_steps_are_told_with_the_ratio(results: Path) -> None:
    ratio = {"ratio": 0.5, "lowest": 0.4, "highest": 0.6, "their_cpu_seconds": 2, "our_cpu_seconds": 1}
    row = {"name": "torchunlearn NegGrad", "epochs": 5, "steps": 10, "ours": "neg_grad", **ratio, **MADE}
    results.write_text(json.dumps(row) + "\n")
    assert "| torchunlearn NegGrad | `neg_grad` | 10 | 2.00 | 1.00 | 0.50 (0.40 to 0.60) |" in table.steps_table()
    assert table.peers_table() == table.NOT_MEASURED


def test_a_missing_library_is_one_line_that_says_how_to_get_it() -> None:
    gone = candidates.Candidate("erasus", "gradient_ascent", adapters.erasus_gradient_ascent, ("no_such_package",))
    with pytest.raises(MissingExtraError) as told:
        candidates.check_installed(gone)
    assert str(told.value).startswith("erasus cannot be imported (ModuleNotFoundError: ")
    assert "--target DIR --no-deps erasus==0.2.0" in str(told.value)
    assert "\n" not in str(told.value)


def test_an_unknown_name_is_refused_and_a_library_is_all_of_its_methods() -> None:
    with pytest.raises(SettingError, match="no library or method 'nothing'"):
        list(main.wanted(["nothing"]))
    chosen = {name for _, place, _ in main.wanted(["erasus"]) for name in [place["name"]]}
    assert chosen == {each.name for each in candidates.CANDIDATES if each.library == "erasus"}
    assert set(steps.PAIRS) <= set(candidates.BY_NAME)


def test_lines_are_those_of_the_body() -> None:
    assert candidates.user_lines(adapters.expunge_calibrated) == 2
    assert candidates.user_lines(adapters.erasus_gradient_ascent) == 3


def test_divergence_is_0_for_the_same_outputs_and_ln_2_for_opposite_ones() -> None:
    inputs = torch.ones(3, 1)
    one, other = nn.Linear(1, 2), nn.Linear(1, 2)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[1e3], [-1e3]]))
        other.weight.copy_(torch.tensor([[-1e3], [1e3]]))
    assert measuring.divergence(one, one, inputs) == 0
    assert measuring.divergence(one, other, inputs) == pytest.approx(0.6931, abs=1e-4)
