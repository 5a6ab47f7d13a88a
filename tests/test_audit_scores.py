"""Scores, percentile ranks and membership inference against independent oracles: scikit-learn, SciPy, plain loops."""

import decimal
import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import optimize, special, stats
from sklearn.metrics import roc_auc_score, roc_curve

from expunge.errors import InputError, SettingError
from expunge.metrics.a2_bound import LOW, upper_moments, upper_values
from expunge.metrics.membership import auc, auc_interval, clopper_pearson, roc, tpr_at_fpr
from expunge.metrics.rank_test import (
    PercentileRanks,
    class_p_values,
    null_cumulants,
    percentile_ranks,
    standard_errors,
)
from expunge.metrics.rank_test import p_values as rank_p_values
from expunge.metrics.scores import cross_entropy, logit_scaled_confidence
from expunge.metrics.tail_counts import Tails, chance_of_as_many, tail_rank, tails

Floats = NDArray[np.float64]
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# --- scores --------------------------------------------------------------------------------------------------------


def exact_scores(logits: Floats, label: int) -> tuple[float, float]:
    """Logit-scaled confidence and cross-entropy of one example with 400 digits, by their definitions."""
    with decimal.localcontext() as context:
        context.prec = 400
        powers = [Decimal(float(z)).exp() for z in logits]
        p = [power / sum(powers) for power in powers]
        rest = sum(p[:label] + p[label + 1 :], Decimal(0))
        return float((p[label] / rest).ln()), float(-p[label].ln())


@st.composite
def labelled(draw: st.DrawFn, scale: float = 200.0) -> tuple[Floats, NDArray[np.int64]]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 7)))
    z = draw(arrays(np.float64, shape, elements=st.floats(-scale, scale)))
    return z, draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))


@PROPERTY
@given(labelled())
def test_scores_are_their_formulas_with_400_digits_even_where_the_softmax_saturates(
    given_: tuple[Floats, NDArray[np.int64]],
) -> None:
    z, y = given_
    exact = np.array([exact_scores(row, label) for row, label in zip(z, y, strict=True)])
    for computed, expected in zip((logit_scaled_confidence, cross_entropy), exact.T, strict=True):
        assert np.allclose(computed(z, y), expected, rtol=1e-9, atol=1e-12)


@PROPERTY
@given(labelled(scale=20.0), st.data())
def test_scores_change_with_the_classes_order_and_not_with_a_constant(
    given_: tuple[Floats, NDArray[np.int64]], data: st.DataObject
) -> None:
    z, y = given_
    order = np.array(data.draw(st.permutations(range(z.shape[1]))))
    for score in (logit_scaled_confidence, cross_entropy):
        assert np.allclose(score(z[:, order], np.argsort(order)[y]), score(z, y), rtol=1e-9, atol=1e-12)
        assert np.allclose(score(z + 7.0, y), score(z, y), rtol=1e-9, atol=1e-12)


def test_the_loss_and_the_margin_keep_their_digits_at_both_ends() -> None:
    z, y = [[800.0, 0.0], [0.0, 800.0]], [0, 0]
    assert logit_scaled_confidence(z, y).tolist() == [800.0, -800.0]
    assert cross_entropy([[100.0, 0.0], [0.0, 100.0]], y) == pytest.approx([math.exp(-100), 100.0], rel=1e-12, abs=0)


@pytest.mark.parametrize("score", [logit_scaled_confidence, cross_entropy])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0, math.nan]], [0], "NaN"),
        ([[1.0, math.inf]], [0], "infinity"),
        ([[1.0]], [0], "C ≥ 2"),
        ([1.0, 2.0], [0], "shape"),
        (np.empty((0, 3)), [], "N ≥ 1"),
        ([["a", "b"]], [0], "numbers"),
        ([[1.0, 2.0]], [2], r"\[0, 2\)"),
        ([[1.0, 2.0]], [-1], r"\[0, 2\)"),
        ([[1.0, 2.0]], [0, 1], "shape"),
        ([[1.0, 2.0]], [0.0], "integer"),
    ],
)
def test_scores_refuse_what_they_cannot_score(score: object, logits: object, labels: object, message: str) -> None:
    assert callable(score)
    with pytest.raises(InputError, match=message):
        score(logits, labels)


# --- percentile ranks ----------------------------------------------------------------------------------------------


@st.composite
def two_sets(draw: st.DrawFn, most: int = 12) -> tuple[Floats, Floats]:
    """Forgotten and held-out scores with many ties."""
    values = st.integers(-4, 4).map(float)
    return tuple(draw(st.lists(values, min_size=1, max_size=most).map(np.array)) for _ in range(2))  # type: ignore[return-value]


