"""The theorem on concentrated updates: every statement as a property, every limit with its counterexample."""

import doctest
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from experiments.theory.concentration import concentration
from experiments.theory.updates import measure_updates
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import nn

from expunge import theory
from expunge.data import Examples
from expunge.errors import InputError
from expunge.methods.random_label import wrong_labels
from expunge.randomness import stream
from expunge.theory import entry_shares, gini, majorizes, pair_share, participation_ratio, row_shares, second_best
from tests.forked import PATIENCE

Floats = NDArray[np.float64]
Exact = list[Fraction]
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


# --- exact arithmetic: no tolerance, no rounding -------------------------------------------------------------------


@st.composite
def ranked(draw: st.DrawFn, min_classes: int = 2) -> Exact:
    """Rational probabilities, the largest first, so that y = 0 and y′ = 1; ties and zeros included, p_y < 1."""
    weights = draw(st.lists(st.integers(0, 60), min_size=min_classes, max_size=9))
    assume(sum(w > 0 for w in weights) >= 2)
    return [Fraction(w, sum(weights)) for w in sorted(weights, reverse=True)]


def exact_shares(p: Exact, k: int) -> Exact:
    return [Fraction(1, 2) if i == k else q / (2 * (1 - p[k])) for i, q in enumerate(p)]


def exactly_majorizes(a: Exact, b: Exact) -> bool:
    first, second = sorted(a, reverse=True), sorted(b, reverse=True)
    return sum(first) == sum(second) and all(sum(first[:t]) >= sum(second[:t]) for t in range(len(a)))


@PROPERTY
@given(ranked())
def test_second_best_majorizes_ascent_and_strictly_so_unless_tied_or_two_classes_hold_all(p: Exact) -> None:
    targeted, ascent = exact_shares(p, 1), exact_shares(p, 0)
    assert exactly_majorizes(targeted, ascent)
    assert (not exactly_majorizes(ascent, targeted)) == (p[0] > p[1] and p[0] + p[1] < 1)


@PROPERTY
@given(ranked())
def test_row_by_row_differences_have_their_closed_forms(p: Exact) -> None:
    y, second = p[0], p[1]
    difference = [t - a for t, a in zip(exact_shares(p, 1), exact_shares(p, 0), strict=True)]
    rest = 1 - y - second
    assert difference[0] == -rest / (2 * (1 - second)) <= 0
    assert difference[1] == rest / (2 * (1 - y)) >= 0
    for q, d in zip(p[2:], difference[2:], strict=True):
        assert d == -q * (y - second) / (2 * (1 - y) * (1 - second)) <= 0
    assert difference[0] + difference[1] == (y - second) * rest / (2 * (1 - y) * (1 - second)) >= 0


@PROPERTY
@given(ranked(), st.data())
def test_the_rows_of_the_two_labels_differ_that_way_in_any_order_of_classes(p: Exact, data: st.DataObject) -> None:
    y, other = data.draw(st.permutations(range(len(p))))[:2]
    assume(p[y] < 1 and p[other] < 1)
    targeted, ascent = exact_shares(p, other), exact_shares(p, y)
    assert targeted[y] <= ascent[y]
    assert targeted[other] >= ascent[other]


@PROPERTY
@given(ranked())
def test_sum_of_squares_has_its_closed_form_and_the_participation_ratio_its_bounds(p: Exact) -> None:
    y, second, squares = p[0], p[1], sum(q * q for q in p)
    sums = [sum(s * s for s in exact_shares(p, k)) for k in range(len(p))]
    for q, total in zip(p, sums, strict=True):
        assert total == Fraction(1, 4) + (squares - q * q) / (4 * (1 - q) ** 2)
        assert 2 <= 1 / total <= Fraction(4 * (len(p) - 1), len(p)) < 4
    bracket = y + second - 2 * y * second - squares * (2 - y - second)
    assert sums[1] - sums[0] == (y - second) * bracket / (4 * (1 - y) ** 2 * (1 - second) ** 2) >= 0


