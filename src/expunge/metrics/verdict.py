"""The verdict on scores: can forgotten examples be distinguished from unseen ones?

docs/research/audit.md explains it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import SettingError
from expunge.metrics.a2_bound import upper_moments
from expunge.metrics.membership import Rate, auc, auc_interval, tpr_at_fpr
from expunge.metrics.rank_test import (
    UNIFORM_VARIANCE,
    PercentileRanks,
    class_a1,
    class_p_values,
    heldout_weights,
    p_values,
    percentile_ranks,
    standard_errors,
)
from expunge.metrics.tail_counts import Tails, tails

FALSE_ALARMS = 0.05
"""FAIL is returned with at most this probability where nothing is recognisable; each test has an equal share."""

FAILING = ("a1", "a2", "k_plus", "highest", "one_class")
"""The p-values that make the verdict FAIL; the others only keep it from being PASS."""

SIGNIFICANT = FALSE_ALARMS / len(FAILING)
"""A p-value below this counts."""

WATCHED = {"k_minus": SIGNIFICANT, "a2_low": SIGNIFICANT, "highest": 0.05, "lowest": 0.05}
"""p-values that keep the verdict from being PASS where they are below this.

Among as many held-out as forgotten examples, five that score above all others have p = 0.03. That is no proof of
memory, but such a set must not pass."""

MARGIN = 0.1
"""PASS needs A1 shown to lie within ½ ± MARGIN and A2 below ½ + MARGIN, with 95% confidence on each side."""

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""At which the true positive rate is reported."""

Z = 1.6448536269514722
"""Standard errors from an estimate to its 95% bound."""


@dataclass(frozen=True, kw_only=True)
class ScoreTest:
    """What `score_test` found.

    Attributes:
        verdict: FAIL: recognisable. PASS: shown not to be, by this score. INCONCLUSIVE: neither was shown.
        reason: one sentence that says why.
        a1: mean percentile rank u among held-out scores; ½ expected, more where memorised, less where over-forgotten.
        a2: mean |2u − 1|; ½ expected, 1 where every example stands in either tail.
        a1_interval: two-sided 90% interval of A1.
        a2_upper: 95% upper bound of what A2 may be among infinitely many held-out examples.
        p_values: of "a1" (two-sided), "a2" (too high), "a2_low" (too low), "k_plus", "k_minus", "highest" and "lowest"
            (as many above, or below, all held-out scores) and "one_class" (A1 of the class that stands out most).
        k_plus, k_minus: examples above 99% and below 99% of the held-out scores; 1% expected in each.
        unmatched: forgotten examples whose class has no held-out ones. A1, A2, k⁺ and k⁻ leave them out. Where all
            are, they are compared with everything, which tests nothing.
        auc, auc_interval: against all held-out scores, whatever their class, with its 95% interval.
        tpr_at_fpr: by false positive rate (0.01 and 0.001); None where too few held-out examples define no threshold.
        num_forget, num_test: how many scores there were.
        false_alarms: the probability of FAIL, at most, where nothing is recognisable.
    """

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    reason: str
    a1: float
    a2: float
    a1_interval: tuple[float, float]
    a2_upper: float
    p_values: Mapping[str, float]
    k_plus: int
    k_minus: int
    auc: float
    auc_interval: tuple[float, float]
    tpr_at_fpr: Mapping[float, Rate | None]
    num_forget: int
    num_test: int
    unmatched: int = 0
    false_alarms: float = FALSE_ALARMS

    @property
    def significant(self) -> float:
        """The p-value below which one of the tests makes the verdict FAIL."""
        return self.false_alarms / len(FAILING)

    @property
    def p_value(self) -> float:
        """Of all tests that can make the verdict FAIL, taken together (Bonferroni), in (0, 1].

        1 where most forgotten examples are of classes without held-out ones: then there is no verdict.
        """
        if 2 * self.unmatched > self.num_forget:
            return 1.0
        return min(1.0, len(FAILING) * min(self.p_values[name] for name in FAILING))


