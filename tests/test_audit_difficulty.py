"""The audit of odd forget sets: what it takes off the scores, and that it never shows a network what it scores."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor, nn

from expunge.auditing import AuditSettings, audit, difficulty_of
from expunge.data import Examples
from expunge.errors import InputError
from expunge.metrics import Difficulty, difficulty_calibrated_scores, logit_scaled_confidence, score_test
from expunge.models import load_model
from expunge.training import Recipe
from tests.conftest import expunge

ODD = AuditSettings(non_random=True)

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


def test_no_network_scores_what_it_was_trained_on_and_each_example_is_scored_twice() -> None:
    forget, heldout = data(10, seed=1), data(50)
    networks: list[Watched] = []

    def factory() -> nn.Module:
        networks.append(Watched())
        return networks[-1]

    found = difficulty_of(forget, heldout, factory=factory, recipe=RECIPE)
    assert len(networks) == found.num_references == 4
    everything = Counter(tuple(row) for row in torch.cat([forget.inputs, heldout.inputs]).tolist())
    asked: Counter[tuple[float, ...]] = Counter()
    for network in networks:
        trained = {tuple(row) for row in torch.cat(network.trained).tolist()}
        scored = [tuple(row) for row in torch.cat(network.asked).tolist()]
        assert not trained & set(scored)
        assert not trained & {tuple(row) for row in forget.inputs.tolist()}
        asked.update(scored)
    assert set(everything.values()) == {1}
    assert asked == Counter(dict.fromkeys(everything, 2))


def test_the_scores_are_the_networks_margins_and_a_seed_repeats_them() -> None:
    forget, heldout = data(6, seed=1), data(40)
    networks: list[nn.Module] = []

    def factory() -> nn.Module:
        networks.append(nn.Linear(6, 3))
        return networks[-1]

    state = torch.get_rng_state()
    found = difficulty_of(forget, heldout, factory=factory, recipe=RECIPE, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    sets = (forget, found.forget, found.forget_accuracy), (heldout, found.test, found.accuracy)
    for part, hard, accuracy in sets:
        with torch.no_grad():
            logits = np.stack([net(part.inputs).numpy() for net in networks])
        margins = np.stack([logit_scaled_confidence(said, part.labels.numpy()) for said in logits])
        right = logits.argmax(2) == part.labels.numpy()
        shares = []
        for example, value in enumerate(hard):  # the mean of two different ones of the four
            pairs = list(combinations(range(4), 2))
            means = [margins[list(pair), example].mean() for pair in pairs]
            nearest = int(np.argmin(np.abs(np.array(means) - value)))
            assert abs(means[nearest] - value) < 1e-6
            shares.append(right[list(pairs[nearest]), example].mean())
        assert accuracy == pytest.approx(np.mean(shares), abs=1e-12)
    again = difficulty_of(forget, heldout, factory=lambda: nn.Linear(6, 3), recipe=RECIPE, seed=3)
    np.testing.assert_array_equal(found.test, again.test)
    other = difficulty_of(forget, heldout, factory=lambda: nn.Linear(6, 3), recipe=RECIPE, seed=4)
    assert not np.array_equal(found.test, other.test)


def test_its_formula() -> None:
    rng = np.random.default_rng(1)
    for noise in (0.1, 3.0):
        hard = rng.normal(size=99)
        scores = hard + noise * rng.normal(size=99)
        ours, theirs, slope = difficulty_calibrated_scores([1.0, -50.0], scores, [0.5, 50.0], hard)
        z, of_hard = (stats.norm.ppf(stats.rankdata(values) / 100) for values in (scores, hard))
        r = stats.pearsonr(z, of_hard).statistic
        assert (r > 0.5) == (noise < 1)
        assert slope == pytest.approx(min(1.0, 2 * r), rel=1e-9)
        np.testing.assert_allclose(theirs, z - slope * of_hard, atol=1e-9)
        ranked = [((scores < 1).sum() + 0.5) / 100, ((hard < 0.5).sum() + 0.5) / 100]
        expected = [stats.norm.ppf(ranked[0]) - slope * stats.norm.ppf(ranked[1])]
        expected.append(stats.norm.ppf(0.005) - slope * stats.norm.ppf(0.995))
        np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_it_does_not_depend_on_the_scale_of_either() -> None:
    rng = np.random.default_rng(2)
    hard, odd = rng.normal(size=200), rng.normal(size=20)
    first = difficulty_calibrated_scores(odd, hard + rng.normal(size=200), odd - 1, hard)
    rng = np.random.default_rng(2)
    hard, odd = rng.normal(size=200), rng.normal(size=20)
    again = difficulty_calibrated_scores(np.exp(odd), np.exp(hard + rng.normal(size=200)), 7 * (odd - 1), 7 * hard)
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_difficulty_that_explains_nothing_is_left_out() -> None:
    scores = np.arange(99.0)
    plain = stats.norm.ppf(stats.rankdata(scores) / 100)
    for hard in (-scores, np.full(99, 0.1)):  # the wrong way round; the same for all
        ours, theirs, slope = difficulty_calibrated_scores([98.5], scores, [5.0], hard)
        assert slope == 0.0
        np.testing.assert_allclose(theirs, plain)
        assert ours[0] > 2
    rng = np.random.default_rng(0)
    slopes = [
        difficulty_calibrated_scores([0.0], rng.normal(size=1000), [0.0], rng.normal(size=1000))[2] for _ in range(9)
    ]
    assert max(slopes) < 0.25  # noise against noise: near zero, whatever its sign


@pytest.mark.parametrize(("of_scores", "of_difficulty", "most"), [(1.0, 1.0, 12), (0.5, 1.0, 30), (1.0, 0.5, 30)])
def test_hard_examples_fail_before_the_correction_and_seldom_after(
    of_scores: float, of_difficulty: float, most: int
) -> None:
    """Scores are difficulty plus noise; the forgotten are simply harder, or harder and remembered.

    With noise of one size false alarms are 5%, and Monte-Carlo error; with unequal noise there are more.
    """
    rng = np.random.default_rng(1)
    failed = dict.fromkeys(("plain", "corrected", "remembered", "hidden"), 0)
    for _ in range(100):
        true = {"heldout": rng.normal(0, 2, 1000), "forget": rng.normal(-3, 2, 32)}
        scores = {name: values + of_scores * rng.normal(size=len(values)) for name, values in true.items()}
        hard = {name: values + of_difficulty * rng.normal(size=len(values)) for name, values in true.items()}
        for name, more in (("plain", 0.0), ("hidden", 3.0)):
            failed[name] += score_test(scores["forget"] + more, scores["heldout"]).verdict == "FAIL"
        for name, more in (("corrected", 0.0), ("remembered", 3.0)):
            fixed = difficulty_calibrated_scores(
                scores["forget"] + more, scores["heldout"], hard["forget"], hard["heldout"]
            )
            failed[name] += score_test(*fixed[:2]).verdict == "FAIL"
    assert failed["plain"] >= 95
    assert failed["corrected"] <= most
    assert failed["hidden"] <= 12  # remembered hard examples hide among ordinary ones
    assert failed["remembered"] >= 95


def test_the_verdict_is_that_of_the_difficulty_calibrated_scores() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3))
    forget, heldout = data(30, seed=1), data(400)
    with torch.no_grad():
        margins = [logit_scaled_confidence(net(part.inputs).numpy(), part.labels.numpy()) for part in (forget, heldout)]
    rng = np.random.default_rng(0)
    hard = Difficulty(
        forget=margins[0] - 9.0,  # much harder than the model at hand finds them
        test=margins[1] + rng.normal(0, 0.1, 400),
        num_references=4,
        accuracy=0.5,
        forget_accuracy=0.1,
    )
    plain, fixed = audit(net, net, forget, heldout), audit(net, net, forget, heldout, references=hard, settings=ODD)
    assert plain.correction is None
    assert fixed.correction is not None
    assert (plain.verdict, fixed.verdict) == ("INCONCLUSIVE", "FAIL")
    assert fixed.scores_after == plain.scores_after
    expected = difficulty_calibrated_scores(margins[0], margins[1], hard.forget, hard.test)
    assert fixed.correction.after == score_test(
        *expected[:2], forget_labels=forget.labels.numpy(), test_labels=heldout.labels.numpy()
    )
    assert fixed.correction.slope_after == expected[2]
    assert fixed.to_dict()["reason"].endswith(fixed.correction.after.reason)
    other = nn.Sequential(nn.Linear(6, 3))
    found = audit(net, other, forget, heldout, references=hard, settings=ODD).correction
    assert found is not None
    with torch.no_grad():
        margins = [
            logit_scaled_confidence(other(part.inputs).numpy(), part.labels.numpy()) for part in (forget, heldout)
        ]
    slope = difficulty_calibrated_scores(margins[0], margins[1], hard.forget, hard.test)[2]
    assert (found.slope_before, found.slope_after) == pytest.approx((expected[2], slope), abs=1e-6)
    assert abs(expected[2] - slope) > 0.1


def test_a_single_forgotten_example_is_scored() -> None:
    assert difficulties(data(1), data(40, 1)).forget.shape == (1,)


def test_sixteen_held_out_examples_are_enough() -> None:
    assert difficulties(data(8, seed=1), data(16)).test.shape == (16,)


def difficulties(forget: Examples, heldout: Examples) -> Difficulty:
    return difficulty_of(forget, heldout, factory=lambda: nn.Linear(6, 3), recipe=RECIPE)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: difficulty_calibrated_scores([1.0], [1.0], [1.0, 2.0], [1.0]), "1 .* 2 "),
        (lambda: difficulty_calibrated_scores([np.nan], [1.0], [1.0], [1.0]), "NaN"),
        (lambda: difficulty_calibrated_scores([1.0], [1.0], [1.0], [np.inf]), "infinity"),
        (lambda: difficulties(data(4), data(15, 1)), "15 .*16"),
        (lambda: difficulties(data(0), data(40, 1)), "forget.*empty"),
        (lambda: difficulties(data(4), data(40)), "forget"),
    ],
)
def test_bad_input_is_one_clear_line(call: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_dropout_is_repeatable_and_the_random_state_is_put_back() -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))

    state = torch.get_rng_state()
    found = []
    for _ in range(2):
        found.append(difficulty_of(data(6, seed=1), data(40), factory=factory, recipe=RECIPE))
        assert torch.equal(state, torch.get_rng_state())
        torch.rand(7)
        torch.set_rng_state(state)
    np.testing.assert_array_equal(found[0].test, found[1].test)


def test_the_command_trains_fresh_networks_where_a_factory_loads_weights(trained: Path) -> None:
    from expunge.cli.sources import audit_settings

    model, header = load_model(f"py:{__name__}:Linear", weights=_weights(trained.parent / "linear.safetensors"))
    limits: dict[str, Any] = {"max_loss": None, "reference_minutes": 5.0}
    assert audit_settings(f"py:{__name__}:Linear", model, header, **limits).factory is not None
    own = audit_settings(f"py:{__name__}:same", model, header, **limits)
    assert own.factory is None


class Linear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 10))


def _weights(path: Path) -> Path:
    torch.manual_seed(3)
    save_file(Linear().state_dict(), path)
    return path


def same() -> nn.Module:
    torch.manual_seed(3)
    return Linear()


def test_the_command_corrects_and_says_so(tmp_path: Path, trained: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{n}\n" for n in range(20)))
    options = ("--before", trained, "--after", trained, "--forget", "sample", "--ids", ids, "--test", "sample:test")
    done = expunge("audit", *options, "--difficulty-calibration", "--out", tmp_path / "out")
    assert done.returncode in {0, 3}, done.stderr
    assert "difficulty" in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    found = report["audit"]
    assert found["correction"]["num_references"] == 4
    assert found["verdict"] == found["correction"]["after"]["verdict"]
    page = (tmp_path / "out/report.html").read_text()
    assert "difficulty" in page
    assert "--difficulty-calibration" in page