@PROPERTY
@given(ranked(min_classes=3), st.data())
def test_another_wrong_label_majorizes_ascent_exactly_when_its_small_tails_are_smaller(
    p: Exact, data: st.DataObject
) -> None:
    wrong = data.draw(st.integers(1, len(p) - 1))
    with_it = sorted(p[1:])
    without = sorted(q for i, q in enumerate(p) if i not in {0, wrong})
    criterion = all(sum(without[:t]) / (1 - p[wrong]) <= sum(with_it[:t]) / (1 - p[0]) for t in range(1, len(p) - 1))
    assert criterion == exactly_majorizes(exact_shares(p, wrong), exact_shares(p, 0))


@PROPERTY
@given(ranked(min_classes=3), st.data())
def test_a_less_likely_wrong_label_never_majorizes_the_second_best(p: Exact, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(2, len(p) - 1))
    targeted, other = exact_shares(p, 1), exact_shares(p, wrong)
    assert targeted[0] + targeted[1] >= other[0] + other[wrong]
    if p[wrong] < p[1]:
        assert not exactly_majorizes(other, targeted)


@PROPERTY
@given(ranked())
def test_the_order_reverses_where_the_label_is_second_and_the_prediction_is_taught(p: Exact) -> None:
    prediction, label = 0, 1
    assert exactly_majorizes(exact_shares(p, label), exact_shares(p, prediction))


@PROPERTY
@given(ranked(), st.data())
def test_row_shares_and_majorizes_agree_with_exact_arithmetic(p: Exact, data: st.DataObject) -> None:
    k, other = (data.draw(st.integers(0, len(p) - 1)) for _ in range(2))
    floats = [float(q) for q in p]
    a, b = exact_shares(p, k), exact_shares(p, other)
    assert np.allclose(row_shares(floats, k), [float(s) for s in a], rtol=1e-14, atol=0)
    # The denominators make distinct partial sums differ by far more than the tolerance.
    assert bool(majorizes(row_shares(floats, k), row_shares(floats, other))) == exactly_majorizes(a, b)


# --- floating point, in batches ------------------------------------------------------------------------------------


@st.composite
def logits(draw: st.DrawFn, min_classes: int = 2) -> Floats:
    """A batch of logits (B, C)."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(min_classes, 12)))
    return draw(arrays(np.float64, shape, elements=st.floats(-15, 15, width=32)))


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def features_for(p: Floats, seed: int, width: int = 6) -> Floats:
    """Signed features with some exact zeros."""
    rng = np.random.default_rng(seed)
    o = rng.normal(size=(len(p), width)) * rng.integers(0, 2, (len(p), width))
    o[:, 0] = rng.choice([-1.0, 2.0], len(p))
    return o


def entropy(s: Floats) -> Floats:
    return np.asarray(-(s * np.log(np.where(s > 0, s, 1))).sum(-1))


def first_step(weight: Floats, bias: Floats | None, o: Floats, label: int, sign: float, lam: float = 1.0) -> Floats:
    """|Δφ| (C, M or M + 1), scaled to total 1, that one step of torch.optim.SGD makes on sign · ℓ^lam."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    loss = F.cross_entropy(layer(torch.from_numpy(o))[None], torch.tensor([label])) ** lam
    (sign * loss).backward()
    grads = [
        layer.weight.grad,
        *([layer.bias.grad[:, None]] if bias is not None and layer.bias.grad is not None else []),
    ]
    sizes = torch.cat([g for g in grads if g is not None], 1).abs()
    return np.asarray((sizes / sizes.sum()).numpy())


@PROPERTY
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, -1.0]))
def test_the_closed_form_is_what_autograd_gives(seed: int, with_bias: bool, lam: float, sign: float) -> None:
    rng = np.random.default_rng(seed)
    classes, width = int(rng.integers(2, 12)), int(rng.integers(1, 8))
    weight, bias = rng.normal(size=(classes, width)), rng.normal(size=classes) if with_bias else None
    o = rng.normal(size=width)  # both signs
    z = weight @ o + (0 if bias is None else bias)
    label = int(rng.integers(classes))
    closed = entry_shares(softmax(z), label, o, bias=with_bias)
    assert np.allclose(closed, first_step(weight, bias, o, label, sign, lam), rtol=0, atol=1e-6)
    assert np.allclose(closed.sum(-1), row_shares(softmax(z), label), atol=1e-12)
    assert np.allclose(entry_shares(softmax(z), label, -o, bias=with_bias), closed)


