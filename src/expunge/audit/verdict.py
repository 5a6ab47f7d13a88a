"""The default audit's verdict on scores: can forgotten examples be told from unseen ones? docs/audit.md explains it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

from expunge.audit.membership import Rate, auc_interval_of_ranks, auc_of_ranks, tpr_of_ranks
from expunge.audit.placement import MIN_PER_CLASS, UNIFORM_VARIANCE, Placements, p_values, placements, standard_errors

FALSE_ALARMS = 0.05
"""FAIL is returned with at most this probability where nothing is recognisable; each of three tests has a third."""

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
        a1: mean placement u among held-out scores; ½ expected, more where still memorised, less where over-forgotten.
        a2: mean |2u − 1|; ½ expected, 1 where every example stands in either tail.
        a1_interval: two-sided 90% interval of A1.
        a2_upper: 95% upper bound of A2.
        p_values: of "a1" (two-sided), "a2" and "k_plus".
        k_plus, k_minus: placements above 0.99 and below 0.01; 1% of the examples expected in each.
        auc, auc_interval: against all held-out scores, whatever their class, with its 95% interval.
        tpr_at_fpr: by false positive rate (0.01 and 0.001); None where too few held-out examples define no threshold.
        num_forget, num_heldout: how many scores there were.
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
    num_heldout: int


def score_test(
    forget_scores: ArrayLike,
    heldout_scores: ArrayLike,
    *,
    forget_labels: ArrayLike | None = None,
    heldout_labels: ArrayLike | None = None,
    min_per_class: int = MIN_PER_CLASS,
) -> ScoreTest:
    """Tests whether forgotten examples can be told from held-out ones by their scores under the unlearned model.

    FAIL where the p-value of A1, A2 or k⁺ is below `FALSE_ALARMS` / 3. Otherwise PASS where the 90% interval of A1 lies
    within ½ ± `MARGIN` and the 95% upper bound of A2 is at most ½ + `MARGIN`; that takes at least 23 forgotten
    examples, and about 95 for four chances in five. INCONCLUSIVE otherwise.

    It is invalid where the forget set is not a random draw: mislabelled examples, or one person's images, differ from
    held-out ones after a perfect retraining too. PASS speaks of this score, not of every attack.

    Args:
        forget_scores: float, shape (n,), finite; higher means more memorised, as with `logit_margin`.
        heldout_scores: float, shape (m,), of examples that the model was never trained on.
        forget_labels, heldout_labels: integer classes, shapes (n,) and (m,); both or neither. With them, placements
            are within the class where it has enough held-out examples.
        min_per_class: how many held-out examples are enough.

    Raises:
        InputError: no scores, other shapes, NaN or infinity, or labels for one of the two only.
        SettingError: `min_per_class` < 1.

    >>> result = score_test([9.0] * 16, range(-500, 500))
    >>> result.verdict, score_test([900.0] * 16, range(-500, 500)).verdict
    ('INCONCLUSIVE', 'FAIL')
    """
    placed = placements(
        forget_scores,
        heldout_scores,
        forget_labels=forget_labels,
        heldout_labels=heldout_labels,
        min_per_class=min_per_class,
    )
    p = p_values(placed)
    error_a1, error_a2 = standard_errors(placed)
    a1_interval = (max(0.0, placed.a1 - Z * error_a1), min(1.0, placed.a1 + Z * error_a1))
    a2_upper = min(1.0, placed.a2 + Z * error_a2)
    m = placed.num_heldout
    pooled = placed if placed.sizes[0][1] == m else placements(forget_scores, heldout_scores)
    rates = {fpr: tpr_of_ranks(pooled.below, m, fpr) for fpr in FALSE_POSITIVE_RATES}
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    if failed := alarms(p):
        verdict, reason = "FAIL", _why_fail(placed, failed)
    elif a1_interval[0] >= 0.5 - MARGIN and a1_interval[1] <= 0.5 + MARGIN and a2_upper <= 0.5 + MARGIN:
        verdict, reason = "PASS", _why_pass(placed, a1_interval)
    elif not can_pass(placed):
        verdict, reason = "INCONCLUSIVE", _why_never(placed, rates, a1_interval)
    else:
        verdict, reason = "INCONCLUSIVE", _why_inconclusive(a1_interval, a2_upper)
    return ScoreTest(
        verdict=verdict,
        reason=reason,
        a1=placed.a1,
        a2=placed.a2,
        a1_interval=a1_interval,
        a2_upper=a2_upper,
        p_values=p,
        k_plus=placed.k_plus,
        k_minus=placed.k_minus,
        auc=auc_of_ranks(pooled.below, pooled.through, m),
        auc_interval=auc_interval_of_ranks(pooled.below, pooled.through, m),
        tpr_at_fpr=rates,
        num_forget=len(placed.u),
        num_heldout=m,
    )


def alarms(p: Mapping[str, float]) -> set[str]:
    """The names of the p-values that alone make the verdict FAIL: those below `FALSE_ALARMS` / 3."""
    return {name for name, value in p.items() if value < FALSE_ALARMS / 3}


def can_pass(placed: Placements) -> bool:
    """Whether the interval of A1, at its narrowest, fits within ½ ± `MARGIN`: with 22 examples or fewer it cannot."""
    n = len(placed.u)
    least = UNIFORM_VARIANCE * (1 / n + sum((num / n) ** 2 / m for num, m in placed.sizes))
    return Z * math.sqrt(least) <= MARGIN


def _why_fail(placed: Placements, failed: set[str]) -> str:
    n = len(placed.u)
    low, high = int((placed.u < 0.25).sum()), int((placed.u > 0.75).sum())
    clauses = []
    if "a1" in failed and placed.a1 < 0.5:
        clauses.append(
            f"on average they score above only {placed.a1:.0%} of the unseen examples, where 50% is expected: they "
            "were pushed too far"
        )
    elif "a1" in failed:
        clauses.append(
            f"on average they score above {placed.a1:.0%} of the unseen examples, where 50% is expected, so that the "
            "model still remembers them"
        )
    if "k_plus" in failed:
        clauses.append(
            f"{placed.k_plus} of {n} score above 99% of the unseen examples, where about {n / 100:.2g} would by chance"
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


def _why_pass(placed: Placements, interval: tuple[float, float]) -> str:
    return (
        f"The forgotten examples score like unseen ones: on average above {placed.a1:.0%} of them, surely between "
        f"{0.5 - MARGIN:.0%} and {0.5 + MARGIN:.0%} (90% interval {interval[0]:.1%} to {interval[1]:.1%}), and no more "
        "often at either extreme; an attack by anything but this score is not ruled out."
    )


def _why_never(placed: Placements, rates: Mapping[float, Rate | None], interval: tuple[float, float]) -> str:
    n = len(placed.u)
    few = f"{n} examples" if n <= placed.num_heldout else f"{placed.num_heldout} held-out examples"
    parts = [f"{placed.k_plus}/{n} above the 1% threshold"]
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
    return f"The forgotten examples are not clearly recognisable, but neither clearly forgotten: {'; '.join(gaps)}."
