"""One held-out set, split between calibration and audit: that no example is used for both."""

import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from expunge.auditing import audit
from expunge.data import Examples, audit_side, calibration_side
from expunge.errors import InputError, SettingError
from expunge.methods import (
    Calibrated,
    MaskedDistillation,
    _confidence,
    _distilling,
    default_method,
    make_method,
)
from expunge.methods._confidence import (
    apart,
    followed,
    ranks,
    scaled_confidence,
    student_confidence,
    transported,
    with_confidence,
)
from expunge.methods._distilling import divergence
from expunge.methods._inputs import mixed, mixed_with
from expunge.methods._task import Recorder, Task
from expunge.metrics.rank_test import percentile_ranks
from expunge.models import calibration_seeds, load_model
from expunge.unlearning import unlearn
from tests.arrangements import NUM_CLASSES, Pairs, pairs, state_bits
from tests.conftest import expunge


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))


class Watched(nn.Module):
    """A network that notes every input that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.seen: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Watched":
        other = Watched()
        other.network = copy.deepcopy(self.network, memo)
        other.seen = self.seen
        return other

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits: Tensor = self.network(x)
        return logits


@given(st.integers(0, 2**40), st.integers(1, 200))
def test_the_split_depends_on_content_and_seed_alone(seed: int, size: int) -> None:
    inputs = torch.rand(size, 3, generator=torch.Generator().manual_seed(size))
    side = calibration_side(inputs, seed)
    order = torch.randperm(size)
    assert torch.equal(calibration_side(inputs[order], seed), side[order])
    assert torch.equal(audit_side(inputs, [seed]), ~side)
    assert torch.equal(audit_side(inputs, [seed, seed + 1]), ~side & ~calibration_side(inputs, seed + 1))
    assert audit_side(inputs, []).all()


def test_about_half_is_calibrated_on_and_seeds_differ() -> None:
    inputs = torch.rand(4000, 2)
    first, second = calibration_side(inputs, 0), calibration_side(inputs, 1)
    assert 1800 < int(first.sum()) < 2200
    assert 1800 < int((first == second).sum()) < 2200


def test_a_held_out_set_with_random_transforms_is_refused() -> None:
    """The split is by content: the audit would find other examples on its side than those that were left to it."""

    class Shifted(Pairs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return torch.roll(image, int(torch.randint(-1, 2, ())), -1), label

    held = pairs(60, seed=8)
    with pytest.raises(InputError, match="test set"):
        unlearn(network(), pairs(6, seed=2), test=Shifted(held.inputs, held.labels))


@pytest.mark.parametrize("seed", [0, 7])
def test_the_method_sees_no_example_of_the_audit_side(seed: int) -> None:
    model, heldout = Watched(), pairs(60, seed=8)
    result = unlearn(model, pairs(6, seed=2), method=Calibrated(epochs=3), test=heldout, seed=seed)
    side = calibration_side(heldout.inputs, seed)
    rows = torch.cat([batch.flatten(1) for batch in model.seen])
    met = torch.tensor([bool((rows == example.flatten()).all(1).any()) for example in heldout.inputs])
    assert torch.equal(met, side)
    assert result.trace.num_calibration == int(side.sum())
    assert calibration_seeds(result.model) == (seed,)
    assert calibration_seeds(model) == ()


def test_the_audit_leaves_out_what_the_model_was_calibrated_on() -> None:
    model, forget, test = network(), pairs(6, seed=2), pairs(80, seed=8)
    once = unlearn(model, forget, method=Calibrated(epochs=2), test=test, seed=3).model
    twice = unlearn(once, pairs(4, seed=21), method=Calibrated(epochs=2), test=test, seed=4).model
    assert calibration_seeds(twice) == (3, 4)
    for after, seeds in ((once, [3]), (twice, [3, 4])):
        report = audit(model, after, forget, test)
        left = int(audit_side(test.inputs, seeds).sum())
        assert report.num_test == left
        assert [f"{80 - left} of 80" in found for found in report.left_out] == [True]
    whole = audit(model, unlearn(model, forget, seed=3).model, forget, test)
    assert whole.num_test == 80
    assert whole.left_out == ()
    used = Pairs(*(part[calibration_side(test.inputs, 3)] for part in (test.inputs, test.labels)))
    with pytest.raises(InputError, match="calibrated on all"):
        audit(model, once, forget, used)


@pytest.mark.parametrize(
    ("heldout", "said"),
    [
        (pairs(1, seed=8), "split"),
        (pairs(30, seed=8), "20"),
        (Pairs(torch.zeros(60, 1, 6, 6, dtype=torch.uint8), torch.zeros(60, dtype=torch.int64)), "255"),
        (pairs(40, seed=8, shape=(1, 5, 5)), "shape"),
        (Pairs(torch.rand(40, 1, 6, 6), torch.full((40,), NUM_CLASSES)), "outside"),
        (Pairs(torch.full((40, 1, 6, 6), torch.nan), torch.zeros(40, dtype=torch.int64)), "NaN"),
    ],
)
def test_bad_held_out_sets_are_refused(heldout: Pairs, said: str) -> None:
    with pytest.raises(InputError, match=said):
        unlearn(network(), pairs(6, seed=2), method="calibrated", test=heldout)


def test_held_out_examples_that_are_to_be_forgotten_are_refused() -> None:
    forget = pairs(40, seed=2)
    with pytest.raises(InputError, match="forget"):
        unlearn(network(), forget, method="calibrated", test=forget)


def test_without_held_out_examples_images_serve_and_anything_else_is_refused() -> None:
    larger = nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))
    trace = unlearn(larger, pairs(20, seed=2, shape=(1, 8, 8)), method=Calibrated(epochs=2)).trace
    assert trace.num_calibration == 0
    assert any("shifted" in warning for warning in trace.warnings)
    for shape in ((49,), (1, 7, 7)):  # the latter would be shifted by less than a pixel
        smaller = nn.Sequential(nn.Flatten(), nn.Linear(49, NUM_CLASSES))
        with pytest.raises(InputError, match=r"held-out .* 8 "):
            unlearn(smaller, pairs(20, seed=2, shape=shape), method="calibrated")


def test_copies_of_a_forgotten_example_have_one_target() -> None:
    forget, heldout = pairs(20, seed=2), pairs(200, seed=8)
    often = Pairs(forget.inputs.repeat(3, 1, 1, 1), forget.labels.repeat(3))
    once, thrice = (unlearn(network(), part, method=Calibrated(epochs=3), test=heldout) for part in (forget, often))
    assert state_bits(once.model) == state_bits(thrice.model)
    assert thrice.trace.num_forget == 60


@pytest.mark.parametrize("rank", ["margin", "student"])
def test_examples_are_ranked_by_their_own_margin_and_that_of_the_student(
    monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    forget, student, orders = pairs(20, seed=2), torch.randn(20, generator=torch.Generator().manual_seed(3)), []

    def noting(order: Tensor, *rest: Tensor) -> Tensor:
        orders.append(order)
        return transported(order, *rest)

    calibrated = importlib.import_module("expunge.methods.calibrated")
    monkeypatch.setattr(calibrated, "student_confidence", lambda *_, **__: student)
    monkeypatch.setattr(calibrated, "transported", noting)
    unlearn(network(), forget, method=make_method("calibrated", epochs=1, rank=rank), test=pairs(200, seed=8))
    own = scaled_confidence(network()(forget.inputs), forget.labels).detach()
    place = [np.argsort(np.argsort(values.numpy())) for values in (own, student)]
    assert orders[0].tolist() == (place[0] + place[1] if rank == "student" else place[0]).tolist()


@pytest.mark.parametrize("integers", [False, True])
def test_a_student_is_taught_on_held_out_examples_alone(integers: bool) -> None:
    """It meets mixtures of two of them, shifted ones, and forgotten ones only when it scores them in the end."""
    model = Watched()
    forget, heldout = (Examples(part.inputs, part.labels) for part in (pairs(6, seed=2), pairs(40, seed=8)))
    if integers:
        model.network = nn.Sequential(Floats(), *list(model.network.children())[1:])
        forget, heldout = (replace(part, inputs=(part.inputs * 9).long().flatten(1)) for part in (forget, heldout))
    before = state_bits(model)
    found = student_confidence(model.requires_grad_(False), forget, heldout, torch.Generator().manual_seed(0))
    assert state_bits(model) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert found.shape == (6,)
    assert found.isfinite().all()
    met = [batch for batch in model.seen if bool((batch[:, None] == forget.inputs[None]).flatten(2).all(2).any())]
    assert len(met) == 1
    assert torch.equal(met[0], forget.inputs)
    assert model.seen[-1] is met[0]
    again = student_confidence(model, forget, heldout, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    rows = torch.cat([batch.flatten(1) for batch in model.seen if batch is not met[0]]).double()
    known = torch.tensor([bool((heldout.inputs.flatten(1) == row).all(1).any()) for row in rows[:80]])
    assert known.all() == integers  # token ids are neither shifted nor mixed


class Floats(nn.Flatten):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def test_a_student_tells_what_was_learned_by_heart() -> None:
    """Two clouds, and points of one that have the label of the other: all are learned, and the student loses those."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (600,), generator=rng)
    inputs = torch.randn(600, 1, 6, 6, generator=rng) + labels[:, None, None, None]
    odd = torch.arange(40) < 10
    labels[:40][odd] = 1 - labels[:40][odd]
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU()
    model = nn.Sequential(*layers, nn.Linear(64, NUM_CLASSES))
    learn(model, Pairs(inputs[:300], labels[:300]))
    forget, heldout = (Examples(inputs[part], labels[part]) for part in (slice(0, 40), slice(300, 600)))
    own = scaled_confidence(model.eval()(forget.inputs).detach(), forget.labels)
    found = student_confidence(model, forget, heldout, torch.Generator().manual_seed(0))
    assert (own > 2).all()
    assert found[odd].mean() < own[odd].mean() / 2
    assert found[~odd].mean() > own[~odd].mean() * 0.8