@PROPERTY
@given(two_sets())
def test_ranks_are_the_double_loop_of_their_definition(sets: tuple[Floats, Floats]) -> None:
    s, t = sets
    ranked = percentile_ranks(s, t)
    for u, x in zip(ranked.u, s, strict=True):
        assert u == pytest.approx(
            (sum(y < x for y in t) + 0.5 * sum(y == x for y in t) + 0.5) / (len(t) + 1), abs=1e-15
        )
    assert ranked.a1 == pytest.approx((len(t) * auc(s, t) + 0.5) / (len(t) + 1), abs=1e-12)
    assert ranked.a2 == pytest.approx(float(np.mean(np.abs(2 * ranked.u - 1))), abs=1e-12)


@PROPERTY
@given(two_sets())
def test_ranks_survive_increasing_functions_and_turn_round_with_the_sign(sets: tuple[Floats, Floats]) -> None:
    s, t = sets
    ranked, turned = percentile_ranks(s, t), percentile_ranks(-s, -t)
    assert np.array_equal(percentile_ranks(np.exp(s) + s**3, np.exp(t) + t**3).u, ranked.u)
    assert np.allclose(turned.u, 1 - ranked.u, atol=1e-15)
    assert turned.a2 == pytest.approx(ranked.a2, abs=1e-12)
    found, mirrored = tails(s, t), tails(-s, -t)
    assert (mirrored.k_plus, mirrored.k_minus) == (found.k_minus, found.k_plus)
    assert (mirrored.p_above, mirrored.p_below) == (found.p_below, found.p_above)
    assert standard_errors(turned) == pytest.approx(standard_errors(ranked), rel=1e-9)


def test_ranks_by_class_are_those_of_each_class_and_classes_without_held_out_examples_are_left_out() -> None:
    rng = np.random.default_rng(0)
    s, own = rng.standard_normal(60), rng.integers(4, size=60)
    t, others = rng.standard_normal(301), np.repeat([0, 1, 2], [200, 100, 1])
    ranked = percentile_ranks(s, t, forget_labels=own, test_labels=others)
    for label in range(4):
        among = t[others == label] if label < 3 else t
        assert np.array_equal(ranked.u[own == label], percentile_ranks(s[own == label], among).u)
    assert ranked.sizes == tuple(((own == label).sum(), size) for label, size in enumerate((200, 100, 1)))
    assert ranked.unmatched == (own == 3).sum() > 0
    assert ranked.num == 60 - ranked.unmatched
    known = own < 3
    kept = percentile_ranks(s[known], t, forget_labels=own[known], test_labels=others)
    assert (ranked.a1, ranked.a2) == (ranked.u[known].mean(), np.abs(2 * ranked.u[known] - 1).mean())
    assert (ranked.most_a2, rank_p_values(ranked), standard_errors(ranked)) == (
        kept.most_a2,
        rank_p_values(kept),
        standard_errors(kept),
    )
    order, heldout_order = rng.permutation(60), rng.permutation(301)
    shuffled = percentile_ranks(s[order], t[heldout_order], forget_labels=own[order], test_labels=others[heldout_order])
    assert np.array_equal(shuffled.u, ranked.u[order])
    assert rank_p_values(shuffled) == pytest.approx(rank_p_values(ranked), rel=1e-9)
    strangers = percentile_ranks(s, t, forget_labels=own + 9, test_labels=others)
    assert np.array_equal(strangers.u, percentile_ranks(s, t).u)
    assert (strangers.sizes, strangers.unmatched, percentile_ranks(s, t).unmatched) == (((60, 301),), 60, 0)


@PROPERTY
@given(st.integers(1, 30), st.integers(0, 2**32))
def test_a2_is_not_taken_for_small_because_few_held_out_examples_are_coarse(m: int, seed: int) -> None:
    """With two held-out examples |2u − 1| is 2/3 at most, and 1/2 on average, whatever the forgotten ones do."""
    s = np.random.default_rng(seed).choice([-9.0, 9.0], size=400)
    ranked = percentile_ranks(s, np.random.default_rng(seed + 1).standard_normal(m))
    assert ranked.a2 == pytest.approx(m / (m + 1), rel=1e-9)
    assert ranked.most_a2 == pytest.approx(upper_values(m)[0], rel=1e-12)
    assert ranked.most_a2 >= 1 - 1e-9


@pytest.mark.parametrize("m", [*range(1, 13), 25, 50, 100, 101])
def test_the_bound_of_a2_is_one_wherever_an_example_truly_stands_and_gives_away_less_than_jensens(m: int) -> None:
    p = np.linspace(0, 1, 997)
    values = upper_values(m)
    expected = stats.binom.pmf(np.arange(m + 1), m, p[:, None]) @ values
    assert bool((expected >= np.abs(2 * p - 1) - 2e-4).all())
    jensen = np.abs(2 * np.arange(m + 1) / m - 1)
    assert np.allclose(values, values[::-1], atol=1e-12)
    assert np.allclose(values, jensen) == (m == 1 or m > 100)
    assert values.mean() <= jensen.mean() + 1e-9
    assert upper_moments(m) == pytest.approx((values.mean(), max(1 / 12, values.var())), rel=1e-12)
    if m in {5, 10, 25}:
        assert values.mean() == pytest.approx({5: 0.549, 10: 0.524, 25: 0.508}[m], abs=1e-3)  # Jensen: 0.6, 0.55, 0.52


