"""Means, intervals, paired tests and correlations. Pure functions of numbers.

The deviation of one setting is the sample's (n − 1); `pooled_sd`, for the averages over architectures, is the
population's, as the paper prints it. Pairs are by seed, which draws the same forget set for every method. Tests are
paired t-tests: with five seeds, an exact sign test cannot go below p = 2/2⁵ = 0.0625.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import atanh, inf, isfinite, sqrt, tanh
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
LEAST_PAIRS = 3
"""Fewer shared seeds are not tested."""
LEAST_POINTS = 8
"""Fewer points are not correlated, nor, within groups, fewer points less further groups."""

BySeed = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of n numbers: mean, sample standard deviation and t-interval; the last three None where n = 1."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


def summarize(values: Sequence[float], *, least: float = -inf, most: float = inf) -> Summary:
    """Mean, sample standard deviation and 95% t-interval, cut to what the quantity can be.

    >>> found = summarize([1.0, 2.0, 3.0], least=0)
    >>> found.mean, found.sd, found.low, found.n
    (2.0, 1.0, 0, 3)
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Summary(mean=mean, sd=None, low=None, high=None, n=n)
    sd = 0.0 if len(set(values)) == 1 else float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / sqrt(n)
    return Summary(mean=mean, sd=sd, low=max(least, mean - half), high=min(most, mean + half), n=n)


def share_interval(shares: Sequence[float], size: int) -> tuple[float, float]:
    """A 95% interval of the mean of n ≥ 2 shares in [0, 1], each of `size` examples.

    The t-interval, or, where all are the same and show no deviation, the exact binomial one of all n · `size` examples
    (Clopper and Pearson 1934).

    >>> [round(end, 3) for end in share_interval([0.0, 0.0, 0.0], 16)]
    [0.0, 0.074]
    """
    found = summarize(shares, least=0, most=1)
    if found.sd:
        assert found.low is not None
        assert found.high is not None
        return found.low, found.high
    num = len(shares) * size
    exact = stats.binomtest(round(found.mean * num), num).proportion_ci(CONFIDENCE)
    return float(exact.low), float(exact.high)


def pooled_sd(groups: Sequence[Sequence[float]]) -> float:
    """The population standard deviation over groups of equal weight: √(mean(sd² + mean²) − mean of means²).

    >>> pooled_sd([[1.0, 1.0], [3.0, 3.0]])
    1.0
    """
    means = np.array([np.mean(group) for group in groups])
    variances = np.array([np.var(group) for group in groups])
    return float(np.sqrt(np.mean(variances) + np.var(means)))


def differences(ours: BySeed, other: BySeed) -> list[float]:
    """Ours less the other, for the seeds that both have, in their order."""
    return [ours[seed] - other[seed] for seed in sorted(ours.keys() & other.keys())]