def score_test(
    forget_scores: ArrayLike,
    test_scores: ArrayLike,
    *,
    forget_labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    false_alarms: float = FALSE_ALARMS,
) -> ScoreTest:
    """Tests whether forgotten examples can be distinguished from held-out ones by scores of the unlearned model.

    FAIL where one of five p-values is below a fifth of `false_alarms`: of A1, A2, k⁺, of how many score above all
    unseen examples, and of A1 in the class that stands out most. Otherwise PASS where the 90% interval of A1 lies
    within ½ ± `MARGIN`, the 95% upper bound of A2 is at most ½ + `MARGIN`, and no p-value of `WATCHED` is too low:
    neither a few that score lower than all unseen ones pass, nor examples that all score alike. `plan` says how many
    examples that takes. INCONCLUSIVE otherwise, and always where more than half of the forgotten examples are of
    classes without held-out ones.

    It is invalid where the forget set is not a random draw: mislabelled examples, or one person's images, differ from
    held-out ones after a perfect retraining too. PASS speaks of this score, not of every attack.

    Args:
        forget_scores: float, shape (n,), finite; higher means more memorised, as with `logit_scaled_confidence`.
        test_scores: float, shape (m,), of examples that the model was never trained on.
        forget_labels, test_labels: integer classes, shapes (n,) and (m,); both or neither. With them, ranks are
            within the class.
        false_alarms: the probability of FAIL, at most, where nothing is recognisable; in (0, 1).

    Raises:
        InputError: no scores, other shapes, NaN or infinity, or labels for one of the two only.
        SettingError: `false_alarms` out of range.

    >>> result = score_test([9.0] * 16, range(-500, 500))
    >>> result.verdict, score_test([900.0] * 16, range(-500, 500)).verdict
    ('INCONCLUSIVE', 'FAIL')
    """
    if not 0 < false_alarms < 1:
        raise SettingError(f"false_alarms={false_alarms} is out of range; it lies between 0 and 1")
    ranked = percentile_ranks(forget_scores, test_scores, forget_labels=forget_labels, test_labels=test_labels)
    outer = tails(forget_scores, test_scores, forget_labels, test_labels)
    p = all_p_values(ranked, outer)
    a1_interval, a2_upper = bounds(ranked)
    rates = {fpr: tpr_at_fpr(forget_scores, test_scores, fpr) for fpr in FALSE_POSITIVE_RATES}
    failed = alarms(p, false_alarms / len(FAILING))
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"] = "INCONCLUSIVE"
    if 2 * ranked.unmatched > len(ranked.u):
        reason = _why_unmatched(ranked, outer, failed)
    elif failed:
        verdict, reason = "FAIL", f"The forgotten examples are recognisable: {_recognisable(ranked, outer, failed)}."
    elif passes(ranked, p):
        verdict, reason = (
            "PASS",
            f"The forgotten examples score like unseen ones: on average above {ranked.a1:.0%} of them (90% interval "
            f"{a1_interval[0]:.1%} to {a1_interval[1]:.1%}), and no more or less often at the extremes. An attack by "
            "another score is not ruled out.",
        )
    elif unusual := _unusual(ranked, outer, p):
        reason = f"There is not enough evidence that the forgotten examples are recognisable, yet {unusual}."
    elif not can_pass(ranked.sizes):
        reason = _why_never(ranked, outer, rates, a1_interval)
    else:
        reason = _why_inconclusive(a1_interval, a2_upper)
    return ScoreTest(
        verdict=verdict,
        reason=reason,
        a1=ranked.a1,
        a2=ranked.a2,
        a1_interval=a1_interval,
        a2_upper=a2_upper,
        p_values=p,
        k_plus=outer.k_plus,
        k_minus=outer.k_minus,
        auc=auc(forget_scores, test_scores),
        auc_interval=auc_interval(forget_scores, test_scores),
        tpr_at_fpr=rates,
        num_forget=len(ranked.u),
        num_test=ranked.num_test,
        unmatched=ranked.unmatched,
        false_alarms=false_alarms,
    )


def all_p_values(ranked: PercentileRanks, outer: Tails) -> dict[str, float]:
    """Every p-value of the score test, by name; `ScoreTest` says what they are of."""
    of_tails = {"k_plus": outer.p_above, "k_minus": outer.p_below}
    return {**p_values(ranked), **of_tails, "highest": outer.p_highest, "lowest": outer.p_lowest}


