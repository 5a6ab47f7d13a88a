"""The audit of odd forget sets: what it takes off the scores, and that it never shows a network what it scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from expunge.audit import audit, corrected_scores, difficulty_of, score_test
from expunge.audit.difficulty import FOLDS, Difficulty
from expunge.audit.scores import logit_margin
from expunge.data import Examples
from expunge.errors import InputError, SettingError
from expunge.training import Recipe
from tests.conftest import expunge

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)


def data(num: int, seed: int = 0) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    return Examples(torch.randn(num, 6, generator=rng) + labels[:, None], labels)


class Watched(nn.Module):
    """A linear network that keeps the inputs that it was trained on and those that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.trained: list[Tensor] = []
        self.asked: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        (self.trained if self.training else self.asked).append(inputs.detach().clone())
        logits: Tensor = self.layer(inputs)
        return logits


def test_no_network_scores_what_it_was_trained_on_and_each_example_is_scored_once() -> None:
    forget, heldout = data(10, seed=1), data(50)
    networks: list[Watched] = []

    def factory() -> nn.Module:
        networks.append(Watched())
        return networks[-1]

    found = difficulty_of(forget, heldout, factory=factory, recipe=RECIPE)
    assert len(networks) == found.num_references == FOLDS
    everything = {tuple(row) for row in torch.cat([forget.inputs, heldout.inputs]).tolist()}
    asked: list[tuple[float, ...]] = []
    for network in networks:
        trained = {tuple(row) for row in torch.cat(network.trained).tolist()}
        scored = [tuple(row) for row in torch.cat(network.asked).tolist()]
        assert not trained & set(scored)
        assert not trained & {tuple(row) for row in forget.inputs.tolist()}
        asked += scored
    assert len(asked) == len(everything)
    assert set(asked) == everything


