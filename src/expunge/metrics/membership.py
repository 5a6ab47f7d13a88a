"""Membership inference by a threshold on the score: AUC, true positive rate at a low false positive rate, ROC curve."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from expunge.arrays import Floats, Integers, as_scores
from expunge.errors import SettingError
from expunge.metrics.rank_test import contributions, positions

DELONG_FROM = 64
"""Forgotten examples, and held-out ones, from which on `auc_interval` is DeLong's, on the logit scale."""

DELONG_WITHIN = (0.1, 0.9)
"""AUCs for which it is; outside, and with fewer examples, it is Clopper–Pearson's."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of the forgotten examples, with its Clopper–Pearson interval.

    Attributes:
        value: hits / num, in [0, 1].
        low, high: bounds of the 95% interval, in [0, 1].
        hits: examples above the threshold.
        num: forgotten examples.
    """

    value: float
    low: float
    high: float
    hits: int
    num: int


def auc(forget_scores: ArrayLike, test_scores: ArrayLike) -> float:
    """The probability that a forgotten example scores above a held-out one, ties counting half (Mann–Whitney).

    ½ where scores say nothing; above it where the forgotten examples still look like training data, below it where
    they look worse than unseen ones.

    Args:
        forget_scores, test_scores: float, shapes (n,) and (m,), finite; higher means more memorised, as with
            `logit_scaled_confidence`: negate losses and entropies.

    Raises:
        InputError: no scores, other shapes, NaN or infinity.

    >>> auc([1.0, 2.0], [0.0, 1.0])
    0.875
    """
    below, through, num_test = _ranks(forget_scores, test_scores)
    return float((below + through).sum() / (2 * len(below) * num_test))


