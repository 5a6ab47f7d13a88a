"""Where forgotten examples stand among held-out ones, and how surely that is no accident; docs/audit.md explains it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from expunge.arrays import Floats, Integers, as_scores
from expunge.errors import InputError

UNIFORM_VARIANCE = 1 / 12
"""Of one percentile rank, and of one |2u − 1|, under the null."""


@dataclass(frozen=True)
class PercentileRanks:
    """The percentile rank of each of n forgotten examples, and the groups in which they were compared.

    Attributes:
        u: float64, shape (n,), in (0, 1).
        below, through: int64, shape (n,): how many held-out scores of the example's group are <, and ≤, its own.
        group: int64, shape (n,): which entry of `sizes` the example belongs to.
        num_test: m, all held-out examples.
        sizes: (forgotten, held-out) examples of each group. The first groups are classes, each with its own
            held-out examples; the last one may be of classes without any, compared with all.
        unmatched: how many forgotten examples are of classes without held-out ones; 0 without labels.
        mixed: there are groups of either kind, so that they share held-out examples.
    """

    u: Floats
    below: Integers
    through: Integers
    group: Integers
    num_test: int
    sizes: tuple[tuple[int, int], ...]
    unmatched: int
    mixed: bool

    @property
    def a1(self) -> float:
        """Mean percentile rank: ½ under the null, above it where examples are still memorised."""
        return float(self.u.mean())

    @property
    def a2(self) -> float:
        """Mean |2u − 1|: ½ under the null, above it where examples stand out in either tail."""
        return float(self.folded.mean())

    @property
    def most_a2(self) -> float:
        """What A2 may be among infinitely many held-out examples.

        By Jensen's inequality the mean of |2u − 1| over draws of m of them is at least m / (m + 1) times its limit.
        """
        m = np.array([m for _, m in self.sizes])[self.group]
        return float((self.folded * (m + 1) / m).mean())

    @property
    def folded(self) -> Floats:
        """|2u − 1|, float64, shape (n,)."""
        return np.asarray(np.abs(2 * self.u - 1))


def percentile_ranks(
    forget_scores: ArrayLike,
    test_scores: ArrayLike,
    *,
    forget_labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
) -> PercentileRanks:
    """The percentile rank of each forgotten score among held-out ones: u = (#{t < s} + ½ #{t = s} + ½) / (m + 1).

    With labels, an example is compared with the held-out examples of its class, and with all of them only where its
    class has none. Classes differ in difficulty: a forget set with other shares of classes that are compared together
    has u ≠ ½ on average after a perfect retraining.

    Args:
        forget_scores: s, float, shape (n,), finite; higher means more memorised.
        test_scores: t, float, shape (m,), of examples that the model was never trained on.
        forget_labels, test_labels: integer classes, shapes (n,) and (m,); both or neither.

    Raises:
        InputError: no scores, other shapes, NaN or infinity, or labels for one of the two only.

    >>> percentile_ranks([0.5, 9.0], [0.0, 1.0, 2.0]).u
    array([0.375, 0.875])
    """
    s, t = as_scores(forget_scores, "forget_scores"), as_scores(test_scores, "test_scores")
    if (forget_labels is None) != (test_labels is None):
        raise InputError("give the labels of the forgotten and of the held-out examples, or of neither")
    parts: list[tuple[NDArray[Any], Floats]] = []
    unmatched = np.ones(len(s), dtype=bool)
    if forget_labels is not None and test_labels is not None:
        own = _as_classes(forget_labels, s, "forget_labels")
        others = _as_classes(test_labels, t, "test_labels")
        for label in np.intersect1d(own, others):
            members = own == label
            parts.append((np.flatnonzero(members), t[others == label]))
            unmatched &= ~members
    num_unmatched = 0 if forget_labels is None else int(unmatched.sum())
    mixed = bool(parts) and num_unmatched > 0
    if unmatched.any():
        parts.append((np.flatnonzero(unmatched), t))
    below, through, group = (np.empty(len(s), dtype=np.int64) for _ in range(3))
    for number, (members, among) in enumerate(parts):
        below[members], through[members] = positions(s[members], among)
        group[members] = number
    sizes = tuple((len(members), len(among)) for members, among in parts)
    heldout = np.array([m for _, m in sizes])[group]
    u = (0.5 * (below + through) + 0.5) / (heldout + 1)
    return PercentileRanks(
        u=u,
        below=below,
        through=through,
        group=group,
        num_test=len(t),
        sizes=sizes,
        unmatched=num_unmatched,
        mixed=mixed,
    )


def positions(forget_scores: Floats, test_scores: Floats) -> tuple[Integers, Integers]:
    """How many of `test_scores` are below, and how many at most, each of `forget_scores`: int64, shape (n,)."""
    among = np.sort(test_scores)
    return np.searchsorted(among, forget_scores, side="left"), np.searchsorted(among, forget_scores, side="right")


def null_moments(ranked: PercentileRanks) -> tuple[float, float, float, float]:
    """Null mean of A1, null mean of A2, and the variance of each: exact where no scores are tied and nothing is mixed.

    Where forgotten and held-out scores are exchangeable, a rank among m is uniform on 0, …, m, whatever the scores'
    distribution. Ranks of different examples among the same m held-out ones have, for every function of the rank, the
    correlation 1 / (m + 2); hence Var(mean) = Var(one) (n + m + 1) / (n (m + 2)) within a group. Var(u) = m (m + 2) /
    (12 (m + 1)²). E|2u − 1| = ½ for odd m and ½ − ½ / (m + 1)² for even m. Groups with their own held-out examples
    are independent; a last group that shares all of them (`mixed`) has the covariance 1 / (12 m) with the others.
    """
    n = len(ranked.u)
    mean_a2 = variance_a1 = variance_a2 = 0.0
    for num, m in ranked.sizes:
        share = num / n
        of_u = m * (m + 2) / (12 * (m + 1) ** 2)
        mean = 0.5 if m % 2 else 0.5 - 0.5 / (m + 1) ** 2
        of_mean = (num + m + 1) / (num * (m + 2))
        mean_a2 += share * mean
        variance_a1 += share**2 * of_u * of_mean
        variance_a2 += share**2 * (4 * of_u - mean**2) * of_mean
    if ranked.mixed:
        num, m = ranked.sizes[-1]
        shared = 2 * (num / n) * (1 - num / n) * UNIFORM_VARIANCE / m
        variance_a1 += shared
        variance_a2 += shared
    return 0.5, mean_a2, variance_a1, variance_a2


def p_values(ranked: PercentileRanks) -> dict[str, float]:
    """p-values of A1 (two-sided) and of A2 (too high, too low), if nothing is recognisable.

    A1 and A2 are referred to the symmetric beta distribution (Pearson's type II) with their null mean and variance and
    with the kurtosis of the rank-sum statistic; for n = 1 that is the uniform distribution, for large n the normal
    one. Ties make "a1" and "a2" conservative; they draw A2 toward 0 and make "a2_low" smaller.

    Returns:
        {"a1": p, "a2": p, "a2_low": p}, each in [0, 1].
    """
    mean_a1, mean_a2, variance_a1, variance_a2 = null_moments(ranked)
    kurtosis = _excess_kurtosis(ranked, variance_a1)
    step = 1 / (len(ranked.u) * (max(m for _, m in ranked.sizes) + 1))
    least = math.exp(sum(math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1) for n, m in ranked.sizes))
    far = max(ranked.a1, 1 - ranked.a1)  # the null distribution of A1 is symmetric
    low = 2 * mean_a2 - ranked.a2
    return {
        # Half of the least step between two values is the continuity correction.
        "a1": min(1.0, 2 * max(least, _upper_tail(far - 0.5 * step, mean_a1, variance_a1, kurtosis))),
        "a2": max(least, _upper_tail(ranked.a2 - step, mean_a2, variance_a2, kurtosis)),
        "a2_low": max(least, _upper_tail(low - step, mean_a2, variance_a2, kurtosis)),
    }


def standard_errors(ranked: PercentileRanks) -> tuple[float, float]:
    """Of A1 and A2, whether or not the null holds: √(S_forget / n + Σ_g (n_g / n)² S_g / m_g), as DeLong's.

    S_forget is the sample variance of the ranks u (or of |2u − 1|), S_g that of what each held-out score of the group
    contributes. Each is at least 1/12, its value under the null, so that a small sample that happens to agree
    with itself is not taken for a precise one.
    """
    n = len(ranked.u)
    errors = []
    for values, weights in ((ranked.u, np.ones(n)), (ranked.folded, 2 * np.sign(2 * ranked.u - 1))):
        parts = []
        for number, (num, m) in enumerate(ranked.sizes):
            members = ranked.group == number
            share = contributions(ranked.below[members], ranked.through[members], m, weights[members])
            parts.append((num / n) ** 2 * _floored_variance(share) / m)
        # Where groups share held-out examples, the largest covariance that there can be.
        heldout = (math.sqrt(sum(parts[:-1])) + math.sqrt(parts[-1])) ** 2 if ranked.mixed else sum(parts)
        errors.append(math.sqrt(_floored_variance(values) / n + heldout))
    return errors[0], errors[1]


def contributions(below: Integers, through: Integers, num_test: int, weights: Floats) -> Floats:
    """For each held-out score t, from the lowest: the weighted mean over forgotten s of 1{t < s} + ½ 1{t = s}."""
    jumps = np.bincount(below, weights, num_test + 1) + np.bincount(through, weights, num_test + 1)
    above: Floats = np.cumsum(jumps[::-1])[::-1][1:]
    return above / (2 * len(below))


def _as_classes(labels: ArrayLike, scores: Floats, name: str) -> NDArray[Any]:
    values = np.asarray(labels)
    if values.dtype.kind not in "iu":
        raise InputError(f"{name} must hold integer classes, not {values.dtype}")
    if values.shape != scores.shape:
        raise InputError(f"{name} must have shape {scores.shape}, one a score, not {values.shape}")
    return values


def _floored_variance(values: Floats) -> float:
    return max(UNIFORM_VARIANCE, float(values.var(ddof=1)) if len(values) > 1 else 0.0)


def _excess_kurtosis(ranked: PercentileRanks, variance: float) -> float:
    """Of A1: fourth cumulants of the groups' rank sums add up. That of A2 is the same to first order."""
    n, fourth = len(ranked.u), 0.0
    for num, m in ranked.sizes:
        own = m * (num + m + 1) / (12 * num * (m + 1) ** 2)
        excess = -1.2 * (m * m + num * num + num * m + num + m) / (num * m * (num + m + 1))
        fourth += (num / n) ** 4 * excess * own**2
    return fourth / variance**2


def _upper_tail(value: float, mean: float, variance: float, excess_kurtosis: float) -> float:
    if variance < 1e-12:  # one held-out example: |2u − 1| is ½ whatever happens
        return 1.0
    shape = max(0.5, -3 / excess_kurtosis - 1.5)
    half_width = math.sqrt(variance * (2 * shape + 1))
    position = (mean + half_width - value) / (2 * half_width)
    return float(special.betainc(shape, shape, min(1.0, max(0.0, position))))