def test_the_scores_are_the_networks_margins_and_a_seed_repeats_them() -> None:
    forget, heldout = data(6, seed=1), data(40)
    networks: list[nn.Module] = []

    def factory() -> nn.Module:
        networks.append(nn.Linear(6, 3))
        return networks[-1]

    state = torch.get_rng_state()
    found = difficulty_of(forget, heldout, factory=factory, recipe=RECIPE, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        margins = np.stack([logit_margin(net(forget.inputs).numpy(), forget.labels.numpy()) for net in networks])
    nearest = np.abs(margins - found.forget).min(0)
    np.testing.assert_allclose(nearest, 0, atol=1e-9)
    assert 0 <= found.accuracy <= 1
    assert found.forget_accuracy in {n / 6 for n in range(7)}
    again = difficulty_of(forget, heldout, factory=lambda: nn.Linear(6, 3), recipe=RECIPE, seed=3)
    np.testing.assert_array_equal(found.heldout, again.heldout)
    other = difficulty_of(forget, heldout, factory=lambda: nn.Linear(6, 3), recipe=RECIPE, seed=4)
    assert not np.array_equal(found.heldout, other.heldout)


def test_the_slope_is_that_of_the_reduced_major_axis() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    scores = 1.7 * hard + rng.normal(size=200)
    ours, theirs, slope = corrected_scores([1.0, 2.0], scores, [0.5, -1.0], hard)
    fit = stats.linregress(hard, scores)
    assert slope == pytest.approx(fit.slope / fit.rvalue, rel=1e-12)  # least squares over the correlation
    np.testing.assert_allclose(theirs, scores - slope * hard)
    np.testing.assert_allclose(ours, [1 - 0.5 * slope, 2 + slope])


def test_difficulty_that_explains_nothing_is_left_out() -> None:
    ours, theirs, slope = corrected_scores([1.0], [1.0, 2.0, 3.0], [5.0], [3.0, 2.0, 1.0])
    assert (slope, ours.tolist(), theirs.tolist()) == (0.0, [1.0], [1.0, 2.0, 3.0])
    assert corrected_scores([1.0], [1.0, 2.0], [5.0], [2.0, 2.0])[2] == 0.0


def test_hard_examples_fail_before_the_correction_and_not_after() -> None:
    """Scores are difficulty plus noise; the forgotten are simply harder, or harder and remembered."""
    rng = np.random.default_rng(1)
    wrong = {"plain": 0, "corrected": 0, "remembered": 0, "hidden": 0}
    for _ in range(200):
        true = {"heldout": rng.normal(0, 2, 1000), "forget": rng.normal(-3, 2, 32)}
        scores = {name: values + rng.normal(0, 1, len(values)) for name, values in true.items()}
        hard = {name: values + rng.normal(0, 1, len(values)) for name, values in true.items()}
        for name, more in (("plain", 0.0), ("hidden", 3.0)):
            wrong[name] += score_test(scores["forget"] + more, scores["heldout"]).verdict == "FAIL"
        for name, more in (("corrected", 0.0), ("remembered", 3.0)):
            fixed = corrected_scores(scores["forget"] + more, scores["heldout"], hard["forget"], hard["heldout"])
            wrong[name] += score_test(*fixed[:2]).verdict == "FAIL"
    assert wrong["plain"] == 200
    assert wrong["corrected"] <= 20  # 5% and Monte-Carlo error
    assert wrong["hidden"] <= 20  # remembered hard examples hide among ordinary ones
    assert wrong["remembered"] == 200


def test_the_verdict_is_that_of_the_corrected_scores() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3))
    forget, heldout = data(30, seed=1), data(400)
    with torch.no_grad():
        margins = [logit_margin(net(part.inputs).numpy(), part.labels.numpy()) for part in (forget, heldout)]
    rng = np.random.default_rng(0)
    hard = Difficulty(
        forget=margins[0] - 9.0,  # much harder than the model at hand finds them
        heldout=margins[1] + rng.normal(0, 0.1, 400),
        num_references=4,
        accuracy=0.5,
        forget_accuracy=0.1,
    )
    plain, fixed = audit(net, net, forget, heldout), audit(net, net, forget, heldout, difficulty=hard)
    assert plain.correction is None
    assert fixed.correction is not None
    assert (plain.verdict, fixed.verdict) == ("INCONCLUSIVE", "FAIL")
    assert fixed.scores_after == plain.scores_after
    expected = corrected_scores(margins[0], margins[1], hard.forget, hard.heldout)
    assert fixed.correction.after == score_test(
        *expected[:2], forget_labels=forget.labels.numpy(), heldout_labels=heldout.labels.numpy()
    )
    assert fixed.correction.slope_after == expected[2]
    assert fixed.to_dict()["reason"] == fixed.correction.after.reason


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: corrected_scores([1.0], [1.0], [1.0, 2.0], [1.0]), InputError, "1 scores and 2 difficulties"),
        (lambda: corrected_scores([np.nan], [1.0], [1.0], [1.0]), InputError, "NaN"),
        (
            lambda: difficulty_of(data(4), data(7, 1), factory=lambda: nn.Linear(6, 3), recipe=RECIPE),
            InputError,
            "7 held-out examples cannot be dealt",
        ),
        (
            lambda: difficulty_of(data(4), data(9, 1), factory=lambda: nn.Linear(6, 3), recipe=RECIPE, folds=1),
            SettingError,
            "folds is at least 2",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call: object, error: type[Exception], said: str) -> None:
    assert callable(call)
    with pytest.raises(error, match=said):
        call()


def test_the_command_corrects_and_says_so(tmp_path: Path, trained: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{n}\n" for n in range(20)))
    options = ("--before", trained, "--after", trained, "--forget", "sample", "--ids", ids, "--test", "sample:test")
    done = expunge("audit", *options, "--correct-difficulty", "--out", tmp_path / "out")
    assert done.returncode in {0, 3}, done.stderr
    assert "A1, corrected" in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    found = report["audit"]
    assert found["correction"]["num_references"] == FOLDS
    assert found["verdict"] == found["correction"]["after"]["verdict"]
    page = (tmp_path / "out/report.html").read_text()
    assert "The same, corrected for difficulty" in page
    assert "--correct-difficulty" in page
