"""The verdict on scores: what it is, what it says, and how often it is wrong."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from expunge.errors import InputError
from expunge.metrics.membership import auc_interval, tpr_at_fpr
from expunge.metrics.rank_test import p_values, percentile_ranks, standard_errors
from expunge.metrics.tail_counts import tails
from expunge.metrics.verdict import MARGIN, ScoreTest, Z, alarms, can_pass, score_test

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
HELDOUT = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
"""A normal sample without the noise of sampling."""

P_VALUES = {"a1", "a2", "a2_low", "k_plus", "k_minus", "highest", "lowest", "one_class"}


def spaced(num: int, mean: float = 0.0) -> Floats:
    """A normal sample without the noise of sampling."""
    return np.asarray(stats.norm.ppf((np.arange(num) + 0.5) / num) + mean)


# --- what it says --------------------------------------------------------------------------------------------------


def test_memorised_examples_fail_and_the_reason_says_so() -> None:
    result = score_test(spaced(16, 2.0), HELDOUT)
    assert result.verdict == "FAIL"
    assert "remembers" in result.reason
    assert "forced" not in result.reason
    assert result.p_values["a1"] < 0.01


def test_over_forgotten_examples_fail_because_they_were_forced_to_be_wrong() -> None:
    result = score_test(spaced(16, -9.0), HELDOUT)
    assert result.verdict == "FAIL"
    assert "16 of 16" in result.reason
    assert "forced" in result.reason
    assert "remember" not in result.reason
    assert (result.k_plus, result.k_minus) == (0, 16)
    assert result.p_values["a1"] < 0.01
    assert result.a1_interval[0] == 0.0


def test_examples_that_are_all_a_little_too_low_fail_too() -> None:
    """None is in either tail, but none scores as high as most unseen ones either."""
    result = score_test(stats.norm.ppf(np.linspace(0.2, 0.42, 16)), HELDOUT)
    assert result.verdict == "FAIL"
    assert alarms(result.p_values) == {"a1", "one_class"}  # there is one class alone
    assert result.a2 < 0.5
    assert "31%" in result.reason
    assert "too far" in result.reason


def test_half_memorised_half_over_forgotten_fails_though_the_mean_is_blind() -> None:
    result = score_test(np.r_[spaced(8, 2.0), -spaced(8, 2.0)], HELDOUT)
    assert result.verdict == "FAIL"
    assert result.a1 == pytest.approx(0.5, abs=1e-9)
    assert result.p_values["a1"] > 0.4
    assert result.a2 == pytest.approx(0.86, abs=0.04)
    assert re.search(r"[78] of 16 .*lowest.* [78] .*highest", result.reason)
    assert "forced" in result.reason


def test_a_few_memorised_among_many_forgotten_fail_by_the_tail_alone() -> None:
    result = score_test(np.r_[spaced(122), np.full(6, 9.0)], HELDOUT)
    assert result.verdict == "FAIL"
    assert alarms(result.p_values) == {"k_plus", "highest"}
    assert f"{result.k_plus} of 128 " in result.reason


def test_high_but_not_extreme_scores_are_described_where_only_a2_notices() -> None:
    u = np.r_[np.full(19, 0.02), np.full(45, 0.78)]
    result = score_test(stats.norm.ppf(u), HELDOUT)
    assert "a2" in alarms(result.p_values)
    assert "highest" in result.reason


def test_examples_like_unseen_ones_pass_where_there_are_enough() -> None:
    result = score_test(spaced(128), HELDOUT)
    assert result.verdict == "PASS"
    assert "like unseen" in result.reason
    assert 0.5 - MARGIN <= result.a1_interval[0] < result.a1 < result.a1_interval[1] <= 0.5 + MARGIN
    assert result.a2 < result.a2_upper <= 0.5 + MARGIN


def test_sixteen_examples_reveal_gross_failure_only() -> None:
    result = score_test(spaced(16), HELDOUT)
    assert result.verdict == "INCONCLUSIVE"
    assert re.search(r"^16 examples .* 0/16 .*1% .*\[0\.00, 0\.21\].*0\.1% .*\[0\.00, 0\.21\]", result.reason)
    few = score_test(spaced(16), HELDOUT[::2])
    assert few.tpr_at_fpr[0.001] is None
    assert "999" in few.reason
    low = score_test(spaced(16, -0.6), HELDOUT)
    assert low.verdict == "INCONCLUSIVE"
    assert "too far" in low.reason


def test_few_held_out_examples_are_named_where_they_are_what_is_missing() -> None:
    result = score_test(spaced(512), HELDOUT[25::50])
    assert result.verdict == "INCONCLUSIVE"
    assert result.reason.startswith("20 held-out")


def test_between_the_verdicts_the_reason_says_what_is_missing() -> None:
    high = score_test(spaced(72, 0.2), HELDOUT)
    assert high.verdict == "INCONCLUSIVE"
    assert "40% to 60%" in high.reason
    wide = score_test(1.2 * spaced(128), HELDOUT)
    assert wide.verdict == "INCONCLUSIVE"
    assert f"{wide.a2_upper:.2f}" in wide.reason
    low = score_test(spaced(128, -0.2), HELDOUT)
    assert low.verdict == "INCONCLUSIVE"
    assert "too far" in low.reason


def classes_of(forgotten: int, heldout: int, num_classes: int) -> tuple[Integers, Integers]:
    return np.arange(forgotten) % num_classes, np.arange(heldout) % num_classes


def test_one_memorised_class_of_ten_fails_though_the_rest_are_forgotten() -> None:
    own, others = classes_of(100, 500, 10)
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal(100), rng.standard_normal(500)
    for shift in (3.0, -3.0):
        result = score_test(s + shift * (own == 4), t, forget_labels=own, test_labels=others)
        assert result.verdict == "FAIL"
        assert "one_class" in alarms(result.p_values)
    result = score_test(s - 1.3 * (own == 4), t, forget_labels=own, test_labels=others)
    assert alarms(result.p_values) == {"one_class"}
    assert re.search(r"the 10 of one class .* above (?:\d|1\d)% ", result.reason)


def test_five_far_above_as_many_unseen_ones_keep_from_passing_and_five_far_below_too() -> None:
    """Of 95 and 100 in random order, the first five are forgotten with probability 0.03: that is no proof."""
    s, t = np.r_[spaced(95), np.full(5, 6.0)], spaced(100) + 1e-6
    high, low = score_test(s, t), score_test(-s, -t)
    assert (high.verdict, low.verdict) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert high.p_values["highest"] == low.p_values["lowest"] == pytest.approx(0.0297, abs=1e-4)
    assert "5 of 100 score above all" in high.reason
    assert "5 of 100 score below all" in low.reason


def test_classes_without_held_out_examples_are_left_out_and_most_of_them_leave_no_verdict() -> None:
    """Class 1 is three standard deviations easier: among held-out examples of class 0 it would be an alarm."""
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal(300), rng.standard_normal(1000)
    own, others = np.repeat([0, 1], [200, 100]), np.zeros(1000, dtype=np.int64)
    few = score_test(s + 3 * own, t, forget_labels=own, test_labels=others)
    kept = score_test(s[:200], t)
    assert (few.verdict, few.unmatched) == ("PASS", 100)
    assert (few.a1, few.a2, few.p_values, few.k_plus) == (kept.a1, kept.a2, kept.p_values, kept.k_plus)
    for share, verdict in ((100, "PASS"), (101, "INCONCLUSIVE"), (200, "INCONCLUSIVE")):
        own = np.repeat([1, 0], [share, 200 - share])
        result = score_test(s[:200] + 9 * own, t, forget_labels=own, test_labels=others)
        assert (result.verdict, result.unmatched) == (verdict, share)
        if verdict == "INCONCLUSIVE":
            assert f"{share} of 200" in result.reason
            assert "give held-out examples" in result.reason
        assert 0 <= result.a1 <= 1
        assert all(0 <= p <= 1 for p in result.p_values.values())
    known = np.repeat([1, 0], [150, 50])
    memorised = score_test(s[:200] + 3.0, t, forget_labels=known, test_labels=others)
    assert memorised.verdict == "INCONCLUSIVE"
    assert "other 50 are recognisable" in memorised.reason


# --- its numbers ---------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_its_function() -> None:
    rng = np.random.default_rng(0)
    own, others = rng.integers(3, size=70), rng.integers(3, size=900)
    s, t = rng.standard_normal(70) + own, rng.standard_normal(900) + others
    result = score_test(s, t, forget_labels=own, test_labels=others)
    ranked = percentile_ranks(s, t, forget_labels=own, test_labels=others)
    errors = standard_errors(ranked)
    assert (result.a1, result.a2) == (ranked.a1, ranked.a2)
    outer = tails(s, t, own, others)
    assert (result.k_plus, result.k_minus) == (outer.k_plus, outer.k_minus)
    of_tails = {"k_plus": outer.p_above, "k_minus": outer.p_below, "highest": outer.p_highest, "lowest": outer.p_lowest}
    assert result.p_values == {**p_values(ranked), **of_tails}
    assert result.a1_interval == pytest.approx((ranked.a1 - Z * errors[0], ranked.a1 + Z * errors[0]), abs=1e-12)
    assert result.a2_upper == pytest.approx(ranked.most_a2 + Z * errors[1], abs=1e-12)
    assert pytest.approx(stats.norm.ppf(0.95), abs=1e-12) == Z
    # The attack of the literature has one threshold for all classes.
    assert result.auc == pytest.approx(roc_auc_score(np.r_[np.ones(70), np.zeros(900)], np.r_[s, t]), abs=1e-9)
    assert result.auc_interval == auc_interval(s, t)
    assert result.tpr_at_fpr == {0.01: tpr_at_fpr(s, t, 0.01), 0.001: None}
    assert (result.num_forget, result.num_test) == (70, 900)


def test_a_forget_set_of_easy_classes_is_no_alarm_with_labels_and_one_without() -> None:
    rng = np.random.default_rng(0)
    own, others = np.full(200, 1), np.arange(2000) % 2
    s, t = rng.standard_normal(200) + 2 * own, rng.standard_normal(2000) + 2 * others
    assert score_test(s, t, forget_labels=own, test_labels=others).verdict == "PASS"
    assert score_test(s, t).verdict == "FAIL"


def test_a_result_goes_to_json_and_cannot_be_changed() -> None:
    result = score_test(spaced(16), HELDOUT[::2])
    content = json.loads(json.dumps(dataclasses.asdict(result)))
    assert content["verdict"] == "INCONCLUSIVE"
    assert content["tpr_at_fpr"]["0.01"]["hits"] == 0
    assert content["tpr_at_fpr"]["0.001"] is None
    assert set(content["p_values"]) == P_VALUES
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.verdict = "PASS"  # type: ignore[misc]


SCORES = st.integers(-50, 50).map(lambda value: value / 10)


@PROPERTY
@given(
    arrays(np.float64, st.integers(1, 40), elements=SCORES),
    arrays(np.float64, st.integers(1, 300), elements=SCORES),
    st.randoms(use_true_random=False),
)
def test_any_scores_give_a_sentence_and_numbers_in_range_whatever_their_order_and_scale(
    s: Floats, t: Floats, random: object
) -> None:
    result = score_test(s, t)
    assert re.fullmatch(r"[A-Z0-9][^\n]*\.", result.reason)
    assert not re.search(r"nan|inf\b|None", result.reason)
    for value in (result.a1, result.a2, result.a2_upper, result.auc, *result.a1_interval, *result.p_values.values()):
        assert 0 <= value <= 1
    assert result.a1_interval[0] <= result.a1 <= result.a1_interval[1]
    assert (result.verdict == "FAIL") == bool(alarms(result.p_values))
    rng = np.random.default_rng(len(s))
    again = score_test(np.exp(rng.permutation(s)), np.exp(rng.permutation(t)))
    assert again.reason == result.reason
    assert again.a2_upper == pytest.approx(result.a2_upper, abs=1e-9)


def test_bad_input_is_refused() -> None:
    for s, t in (([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [[1.0]])):
        with pytest.raises(InputError):
            score_test(s, t)
    with pytest.raises(InputError, match="labels"):
        score_test([1.0], [1.0], test_labels=[0])


@pytest.mark.parametrize("name", sorted(P_VALUES))
def test_each_of_five_p_values_fails_below_a_fifth_of_five_percent_and_the_others_never(name: str) -> None:
    others = dict.fromkeys(P_VALUES, 1.0)
    fails = name in {"a1", "a2", "k_plus", "highest", "one_class"}
    assert alarms({**others, name: 0.0099}) == ({name} if fails else set())
    assert alarms({**others, name: 0.0101}) == set()


def test_quarters_are_counted_as_they_are_named() -> None:
    u = np.r_[np.full(10, 0.1), np.full(4, 0.27), np.full(3, 0.73), np.full(11, 0.9)]
    reason = score_test(stats.norm.ppf(u), HELDOUT).reason
    assert re.search(r"10 of 28 .* lowest .* 11 .* highest", reason)


# --- how often it is wrong -----------------------------------------------------------------------------------------


def repeated(seed: int, repetitions: int, n: int, mean: float = 0.0, spread: float = 1.0) -> list[ScoreTest]:
    rng = np.random.default_rng(seed)
    return [score_test(mean + spread * rng.standard_normal(n), rng.standard_normal(1000)) for _ in range(repetitions)]


def most(share: float, repetitions: int) -> float:
    """Hits that a share gives with a probability of less than 1 in 1,000."""
    return float(stats.binom.ppf(0.999, repetitions, share))


def test_sixteen_or_twentytwo_examples_never_pass_and_cannot() -> None:
    """The interval of A1 is at least 2 · 1.645 · √(1 / 12 n) wide, which is more than 0.2 for n ≤ 22."""
    assert not can_pass([(22, 10**6)])
    assert can_pass([(23, 10**6)])
    for seed, s in enumerate((spaced(16), np.zeros(16), spaced(22), np.zeros(22))):
        assert score_test(s, HELDOUT).verdict == "INCONCLUSIVE", seed
    assert all(result.verdict != "PASS" for result in repeated(1, 300, 16))


@pytest.mark.parametrize("n", [5, 16, 64])
def test_false_alarms_stay_within_their_level(n: int) -> None:
    rng = np.random.default_rng(n)
    alarmed = 0
    for _ in range(1500):
        own, others = rng.integers(3, size=n), np.arange(450) % 3
        s, t = rng.standard_normal(n) + own, rng.standard_normal(450) + others
        alarmed += score_test(s, t, forget_labels=own, test_labels=others).verdict == "FAIL"
    assert alarmed <= most(0.05, 1500)


@pytest.mark.parametrize("forgotten", ["one class", "a draw"])
@pytest.mark.parametrize("per_class", [3, 24, 99])
def test_small_classes_of_other_difficulty_raise_no_more_false_alarms(per_class: int, forgotten: str) -> None:
    """Each class is two standard deviations easier than the one before."""
    rng = np.random.default_rng(per_class)
    alarmed, others = 0, np.repeat(np.arange(5), per_class)
    for _ in range(600):
        own = np.zeros(64, dtype=np.int64) if forgotten == "one class" else rng.integers(5, size=64)
        s, t = rng.standard_normal(64) + 2 * own, rng.standard_normal(len(others)) + 2 * others
        alarmed += score_test(s, t, forget_labels=own, test_labels=others).verdict == "FAIL"
    assert alarmed <= most(0.05, 600)


@pytest.mark.parametrize("per_class", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [10, 100])
def test_tiny_classes_raise_no_more_false_alarms(per_class: int, num_classes: int) -> None:
    """With every third class as large as usual, whose A2 varies while that of the others cannot."""
    rng = np.random.default_rng(num_classes + per_class)
    others = np.r_[np.repeat(np.arange(num_classes), per_class), np.repeat(np.arange(0, num_classes, 3), 20)]
    alarmed = 0
    for n in np.repeat([16, 64, 512], 150):
        own = rng.integers(num_classes, size=n)
        s, t = rng.standard_normal(n) + own, rng.standard_normal(len(others)) + others
        alarmed += score_test(s, t, forget_labels=own, test_labels=others).verdict == "FAIL"
    assert alarmed <= most(0.05, 450)


@pytest.mark.parametrize(("heldout", "num_classes"), [(100, 1), (100, 10), (250, 10), (1000, 1), (1000, 10)])
@pytest.mark.parametrize("what", ["a few above", "a few below", "one class above", "one class below"])
def test_what_is_blatant_in_a_few_or_in_one_class_seldom_passes(what: str, heldout: int, num_classes: int) -> None:
    rng = np.random.default_rng(heldout + num_classes)
    own, others = classes_of(100, heldout, num_classes)
    size = 6.0 if "few" in what else 3.0
    chosen = np.arange(100) < 5 if "few" in what else own == 0
    passed = 0
    for _ in range(60):
        s = rng.standard_normal(100) + own + (size if "above" in what else -size) * chosen
        t = rng.standard_normal(heldout) + others
        passed += score_test(s, t, forget_labels=own, test_labels=others).verdict == "PASS"
    assert passed <= most(0.05, 60)


@pytest.mark.parametrize(("mean", "spread"), [(0.3583, 1.0), (-0.2671, 1 / 3), (0.0, math.tan(0.3 * math.pi))])
@pytest.mark.parametrize(("heldout", "num_classes"), [(100, 10), (500, 100), (500, 10)])
def test_at_the_margin_few_held_out_examples_a_class_seldom_let_pass(
    mean: float, spread: float, heldout: int, num_classes: int
) -> None:
    rng = np.random.default_rng(heldout)
    own, others = classes_of(200, heldout, num_classes)
    passed = 0
    for _ in range(150):
        s, t = mean + spread * rng.standard_normal(200), rng.standard_normal(heldout)
        passed += score_test(s, t, forget_labels=own, test_labels=others).verdict == "PASS"
    assert passed <= most(0.05, 150)


def test_what_cannot_pass_does_not_and_what_can_sometimes_does() -> None:
    rng = np.random.default_rng(0)
    for forgotten, heldout, num_classes, within in (
        (400, 100, 100, False),
        (20, 1000, 10, False),
        (400, 100, 10, True),
    ):
        own, others = classes_of(forgotten, heldout, num_classes)
        sizes = list(zip(np.bincount(own), np.bincount(others), strict=True))
        assert can_pass(sizes) == within
        verdicts = {
            score_test(
                rng.standard_normal(forgotten), rng.standard_normal(heldout), forget_labels=own, test_labels=others
            ).verdict
            for _ in range(60)
        }
        assert ("PASS" in verdicts) == within


def test_a_few_examples_far_below_unseen_ones_never_pass() -> None:
    """4% of 512 were pushed down by eight standard deviations: A1 and A2 are blind to it."""
    pushed = np.r_[spaced(492), np.full(20, -8.0)]
    result = score_test(pushed, HELDOUT)
    assert result.verdict == "INCONCLUSIVE"
    assert "5.1" in result.reason
    assert score_test(-pushed, -HELDOUT).verdict == "FAIL"


def test_examples_that_all_score_alike_never_pass() -> None:
    result = score_test(np.full(128, 0.0), HELDOUT)
    assert result.a1 == pytest.approx(0.5, abs=1e-3)
    assert result.verdict == "INCONCLUSIVE"
    assert "middle" in result.reason


def test_two_held_out_examples_a_class_never_let_pass() -> None:
    """|2u − 1| is 2/3 at most then, and 1/2 for examples half of which are remembered and half of which are ruined."""
    rng = np.random.default_rng(0)
    own, others = np.arange(2000) % 500, np.arange(1000) % 500
    s = np.where(rng.random(2000) < 0.5, 9.0, -9.0)
    assert score_test(s, rng.standard_normal(1000), forget_labels=own, test_labels=others).verdict != "PASS"
    fine = score_test(rng.standard_normal(2000), rng.standard_normal(1000), forget_labels=own, test_labels=others)
    assert fine.verdict == "INCONCLUSIVE"


def test_sixteen_memorised_examples_are_found() -> None:
    mean = math.sqrt(2) * stats.norm.ppf(0.8)  # AUC 0.80
    assert sum(result.verdict == "FAIL" for result in repeated(2, 300, 16, mean)) >= 0.95 * 300


@pytest.mark.parametrize(("mean", "spread"), [(0.3583, 1.0), (-0.3583, 1.0), (0.0, math.tan(0.3 * math.pi))])
def test_examples_at_the_margin_seldom_pass(mean: float, spread: float) -> None:
    """A1 is 0.6 or 0.4, or A2 is 0.6."""
    for n in (40, 150):
        passed = sum(result.verdict == "PASS" for result in repeated(n, 300, n, mean, spread))
        assert passed <= most(0.05, 300)


def test_most_forgotten_sets_of_a_hundred_pass() -> None:
    passed = sum(result.verdict == "PASS" for result in repeated(3, 200, 100))
    assert passed >= 0.75 * 200