@PROPERTY
@given(logits(), st.integers(0, 99), st.booleans())
def test_entries_majorize_and_every_measure_of_concentration_follows(z: Floats, seed: int, bias: bool) -> None:
    p = softmax(z)
    y, o = p.argmax(-1), features_for(p, seed)
    targeted, ascent = (entry_shares(p, k, o, bias=bias) for k in (second_best(p, y), y))
    for a, b in [
        (targeted.sum(-1), ascent.sum(-1)),
        (targeted.reshape(len(p), -1), ascent.reshape(len(p), -1)),
    ]:
        assert majorizes(a, b).all()
        assert (participation_ratio(a) <= participation_ratio(b) * (1 + 1e-12)).all()
        assert (gini(a) >= gini(b) - 1e-12).all()
        assert (entropy(a) <= entropy(b) + 1e-12).all()
        assert ((a**2).sum(-1) >= (b**2).sum(-1) - 1e-12).all(), "the Euclidean norm at equal L1 is no smaller"
        assert np.allclose(a.max(-1), b.max(-1)), "the largest entry is the same"
        assert ((a > 0).sum(-1) == (b > 0).sum(-1)).all(), "the support is the same size"
    rank = [np.linalg.matrix_rank(matrix) for matrix in (*targeted, *ascent)]
    assert set(rank) == {1}


@PROPERTY
@given(logits(), st.data())
def test_row_shares_are_shares_with_half_on_the_label(z: Floats, data: st.DataObject) -> None:
    p = softmax(z)
    label = data.draw(arrays(np.int64, len(p), elements=st.integers(0, p.shape[1] - 1)))
    shares = row_shares(p, label)
    assert (shares[np.arange(len(p)), label] == 0.5).all()
    assert np.allclose(shares.sum(-1), 1, rtol=1e-14)
    assert ((shares >= 0) & (shares <= 0.5)).all()
    assert np.array_equal(shares, np.stack([row_shares(q, k) for q, k in zip(p, label, strict=True)]))
    ratio = participation_ratio(shares)
    assert ((ratio >= 2 - 1e-9) & (ratio <= 4 * (p.shape[1] - 1) / p.shape[1] + 1e-9)).all()


@PROPERTY
@given(logits(min_classes=3))
def test_the_pair_share_is_that_of_the_rows_and_the_saving_is_bounded(z: Floats) -> None:
    p = softmax(z)
    y = p.argmax(-1)
    second, rows = second_best(p, y), np.arange(len(p))
    targeted, ascent = row_shares(p, second), row_shares(p, y)
    assert np.allclose(pair_share(p, y, second), targeted[rows, y] + targeted[rows, second])
    assert np.allclose(pair_share(p, second, y), ascent[rows, y] + ascent[rows, second])
    ratio = theory.l1_to_boundary_ratio(p, y, second)
    assert ((ratio >= 0.5 + 0.5 / (p.shape[1] - 1) - 1e-12) & (ratio <= 1 + 1e-12)).all()


@PROPERTY
@given(st.integers(0, 10**6))
def test_the_boundary_is_reached_with_that_much_less_change(seed: int) -> None:
    rng = np.random.default_rng(seed)
    phi, o = rng.normal(size=(5, 4)), rng.normal(size=4)
    p = softmax(phi @ o)
    y = int(p.argmax())
    second = int(second_best(p, y))
    needed = []
    for k, direction in ((second, -1.0), (y, 1.0)):
        step = direction * np.outer(p - np.eye(5)[k], o)
        step /= np.abs(step).sum()  # a unit of ‖Δφ‖₁
        fall = (step @ o)[second] - (step @ o)[y]
        share = pair_share(p, y, second) if k == second else pair_share(p, second, y)
        assert fall == pytest.approx(float(share) * (o @ o) / np.abs(o).sum())
        needed.append(((phi @ o)[y] - (phi @ o)[second]) / fall)
        after = (phi + needed[-1] * step) @ o
        assert after[second] == pytest.approx(after[y])
        assert after.max() == pytest.approx(after[y]), "the second-best class is the first to be reached"
    assert needed[0] / needed[1] == pytest.approx(float(theory.l1_to_boundary_ratio(p, y, second)))