class Odd(nn.Module):
    """Parameters of every kind, frozen ones among them, and statistics that a batch of one would not give."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4, sparse=True)
        self.norm = nn.BatchNorm1d(24)
        self.scale = nn.Parameter(torch.ones(()))
        self.counts = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.head = nn.Linear(24, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.embedding(x).flatten(1))) * self.scale * self.phase.abs().mean()
        return logits


@pytest.mark.parametrize("num", [21, 129])
def test_a_student_has_parameters_of_every_kind(num: int) -> None:
    torch.manual_seed(0)
    model, rng = Odd(), torch.Generator().manual_seed(0)
    forget, heldout = (
        Examples(torch.randint(0, 10, (size, 6), generator=rng), torch.zeros(size, dtype=torch.int64))
        for size in (5, num)
    )
    before = state_bits(model)
    assert student_confidence(model, forget, heldout, rng).isfinite().all()
    assert state_bits(model) == before


def test_a_student_that_diverges_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_confidence, "STUDENT_NOISE", 1e30)
    model, record = network(), Recorder()
    forget, heldout = (Examples(part.inputs, part.labels) for part in (pairs(6, seed=2), pairs(40, seed=8)))
    found = student_confidence(model, forget, heldout, torch.Generator().manual_seed(0), record=record)
    assert torch.equal(found, scaled_confidence(model(forget.inputs).detach(), forget.labels))
    assert ["diverged" in warning for warning in record.warnings] == [True]


def memorising(forget: Pairs) -> nn.Module:
    """A network that has learned the labels of `forget` by heart."""
    model = network()
    learn(model, forget)
    return model


def learn(model: nn.Module, data: Pairs) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        loss = nn.functional.cross_entropy(model(data.inputs), data.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("match", "rank"),
    [("margin", "margin"), ("margin", "student"), ("distribution", "student")],
)
def test_it_reaches_the_distribution_of_unseen_margins(match: str, rank: str) -> None:
    forget, heldout = pairs(24, seed=2), pairs(200, seed=8)
    model = memorising(forget)
    unseen = scaled_confidence(model(heldout.inputs), heldout.labels).detach()[calibration_side(heldout.inputs, 0)]
    before = scaled_confidence(model(forget.inputs), forget.labels).detach()
    assert before.min() > unseen.median() + 1
    chosen: Any = {"match": match, "rank": rank, "follow": False}
    method = Calibrated(epochs=2500, tolerance=0.06, retention=0.0, lr=3e-3, **chosen)
    result = unlearn(model, forget, method=method, test=heldout)
    # Once it is saturated, an output says little about its margin: matched outputs leave margins a little apart.
    close = 0.08 if match == "margin" else 0.16
    assert match == "distribution" or result.trace.first_step_all_reached is not None, result.trace.warnings
    after = scaled_confidence(result.model(forget.inputs), forget.labels).detach()
    ranked = percentile_ranks(
        after.numpy(),
        unseen.numpy(),
        forget_labels=forget.labels.numpy(),
        test_labels=heldout.labels[calibration_side(heldout.inputs, 0)].numpy(),
    )
    assert abs(ranked.a1 - 0.5) < close
    assert abs(ranked.a2 - 0.5) < close


@pytest.mark.parametrize("num", [1, 6])
def test_examples_that_are_wrong_already_are_not_taught_their_labels(num: int) -> None:
    """Mislabelled ones, that a training did not learn: a quantile of unseen margins may lie above theirs."""
    data = pairs(200, seed=8)
    model = memorising(data)
    forget = pairs(num, seed=2)
    forget.labels[:] = model(forget.inputs).detach().argmin(1)
    before = scaled_confidence(model(forget.inputs).detach(), forget.labels)
    result = unlearn(model, forget, method=Calibrated(epochs=60), test=pairs(200, seed=9))
    after = scaled_confidence(result.model(forget.inputs).detach(), forget.labels)
    assert (before < -1).all()
    assert result.trace.forget_accuracy_after == 0
    assert (after < before + 1).all()


def test_a_class_without_held_out_examples_is_noted() -> None:
    forget, heldout = pairs(12, seed=1), pairs(80, seed=2)
    known = Pairs(heldout.inputs[heldout.labels != 2], heldout.labels[heldout.labels != 2])
    assert 2 in forget.labels
    notes = [
        [
            note
            for note in unlearn(network(), forget, method=Calibrated(epochs=1), test=held).trace.warnings
            if "classes" in note
        ]
        for held in (heldout, known)
    ]
    assert (notes[0], ["1 " in note for note in notes[1]]) == ([], [True])


def test_it_goes_where_unseen_margins_are_by_then() -> None:
    """Nothing is held here, so that they sink and spread. Nearer in each draw; by how much differs between draws."""
    apart: dict[bool, list[float]] = {True: [], False: []}
    for mine, theirs in ((2, 8), (19, 18)):
        forget, heldout = pairs(24, seed=mine), pairs(1600, seed=theirs)
        model, side = memorising(forget), audit_side(heldout.inputs, [0])
        for follow in (True, False):
            unheld: dict[str, Any] = {"retention": 0.0, "retention_size": 1, "mixtures": False}
            method = Calibrated(epochs=5000, follow=follow, rank="margin", **unheld)
            after = unlearn(model, forget, method=method, test=heldout).model
            gone, unseen = (
                scaled_confidence(after(inputs), labels).detach()
                for inputs, labels in ((forget.inputs, forget.labels), (heldout.inputs[side], heldout.labels[side]))
            )
            apart[follow].append(abs(float(gone.mean() - unseen.mean())))
            assert not follow or gone.std() > unseen.std() / 3, "they are not all alike"
    assert all(near < far for near, far in zip(apart[True], apart[False], strict=True))
    assert sum(apart[True]) < sum(apart[False]) / 2


@pytest.mark.parametrize(("held", "follow"), [(True, True), (True, False), (False, False)])
def test_what_is_held_is_drawn_anew_each_epoch(monkeypatch: pytest.MonkeyPatch, held: bool, follow: bool) -> None:
    """And a quarter of the held-out examples is never among it, if the targets follow that."""
    drawn: list[Tensor] = []

    renew = _distilling.Held.renew

    def noting(held: _distilling.Held, epoch: int) -> None:
        renew(held, epoch)
        drawn.append(held.inputs.clone())

    monkeypatch.setattr(_distilling.Held, "renew", noting)
    method = Calibrated(
        epochs=60, stop="budget", retention_size=30, follow=follow, rank="margin", mixtures=not held
    )  # without held-out examples there are mixtures alone, whatever it says
    shape = (1, 6, 6) if held else (1, 8, 8)  # the first are too small to be shifted
    forget, heldout = pairs(20, seed=2, shape=shape), pairs(240, seed=8, shape=shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(forget.inputs[0].numel(), NUM_CLASSES))
    unlearn(model, forget, method=method, test=heldout if held else None)
    assert len(drawn) == 60
    for inputs in drawn:
        assert torch.equal(inputs[:20], forget.inputs)
        assert len(inputs[20:].unique(dim=0)) == 30
    assert not torch.equal(drawn[0][20:], drawn[1][20:])
    if held:
        side = heldout.inputs[calibration_side(heldout.inputs, 0)]
        met = torch.cat([inputs[20:] for inputs in drawn]).flatten(1).unique(dim=0)
        assert len(met) == len(side) - (len(side) // 4 if follow else 0)
        assert bool((met[:, None] == side.flatten(1)).all(2).any(1).all())


def test_held_images_are_shifted_where_epochs_would_share_many() -> None:
    pixels = torch.arange(1.0, 1 + 16 * 16).view(1, 1, 16, 16).expand(40, 1, 16, 16)
    heldout = Examples(pixels.contiguous(), torch.zeros(40, dtype=torch.int64))
    forget = heldout.take(torch.tensor([0]))
    plain = _distilling.drawn(forget, heldout, 10, torch.Generator().manual_seed(0), None)
    assert torch.equal(plain, pixels[:10])
    eleven = _distilling.drawn(forget, heldout, 11, torch.Generator().manual_seed(0), None)
    assert not torch.equal(eleven, pixels[:11]), "more than a quarter of them"
    found = _distilling.drawn(forget, heldout, 40, torch.Generator().manual_seed(0), None)
    assert found.shape == (40, 1, 16, 16)
    assert len(found.unique(dim=0)) > 10
    assert torch.equal(found.flatten(1).amax(1) > 200, torch.ones(40, dtype=torch.bool))


def test_mixtures_of_held_out_and_forgotten_examples_are_held_beside() -> None:
    """Here one pixel says where an input comes from: held-out ones have 100, forgotten ones 200."""
    heldout, forget = (
        Examples(torch.full((num, 20), value), torch.zeros(num, dtype=torch.int64))
        for num, value in ((30, 100.0), (5, 200.0))
    )
    rng = torch.Generator().manual_seed(0)
    first, second = (_distilling.drawn(forget, heldout, 40, rng, "blend")[:, 0] for _ in range(2))
    assert first.shape == (60,), "all held-out ones, and as many mixtures"
    assert bool((first[:30] == 100).all())
    assert 100 <= first[30:].min() < 110
    assert 140 < first[30:].max() <= 150, "nearer to the held-out one"
    assert not torch.equal(first[30:], second[30:])
    pasted = _distilling.drawn(forget, heldout, 40, rng, "paste")
    assert pasted.shape == (80, 20), "and pairs of forgotten ones make up for the ten that are missing"
    assert bool((pasted[:30] == 100).all())
    assert all(set(row.unique().tolist()) == {100, 200} for row in pasted[30:60])
    assert 0.25 <= (pasted[30:60] == 100).float().mean() <= 0.75
    assert bool((pasted[60:] == 200).all())
    assert _distilling.drawn(forget, heldout, 20, rng, "paste").shape == (40, 20)


@pytest.mark.parametrize("method", [Calibrated, MaskedDistillation])
def test_mixtures_are_a_choice_and_of_the_calibration_side_alone(
    monkeypatch: pytest.MonkeyPatch, method: type[Calibrated] | type[MaskedDistillation]
) -> None:
    asked: list[tuple[Tensor, Tensor, int]] = []

    def noting(inputs: Tensor, others: Tensor, num: int, rng: torch.Generator) -> Tensor:
        asked.append((inputs, others, num))
        return mixed_with(inputs, others, num, rng)

    monkeypatch.setattr(_distilling, "mixed_with", noting)
    forget, heldout = pairs(20, seed=2), pairs(240, seed=8)
    side = heldout.inputs[calibration_side(heldout.inputs, 0)].flatten(1)
    for mixtures in (True, False):
        asked.clear()
        chosen = method(epochs=3, stop="budget", retention_size=30, mixtures=mixtures, mixing="blend")
        unlearn(network(), forget, method=chosen, test=heldout)
        assert [num for *_, num in asked] == ([30] * 3 if mixtures else [])
        for inputs, others, _ in asked:
            assert torch.equal(others, forget.inputs)
            watched = len(side) // 4 if method is Calibrated else 0
            assert len(inputs) == len(side) - watched, "what targets follow is never held"
            assert bool((inputs.flatten(1)[:, None] == side).all(2).any(1).all())


@given(st.integers(2, 60), st.floats(0.1, 2), st.floats(-5, 5), st.integers(0, 10**6))
def test_targets_go_the_way_of_unseen_margins(size: int, scale: float, by: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, planned = rng.normal(size=size), rng.normal(size=7)
    now = rng.normal(size=size) + by
    now *= min(1.0, before.std() / now.std())

    def found(planned: Any, before: Any, now: Any) -> Any:
        return followed(*(torch.tensor(part) for part in (planned, before, now))).numpy()

    moved = found(before, before, now)
    assert moved.mean() == pytest.approx(now.mean())
    assert moved.std() == pytest.approx(now.std()), "however little the two agree"
    wanted = by + (scale * planned if scale < 1 else planned + (scale - 1) * before.mean())
    np.testing.assert_allclose(found(planned, before, scale * before + by), wanted, atol=1e-9)
    np.testing.assert_allclose(found(planned, np.ones(3), np.full(3, 1 + by)), planned + by, atol=1e-9)


def test_the_pull_wins_in_the_end_where_the_hold_relaxes() -> None:
    common: dict[str, Any] = {"retention": 1e3, "epochs": 300, "pace": None, "lr": 0.01}
    forget, heldout = pairs(6, seed=2), pairs(60, seed=8)
    held, relaxed = (
        unlearn(network(), forget, method=MaskedDistillation(relax=relax, **common), test=heldout).trace
        for relax in (1.0, 0.8)
    )
    assert held.forget_accuracy_before == held.forget_accuracy_after > 0
    assert relaxed.forget_accuracy_after == 0
    assert relaxed.first_step_all_reached is not None


def test_margins_of_held_out_examples_are_held_too() -> None:
    """A uniform fall of confident margins leaves outputs, and so the divergence, about as they were."""
    taught = torch.tensor([[20.0, 0.0, 0.0]]).log_softmax(1)
    fallen = torch.tensor([[10.0, 0.0, 0.0]])
    assert divergence(taught, fallen).item() < 1e-3
    unit = torch.tensor(2.0)
    assert apart(taught, fallen, unit).item() == pytest.approx(5 - 0.5, abs=1e-3)
    assert apart(taught, taught, unit).item() == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 40), st.integers(1, 80), st.integers(0, 10**6))
def test_transport_keeps_order_within_a_class_and_stays_within_the_unseen_range(n: int, m: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    order, unseen = torch.randn(n, generator=rng), torch.randn(m, generator=rng)
    labels, unseen_labels = (torch.randint(0, 2, (size,), generator=rng) for size in (n, m))
    targets = transported(order, labels, unseen, unseen_labels)
    assert unseen.min() <= targets.min()
    assert targets.max() <= unseen.max()
    for label in (0, 1):
        mine = labels == label
        given = targets[mine][ranks(order[mine]).argsort()]
        assert bool((given.diff() >= 0).all())


@pytest.mark.parametrize(("num", "target"), [(19, 0.0), (20, 100.0)])
def test_a_class_takes_its_own_unseen_margins_where_there_are_twenty(num: int, target: float) -> None:
    """Those of the other class, of which there are more, are all 0."""
    unseen = torch.cat([torch.full((num,), 100.0), torch.zeros(40)])
    unseen_labels = torch.cat([torch.zeros(num), torch.ones(40)]).long()
    assert transported(torch.tensor([0]), torch.tensor([0]), unseen, unseen_labels).tolist() == [target]


def task_of(num_forget: int, num_test: int, shape: tuple[int, ...] = (1, 6, 6)) -> tuple[nn.Module, Task]:
    """A linear network and what a method is handed."""
    forget, heldout = (pairs(num, seed=num, shape=shape) for num in (num_forget, num_test))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(forget.inputs[0].numel(), NUM_CLASSES))
    given = [Examples(part.inputs, part.labels) for part in (forget, heldout)]
    logits = model(given[0].inputs).detach()
    return model, Task(forget=given[0], forget_digests=(b"",) * num_forget, forget_logits=logits, calibration=given[1])


def test_at_least_as_many_are_held_as_are_forgotten() -> None:
    model, task = task_of(20, 60)
    for size, num in ((3, 20), (30, 30)):
        rng = torch.Generator().manual_seed(0)
        held = _distilling.Held(Calibrated(retention_size=size, mixtures=False), model, task, rng)
        assert len(held.inputs) == 20 + num


def test_the_first_step_takes_its_share_off_the_pull_of_256_examples_evenly_spaced() -> None:
    """The pull is x w₀ + 1 at w = 0: its mean is 1, and its slope, of 256 of a thousand x, is their mean."""
    model = nn.Linear(1, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    inputs = torch.arange(1000.0).double()[:, None]
    examples = Examples(inputs, torch.zeros(1000, dtype=torch.int64))
    task = Task(forget=examples, forget_digests=(), forget_logits=torch.zeros(1000, 2), calibration=examples)
    mean = np.mean([n * 1000 // 256 for n in range(256)])
    for lr, expected in ((1.0, 0.2 / mean), (1e-6, 1e-6)):
        method = Calibrated(pace=0.2, lr=lr)
        settled = method.paced(model, task, lambda logits, index: logits[:, 0] + 1)
        assert settled.lr == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("num", "watched"), [(99, []), (100, [25]), (2008, [500])])
def test_a_quarter_is_watched_if_that_is_25_but_500_at_most(
    monkeypatch: pytest.MonkeyPatch, num: int, watched: list[int]
) -> None:
    sizes: list[int] = []

    def noting(planned: Tensor, before: Tensor, now: Tensor) -> Tensor:
        sizes.append(len(before))
        return followed(planned, before, now)

    monkeypatch.setattr(importlib.import_module("expunge.methods.calibrated"), "followed", noting)
    model, task = task_of(20, num)
    method = Calibrated(epochs=1, rank="margin", stop="budget")
    method.run(model, task, rng=torch.Generator().manual_seed(0), record=Recorder())
    assert sizes == watched


def test_a_run_ends_when_margins_are_on_average_within_the_tolerance_of_their_targets() -> None:
    model, task = task_of(20, 60)
    labels, heldout = task.forget.labels, task.calibration
    assert heldout is not None
    own, unseen = (scaled_confidence(model(part.inputs).detach(), part.labels) for part in (task.forget, heldout))
    targets = transported(ranks(own), labels, unseen, heldout.labels)
    targets = torch.where(task.forget_logits.argmax(1) != labels, torch.minimum(targets, own), targets)
    unheld: dict[str, Any] = {"retention": 0.0, "retention_size": 1, "mixtures": False}
    method = Calibrated(epochs=5000, lr=1e-4, pace=None, rank="margin", follow=False, tolerance=0.02, **unheld)
    record = Recorder()
    after = method.run(model, task, rng=torch.Generator().manual_seed(0), record=record)
    gap = (scaled_confidence(after(task.forget.inputs).detach(), labels) - targets).abs().mean()
    assert record.first_step_all_reached == record.steps > 0
    assert 0.018 < gap / unseen.std(correction=0) <= 0.02


def test_sixteen_shifted_copies_stand_for_unseen_images(monkeypatch: pytest.MonkeyPatch) -> None:
    shifts = []

    def noting(images: Tensor, augment: str, rng: torch.Generator) -> Tensor:
        shifts.append(augment)
        return images

    monkeypatch.setattr(_confidence, "augmented", noting)
    model, task = task_of(20, 1, (1, 8, 8))
    method = Calibrated(epochs=1, stop="budget")
    method.run(model, replace(task, calibration=None), rng=torch.Generator().manual_seed(0), record=Recorder())
    assert shifts == ["shift"] * 16


@given(st.integers(1, 40), st.integers(1, 80), st.integers(0, 10**6))
def test_targets_are_the_unseen_margins_themselves_and_as_often_low(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    order, unseen = (torch.tensor(rng.normal(size=size)) for size in (n, m))
    targets = transported(order, torch.zeros(n, dtype=torch.int64), unseen, torch.zeros(m, dtype=torch.int64))
    wanted = np.quantile(unseen.numpy(), (np.arange(n) + 0.5) / n, method="hazen")
    np.testing.assert_allclose(targets.sort().values.numpy(), wanted, atol=1e-9)
    if n == m:
        np.testing.assert_allclose(targets.sort().values.numpy(), unseen.sort().values.numpy(), atol=1e-9)


def test_setting_margins_changes_the_true_class_alone() -> None:
    logits, labels, wanted = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0]), torch.tensor([-2.0, 0, 1, 5, 9])
    changed = with_confidence(logits, labels, wanted)
    torch.testing.assert_close(scaled_confidence(changed, labels), wanted)
    others = torch.ones_like(logits).scatter(1, labels[:, None], 0).bool()
    assert torch.equal(changed[others], logits[others])
    probabilities = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(scaled_confidence(logits, labels), (probabilities / (1 - probabilities)).log())


def test_the_weights_of_mixtures_are_uniform_from_a_quarter_or_a_half() -> None:
    rng, ends = torch.Generator().manual_seed(0), torch.tensor([[0.0], [1.0]])
    among, nearer = mixed(ends, 4000, rng), mixed_with(ends[1:], ends[:1], 4000, rng)
    for weights, low, high in ((among, 0.25, 0.75), (nearer, 0.5, 1.0)):
        assert low <= weights.min() < low + 0.005
        assert high - 0.005 < weights.max() <= high
        assert float(weights.mean()) == pytest.approx((low + high) / 2, abs=0.01)
    bits = ends.to(torch.uint8)
    assert mixed_with(bits[1:], bits[:1], 100, rng).min() == 1, "mixtures of integers are rounded"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_mixtures_lie_between_what_they_mix(dtype: torch.dtype) -> None:
    inputs = torch.tensor([[10.0], [200.0]]).to(dtype)
    mixtures = mixed(inputs, 50, torch.Generator().manual_seed(0))
    assert mixtures.shape == (50, 1)
    assert mixtures.dtype == dtype
    assert len(mixtures.unique()) > 10
    assert mixtures.min() > 10, "an input was mixed with itself"
    assert mixtures.max() < 200
    nearer = mixed_with(inputs[:1], inputs[1:], 50, torch.Generator().manual_seed(0))
    assert nearer.dtype == dtype
    assert len(nearer.unique()) > 10
    assert nearer.min() >= 10
    assert nearer.max() <= 105


def test_what_is_too_little_to_guess_from_is_refused() -> None:
    images = Pairs(torch.rand(19, 1, 8, 8), torch.arange(19) % 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match="too few"):
        unlearn(model, images, method="calibrated")


@pytest.mark.parametrize("accuracy", [None, 0.25, 0.9])
def test_where_the_accuracy_is_known_so_many_targets_are_right(
    monkeypatch: pytest.MonkeyPatch, accuracy: float | None
) -> None:
    given: list[Tensor] = []

    def noting(order: Tensor, labels: Tensor, unseen: Tensor, unseen_labels: Tensor) -> Tensor:
        given.append(unseen)
        return transported(order, labels, unseen, unseen_labels)

    monkeypatch.setattr(importlib.import_module("expunge.methods.calibrated"), "transported", noting)
    monkeypatch.setattr(_confidence, "augmented", lambda images, augment, rng: images)
    forget, model = pairs(100, seed=2, shape=(1, 8, 8)), nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))
    unlearn(model, forget, method=Calibrated(epochs=1, accuracy=accuracy))
    (unseen,) = given
    own = scaled_confidence(model(forget.inputs).detach(), forget.labels)
    if accuracy is None:
        torch.testing.assert_close(unseen, own)
    else:
        assert (unseen > 0).double().mean() == pytest.approx(accuracy, abs=0.011)
        torch.testing.assert_close(unseen - unseen.mean(), own - own.mean())
    with pytest.raises(SettingError, match="test"):
        unlearn(model, forget, method=Calibrated(accuracy=0.9), test=pairs(60, seed=3, shape=(1, 8, 8)))


def test_an_8_bit_image_is_on_one_side_as_integers_and_as_floats() -> None:
    images = torch.randint(256, (200, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    side = calibration_side(images, 7)
    for scaled in (images.float() / 255, images.double() / 255, images.float().mul(1 / 255)):
        assert torch.equal(calibration_side(scaled, 7), side)
    mixed_up = torch.cat([images[:100].float() / 255, torch.rand(100, 3, 4, 4)])
    assert torch.equal(calibration_side(mixed_up, 7)[:100], side[:100])
    many = images.repeat(2, 1, 1, 1)  # more than are looked at together
    assert torch.equal(calibration_side(many / 255, 7), side.repeat(2))
    assert calibration_side(images[:0], 7).shape == calibration_side(images[:0] / 255, 7).shape == (0,)


def test_forget_and_audit_split_one_test_set_and_say_so(tmp_path: Path, trained: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{n}\n" for n in range(20)))
    shared = ("--forget", "sample", "--ids", ids, "--test", "sample:test")
    options = ("--method", "calibrated", "--set", "epochs=3", "--seed", "5")
    done = expunge("forget", "--model", trained, *shared, *options, "--out", tmp_path / "a")
    assert done.returncode in {0, 3}, done.stderr
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    used, left = report["trace"]["num_calibration"], report["audit"]["num_test"]
    assert (used > 400, left > 400, used + left) == (True, True, 1000)
    assert f"{used} of 1,000" in " ".join(done.stdout.split())
    model, _ = load_model(str(tmp_path / "a"))
    assert calibration_seeds(model) == (5,)
    done = expunge("audit", "--before", trained, "--after", tmp_path / "a", *shared, "--out", tmp_path / "b")
    assert done.returncode in {0, 3}, done.stderr
    again = json.loads((tmp_path / "b" / "report.json").read_text())
    assert again["audit"]["num_test"] == left
    assert again["audit"]["scores_after"] == report["audit"]["scores_after"]


def test_where_no_method_is_named_held_out_examples_decide(tmp_path: Path, trained: Path) -> None:
    model, forget, heldout = network(), pairs(6, seed=2), pairs(60, seed=8)
    assert unlearn(model, forget).trace.method == default_method(False) == "held_boundary"
    assert unlearn(model, forget, test=heldout).trace.method == default_method(True) == "calibrated"
    ids = tmp_path / "ids.txt"
    ids.write_text("3\n4\n")
    shared = ("forget", "--model", trained, "--forget", "sample", "--ids", ids, "--json")
    for more, name in (((), "held_boundary"), (("--test", "sample:test"), "calibrated")):
        done = expunge(*shared, *more, "--set", "epochs=1", "--out", tmp_path / name)
        assert json.loads(done.stdout)["trace"]["method"] == name, done.stderr


def test_wrong_examples_are_never_raised_by_targets_that_follow() -> None:
    """Targets go along a line through watched margins, which may lie above an example's own."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(3)
    inputs = torch.randn(900, 12, generator=rng)
    labels = (inputs @ torch.randn(12, 4, generator=rng)).argmax(1)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(inputs[:300]), labels[:300])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    forget = Pairs(inputs[:100], labels[:100].clone())
    forget.labels[:30] = model(forget.inputs[:30]).detach().argmin(1)
    wrong = model(forget.inputs).argmax(1) != forget.labels
    before = scaled_confidence(model(forget.inputs).detach(), forget.labels)
    heldout = Pairs(inputs[300:], labels[300:])
    after = unlearn(model, forget, method=Calibrated(), test=heldout).model
    raised = scaled_confidence(after(forget.inputs).detach(), forget.labels) - before
    assert wrong.sum() >= 30
    assert raised[wrong].mean() < 0.05
