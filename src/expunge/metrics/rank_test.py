"""Where forgotten examples stand among held-out ones, and how surely that is no accident.

docs/research/audit-formulas.md explains it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from expunge.arrays import Floats, Integers, as_scores
from expunge.errors import InputError
from expunge.metrics.a2_bound import upper_moments, upper_values

UNIFORM_VARIANCE = 1 / 12
"""Of one percentile rank, and of one |2u − 1|, under the null."""

EXACT = 10
"""Up to this many forgotten examples, the p-value of A1 counts arrangements: the beta distribution is coarse there."""

MOST_SUMS = 100_000
"""Where rank sums could have more values than this, nothing is counted, since it would take seconds."""


@dataclass(frozen=True)
class PercentileRanks:
    """The percentile rank of each of n forgotten examples, and the groups in which they were compared.

    Attributes:
        u: float64, shape (n,), in (0, 1).
        below, through: int64, shape (n,): how many held-out scores of the example's group are <, and ≤, its own.
        group: int64, shape (n,): which entry of `sizes` the example belongs to; −1 where its class has no held-out
            examples. Its rank is then among all of them, and A1 and A2 leave it out.
        num_test: m, all held-out examples.
        sizes: (forgotten, held-out) examples of each group: of each class that has both, or of everything.
        unmatched: how many forgotten examples are of classes without held-out ones; 0 without labels. Where all are,
            they form one group, compared with everything: numbers to look at, but no test.
    """

    u: Floats
    below: Integers
    through: Integers
    group: Integers
    num_test: int
    sizes: tuple[tuple[int, int], ...]
    unmatched: int

    @property
    def num(self) -> int:
        """How many examples A1 and A2 are means over."""
        return sum(num for num, _ in self.sizes)

    @property
    def a1(self) -> float:
        """Mean percentile rank: ½ under the null, above it where examples are still memorised."""
        return float(self.u[self.group >= 0].mean())

    @property
    def a2(self) -> float:
        """Mean |2u − 1|: ½ under the null, above it where examples stand out in either tail."""
        return float(np.abs(2 * self.u[self.group >= 0] - 1).mean())

    @property
    def most_a2(self) -> float:
        """What A2 may be among infinitely many held-out examples: its expectation is at least that; see `a2_bound`."""
        return float(self.upper.mean())

    @property
    def upper(self) -> Floats:
        """What each example contributes to `most_a2`, float64, shape (`num`,). A tie is the mean of its two ends."""
        counted = self.group >= 0
        group, ends = self.group[counted], (self.below[counted], self.through[counted])
        sizes = np.array([m for _, m in self.sizes])
        starts, tables = np.cumsum(sizes + 1) - sizes - 1, [upper_values(int(m)) for m in sizes]
        values = np.concatenate(tables)
        return np.asarray(sum(values[starts[group] + end] for end in ends) / 2)


def percentile_ranks(
    forget_scores: ArrayLike,
    test_scores: ArrayLike,
    *,
    forget_labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
) -> PercentileRanks:
    """The percentile rank of each forgotten score among held-out ones: u = (#{t < s} + ½ #{t = s} + ½) / (m + 1).

    With labels, an example is compared with the held-out examples of its class. Classes differ in difficulty: examples
    that are compared with other classes have u ≠ ½ on average after a perfect retraining.

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
    below, through = positions(s, t)
    heldout, group = np.full(len(s), len(t)), np.zeros(len(s), dtype=np.int64)
    sizes: tuple[tuple[int, int], ...] = ((len(s), len(t)),)
    unmatched = 0
    if forget_labels is not None and test_labels is not None:
        own = _as_classes(forget_labels, s, "forget_labels")
        others = _as_classes(test_labels, t, "test_labels")
        shared = np.intersect1d(own, others)
        known = np.isin(own, shared)
        unmatched = int((~known).sum())
        if len(shared):
            mine, theirs = np.searchsorted(shared, own[known]), np.searchsorted(shared, others)
            within = np.isin(others, shared)
            counts = np.bincount(theirs[within], minlength=len(shared))
            below[known], through[known] = _positions_by_group(s[known], mine, t[within], theirs[within], counts)
            heldout[known] = counts[mine]
            group = np.full(len(s), -1)
            group[known] = mine
            sizes = tuple(zip(np.bincount(mine).tolist(), counts.tolist(), strict=True))
    u = (0.5 * (below + through) + 0.5) / (heldout + 1)
    return PercentileRanks(
        u=u, below=below, through=through, group=group, num_test=len(t), sizes=sizes, unmatched=unmatched
    )


def positions(forget_scores: Floats, test_scores: Floats) -> tuple[Integers, Integers]:
    """How many of `test_scores` are below, and how many at most, each of `forget_scores`: int64, shape (n,)."""
    among = np.sort(test_scores)
    return np.searchsorted(among, forget_scores, side="left"), np.searchsorted(among, forget_scores, side="right")


def null_cumulants(ranked: PercentileRanks) -> tuple[Floats, Floats]:
    """Mean, variance, third and fourth cumulant of A1, and of A2, under the null: float64, shape (4,) each.

    They are exact where no scores are tied. Where forgotten and held-out scores are exchangeable, the ranks of n
    examples among m are draws from m + 1 cells by Pólya's urn. The expectation of a product of k functions of them is
    the sum over the permutations of k of what each cycle contributes, over (m + 1) (m + 2) … (m + k). Groups are
    independent, so that cumulants add up.
    """
    num, m = np.array(ranked.sizes, dtype=np.float64).T
    sums = np.array([_power_sums(int(size)) for size in m])
    a1, a2 = (_cumulants(num, m + 1, sums[:, which].T) for which in (0, 1))
    return a1.sum(1) / ranked.num ** np.arange(1, 5), a2.sum(1) / ranked.num ** np.arange(1, 5)


def p_values(ranked: PercentileRanks) -> dict[str, float]:
    """p-values of A1 (two-sided), of A2 (too high, too low) and of one class, if nothing is recognisable.

    A1 of up to `EXACT` examples, in groups with equally many held-out ones, is compared with all arrangements.
    Otherwise A1 and A2 are referred to the beta distribution (Pearson's type I) with their null mean, variance,
    kurtosis and, where it makes the tail longer, skewness. For A1 of 11 examples that is up to 8% too large for
    p ≥ 10⁻⁴, and within 0.5% near `SIGNIFICANT`. "one_class" is the smallest p-value of A1 within a group by the
    beta distribution, corrected by Šidák's formula for how many there are. Ties make "a1", "a2" and "one_class"
    conservative; they draw A2 toward 0 and make "a2_low" smaller.

    Returns:
        {"a1": p, "a2": p, "a2_low": p, "one_class": p}, each in [0, 1].
    """
    of_a1, of_a2 = null_cumulants(ranked)
    step = 1 / (ranked.num * (max(m for _, m in ranked.sizes) + 1))
    least = math.exp(sum(math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1) for n, m in ranked.sizes))
    a1 = _exact_a1(ranked)
    if a1 is None:  # half of the least step between two values is the continuity correction
        far = max(ranked.a1, 1 - ranked.a1)
        a1 = min(1.0, 2 * max(least, float(_upper_tail(far - 0.5 * step, of_a1))))
    classes = class_p_values(ranked)
    return {
        "a1": a1,
        "a2": max(least, float(_upper_tail(ranked.a2 - step, of_a2))),
        "a2_low": max(least, float(_upper_tail(-ranked.a2 - step, of_a2 * [-1, 1, -1, 1]))),
        "one_class": a1 if len(classes) == 1 else float(-np.expm1(len(classes) * np.log1p(-classes.min()))),
    }