@PROPERTY
@given(
    arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 8)), elements=st.floats(0, 5, width=16)), st.data()
)
def test_averaging_any_two_entries_is_majorized_and_measured_as_less_concentrated(
    a: Floats, data: st.DataObject
) -> None:
    a = a + 1e-3
    order = np.array(data.draw(st.permutations(range(a.shape[1]))))
    part = data.draw(st.floats(0, 1))
    b = a.copy()
    i, j = order[0], order[-1]
    b[:, i], b[:, j] = part * a[:, i] + (1 - part) * a[:, j], part * a[:, j] + (1 - part) * a[:, i]
    assert majorizes(a, b).all()
    assert majorizes(a, a[:, order]).all()
    assert majorizes(a[:, order], a).all()
    assert (participation_ratio(a) <= participation_ratio(b) + 1e-9).all()
    assert (gini(a) >= gini(b) - 1e-9).all()
    assert ((participation_ratio(a) >= 1 - 1e-9) & (participation_ratio(a) <= a.shape[1] + 1e-9)).all()


def test_majorizes_keeps_to_its_tolerance_and_knows_incomparable_vectors() -> None:
    assert majorizes([0.5 - 1e-13, 0.5 + 1e-13], [0.5, 0.5])
    assert majorizes([0.5, 0.5], [0.5 - 1e-13, 0.5 + 1e-13])
    assert not majorizes([0.5, 0.5], [0.5 - 1e-11, 0.5 + 1e-11])
    assert majorizes([0.5, 0.5], [0.5 - 1e-11, 0.5 + 1e-11], tolerance=1e-10)
    a, b = [0.5, 0.25, 0.25], [0.45, 0.45, 0.1]
    assert not majorizes(a, b)
    assert not majorizes(b, a)


@PROPERTY
@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 8)), elements=st.floats(0.125, 5, width=16)))
def test_the_gini_coefficient_is_half_the_mean_difference_over_the_mean(a: Floats) -> None:
    differences = np.abs(a[:, :, None] - a[:, None, :]).mean((1, 2))
    assert np.allclose(gini(a), differences / (2 * a.mean(1)), rtol=1e-12, atol=1e-15)


def test_participation_multiplies_over_an_outer_product() -> None:
    v, w = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.3])
    assert participation_ratio(np.outer(v, w).ravel()) == pytest.approx(participation_ratio(v) * participation_ratio(w))


# --- limits, each with its counterexample --------------------------------------------------------------------------


def strictly(a: Floats, b: Floats) -> bool:
    return bool(majorizes(a, b) & ~majorizes(b, a))


def test_two_classes_give_the_same_update() -> None:
    p = [0.9, 0.1]
    assert np.array_equal(row_shares(p, 0), row_shares(p, 1))
    assert np.array_equal(row_shares(p, 0), [0.5, 0.5])


def test_a_tie_gives_equal_concentration() -> None:
    p = [0.4, 0.4, 0.15, 0.05]
    assert np.allclose(np.sort(row_shares(p, 0)), np.sort(row_shares(p, 1)))
    assert not strictly(row_shares(p, 1), row_shares(p, 0))


def test_a_mispredicted_example_whose_label_is_second_reverses_the_order() -> None:
    p, y = [0.3, 0.5, 0.1, 0.1], 0
    assert second_best(p, y) == 1  # the prediction
    assert strictly(row_shares(p, y), row_shares(p, 1))


def test_a_mispredicted_example_whose_label_is_third_may_go_either_way() -> None:
    assert strictly(row_shares([0.5, 0.3, 0.2], 2), row_shares([0.5, 0.3, 0.2], 0))
    assert strictly(row_shares([0.75, 0.2, 0.05], 0), row_shares([0.75, 0.2, 0.05], 2))  # far from a tie


def test_random_label_and_second_best_are_incomparable() -> None:
    p = [0.5, 0.4, 0.05, 0.05]
    targeted, drawn = row_shares(p, 1), row_shares(p, 2)
    assert not majorizes(targeted, drawn)
    assert not majorizes(drawn, targeted)


def test_a_random_label_may_be_less_concentrated_than_ascent() -> None:
    p = [0.9, 0.0989, 0.0011]
    assert strictly(row_shares(p, 0), row_shares(p, 2))


