"""The verdict's three questions on real models: found in the original, found now, does it still work."""

import copy
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from expunge.auditing import AuditSettings, audit
from expunge.auditing.difficulty import fresh_copy
from expunge.auditing.report import AuditReport
from expunge.errors import InputError, SettingError
from expunge.metrics.utility import accuracy_loss, class_losses
from expunge.report.wording import advice, headline, questions

CLASSES, NUM = 4, 200


def blobs(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten noisy features of four overlapping classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (num,), generator=rng)
    centres = torch.randn(CLASSES, 10, generator=torch.Generator().manual_seed(99))
    return 1.5 * centres[labels] + 2.5 * torch.randn(num, 10, generator=rng), labels


def fitted(inputs: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(epochs):
        for at in torch.randperm(len(inputs)).split(64):
            adam.zero_grad()
            F.cross_entropy(net(inputs[at]), labels[at]).backward()
            adam.step()
    return net.eval()


@cache
def networks() -> dict[str, nn.Module]:
    """A network that knows the forget set by heart, one retrained without it, one of other examples, two ruined."""
    inputs, labels = blobs(600, 0)
    rng = torch.Generator().manual_seed(1)
    found = {
        "memorised": fitted(inputs, labels, 80),
        "retrained": fitted(inputs[NUM:], labels[NUM:], 80),
        "never saw it": fitted(*blobs(600, 5), 80),
    }
    for name, of in (("ruined", "memorised"), ("ruined retrained", "retrained")):
        found[name] = copy.deepcopy(found[of])
        for parameter in found[name].parameters():
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=rng)
    return found


def sets() -> tuple[TensorDataset, TensorDataset]:
    inputs, labels = blobs(600, 0)
    return TensorDataset(inputs[:NUM], labels[:NUM]), TensorDataset(*blobs(2000, 7))


@cache
def judged(before: str, after: str, max_loss: float = 0.05) -> AuditReport:
    with pytest.warns(expunge.ExpungeWarning):
        return audit(networks()[before], networks()[after], *sets(), settings=AuditSettings(max_loss=max_loss))


@pytest.mark.parametrize(
    ("before", "after", "found_before", "found_after", "works", "verdict"),
    [
        ("memorised", "retrained", True, False, "yes", "PASS"),
        ("memorised", "memorised", True, True, "yes", "FAIL"),
        ("memorised", "ruined", True, None, "no", "FAIL"),
        ("memorised", "ruined retrained", True, None, "no", "FAIL"),
        ("never saw it", "never saw it", False, False, "yes", "INCONCLUSIVE"),
        ("never saw it", "memorised", False, True, None, "FAIL"),
        ("never saw it", "ruined", False, None, "no", "FAIL"),
    ],
)
def test_each_combination_of_answers_has_its_verdict(
    before: str, after: str, found_before: bool, found_after: bool | None, works: str | None, verdict: str
) -> None:
    report = judged(before, after)
    assert bool(report.found_before) == found_before
    assert found_after is None or bool(report.found_after) == found_after
    assert works is None or report.loss.works == works
    assert report.verdict == verdict
    content = json.loads(json.dumps(report.to_dict()))
    assert content["found_before"] == [attack.name for attack in report.found_before]
    assert (content["verdict"], content["works"]) == (verdict, report.loss.works)
    answers = [answer for _, answer, _ in questions(report)]
    assert answers[0] == ("yes" if found_before else "no")
    assert report.reason
    for when, test in (("before", report.scores_before), ("after", report.scores_after)):
        ranks = report.percentile_ranks[when]
        assert list(ranks) == sorted(ranks)
        assert len(ranks) == report.num_forget
        assert sum(ranks) / len(ranks) == pytest.approx(test.a1, abs=1e-4)
    assert (report.fingerprints["before"] == report.fingerprints["after"]) == (before == after)
    assert report.roc_after_reversed is not None
    areas = [np.trapezoid(roc.tpr, roc.fpr) for roc in (report.roc_after, report.roc_after_reversed)]
    assert sum(areas) == pytest.approx(1, abs=0.02)


def test_the_advice_follows_the_verdict() -> None:
    withdraw = "withdraw the original"
    assert withdraw in advice(judged("memorised", "retrained"))
    for before, after in (("memorised", "ruined"), ("memorised", "memorised"), ("never saw it", "never saw it")):
        assert withdraw not in advice(judged(before, after))
    assert "no longer works" in headline(judged("memorised", "ruined"))
    assert "original either" in headline(judged("never saw it", "never saw it"))


def test_the_loss_that_is_accepted_is_a_setting() -> None:
    retrained, lost = judged("memorised", "ruined retrained"), judged("memorised", "ruined retrained", 0.9)
    assert (retrained.loss.works, lost.loss.works) == ("no", "yes")
    with pytest.raises(SettingError):
        AuditSettings(max_loss=1.0)


def test_an_original_never_passes_and_neither_does_what_lost_five_points() -> None:
    for name, net in networks().items():
        with pytest.warns(expunge.ExpungeWarning):
            assert audit(net, net, *sets()).verdict != "PASS", name
    for after in networks():
        report = judged("memorised", after)
        assert report.verdict != "PASS" or report.loss.loss < 0.05


def test_a_class_that_lost_is_named() -> None:
    forget, test = sets()
    net = copy.deepcopy(networks()["retrained"])
    bias = net.get_submodule("2").get_parameter("bias")
    bias.data[3] -= 100.0
    with pytest.warns(expunge.ExpungeWarning, match="class"):
        report = audit(networks()["memorised"], net, forget, test, settings=AuditSettings(max_loss=0.5))
    assert list(report.class_losses) == ["3"]
    assert report.loss.works == "yes"
    assert any("3" in doubt for doubt in report.doubts)