def auc_interval(forget_scores: ArrayLike, test_scores: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """A confidence interval of `auc`.

    With at least `DELONG_FROM` of either and an AUC within `DELONG_WITHIN`: DeLong's variance on the logit scale, with
    Student's t. Otherwise Clopper–Pearson's interval, as if the AUC were a share of n m / (n + m) independent trials:
    too wide rather than too narrow. Measured coverage is in docs/research/audit-measured.md.

    Args:
        forget_scores, test_scores: as for `auc`.
        confidence: in (0, 1).

    Returns:
        (low, high), in [0, 1].

    Raises:
        InputError: as `auc`.
        SettingError: `confidence` is not in (0, 1).

    >>> low, high = auc_interval([1.0] * 16, [0.0] * 1000)
    >>> round(low, 2), high
    (0.79, 1.0)
    """
    _check_confidence(confidence)
    below, through, m = _ranks(forget_scores, test_scores)
    n, area = len(below), auc(forget_scores, test_scores)
    if min(n, m) >= DELONG_FROM and DELONG_WITHIN[0] < area < DELONG_WITHIN[1]:
        beaten, beating = (below + through) / (2 * m), contributions(below, through, m, np.ones(n))
        error = math.sqrt(beaten.var(ddof=1) / n + beating.var(ddof=1) / m)
    else:
        error = 0.0
    if error > 0:  # it is 0 where all scores are tied, too
        center, half = special.logit(area), error / (area * (1 - area))
        half *= special.stdtrit(min(n, m) - 1, 0.5 + confidence / 2)
        return float(special.expit(center - half)), float(special.expit(center + half))
    trials = n * m / (n + m)
    low, high = clopper_pearson(area * trials, trials, confidence=confidence)
    return float(low), float(high)


def clopper_pearson(hits: ArrayLike, trials: float, *, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """The interval of a share that holds at least `confidence` whatever the share is (Clopper and Pearson 1934).

    Each limit by itself holds with probability (1 + confidence) / 2. Neither count need be whole.

    Args:
        hits: in [0, trials], float, any shape.
        trials: > 0.
        confidence: in (0, 1).

    Returns:
        (low, high), float64 in [0, 1], in the shape of `hits`.

    Raises:
        SettingError: an argument out of its range.

    >>> [round(float(bound), 4) for bound in clopper_pearson(0, 59)]
    [0.0, 0.0606]
    """
    _check_confidence(confidence)
    k = np.asarray(hits, dtype=np.float64)
    if not 0 < trials < math.inf or not bool(((k >= 0) & (k <= trials)).all()):
        raise SettingError(f"hits must lie in [0, trials] and trials be positive, not {k.tolist()} and {trials}")
    tail = (1 - confidence) / 2
    # The beta quantile is undefined at the ends, where the limits are 0 and 1.
    low = np.where(k > 0, special.betaincinv(np.where(k > 0, k, 1), trials - k + 1, tail), 0.0)
    high = np.where(k < trials, special.betaincinv(k + 1, np.where(k < trials, trials - k, 1), 1 - tail), 1.0)
    return low, high


def tpr_at_fpr(
    forget_scores: ArrayLike, test_scores: ArrayLike, fpr: float, *, confidence: float = 0.95
) -> Rate | None:
    """The share of forgotten examples above the threshold τ that at most the share `fpr` of unseen ones exceeds.

    τ is the k-th largest of the m held-out scores, k = ⌊fpr (m + 1)⌋. A new unseen score is above τ with probability
    at most k / (m + 1) ≤ fpr. With fewer than 1 / fpr − 1 held-out examples k is 0: there is no such threshold, and
    nothing to report.

    Args:
        forget_scores, test_scores: as for `auc`.
        fpr: false positive rate, in (0, 1).
        confidence: of the interval, in (0, 1). It takes τ as given.

    Returns:
        The rate with its Clopper–Pearson interval, or None where k = 0 ("n/a").

    Raises:
        InputError: as `auc`.
        SettingError: `fpr` or `confidence` is not in (0, 1).

    >>> tpr_at_fpr([5.0, 0.5], range(1000), 0.01).hits, tpr_at_fpr([2.0], range(998), 0.001)
    (0, None)
    """
    if not 0 < fpr < 1:
        raise SettingError(f"fpr must lie in (0, 1), not {fpr}")
    _check_confidence(confidence)
    below, _, num_test = _ranks(forget_scores, test_scores)
    rank = math.floor(round(fpr * (num_test + 1), 9))
    if rank == 0:
        return None
    num, hits = len(below), int((num_test - below < rank).sum())  # above τ: fewer than k held-out scores are ≥ s
    low, high = clopper_pearson(hits, num, confidence=confidence)
    return Rate(value=hits / num, low=float(low), high=float(high), hits=hits, num=num)


def roc(forget_scores: ArrayLike, test_scores: ArrayLike) -> tuple[Floats, Floats]:
    """The corners of the ROC curve, for a plot: straight lines between them enclose `auc`.

    Args:
        forget_scores, test_scores: as for `auc`.

    Returns:
        False and true positive rates, float64, shape (K,) each, from (0, 0) to (1, 1), neither ever falling.

    >>> roc([2.0, 3.0], [0.0, 1.0, 1.0])
    (array([0., 0., 1.]), array([0., 1., 1.]))
    """
    s, t = as_scores(forget_scores, "forget_scores"), as_scores(test_scores, "test_scores")
    thresholds = np.unique(np.concatenate([s, t]))[::-1]
    hits = np.concatenate([[0], len(s) - np.searchsorted(np.sort(s), thresholds, side="left")])
    alarms = np.concatenate([[0], len(t) - np.searchsorted(np.sort(t), thresholds, side="left")])
    # A point on the line between its neighbours is no corner.
    turns = np.diff(hits[:-1]) * np.diff(alarms[1:]) != np.diff(hits[1:]) * np.diff(alarms[:-1])
    corner = np.concatenate([[True], turns, [True]])
    return alarms[corner] / len(t), hits[corner] / len(s)


def _ranks(forget_scores: ArrayLike, test_scores: ArrayLike) -> tuple[Integers, Integers, int]:
    s, t = as_scores(forget_scores, "forget_scores"), as_scores(test_scores, "test_scores")
    return *positions(s, t), len(t)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie in (0, 1), not {confidence}")