def alarms(p: Mapping[str, float], significant: float = SIGNIFICANT) -> set[str]:
    """The names of the p-values that alone make the verdict FAIL: those of `FAILING` below `significant`."""
    return {name for name in FAILING if p[name] < significant}


def bounds(ranked: PercentileRanks) -> tuple[tuple[float, float], float]:
    """The 90% interval of A1 and the 95% upper bound of A2, within [0, 1]."""
    error_a1, error_a2 = standard_errors(ranked)
    interval = max(0.0, ranked.a1 - Z * error_a1), min(1.0, ranked.a1 + Z * error_a1)
    return interval, min(1.0, max(ranked.a2, ranked.most_a2 + Z * error_a2))


def passes(ranked: PercentileRanks, p: Mapping[str, float]) -> bool:
    """Whether what does not fail passes: the bounds are within the margin, and no p-value of `WATCHED` is too low."""
    (low, high), upper = bounds(ranked)
    within = low >= 0.5 - MARGIN and high <= 0.5 + MARGIN and upper <= 0.5 + MARGIN
    return within and not any(p[name] < least for name, least in WATCHED.items())


def can_pass(sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether PASS is within reach: whether both bounds, at their narrowest, can fit.

    That of A2 is taken where A2 is the lowest that is not suspicious by itself; see `WATCHED`. `plan` tells how likely
    PASS is.

    Args:
        sizes: the (forgotten, held-out) examples of each class, one or more of each; of everything without labels.

    >>> can_pass([(22, 1_000_000)]), can_pass([(23, 1_000_000)]), can_pass([(100, 1)] * 10)
    (False, True, False)
    """
    error_a1, expected, error_a2 = narrowest(sizes)
    lowest = expected + NormalDist().inv_cdf(WATCHED["a2_low"]) * error_a2
    return Z * error_a1 <= MARGIN and lowest + Z * error_a2 <= 0.5 + MARGIN


def narrowest(sizes: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
    """The least standard error of A1, what `most_a2` is on average under the null, and its least standard error."""
    num = np.array([n for n, _ in sizes], dtype=np.float64)
    share, weights = num / num.sum(), heldout_weights(sizes)
    expected, variance = np.array([upper_moments(size) for _, size in sizes]).T
    error_a1 = math.sqrt(UNIFORM_VARIANCE * (1 / num.sum() + float(weights.sum())))
    error_a2 = math.sqrt(float(share @ variance) / num.sum() + float(weights @ variance))
    return error_a1, float(share @ expected), error_a2


def _unusual(ranked: PercentileRanks, outer: Tails, p: Mapping[str, float]) -> str:
    """What keeps the verdict from being PASS however narrow the intervals are; "" where nothing does."""
    n, found = ranked.num, []
    low = {name for name, least in WATCHED.items() if p[name] < least}
    if "highest" in low:
        found.append(f"{_beyond_all(outer.num_highest, n, 'above')}: the model may still remember those")
    if "k_minus" in low:
        found.append(
            f"{outer.k_minus} of {n} score below 99% of the unseen examples, where about {n / 100:.2g} would by "
            "chance: those may have been pushed too far"
        )
    elif "lowest" in low:
        found.append(f"{_beyond_all(outer.num_lowest, n, 'below')}: those may have been pushed too far")
    if "a2_low" in low:
        found.append(
            f"they crowd in the middle of the unseen examples (mean distance {ranked.a2:.2f}, where 0.50 is expected): "
            "whoever looks for such scores finds them"
        )
    return "; and ".join(found)


def _beyond_all(count: int, n: int, side: str) -> str:
    return f"{count} of {n} score {side} all unseen examples, more than chance explains"


def _why_unmatched(ranked: PercentileRanks, outer: Tails, failed: set[str]) -> str:
    n = len(ranked.u)
    why = (
        f"{ranked.unmatched} of {n} forgotten examples are of classes without held-out examples, so that there is "
        "nothing to compare them with: give held-out examples of every forgotten class"
    )
    if failed and ranked.unmatched < n:
        why += f". The other {ranked.num} are recognisable: {_recognisable(ranked, outer, failed)}"
    return f"{why}."


def _recognisable(ranked: PercentileRanks, outer: Tails, failed: set[str]) -> str:
    u = ranked.u[ranked.group >= 0]
    n, low, high = len(u), int((u < 0.25).sum()), int((u > 0.75).sum())
    clauses = []
    if "a1" in failed and ranked.a1 < 0.5:
        clauses.append(
            f"on average they score above only {ranked.a1:.0%} of the unseen examples, where 50% is expected: they "
            "were pushed too far"
        )
    elif "a1" in failed:
        clauses.append(
            f"on average they score above {ranked.a1:.0%} of the unseen examples, where 50% is expected, so that the "
            "model still remembers them"
        )
    if "k_plus" in failed:
        clauses.append(
            f"{outer.k_plus} of {n} score above 99% of the unseen examples, where about {n / 100:.2g} would by chance"
        )
    elif "highest" in failed:
        clauses.append(_beyond_all(outer.num_highest, n, "above"))
    if "a2" in failed and low > n / 4:
        more = f", and {high} in the highest quarter" if high > n / 4 else ""
        clauses.append(
            f"{low} of {n} score in the lowest quarter of the unseen examples{more}, where {n / 4:.3g} would by "
            "chance: the low ones are recognisable because they were forced to be wrong"
        )
    elif "a2" in failed and failed == {"a2"}:
        clauses.append(f"{high} of {n} score in the highest quarter of the unseen examples, where {n / 4:.3g} would")
    if not clauses:  # one class alone
        worst = int(class_p_values(ranked).argmin())
        clauses.append(
            f"the {ranked.sizes[worst][0]} of one class score on average above {class_a1(ranked)[worst]:.0%} of the "
            "unseen examples of that class, where 50% is expected"
        )
    return "; ".join(clauses)


def _why_never(
    ranked: PercentileRanks, outer: Tails, rates: Mapping[float, Rate | None], interval: tuple[float, float]
) -> str:
    n = ranked.num
    enough = Z * math.sqrt(UNIFORM_VARIANCE / n) <= MARGIN  # with unlimited held-out ones
    few = f"{ranked.num_test} held-out examples" if enough else f"{n} examples"
    parts = [f"{outer.k_plus}/{n} above the 1% threshold"]
    for fpr, rate in rates.items():
        if rate is None:
            parts.append(f"TPR@{100 * fpr:g}% n/a (needs {round(1 / fpr) - 1} held-out examples)")
        else:
            note = ", not informative at this size" if n * fpr < 0.1 else ""
            parts.append(f"TPR@{100 * fpr:g}% 95% CI [{rate.low:.2f}, {rate.high:.2f}]{note}")
    if interval[1] < 0.5:
        parts.append(
            f"they score lower than unseen ones, on average above only {interval[0]:.0%} to {interval[1]:.0%} of them, "
            "so that they may have been pushed too far"
        )
    return f"{few} are too few to show forgetting; they reveal gross failure alone: {'; '.join(parts)}."


def _why_inconclusive(interval: tuple[float, float], a2_upper: float) -> str:
    low, high = interval
    if high < 0.5:
        return (
            "The model does not remember the forgotten examples, yet they score lower than unseen ones, on average "
            f"above only {low:.0%} to {high:.0%} of them, where 50% is expected: they may have been pushed too far."
        )
    gaps = []
    if low < 0.5 - MARGIN or high > 0.5 + MARGIN:
        gaps.append(
            f"on average they may score above anything from {low:.0%} to {high:.0%} of the unseen examples, where only "
            f"{0.5 - MARGIN:.0%} to {0.5 + MARGIN:.0%} counts as forgotten"
        )
    if a2_upper > 0.5 + MARGIN:
        gaps.append(
            f"their mean distance from the middle of the unseen examples may be up to {a2_upper:.2f}, where 0.50 is "
            f"expected and only up to {0.5 + MARGIN:.2f} counts as forgotten"
        )
    return f"There is not enough evidence either way: {'; '.join(gaps)}."