def class_p_values(ranked: PercentileRanks) -> Floats:
    """The two-sided p-value of A1 within each group of `sizes`, float64, shape (G,), below 1."""
    num, m = np.array(ranked.sizes, dtype=np.float64).T
    sums = np.array([_power_sums(int(size))[0] for size in m])
    cumulants = _cumulants(num, m + 1, sums.T) / num ** np.arange(1, 5)[:, None]
    a1 = class_a1(ranked)
    far = np.maximum(a1, 1 - a1) - 0.5 / (num * (m + 1))
    least = np.exp(special.gammaln(num + 1) + special.gammaln(m + 1) - special.gammaln(num + m + 1))
    return np.asarray(np.minimum(1 - 1e-12, 2 * np.maximum(least, _upper_tail(far, cumulants))))


def class_a1(ranked: PercentileRanks) -> Floats:
    """A1 within each group of `sizes`, float64, shape (G,)."""
    counted = ranked.group >= 0
    return np.bincount(ranked.group[counted], ranked.u[counted]) / np.bincount(ranked.group[counted])


def standard_errors(ranked: PercentileRanks) -> tuple[float, float]:
    """Of A1 and of `most_a2`, whether or not the null holds: √(S_forget / n + Σ_g w_g S_g), as DeLong's.

    S_forget is the sample variance over forgotten examples, S_g that of what each held-out score of the group
    contributes; `heldout_weights` gives w_g. Either part is at least its value under the null, so that a small sample
    that happens to agree with itself is not taken for a precise one.
    """
    counted = ranked.group >= 0
    group, u = ranked.group[counted], ranked.u[counted]
    num, m = np.array(ranked.sizes, dtype=np.int64).T
    share, weights = num / len(u), heldout_weights(ranked.sizes)
    floors = np.full(len(m), UNIFORM_VARIANCE), np.array([upper_moments(int(size))[1] for size in m])
    values_and_slopes = (u, np.ones(len(u))), (ranked.upper, 2 * np.sign(2 * u - 1))
    errors = []
    for (values, slopes), floor in zip(values_and_slopes, floors, strict=True):
        heldout = _heldout_variances(ranked.below[counted], ranked.through[counted], group, slopes, num, m)
        own = float(values.var(ddof=1)) if len(u) > 1 else 0.0
        errors.append(math.sqrt(max(own, share @ floor) / len(u) + max(weights @ heldout, weights @ floor)))
    return errors[0], errors[1]