def test_a_tie_contributes_the_mean_of_its_ends_to_the_bound_of_a2() -> None:
    values = upper_values(5)
    ranked = percentile_ranks([0.0, 2.5], [0.0, 0.0, 1.0, 2.0, 3.0])  # between 0 and 2 below, and 4 below
    assert ranked.upper == pytest.approx([(values[0] + values[2]) / 2, values[4]], rel=1e-12)


@pytest.mark.parametrize("m", [2, 3, 5, 8])
def test_the_bound_of_a2_has_the_least_squares_of_all_such(m: int) -> None:
    """Against a general solver, from another start."""
    p = np.linspace(0.5, 1, 60)
    chance, wanted = stats.binom.pmf(np.arange(m + 1), m, p[:, None]), 2 * p - 1
    mirror = np.minimum(np.arange(m + 1), m - np.arange(m + 1))
    best = optimize.minimize(
        lambda x: ((x[mirror] - LOW) ** 2).sum(),
        np.ones(m // 2 + 1),
        constraints=[{"type": "ineq", "fun": lambda x: chance @ x[mirror] - wanted}],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert ((upper_values(m) - LOW) ** 2).sum() == pytest.approx(best.fun, rel=1e-6)


@pytest.mark.parametrize("m", [1, 49, 50, 99, 100, 149, 150, 999, 1000, 1049, 1050, 10000])
def test_the_tail_counts_are_ranks_beyond_99_and_1_percent(m: int) -> None:
    t = np.arange(float(m))
    s = np.arange(m + 1.0) - 0.5
    found = tails(s, t)
    assert found.k_plus == tail_rank(m) == sum(100 * (2 * i + 1) > 198 * (m + 1) for i in range(m + 1))
    assert np.array_equal(found.above, percentile_ranks(s, t).u > 0.99)
    assert np.array_equal(found.below, percentile_ranks(s, t).u < 0.01)


def test_ties_never_count_as_tails() -> None:
    t = np.concatenate([np.zeros(985), np.ones(15)])  # u of a tie at the top: 0.992
    assert percentile_ranks([1.0] * 16, t).u[0] > 0.99
    assert tails([1.0] * 16, t).k_plus == 0
    assert tails([1.5] * 16, t).k_plus == 16


def test_tails_of_large_classes_are_their_own_and_those_of_the_rest_are_of_all_other_held_out_examples() -> None:
    rng = np.random.default_rng(0)
    s, own = rng.standard_normal(400) + 1, rng.integers(4, size=400)
    t, others = rng.standard_normal(420), np.repeat([0, 1, 2, 3], [200, 100, 99, 21])
    found = tails(s, t, own, others)
    medians = [np.median(np.r_[s[own == c], t[others == c]]) if c >= 2 else 0.0 for c in range(4)]
    for classes in ([0], [1], [2, 3]):
        members, pool = np.isin(own, classes), np.isin(others, classes)
        threshold = np.sort((t - np.take(medians, others))[pool])[-tail_rank(int(pool.sum()))]
        assert np.array_equal(found.above[members], (s - np.take(medians, own))[members] > threshold)
    assert 0 < found.k_plus < 400
    turned = tails(-s, -t, own, others)
    assert np.array_equal(turned.below, found.above)
    assert (turned.p_below, turned.p_above) == (found.p_above, found.p_below)
    small = own >= 2, others >= 2
    moved = s + 9.0 * (own == 3), t + 9.0 * (others == 3)
    assert np.array_equal(tails(*moved, own, others).above, found.above)  # a small class is compared less its median
    only = tails(s[small[0]], t[small[1]], own[small[0]], others[small[1]])
    assert np.array_equal(only.above, found.above[small[0]])
    alone = tails(s[~small[0]], t[~small[1]], own[~small[0]], others[~small[1]])
    assert found.p_above == min(1.0, 2 * min(only.p_above, alone.p_above))
    assert found.p_below == min(1.0, 2 * min(only.p_below, alone.p_below))


def test_a_small_class_that_is_easier_hides_no_memorised_example_of_another() -> None:
    """Twenty classes of 25 held-out examples, each two standard deviations easier than the one before."""
    rng = np.random.default_rng(0)
    own, others = np.arange(100) % 20, np.arange(500) % 20
    s, t = rng.standard_normal(100), rng.standard_normal(500)
    s[:5] += 6
    found = tails(s + 2 * own, t + 2 * others, own, others)
    assert bool(found.above[:5].all())
    assert found.num_highest >= 5
    assert found.p_highest < 1e-3


def test_tails_leave_out_classes_without_held_out_examples_unless_all_are() -> None:
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal(40) + 3, rng.standard_normal(300)
    own, others = np.repeat([0, 7], 20), np.zeros(300, dtype=np.int64)
    found, kept = tails(s, t, own, others), tails(s[:20], t)
    assert np.array_equal(found.above, np.r_[kept.above, np.zeros(20, dtype=bool)])
    assert (found.p_above, found.p_highest, found.num_highest) == (kept.p_above, kept.p_highest, kept.num_highest)
    assert np.array_equal(tails(s, t, own + 1, others).above, tails(s, t).above)


@pytest.mark.parametrize(("n", "m"), [(5, 8), (40, 300)])
def test_the_p_value_of_the_highest_is_that_of_as_many_ahead_of_all_unseen_ones(n: int, m: int) -> None:
    """The first k of n + m in random order are all forgotten with probability n / (n + m) · (n − 1) / (n + m − 1) …"""
    for k in range(1, 5):
        s = np.r_[np.full(k, 9e9), np.full(n - k, 0.5)]
        expected = math.prod((n - i) / (n + m - i) for i in range(k))
        found, turned = tails(s, np.arange(float(m))), tails(-s, -np.arange(float(m)))
        assert (found.num_highest, turned.num_lowest) == (k, k)
        assert [found.p_highest, turned.p_lowest] == pytest.approx([expected] * 2, rel=1e-9)


def arrangement(ranks: tuple[int, ...], m: int) -> PercentileRanks:
    return percentile_ranks(np.array(ranks) - 0.5, np.arange(float(m)))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (2, 7), (3, 2), (3, 4), (4, 8), (5, 5), (9, 2), (40, 1)])