def test_reference_models_are_trained_where_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_REFERENCE_MINUTES", "5")
    before, after = (networks()[name] for name in ("memorised", "retrained"))
    with pytest.warns(expunge.ExpungeWarning):
        report = audit(before, after, *sets())
    named = {attack.name: attack for attack in report.attacks_before}
    assert set(named) == {"rank test", "classifier", "reference models"}
    assert named["reference models"].succeeded
    assert sum(attack.level for attack in named.values()) == pytest.approx(0.05)
    with pytest.warns(expunge.ExpungeWarning, match="minutes"):
        late = audit(before, after, *sets(), settings=AuditSettings(reference_minutes=1e-9))
    assert len(late.attacks_before) == 2


class Own(nn.Module):
    """A layer with a parameter that nothing initialises anew."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


def test_a_network_that_cannot_be_initialised_anew_has_no_reference_models() -> None:
    with pytest.warns(expunge.ExpungeWarning, match="anew"):
        report = audit(Own(), Own(), *sets(), settings=AuditSettings(reference_minutes=5))
    assert [attack.name for attack in report.attacks_after] == ["rank test", "classifier"]
    with pytest.raises(InputError, match="anew"):
        audit(Own(), Own(), *sets(), settings=AuditSettings(non_random=True))
    made = AuditSettings(reference_minutes=5, factory=lambda: nn.Sequential(nn.Linear(10, CLASSES)))
    with pytest.warns(expunge.ExpungeWarning):
        assert len(audit(Own(), Own(), *sets(), settings=made).attacks_after) == 3


def test_reference_models_of_a_factory_that_knows_the_examples_are_refused() -> None:
    model = networks()["memorised"]
    for settings in ({"reference_minutes": 5}, {"non_random": True}):
        told = AuditSettings(factory=lambda: model, **settings)
        with pytest.raises(InputError, match="no fresh weights"):
            audit(model, networks()["retrained"], *sets(), settings=told)
        calls: list[int] = []
        with pytest.raises(InputError, match="no fresh weights"):
            expunge.forget(model, sets()[0], test=sets()[1], settings=told, method=_counted(calls))
        assert not calls, "it is told before the work"
    audit(model, model, *sets(), settings=AuditSettings(reference_minutes=0, factory=lambda: model))  # none are trained


def _counted(calls: list[int]) -> expunge.Targeted:
    class Counted(expunge.Targeted):
        def run(self, *args: Any, **given: Any) -> nn.Module:
            calls.append(1)
            return super().run(*args, **given)

    return Counted(epochs=1)


def test_each_reference_model_starts_anew_though_a_factory_hands_out_one_network() -> None:
    fresh = nn.Sequential(nn.Linear(10, CLASSES))
    given = copy.deepcopy(fresh.state_dict())
    model = networks()["memorised"]
    with pytest.warns(expunge.ExpungeWarning):
        audit(model, model, *sets(), settings=AuditSettings(reference_minutes=5, factory=lambda: fresh))
    assert all(torch.equal(value, given[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reference_models_of_half_precision_models_are_trained_in_float32(dtype: torch.dtype) -> None:
    model = copy.deepcopy(networks()["memorised"]).to(dtype)
    assert {p.dtype for p in fresh_copy(model).parameters()} == {torch.float32}
    with pytest.warns(expunge.ExpungeWarning):
        report = audit(model, model, *sets(), settings=AuditSettings(reference_minutes=5))
    assert "reference models" in {attack.name for attack in report.attacks_before}


def test_losses_are_those_of_the_score_test() -> None:
    """Tango's statistic by its definition: the variance at the maximum of the likelihood under the null."""
    rng = np.random.default_rng(0)
    for lost, gained, m, delta in ((20, 3, 200, 0.05), (9, 9, 60, 0.0), (0, 0, 30, 0.05), (40, 0, 50, 0.2)):
        before = np.array([True] * lost + [False] * gained + [True] * (m - lost - gained))
        after = np.array([False] * lost + [True] * gained + [True] * (m - lost - gained))
        order = rng.permutation(m)
        found = accuracy_loss(before[order], after[order], delta)
        q = np.linspace(1e-9, (1 - delta) / 2 - 1e-9, 400_001)  # p10 = q + δ, p01 = q
        logs = lost * np.log(q + delta) + gained * np.log(q) + (m - lost - gained) * np.log(1 - 2 * q - delta)
        best = q[np.argmax(logs)]
        z = (lost - gained - m * delta) / np.sqrt(m * (2 * best + delta - delta**2))
        expected = 0.5 * (1 - float(torch.erf(torch.tensor(z / 2**0.5, dtype=torch.float64))))
        assert found.p_value == pytest.approx(expected, abs=2e-4)
        assert found.loss == pytest.approx((lost - gained) / m)


def test_a_model_that_loses_what_is_allowed_is_seldom_said_not_to_work() -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(2000):
        kind = rng.choice(3, 300, p=[0.08, 0.03, 0.89])  # lost, gained, neither: a true loss of 0.05
        wrong += accuracy_loss(kind != 1, kind != 0, 0.05).works == "no"
    assert wrong / 2000 <= 0.06


def test_losses_of_bad_input_are_refused() -> None:
    for given in (([], []), ([True], [True, False]), ([1.0], [0.0])):
        with pytest.raises(InputError):
            accuracy_loss(*given)
    with pytest.raises(SettingError):
        accuracy_loss([True], [True], 1.0)
    assert class_losses([0, 1] * 50, [True] * 100, [True] * 100) == {}
