"""The verdict on scores: can forgotten examples be distinguished from unseen ones? docs/audit.md explains it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

from expunge.metrics.membership import Rate, auc, auc_interval, tpr_at_fpr
from expunge.metrics.rank_test import UNIFORM_VARIANCE, PercentileRanks, p_values, percentile_ranks, standard_errors
from expunge.metrics.tail_counts import Tails, tails

FALSE_ALARMS = 0.05
"""FAIL is returned with at most this probability where nothing is recognisable; each of three tests has a third."""

SIGNIFICANT = FALSE_ALARMS / 3
"""A p-value below this counts."""

FAILING = ("a1", "a2", "k_plus")
"""The p-values that make the verdict FAIL; the others only keep it from being PASS."""

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
        p_values: of "a1" (two-sided), "a2" (too high), "a2_low" (too low), "k_plus" and "k_minus".
        k_plus, k_minus: examples above 99% and below 99% of the held-out scores; 1% expected in each.
        unmatched: forgotten examples that were compared with held-out ones of other classes, since their own has none.
        auc, auc_interval: against all held-out scores, whatever their class, with its 95% interval.
        tpr_at_fpr: by false positive rate (0.01 and 0.001); None where too few held-out examples define no threshold.
        num_forget, num_test: how many scores there were.
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

    @property
    def p_value(self) -> float:
        """Of all tests that can make the verdict FAIL, taken together (Bonferroni), in (0, 1]."""
        return min(1.0, len(FAILING) * min(self.p_values[name] for name in FAILING))


def score_test(
    forget_scores: ArrayLike,
    test_scores: ArrayLike,
    *,
    forget_labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
) -> ScoreTest:
    """Tests whether forgotten examples can be distinguished from held-out ones by scores of the unlearned model.

    FAIL where the p-value of A1, A2 or k⁺ is below `FALSE_ALARMS` / 3. Otherwise PASS where the 90% interval of A1 lies
    within ½ ± `MARGIN`, the 95% upper bound of A2 is at most ½ + `MARGIN`, and neither k⁻ is too high nor A2 too low
    (examples that all score alike can be picked out, too); that takes at least 23 forgotten examples, and about 95 for
    four chances in five. INCONCLUSIVE otherwise.

    It is invalid where the forget set is not a random draw: mislabelled examples, or one person's images, differ from
    held-out ones after a perfect retraining too. PASS speaks of this score, not of every attack.

    Args:
        forget_scores: float, shape (n,), finite; higher means more memorised, as with `logit_scaled_confidence`.
        test_scores: float, shape (m,), of examples that the model was never trained on.
        forget_labels, test_labels: integer classes, shapes (n,) and (m,); both or neither. With them, ranks are
            within the class.

    Raises:
        InputError: no scores, other shapes, NaN or infinity, or labels for one of the two only.

    >>> result = score_test([9.0] * 16, range(-500, 500))
    >>> result.verdict, score_test([900.0] * 16, range(-500, 500)).verdict
    ('INCONCLUSIVE', 'FAIL')
    """
    ranked = percentile_ranks(forget_scores, test_scores, forget_labels=forget_labels, test_labels=test_labels)
    outer = tails(forget_scores, test_scores, forget_labels, test_labels)
    p = {**p_values(ranked), "k_plus": outer.p_above, "k_minus": outer.p_below}
    error_a1, error_a2 = standard_errors(ranked)
    a1_interval = (max(0.0, ranked.a1 - Z * error_a1), min(1.0, ranked.a1 + Z * error_a1))
    a2_upper = min(1.0, ranked.most_a2 + Z * error_a2)
    rates = {fpr: tpr_at_fpr(forget_scores, test_scores, fpr) for fpr in FALSE_POSITIVE_RATES}
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    if failed := alarms(p):
        verdict, reason = "FAIL", _why_fail(ranked, outer, failed)
    elif unusual := _unusual(ranked, outer, p):
        verdict, reason = (
            "INCONCLUSIVE",
            f"There is not enough evidence that the forgotten examples are recognisable, yet {unusual}.",
        )
    elif a1_interval[0] >= 0.5 - MARGIN and a1_interval[1] <= 0.5 + MARGIN and a2_upper <= 0.5 + MARGIN:
        verdict, reason = (
            "PASS",
            f"The forgotten examples score like unseen ones: on average above {ranked.a1:.0%} of them (90% interval "
            f"{a1_interval[0]:.1%} to {a1_interval[1]:.1%}), and no more or less often at the extremes. An attack by "
            "another score is not ruled out.",
        )
    elif not can_pass(ranked):
        verdict, reason = "INCONCLUSIVE", _why_never(ranked, outer, rates, a1_interval)
    else:
        verdict, reason = "INCONCLUSIVE", _why_inconclusive(a1_interval, a2_upper)
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
    )


def alarms(p: Mapping[str, float]) -> set[str]:
    """The names of the p-values that alone make the verdict FAIL: those of `FAILING` below `SIGNIFICANT`."""
    return {name for name in FAILING if p[name] < SIGNIFICANT}


def can_pass(ranked: PercentileRanks) -> bool:
    """Whether the interval of A1, at its narrowest, fits within ½ ± `MARGIN`: with 22 examples or fewer it cannot."""
    n = len(ranked.u)
    least = UNIFORM_VARIANCE * (1 / n + sum((num / n) ** 2 / m for num, m in ranked.sizes))
    return Z * math.sqrt(least) <= MARGIN


def _unusual(ranked: PercentileRanks, outer: Tails, p: Mapping[str, float]) -> str:
    """What keeps the verdict from being PASS however narrow the intervals are; "" where nothing does."""
    n, found = len(ranked.u), []
    if p["k_minus"] < SIGNIFICANT:
        found.append(
            f"{outer.k_minus} of {n} score below 99% of the unseen examples, where about {n / 100:.2g} would by "
            "chance: those may have been pushed too far"
        )
    if p["a2_low"] < SIGNIFICANT:
        found.append(
            f"they crowd in the middle of the unseen examples (mean distance {ranked.a2:.2f}, where 0.50 is expected): "
            "whoever looks for such scores finds them"
        )
    return "; and ".join(found)


def _why_fail(ranked: PercentileRanks, outer: Tails, failed: set[str]) -> str:
    n = len(ranked.u)
    low, high = int((ranked.u < 0.25).sum()), int((ranked.u > 0.75).sum())
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
    if "a2" in failed and low > n / 4:
        more = f", and {high} in the highest quarter" if high > n / 4 else ""
        clauses.append(
            f"{low} of {n} score in the lowest quarter of the unseen examples{more}, where {n / 4:.3g} would by "
            "chance: the low ones are recognisable because they were forced to be wrong"
        )
    elif "a2" in failed and failed == {"a2"}:
        clauses.append(f"{high} of {n} score in the highest quarter of the unseen examples, where {n / 4:.3g} would")
    return f"The forgotten examples are recognisable: {'; '.join(clauses)}."


def _why_never(
    ranked: PercentileRanks, outer: Tails, rates: Mapping[float, Rate | None], interval: tuple[float, float]
) -> str:
    n = len(ranked.u)
    few = f"{n} examples" if n <= ranked.num_test else f"{ranked.num_test} held-out examples"
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
    return f"{few} can reveal gross failure, not certify forgetting: {'; '.join(parts)}."


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