def heldout_weights(sizes: Sequence[tuple[int, int]]) -> Floats:
    """What the held-out scores of each group add to the variance of a mean, as a share of their own: shape (G,).

    In one group it is 1 / m. In many it is (n_g / n)² (1 − 1 / n_g) / m_g, times n / (n − 1): the scores that a single
    forgotten example is compared with are already part of how much examples vary.
    """
    num, m = np.array(sizes, dtype=np.float64).T
    n = num.sum()
    return np.asarray(num * (num - 1) / (n * max(1.0, n - 1) * m))


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


def _positions_by_group(
    s: Floats, own: Integers, t: Floats, others: Integers, counts: Integers
) -> tuple[Integers, Integers]:
    """`positions` within groups: one search over whole numbers that sort by group, then by score."""
    values, order = np.unique(np.concatenate([s, t]), return_inverse=True)
    keys = order + np.concatenate([own, others]) * len(values)
    below, through = positions(keys[: len(s)], keys[len(s) :])
    before = (np.cumsum(counts) - counts)[own]
    return below - before, through - before


def _heldout_variances(
    below: Integers, through: Integers, group: Integers, weights: Floats, num: Integers, m: Integers
) -> Floats:
    """The sample variance of `contributions` in each group, shape (G,); 0 where there is one held-out score.

    All groups lie in one array, one after the other: what later groups add to a group's sums is a constant there.
    """
    starts = np.cumsum(m + 1) - m - 1
    total = int((m + 1).sum())
    jumps = sum(np.bincount(starts[group] + end, weights, total) for end in (below, through))
    above = np.delete(np.cumsum(np.asarray(jumps)[::-1])[::-1], starts)
    where = np.repeat(np.arange(len(m)), m)
    means = np.bincount(where, above) / m
    squares = np.bincount(where, (above - means[where]) ** 2)
    return np.asarray(squares / np.maximum(m - 1, 1) / (2 * num) ** 2)