def test_null_cumulants_are_those_over_all_arrangements(n: int, m: int) -> None:
    every = [arrangement(ranks, m) for ranks in itertools.combinations_with_replacement(range(m + 1), n)]
    for values, found in zip(np.array([(x.a1, x.a2) for x in every]).T, null_cumulants(every[0]), strict=True):
        centred = values - values.mean()
        second, third, fourth = ((centred**k).mean() for k in (2, 3, 4))
        assert found == pytest.approx([values.mean(), second, third, fourth - 3 * second**2], rel=1e-9, abs=1e-12)


def test_null_cumulants_of_classes_add_up_and_tend_to_the_simple_formula() -> None:
    own, others = np.repeat([0, 1], [20, 44]), np.repeat([0, 1], [300, 100])
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal(64), rng.standard_normal(400)
    both = null_cumulants(percentile_ranks(s, t, forget_labels=own, test_labels=others))
    parts = [null_cumulants(percentile_ranks(s[own == c], t[others == c])) for c in (0, 1)]
    for which in (0, 1):
        for k in range(4):
            shares = (20 / 64) ** (k + 1), (44 / 64) ** (k + 1)
            total = sum(share * part[which][k] for share, part in zip(shares, parts, strict=True))
            assert both[which][k] == pytest.approx(total, rel=1e-9, abs=1e-15)
        simple = (1 / 64 + (20 / 64) ** 2 / 300 + (44 / 64) ** 2 / 100) / 12
        assert both[which][1] == pytest.approx(simple, rel=0.02)


@pytest.mark.parametrize("sizes", [((12, 1), (12, 2)), ((8, 2), (4, 40)), ((6, 3), (6, 1), (20, 2))])
def test_the_p_value_of_a2_over_tiny_classes_is_near_that_of_drawn_arrangements(
    sizes: tuple[tuple[int, int], ...],
) -> None:
    """|2u − 1| has one value among one held-out example, and a skewed distribution among two."""
    rng = np.random.default_rng(1)
    labels = [np.repeat(np.arange(len(sizes)), part) for part in zip(*sizes, strict=True)]
    drawn = []
    for _ in range(5000):
        s, t = (rng.standard_normal(len(part)) for part in labels)
        ranked = percentile_ranks(s, t, forget_labels=labels[0], test_labels=labels[1])
        drawn.append((ranked.a2, *(rank_p_values(ranked)[name] for name in ("a2", "a2_low"))))
    a2, high, low = np.array(drawn).T
    for p, as_far in ((high, [np.mean(a2 >= x - 1e-9) for x in a2]), (low, [np.mean(a2 <= x + 1e-9) for x in a2])):
        for level in (0.01, 0.05):
            assert np.mean(p <= level) <= level + 3 * math.sqrt(level / 5000)
        assert p[np.array(as_far) <= 0.01].max(initial=0.0) <= 0.1  # and not much too large