def test_a_certain_model_makes_all_wrong_labels_alike_and_loses_no_digits() -> None:
    margin = np.array([60.0, 3.0, 2.0, 1.0])
    p = softmax(margin)
    assert p[0] == 1.0  # rounded; the rest is about 1e-25
    q = softmax(margin[1:])
    assert np.allclose(row_shares(p, 0), [0.5, *(q / 2)], rtol=1e-12)
    assert participation_ratio(row_shares(p, 0)) == pytest.approx(1 / (0.25 + (q**2).sum() / 4))
    assert participation_ratio(row_shares(p, 1)) == pytest.approx(2)
    for wrong in (2, 3):
        assert np.allclose(np.sort(row_shares(p, wrong)), np.sort(row_shares(p, 1)))


def test_flat_remainders_are_as_spread_as_the_bound_allows() -> None:
    for p_y, ascent, targeted in ((0.99, 3.96, 2.02), (0.3, 3.96, 3.65)):
        p = [p_y] + [(1 - p_y) / 99] * 99
        assert participation_ratio(row_shares(p, 0)) == pytest.approx(ascent, abs=5e-3)
        assert participation_ratio(row_shares(p, 1)) == pytest.approx(targeted, abs=5e-3)


def batch_update(p: Floats, k: Any, o: Floats, *, equalised: bool = False) -> Floats:
    """|Σ_n c_n (p_n − e_k) o_nᵀ|, with c_n = 1 or with every example's ‖·‖₁ scaled to 1, total 1."""
    parts = (p - np.eye(p.shape[1])[k])[:, :, None] * o[:, None, :]
    if equalised:
        parts /= np.abs(parts).sum((1, 2), keepdims=True)
    sizes = np.abs(parts.sum(0))
    return np.asarray(sizes / sizes.sum())


def test_a_batch_of_two_can_reverse_the_order_even_with_orthogonal_features() -> None:
    p = np.array([[0.997, 0.001, 0.001, 0.001], [0.001, 0.001, 0.6, 0.398]])
    y, o = p.argmax(1), np.eye(2)
    ascent, targeted = batch_update(p, y, o), batch_update(p, second_best(p, y), o)
    assert np.allclose(ascent.sum(1), [0.005, 0.0025, 0.4975, 0.495], atol=5e-4)
    assert np.allclose(targeted.sum(1), [0.312, 0.312, 0.188, 0.188], atol=5e-4)
    assert strictly(ascent.sum(1), targeted.sum(1))
    assert not majorizes(targeted.ravel(), ascent.ravel())


@PROPERTY
@given(logits(), st.integers(0, 99))
def test_a_batch_keeps_it_by_entries_where_examples_weigh_alike_and_share_no_feature(z: Floats, seed: int) -> None:
    p = softmax(z)
    y, o = p.argmax(1), np.kron(np.eye(len(p)), np.ones((1, 3))) * features_for(p, seed, 3 * len(p) + 1)[:, 1:]
    o[np.arange(len(p)), 3 * np.arange(len(p))] = -1.0
    # No two examples change the same entry, so that the size of the sum is the sum of the sizes.
    targeted, ascent = (entry_shares(p, k, o).sum(0).ravel() for k in (second_best(p, y), y))
    assert majorizes(targeted, ascent).all()


def test_a_batch_that_shares_features_can_reverse_it_even_where_examples_weigh_alike() -> None:
    p = np.array([[0.4, 0.5, 0.1], [0.5, 0.4, 0.1]])
    y, o = p.argmax(1), np.array([[1.0, 1.0], [1.0, 2.0]])
    ascent = batch_update(p, y, o, equalised=True)
    targeted = batch_update(p, second_best(p, y), o, equalised=True)
    assert strictly(ascent.ravel(), targeted.ravel())
    assert strictly(ascent.sum(1), targeted.sum(1))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_adams_first_step_moves_every_entry_by_lr(sign: float) -> None:
    torch.manual_seed(0)
    layer, lr = nn.Linear(6, 4, bias=False, dtype=torch.float64), 1e-3
    before = layer.weight.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    (sign * F.cross_entropy(layer(torch.randn(1, 6, dtype=torch.float64)), torch.tensor([1]))).backward()
    optimizer.step()
    delta = (layer.weight.detach() - before).abs().numpy()
    assert np.allclose(delta, lr, rtol=1e-4)
    assert participation_ratio(delta.sum(1)) == pytest.approx(4)
    assert participation_ratio(delta.ravel()) == pytest.approx(24)