@lru_cache(maxsize=1024)
def _power_sums(m: int) -> NDArray[np.float64]:
    """Of u and of |2u − 1| over the m + 1 equally likely ranks: mean, then the sums of squares, cubes and fourth powers
    of what is less the mean. Shape (2, 4)."""
    u = (np.arange(m + 1) + 0.5) / (m + 1)
    found = []
    for values in (u, np.abs(2 * u - 1)):
        mean = float(values.mean())
        found.append([mean, *(float(((values - mean) ** k).sum()) for k in (2, 3, 4))])
    return np.array(found)


def _cumulants(n: Floats, cells: Floats, sums: Floats) -> Floats:
    """Of the sum over n examples, by group: shape (4, G)."""
    mean, two, three, four = sums
    pairs, triples, quadruples = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    of_two = cells * (cells + 1)
    of_three, of_four = of_two * (cells + 2), of_two * (cells + 2) * (cells + 3)
    second = two * (n / cells + pairs / of_two)
    third = three * (n / cells + 3 * pairs / of_two + 2 * triples / of_three)
    fourth = (
        four * (n / cells + 4 * pairs / of_two)
        + 3 * pairs * (two**2 + four) / of_two
        + 6 * triples * (two**2 + 2 * four) / of_three
        + quadruples * (3 * two**2 + 6 * four) / of_four
    )
    return np.array([n * mean, second, third, fourth - 3 * second**2])


def _exact_a1(ranked: PercentileRanks) -> float | None:
    """The share of arrangements with a rank sum as far from the middle; None where they are too many to count."""
    sizes, n = {m for _, m in ranked.sizes}, ranked.num
    if len(sizes) > 1 or n > EXACT or n * max(sizes) > MOST_SUMS:
        return None
    chances = np.ones(1)
    for num, m in ranked.sizes:
        chances = np.convolve(chances, _rank_sums(num, m))
    counted = ranked.group >= 0
    total = 0.5 * float((ranked.below + ranked.through)[counted].sum())
    far = math.ceil(max(total, len(chances) - 1 - total))
    return min(1.0, 2 * float(chances[far:].sum()))


@lru_cache(maxsize=64)
def _rank_sums(n: int, m: int) -> Floats:
    """The distribution of the sum of n ranks among m, shape (n m + 1,): the Gaussian binomial coefficient's terms."""
    counts = np.zeros(n * m + 1, dtype=object)  # Python's integers, which neither overflow nor round
    counts[0] = 1
    for i in range(1, n + 1):  # times (1 − q^(m + i)), and divided by (1 − q^i)
        counts[m + i :] = counts[m + i :] - counts[: max(0, len(counts) - m - i)]
        for start in range(min(i, len(counts))):
            counts[start::i] = np.cumsum(counts[start::i])
    return np.asarray(counts / math.comb(n + m, n), dtype=np.float64)


def _upper_tail(value: ArrayLike, cumulants: Floats) -> Floats:
    """P(X ≥ value) of the beta distribution with these cumulants, shape (4, ...)."""
    mean, variance, third, fourth = cumulants
    if np.ndim(variance) == 0 and variance < 1e-12:  # one held-out example a class: |2u − 1| is ½ whatever happens
        return np.ones(())
    # A tail that is shorter than the other one, as |2u − 1| among two held-out examples has, is not relied upon.
    skewness, excess = np.maximum(0.0, third) / variance**1.5, fourth / variance**2
    # The sum of both shapes; for tiny samples it would be 0, the distribution having two values alone.
    both = np.maximum(1.0, 6 * (2 + excess - skewness**2) / (3 * skewness**2 - 2 * excess))
    root = np.sqrt((skewness * (both + 2)) ** 2 + 16 * (both + 1))
    left = both / 2 * (1 - skewness * (both + 2) / root)
    width = np.sqrt(variance) * root / 2
    end = mean + width * (1 - left / both)
    return np.asarray(special.betainc(both - left, left, np.clip((end - value) / width, 0.0, 1.0)))