def paired_p(values: Sequence[float]) -> float | None:
    """Two-sided p-value of the t-test that differences have mean 0; None with fewer than `LEAST_PAIRS`.

    Differences that are all the same have no deviation to judge by: p is 1 where they are zero, else that of the exact
    sign test, 2 / 2ⁿ.
    """
    n = len(values)
    if n < LEAST_PAIRS:
        return None
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    if sd <= 1e-12 * max(1e-3, float(np.max(np.abs(values)))):
        return 1.0 if abs(mean) <= 1e-15 else 2.0 ** (1 - n)
    return float(2 * stats.t.sf(abs(mean) * sqrt(n) / sd, n - 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are, after Holm (1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, n in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[n]))
        adjusted[n] = highest
    return adjusted


def ahead(ours: BySeed, others: Sequence[BySeed]) -> bool | None:
    """Whether ours are larger than every one of the others: paired t-tests by seed, Holm over the others, at 5%.

    Returns:
        True: significantly larger than each. False: significantly smaller than at least one. None: neither, or fewer
        than `LEAST_PAIRS` seeds shared with one of them; see `enough_shared`.
    """
    if not enough_shared(ours, others):
        return None
    gaps = [differences(ours, other) for other in others]
    p_values = holm([p for gap in gaps if (p := paired_p(gap)) is not None])
    means = [float(np.mean(gap)) for gap in gaps]
    if any(p <= ALPHA and mean < 0 for p, mean in zip(p_values, means, strict=True)):
        return False
    return True if all(p <= ALPHA for p in p_values) else None


def enough_shared(ours: BySeed, others: Sequence[BySeed]) -> bool:
    """Whether there is somebody to compare with, and enough seeds are shared with everybody."""
    return bool(others) and all(len(ours.keys() & other.keys()) >= LEAST_PAIRS for other in others)


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """A coefficient with its 95% interval (Fisher's z) and the number of points."""

    r: float
    low: float
    high: float
    n: int


def pearson(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Pearson's coefficient; None for fewer than `LEAST_POINTS` points, or where x or y does not vary."""
    return _correlation(np.asarray(x, float), np.asarray(y, float), len(x))


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Spearman's coefficient, with the interval of Bonett and Wright (2000); None as for `pearson`."""
    return _correlation(_ranks(x), _ranks(y), len(x), ranks=True)


def pearson_within(x: Sequence[float], y: Sequence[float], groups: Sequence[object]) -> Correlation | None:
    """Pearson's coefficient after the mean of its group is taken off each value: what is left within a group.

    Groups of one point say nothing and are left out. The interval counts points less (groups − 1), as each further
    group costs a mean.
    """
    parts = _parts(x, y, groups)
    scales = [max((float(np.abs(part[n]).max()) for part in parts), default=0.0) for n in (0, 1)]
    return _within(parts, scales=(scales[0], scales[1]))


def spearman_within(x: Sequence[float], y: Sequence[float], groups: Sequence[object]) -> Correlation | None:
    """Like `pearson_within`, of the ranks within each group."""
    return _within([(_ranks(one), _ranks(other)) for one, other in _parts(x, y, groups)], ranks=True)


Floats = np.typing.NDArray[np.float64]


def _within(parts: Sequence[tuple[Floats, Floats]], **how: Any) -> Correlation | None:
    if not parts:
        return None
    a = np.concatenate([one - one.mean() for one, _ in parts])
    b = np.concatenate([other - other.mean() for _, other in parts])
    return _correlation(a, b, len(a) - len(parts) + 1, **how)


def _parts(x: Sequence[float], y: Sequence[float], groups: Sequence[object]) -> list[tuple[Floats, Floats]]:
    members: dict[object, list[tuple[float, float]]] = {}
    for one, other, group in zip(x, y, groups, strict=True):
        members.setdefault(group, []).append((one, other))
    arrays = [np.array(pairs) for pairs in members.values() if len(pairs) > 1]
    return [(array[:, 0], array[:, 1]) for array in arrays]


def _ranks(values: Sequence[float] | Floats) -> Floats:
    return np.asarray(stats.rankdata(values), float)


def _constant(values: Floats, scale: float) -> bool:
    """Up to rounding: the mean of equal numbers of size `scale`, taken off them, leaves some 1e-17 of it."""
    return float(np.ptp(values)) <= 1e-12 * max(scale, float(np.abs(values).max(initial=0.0)))


def _correlation(
    a: Floats, b: Floats, effective: int, *, ranks: bool = False, scales: tuple[float, float] = (0.0, 0.0)
) -> Correlation | None:
    if effective < LEAST_POINTS:
        return None
    if _constant(a, scales[0]) or _constant(b, scales[1]):
        return None
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not isfinite(norm) or norm == 0:
        return None
    r = float(np.clip(a @ b / norm, -1, 1))
    z = atanh(min(max(r, -1 + 1e-15), 1 - 1e-15))
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * sqrt((1 + r * r / 2 if ranks else 1) / (effective - 3))
    return Correlation(r=r, low=tanh(z - half), high=tanh(z + half), n=len(a))