def test_the_p_value_of_a1_over_two_classes_is_that_over_all_arrangements_of_both() -> None:
    """Two classes of three forgotten among six held-out scores, each of whose arrangements is as likely."""
    n, m = 3, 6
    sums = np.bincount([sum(ranks) for ranks in itertools.combinations_with_replacement(range(m + 1), n)])
    both = np.convolve(sums, sums) / sums.sum() ** 2
    far = np.abs(np.arange(len(both)) - n * m)
    labels = {"forget_labels": np.repeat([0, 1], n), "test_labels": np.repeat([0, 1], m)}
    t = np.tile(np.arange(m) + 0.5, 2)
    for total in range(n * m + 1, 2 * n * m + 1):
        exact = float(both[far >= total - n * m].sum())
        first = min(total, n * m)  # the sum of ranks of the first class, and then the ranks
        ranks = [(part + k) // n for part in (first, total - first) for k in range(n)]
        ranked = percentile_ranks(np.array(ranks, float), t, **labels)
        assert rank_p_values(ranked)["a1"] == pytest.approx(exact, rel=1e-9)


def test_tied_ranks_have_the_p_value_of_the_next_larger_sum() -> None:
    """Two among three held-out scores have rank sums 0 to 6 in 1, 1, 2, 2, 2, 1 and 1 of ten arrangements."""
    for s, p in (([9.0, 9.0], 0.2), ([1.0, 9.0], 0.4), ([1.0, 1.5], 0.8), ([0.5, 1.5], 1.0), ([-1.0, 1.0], 0.4)):
        assert rank_p_values(percentile_ranks(s, [0.0, 1.0, 2.0]))["a1"] == pytest.approx(p, rel=1e-12)


def test_the_p_value_of_one_class_is_the_smallest_of_all_classes_corrected_for_their_number() -> None:
    rng = np.random.default_rng(0)
    own, others = np.arange(60) % 3, np.arange(600) % 3
    s, t = rng.standard_normal(60) - 1.0 * (own == 2), rng.standard_normal(600)
    ranked = percentile_ranks(s, t, forget_labels=own, test_labels=others)
    alone = [rank_p_values(percentile_ranks(s[own == c], t[others == c]))["a1"] for c in range(3)]
    assert class_p_values(ranked) == pytest.approx(alone, rel=1e-9)
    assert alone[2] == min(alone)
    assert rank_p_values(ranked)["one_class"] == pytest.approx(1 - (1 - alone[2]) ** 3, rel=1e-9)
    assert rank_p_values(percentile_ranks(s, t))["one_class"] == rank_p_values(percentile_ranks(s, t))["a1"]


@pytest.mark.parametrize(("n", "m"), [(2, 1000), (6, 40), (10, 80), (16, 60), (30, 30)])
def test_the_p_value_of_a1_is_that_of_the_exact_rank_sum_test(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    for mean in np.linspace(-0.5, 1.2, 12):
        s, t = rng.standard_normal(n) + mean, rng.standard_normal(m)
        exact = stats.mannwhitneyu(s, t, alternative="two-sided", method="exact").pvalue
        if n <= 10 or exact > 1e-3:
            tolerance = 1e-9 if n <= 10 else 0.03
            assert rank_p_values(percentile_ranks(s, t))["a1"] == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize(("n", "m"), [(1, 20), (1, 101), (2, 30), (3, 16), (4, 9)])
def test_p_values_of_tiny_sets_hold_their_level_over_all_arrangements(n: int, m: int) -> None:
    every = []
    for ranks in itertools.combinations_with_replacement(range(m + 1), n):
        found = tails(np.array(ranks) - 0.5, np.arange(float(m)))
        of_tails = {"k_plus": found.p_above, "highest": found.p_highest, "k_minus": found.p_below}
        every.append({**rank_p_values(arrangement(ranks, m)), **of_tails})
    for name in ("a1", "a2", "a2_low", "one_class", "k_plus", "highest", "k_minus"):
        for level in (0.01, 0.05, 0.2):
            assert np.mean([p[name] <= level for p in every]) <= 1.1 * level
        assert min(p[name] for p in every) >= (1 - 1e-9) / len(every), "less than one arrangement"


def test_the_p_value_of_k_plus_is_the_beta_binomial_tail() -> None:
    t = np.arange(1000.0)
    for hits in range(1, 9):
        s = [2000.0] * hits + [0.5] * (64 - hits)
        expected = stats.betabinom.sf(hits - 1, 64, 10, 991)
        assert tails(s, t).p_above == pytest.approx(expected, rel=1e-9)
        halves = np.arange(1000) % 20  # classes of 50, all forgotten ones of them: a permutation test within classes
        within = tails(s, t, np.arange(64) % 20, halves).p_above
        assert hits > 4 or within == pytest.approx(expected, rel=0.3)
    own, others = np.repeat([0, 1], [30, 34]), np.repeat([0, 1], [400, 600])
    s = np.r_[[9e9, 9e9], np.full(28, 5.5), [9e9], np.full(33, 500.5)]
    first, second = stats.betabinom(30, 4, 397), stats.betabinom(34, 6, 595)
    exact = sum(first.pmf(i) * second.sf(2 - i) for i in range(31))
    assert tails(np.asarray(s), t, own, others).p_above == pytest.approx(exact, rel=1e-9)


def test_the_p_value_of_small_classes_is_that_of_permutations_within_them() -> None:
    """Two classes of 12 + 30 and 3 + 30 examples, of which the first is easier."""
    rng = np.random.default_rng(1)
    scores = [rng.standard_normal(42) + 1.5, rng.standard_normal(33)]
    drawn = [
        _tails_of_draw(scores, tuple(tuple(rng.permutation(len(x))[:k]) for x, k in zip(scores, (12, 3), strict=True)))
        for _ in range(3000)
    ]
    counts = np.array([found.k_plus for found in drawn])
    by_count = {found.k_plus: found.p_above for found in drawn}
    assert len(by_count) > 3
    for count, p in by_count.items():
        assert p == pytest.approx(np.mean(counts >= count), abs=0.04)  # four standard errors
    assert by_count[1] > 1.2 * stats.betabinom.sf(0, 15, 1, 60)  # classes alike would have fewer


def _tails_of_draw(scores: list[Floats], chosen: tuple[tuple[int, ...], ...]) -> Tails:
    forgotten = [x[list(index)] for x, index in zip(scores, chosen, strict=True)]
    heldout = [np.delete(x, list(index)) for x, index in zip(scores, chosen, strict=True)]
    labels = [np.repeat([0, 1], [len(part) for part in parts]) for parts in (forgotten, heldout)]
    return tails(np.concatenate(forgotten), np.concatenate(heldout), labels[0], labels[1])


def test_the_chance_of_as_many_is_hypergeometric_in_each_class() -> None:
    everything, forgotten = np.repeat([0, 1], [20, 30]), np.repeat([0, 1], [5, 3])
    hits = np.repeat([0, 1], [4, 6])
    first, second = stats.hypergeom(20, 5, 4), stats.hypergeom(30, 3, 6)
    expected = sum(first.pmf(i) * second.sf(2 - i) for i in range(5))
    assert chance_of_as_many(hits, forgotten, everything, 3) == pytest.approx(expected, rel=1e-12)
    assert chance_of_as_many(hits, forgotten, everything, 0) == pytest.approx(1.0)


def variance_of_heldout(s: Floats, t: Floats) -> tuple[float, float]:
    """Of what a held-out score t adds to A1 and to A2: the share of forgotten ones above it, and twice that share, of
    the upper half less of the lower. Without ties, and for an odd number of held-out scores, so that no u is ½."""
    lower = t[None] < s[:, None]
    upper = np.where(lower.sum(1) > len(t) / 2, 1.0, -1.0)
    return lower.mean(0).var(ddof=1), (2 * (upper[:, None] * lower).mean(0)).var(ddof=1)


def parts_of_errors(s: Floats, t: Floats) -> tuple[Floats, Floats]:
    """Of A1 and of the bound of A2: sample variances over forgotten and over held-out scores, none below the null's."""
    values = upper_values(len(t))
    places = (t[None] < s[:, None]).sum(1)
    own = ((places + 0.5) / (len(t) + 1)).var(ddof=1), values[places].var(ddof=1)
    floors = 1 / 12, max(1 / 12, values.var())
    a1, a2 = (np.maximum(low, pair) for low, *pair in zip(floors, own, variance_of_heldout(s, t), strict=True))
    return a1, a2


def test_standard_errors_are_delongs_where_larger_than_under_the_null() -> None:
    rng = np.random.default_rng(0)
    wide, near = 3 * rng.standard_normal(80), 0.3 * rng.standard_normal(80)
    halves = np.repeat([-0.7, 0.7], 40) + 0.01 * rng.standard_normal(80)  # at either quartile
    t = rng.standard_normal(51)
    above_floor = []
    for s in (wide, near, halves):
        floors = 1 / 12, upper_values(51).var()
        found = standard_errors(percentile_ranks(s, t))
        for error, (own, heldout), floor in zip(found, parts_of_errors(s, t), floors, strict=True):
            assert error == pytest.approx(math.sqrt(own / 80 + heldout / 51), rel=1e-9)
            above_floor.append((own > floor, heldout > floor))
    (wide_a1, _, near_a1, _, _, halves_a2) = above_floor
    assert (wide_a1, near_a1, halves_a2) == ((True, False), (False, True), (False, True))
    flat = percentile_ranks([0.0] * 16, t)  # all alike, and yet not precise
    assert standard_errors(flat)[0] >= math.sqrt((1 / 16 + 1 / 51) / 12)


def test_the_error_of_classes_adds_up() -> None:
    rng = np.random.default_rng(0)
    own, others = np.repeat([0, 1], [20, 30]), np.repeat([0, 1, 3], [91, 61, 49])
    s, t = 0.3 * rng.standard_normal(50), rng.standard_normal(201)
    ranked = percentile_ranks(s, t, forget_labels=own, test_labels=others)
    groups = [(s[own == label], t[others == label]) for label in (0, 1)]
    for number, error in enumerate(standard_errors(ranked)):
        values = ranked.u if number == 0 else ranked.upper
        floors = (1 / 12, 1 / 12) if number == 0 else [upper_values(len(b)).var() for _, b in groups]
        shares = [(len(a) / 50, len(a) * (len(a) - 1) / (50 * 49 * len(b)), a, b) for a, b in groups]
        forgot = sum(share * low for (share, *_), low in zip(shares, floors, strict=True))
        heldout = sum(weight * low for (_, weight, *_), low in zip(shares, floors, strict=True))
        sampled = sum(weight * variance_of_heldout(a, b)[number] for _, weight, a, b in shares)
        expected = max(forgot, values.var(ddof=1)) / 50 + max(heldout, sampled)
        assert error == pytest.approx(math.sqrt(expected), rel=1e-9)


@pytest.mark.parametrize("sizes", [[(40, 20)], [(2, 5)] * 20, [(1, 3)] * 30, [(1, 4), (30, 40), (4, 1)]])
def test_standard_errors_are_near_how_much_a1_and_the_bound_of_a2_vary(sizes: list[tuple[int, int]]) -> None:
    """Also where a class has one forgotten example. They are somewhat larger, as the null's variance is the least."""
    rng = np.random.default_rng(0)
    own, others = (np.repeat(np.arange(len(sizes)), part) for part in zip(*sizes, strict=True))
    for spread in (1.0, 1.5):
        found = []
        for _ in range(1500):
            s, t = spread * rng.standard_normal(len(own)), rng.standard_normal(len(others))
            ranked = percentile_ranks(s, t, forget_labels=own, test_labels=others)
            found.append((ranked.a1, ranked.most_a2, *standard_errors(ranked)))
        values = np.array(found).T
        for value, error in zip(values[:2], values[2:], strict=True):
            assert 0.95 * value.std() <= math.sqrt((error**2).mean()) <= 1.3 * value.std()


# --- membership ----------------------------------------------------------------------------------------------------


@PROPERTY
@given(two_sets())
def test_auc_is_that_of_scikit_learn_and_scipy_and_of_the_double_loop(sets: tuple[Floats, Floats]) -> None:
    s, t = sets
    truth = np.r_[np.ones(len(s)), np.zeros(len(t))]
    value = auc(s, t)
    assert value == pytest.approx(roc_auc_score(truth, np.r_[s, t]), abs=1e-9)
    assert value == pytest.approx(stats.mannwhitneyu(s, t).statistic / (len(s) * len(t)), abs=1e-9)
    assert value == pytest.approx(np.mean([(x > y) + 0.5 * (x == y) for x in s for y in t]), abs=1e-9)
    assert value == pytest.approx(1 - auc(t, s), abs=1e-12)
    low, high = auc_interval(s, t)
    assert 0 <= low <= value <= high <= 1
    assert auc_interval(-s, -t) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@PROPERTY
@given(two_sets(most=30))
def test_the_roc_curve_is_that_of_scikit_learn_and_encloses_the_auc(sets: tuple[Floats, Floats]) -> None:
    s, t = sets
    fpr, tpr = roc(s, t)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert bool((np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all())
    assert (np.diff(fpr) * (tpr[1:] + tpr[:-1])).sum() / 2 == pytest.approx(auc(s, t), abs=1e-9)
    every_fpr, every_tpr, _ = roc_curve(np.r_[np.ones(len(s)), np.zeros(len(t))], np.r_[s, t], drop_intermediate=False)
    points = set(zip(every_fpr.round(9), every_tpr.round(9), strict=True))
    assert set(zip(fpr.round(9), tpr.round(9), strict=True)) <= points


@PROPERTY
@given(st.integers(1, 400), st.data())
def test_clopper_pearson_is_that_of_scipy(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_zero_hits_bound_the_rate_as_known() -> None:
    """One-sided 95%, so two-sided 90%."""
    assert clopper_pearson(0, 59, confidence=0.9)[1] == pytest.approx(0.0495, abs=1e-4)
    assert clopper_pearson(0, 299, confidence=0.9)[1] < 0.01


def test_the_aucs_interval_is_delongs_for_many_examples_and_clopper_pearsons_for_few() -> None:
    rng = np.random.default_rng(0)
    t = rng.standard_normal(200)
    s = rng.standard_normal(64) + 0.5
    first = np.array([np.mean((t < x) + 0.5 * (t == x)) for x in s])
    second = np.array([np.mean((s > y) + 0.5 * (s == y)) for y in t])
    area = float(first.mean())
    error = math.sqrt(first.var(ddof=1) / len(s) + second.var(ddof=1) / len(t))
    half = stats.t.ppf(0.975, len(s) - 1) * error / (area * (1 - area))
    expected = special.expit(special.logit(area) + half * np.array([-1, 1]))
    assert auc_interval(s, t) == pytest.approx(tuple(expected), abs=1e-9)
    tied = np.zeros(64), np.zeros(80)  # without variance
    assert 0.9 < auc(s + 1.6, t) < 0.95
    assert 0.05 < auc(s - 2.6, t) < 0.1
    for few, heldout in ((s[:-1], t), (s, t[:63]), (s + 5, t), (s + 1.6, t), (s - 2.6, t), tied):
        n, m = len(few), len(heldout)
        trials, share = n * m / (n + m), auc(few, heldout)
        low, high = auc_interval(few, heldout)
        assert low == pytest.approx(stats.beta.ppf(0.025, share * trials, trials - share * trials + 1), abs=1e-9)
        expected_high = 1.0 if share == 1 else stats.beta.ppf(0.975, share * trials + 1, trials - share * trials)
        assert high == pytest.approx(expected_high, abs=1e-9)


@pytest.mark.parametrize(("n", "area", "spread"), [(16, 0.99, 30.0), (16, 0.95, 1.0), (64, 0.8, 1.0), (64, 0.6, 1 / 3)])
def test_the_aucs_interval_holds_the_true_one_where_simple_intervals_do_not(n: int, area: float, spread: float) -> None:
    rng = np.random.default_rng(7)
    mean, hits = special.ndtri(area) * math.hypot(1, spread), 0
    for _ in range(1000):
        low, high = auc_interval(mean + spread * rng.standard_normal(n), rng.standard_normal(500))
        hits += low <= area <= high
    assert hits >= 1000 * 0.95 - 3 * math.sqrt(1000 * 0.95 * 0.05)


@PROPERTY
@given(two_sets(most=30), st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]))
def test_the_true_positive_rate_is_counted_above_the_kth_largest(sets: tuple[Floats, Floats], fpr: float) -> None:
    s, t = sets
    k = int(round(fpr * 100) * (len(t) + 1) // 100)
    rate = tpr_at_fpr(s, t, fpr)
    if k == 0:
        assert rate is None
        return
    assert rate is not None
    threshold = sorted(t, reverse=True)[k - 1]
    hits = sum(x > threshold for x in s)
    interval = stats.binomtest(hits, len(s)).proportion_ci(0.95, method="exact")
    assert (rate.hits, rate.num, rate.value) == (hits, len(s), hits / len(s))
    assert (rate.low, rate.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert sum(y > threshold for y in t) / len(t) <= fpr


def test_a_rate_at_a_threshold_that_the_data_cannot_hold_is_not_reported() -> None:
    """privacytrustlab/ml_privacy_meter prints TPR at 0.1% for any number of examples, without an interval."""
    s = np.full(16, 1e9)
    assert tpr_at_fpr(s, np.arange(998.0), 0.001) is None
    rate = tpr_at_fpr(s, np.arange(999.0), 0.001)
    assert rate is not None
    assert (rate.value, rate.high) == (1.0, 1.0)
    assert rate.low == pytest.approx(0.025 ** (1 / 16), abs=1e-12)
    assert tpr_at_fpr(s, np.arange(98.0), 0.01) is None
    assert tpr_at_fpr(s, np.arange(99.0), 0.29) is not None  # 0.29 · 100 is 28.999… in binary
    assert tpr_at_fpr([70.5], np.arange(99.0), 0.29).hits == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("compare", [auc, auc_interval, roc, percentile_ranks, lambda s, t: tpr_at_fpr(s, t, 0.1)])
@pytest.mark.parametrize(
    ("s", "t", "message"),
    [
        ([], [1.0], "forget_scores"),
        ([1.0], [], "test_scores"),
        ([math.nan], [1.0], "NaN"),
        ([1.0], [-math.inf], "infinity"),
        ([[1.0]], [1.0], "shape"),
        (["a"], [1.0], "numbers"),
    ],
)
def test_comparisons_refuse_scores_that_are_none(compare: object, s: object, t: object, message: str) -> None:
    assert callable(compare)
    with pytest.raises(InputError, match=message):
        compare(s, t)


def test_settings_out_of_range_are_refused() -> None:
    for fpr in (0.0, 1.0, math.nan):
        with pytest.raises(SettingError, match="fpr"):
            tpr_at_fpr([1.0], [1.0], fpr)
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(SettingError, match="confidence"):
            tpr_at_fpr([1.0], [1.0], 0.5, confidence=confidence)
        with pytest.raises(SettingError, match="confidence"):
            auc_interval([1.0], [1.0], confidence=confidence)
    with pytest.raises(SettingError, match="hits"):
        clopper_pearson(3, 2)
    with pytest.raises(InputError, match="labels"):
        percentile_ranks([1.0], [1.0], forget_labels=[0])
    with pytest.raises(InputError, match=r"test_labels.*shape"):
        percentile_ranks([1.0], [1.0], forget_labels=[0], test_labels=[0, 1])
    with pytest.raises(InputError, match=r"forget_labels.*integer"):
        percentile_ranks([1.0], [1.0], forget_labels=[0.5], test_labels=[0])