def test_adams_first_step_leaves_dead_features_but_for_weight_decay() -> None:
    torch.manual_seed(0)
    for decay, moved in ((0.0, 12), (1e-5, 24)):
        layer = nn.Linear(6, 4, bias=False, dtype=torch.float64)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=decay)
        o = torch.tensor([[1.0, 0.5, 2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
        F.cross_entropy(layer(o), torch.tensor([1])).backward()
        optimizer.step()
        delta = (layer.weight.detach() - before).abs().numpy()
        assert (delta > 0.8e-3).sum() == moved


def flow(p: Floats, k: int, direction: float, length: float, step: float) -> tuple[Floats, Floats]:
    """Follows the gradient for one example with frozen features of unit norm, in steps of ‖Δφ‖₁ = step.

    Returns row sizes of |Δφ| (T, N, C) and logits (T, N, C). Rows keep their signs, so that sizes add up.
    """
    z, sizes, one_hot = np.log(p), np.zeros_like(p), np.eye(p.shape[1])[k]
    all_sizes, all_logits = [], []
    for _ in range(round(length / step)):
        g = direction * (softmax(z) - one_hot)
        g *= step / np.abs(g).sum(-1, keepdims=True)
        z, sizes = z + g, sizes + np.abs(g)
        all_sizes.append(sizes)
        all_logits.append(z)
    return np.array(all_sizes), np.array(all_logits)


def test_over_many_steps_half_of_the_change_stays_on_the_label() -> None:
    p = np.array([[0.6, 0.25, 0.1, 0.05]])
    for k, direction in ((1, -1.0), (0, 1.0)):
        sizes, _ = flow(p, k, direction, 4.0, 0.01)
        assert np.allclose(sizes[..., k] / sizes.sum(-1), 0.5)


def test_past_the_boundary_ascent_can_become_the_more_concentrated_one() -> None:
    p = np.array([[0.6, 0.25, 0.1, 0.05]])
    (targeted, z), (ascent, _) = flow(p, 1, -1.0, 4.0, 0.01), flow(p, 0, 1.0, 4.0, 0.01)
    boundary = int((z[:, 0, 1] > z[:, 0, 0]).argmax())
    assert strictly(
        targeted[boundary, 0] / targeted[boundary, 0].sum(), ascent[boundary, 0] / ascent[boundary, 0].sum()
    )
    assert strictly(ascent[-1, 0] / ascent[-1, 0].sum(), targeted[-1, 0] / targeted[-1, 0].sum())


def test_up_to_the_boundary_simulated_runs_of_many_steps_keep_the_order() -> None:
    p = np.maximum(-np.sort(-np.random.default_rng(0).dirichlet(np.ones(6), 60)), 1e-4)
    p /= p.sum(1, keepdims=True)
    (targeted, z), (ascent, other) = flow(p, 1, -1.0, 12.0, 0.01), flow(p, 0, 1.0, 12.0, 0.01)
    length = 0.01 * np.arange(1, len(z) + 1)[:, None, None]
    before = z.argmax(-1) == 0
    assert majorizes(targeted / length, ascent / length, tolerance=1e-6)[before].all()
    flips = [(run.argmax(-1) != 0).argmax(0) for run in (z, other)]
    assert (flips[0] <= flips[1]).all(), "targeted crosses the boundary with no more change"


def test_at_equal_step_size_the_second_best_changes_more_in_total() -> None:
    p, o = np.array([0.9, 0.06, 0.04]), np.array([1.0, 2.0])
    targeted, ascent = (np.abs(np.outer(p - np.eye(3)[k], o)).sum() for k in (1, 0))
    assert targeted == pytest.approx(2 * (1 - p[1]) * 3)
    assert targeted / ascent == pytest.approx((1 - p[1]) / (1 - p[0]))
    assert targeted > 9 * ascent


def test_the_papers_literal_inequality_is_about_weights_and_false() -> None:
    phi, o, p = -1.0, 1.0, [0.6, 0.25, 0.15]
    ascent = phi + p[2] * o / (2 - 2 * p[0])
    targeted = phi - p[2] * o / (2 - 2 * p[1])
    assert abs(targeted) - abs(ascent) == pytest.approx(1.1 - 0.8125)  # not < 0
    assert abs(targeted - phi) < abs(ascent - phi)  # of the changes it is true


def test_that_one_row_alone_grows_does_not_make_an_update_more_concentrated() -> None:
    before, after = np.array([0.5, 0.1, 0.4]), np.array([0.3, 0.4, 0.3])
    assert np.array_equal(after > before, [False, True, False])
    assert strictly(before, after)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "label", "message"),
    [
        ([0.5, 0.6], 0, "sum"),
        ([1.5, -0.5], 0, r"\[0, 1\]"),
        ([np.nan, 1.0], 0, "NaN"),
        ([1.0], 0, "C ≥ 2"),
        ("text", 0, "numbers"),
        ([0.5, 0.5], 2, r"\[0, 2\)"),
        ([0.5, 0.5], -1, r"\[0, 2\)"),
        ([0.5, 0.5], 0.0, "integer"),
        ([0.5, 0.5], [0, 1], "examples"),
        ([1.0, 0.0], 0, "gradient"),
    ],
)
def test_probabilities_and_labels_out_of_range_are_refused(p: Any, label: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        row_shares(p, label)


def test_other_unusable_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="differ"):
        pair_share([0.5, 0.5], 0, 0)
    with pytest.raises(InputError, match="totals"):
        majorizes([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(InputError, match="totals"):
        majorizes([1.0, 0.0], [0.5, 0.5 + 1e-6])
    with pytest.raises(InputError, match="alike"):
        majorizes([1.0], [0.5, 0.5])
    with pytest.raises(InputError, match="shapes"):
        majorizes(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(InputError, match="tolerance"):
        majorizes([1.0], [1.0], tolerance=float("nan"))
    with pytest.raises(InputError, match="negative"):
        gini([-1.0, 2.0])
    with pytest.raises(InputError, match="zero"):
        participation_ratio([0.0, 0.0])
    with pytest.raises(InputError, match="shape"):
        participation_ratio(1.0)
    with pytest.raises(InputError, match="zero"):
        theory.feature_shares([0.0, 0.0])
    with pytest.raises(InputError, match="shape"):
        theory.feature_shares(1.0)
    with pytest.raises(InputError, match="examples"):
        entry_shares([[0.5, 0.5]], [0], [1.0, 2.0])


def test_the_theory_does_not_import_torch() -> None:
    program = "import sys, expunge.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE).returncode == 0


# --- on a model ----------------------------------------------------------------------------------------------------


def network(bias: bool = True, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 5, bias=bias))
    with torch.no_grad():
        body[4].get_parameter("weight").mul_(scale)
    return body


def examples(model: nn.Module, size: int = 12) -> Examples:
    """Random inputs with the model's predictions as labels, but for the last, which is mispredicted."""
    inputs = torch.randn(size, 8, generator=torch.Generator().manual_seed(5))
    labels = model.eval()(inputs).argmax(1)
    labels[-1] = (labels[-1] + 1) % 5
    return Examples(inputs, labels)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_models_updates_agree_with_the_closed_form(bias: bool, scale: float) -> None:
    model = network(bias, scale)
    data = examples(model)
    model.train()
    model[3].eval()
    result = concentration(model, data, seed=7, batch_size=5)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert not model[4]._forward_hooks
    assert result.disagreement < 1e-6
    assert result.predicted.tolist() == [True] * 11 + [False]
    assert result.majorized[:11].all()
    p = model.eval()(data.inputs).double().softmax(1).detach().numpy()
    y, second = data.labels.numpy(), second_best(p, data.labels.numpy())
    drawn = wrong_labels(data.labels, 5, stream("method", 7)).numpy()
    for name, expected in {
        "targeted": pair_share(p, y, second),
        "gradient_ascent": pair_share(p, second, y),
        "random_label": pair_share(p, y, drawn),
    }.items():
        shape = result.closed_form[name]
        assert np.allclose(shape.pair_share, expected, rtol=1e-3)
        assert shape.pr_entries.shape == (12,)
    assert (result.closed_form["targeted"].pr_rows <= result.closed_form["gradient_ascent"].pr_rows + 1e-9)[:11].all()
    assert set(result.medians()) == set(result.autograd)


def test_a_models_gradient_is_that_of_torchs_cross_entropy() -> None:
    model = network().double()
    data = Examples(torch.randn(1, 8, dtype=torch.float64), torch.tensor([2]))
    model.eval()
    F.cross_entropy(model(data.inputs), data.labels).backward()
    head = model[4]
    sizes = torch.cat([head.weight.grad, head.bias.grad[:, None]], 1).abs().numpy()  # type: ignore[index, list-item]
    shape = concentration(model, data).autograd["gradient_ascent"]
    assert shape.pr_rows[0] == pytest.approx(float(participation_ratio(sizes.sum(1))), rel=1e-9)
    assert shape.pr_entries[0] == pytest.approx(float(participation_ratio(sizes.ravel())), rel=1e-9)
    assert shape.gini_entries[0] == pytest.approx(float(gini(sizes.ravel())), rel=1e-9)


class Scaled(nn.Module):
    """Logits that are not what the last linear layer puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x) / 2
        return logits


def test_models_that_the_theorem_is_not_about_are_refused() -> None:
    data = Examples(torch.randn(2, 8), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="linear"):
        concentration(Scaled(), data)
    with pytest.raises(InputError, match="linear"):
        concentration(nn.Sequential(nn.Unflatten(1, (8, 1)), nn.Conv1d(8, 5, 1), nn.Flatten()), data)
    with pytest.raises(InputError, match="outside"):
        concentration(network(), Examples(data.inputs, torch.tensor([0, 5])))


def test_runs_are_measured_as_they_are() -> None:
    model = network()
    model[3] = nn.Identity()  # dropout stays active while a model unlearns
    data = examples(model)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = torch.utils.data.TensorDataset(data.inputs[:1], data.labels[:1])
    measured = measure_updates(model, one, steps=(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(measured) == 4 * 5
    theoretical = concentration(model, one).closed_form
    found = {(m.method, m.optimizer, m.scope, m.steps): m for m in measured}
    for method, name in (
        ("targeted", "targeted"),
        ("targeted_lam3", "targeted"),
        ("neg_grad", "gradient_ascent"),
        ("random_label", "random_label"),
    ):
        first = found[method, "sgd", "all", 1]
        assert first.pr_rows == pytest.approx(theoretical[name].pr_rows[0], rel=1e-4)
        assert first.pr_entries == pytest.approx(theoretical[name].pr_entries[0], rel=1e-4)
        assert first.gini_rows == pytest.approx(theoretical[name].gini_rows[0], rel=1e-4)
        assert first.l1 > first.l1_last_layer > 0
        adam = found[method, "adam", "last_layer", 1]
        assert adam.pr_rows == pytest.approx(5, rel=1e-3)
        assert adam.pr_entries == pytest.approx(5 * 17, rel=1e-3)
        assert adam.l1 == adam.l1_last_layer
        assert found[method, "adam", "all", 3].l1 > found[method, "adam", "all", 3].l1_last_layer


@pytest.mark.parametrize(("rest", "expected"), [(5e-6, 10.0), (3e-8, 6.2), (2e-10, 3.2)])
def test_adams_first_step_is_even_only_where_gradients_are_above_its_epsilon(rest: float, expected: float) -> None:
    """Ascent on logits (gap, 2, 0, …, 0) with one feature of 1, as the docs have it; `rest` is 1 − p_y."""
    others = torch.tensor([2.0, *[0.0] * 8], dtype=torch.float64)
    gap = others.logsumexp(0) - torch.tensor(rest / (1 - rest), dtype=torch.float64).log()
    head = torch.cat([gap[None], others]).requires_grad_()
    optimizer = torch.optim.Adam([head], lr=1e-4)
    before = head.detach().clone()
    (-F.softplus(head[1:].logsumexp(0) - head[0])).backward()  # −CE, exact where p_y is nearly 1
    optimizer.step()
    moved = (head.detach() - before).abs().numpy()
    assert f"{participation_ratio(moved):.1f}" == f"{expected:.1f}"


def test_the_examples_in_the_docs_and_docstrings_run() -> None:
    page = Path(__file__).parents[1] / "docs" / "research" / "theory.md"
    assert doctest.testfile(str(page), module_relative=False).failed == 0
    results = doctest.testmod(theory)
    assert results.failed == 0
    assert results.attempted > 0
