"""How many forgotten examples lie beyond the outermost hundredth of held-out scores; docs/audit.md explains it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.arrays import Booleans, Floats, as_scores

Labels = NDArray[Any]

TAIL = 0.01
"""The share of unseen scores that lies beyond a threshold."""

LARGE_CLASS = 100
"""Held-out examples of a class from which on it has thresholds of its own."""


@dataclass(frozen=True)
class Tails:
    """Which forgotten examples lie in a tail of the held-out scores, and how likely so many are by chance.

    An example lies in the upper tail where its score is larger than the r-th largest of m held-out ones, r =
    `tail_rank(m)`: its percentile rank is above 1 − `TAIL`. A tie does not count. It is compared with its class where
    that is a large one (`LARGE_CLASS`), else with the held-out examples of all classes that are not.

    Attributes:
        above, below: bool, shape (n,): in the upper, and in the lower tail.
        p_above, p_below: P(as many or more) under the null, in [0, 1].
    """

    above: Booleans
    below: Booleans
    p_above: float
    p_below: float

    @property
    def k_plus(self) -> int:
        """k⁺: how many lie above."""
        return int(self.above.sum())

    @property
    def k_minus(self) -> int:
        """k⁻: how many lie below."""
        return int(self.below.sum())


def tails(
    forget_scores: ArrayLike,
    test_scores: ArrayLike,
    forget_labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
) -> Tails:
    """Finds who lies in the tails.

    The null hypothesis: forgotten and held-out scores of a class are exchangeable. p-values are exact where no scores
    are tied, and too large with ties. For large classes the count has a sum of beta-binomial distributions. For the
    rest it is a permutation test within classes. Where there are examples of either kind, it is twice the smaller p.

    Args:
        forget_scores, forget_labels: of the forgotten examples, shape (n,), finite.
        test_scores, test_labels: shape (m,), of examples that the model was never trained on. Without labels all
            are of one class.

    >>> found = tails([0.5, 99.5], range(100))
    >>> found.above.tolist(), found.below.tolist(), round(found.p_above, 4)
    ([False, True], [False, False], 0.0196)
    """
    s, t = as_scores(forget_scores, "forget_scores"), as_scores(test_scores, "test_scores")
    own = np.zeros(len(s), dtype=np.int64) if forget_labels is None else np.asarray(forget_labels)
    others = np.zeros(len(t), dtype=np.int64) if test_labels is None else np.asarray(test_labels)
    above, p_above = _upper(s, t, own, others)
    below, p_below = _upper(-s, -t, own, others)
    return Tails(above=above, below=below, p_above=p_above, p_below=p_below)


def tail_rank(num_test: int) -> int:
    """The rank r, from the top, of the held-out score that an example must exceed to rank above 1 − `TAIL`.

    r = ⌈TAIL (m + 1) − ½⌉. 0 where no score can get there: below 50 held-out examples.

    >>> tail_rank(1000), tail_rank(100), tail_rank(49)
    (10, 1, 0)
    """
    return math.ceil(round(TAIL * (num_test + 1) - 0.5, 9))


def chance_of_as_many(hits: Labels, forgotten: Labels, everything: Labels, count: int) -> float:
    """P(K ≥ count), K the forgotten ones among the hits, where any of a class are as likely to be forgotten.

    Args:
        hits: classes of the examples, forgotten or not, that are marked in some way, shape (h,).
        forgotten: classes of the forgotten examples, shape (n,).
        everything: classes of all examples, forgotten and held-out, shape (n + m,).
        count: how many of the marked ones are forgotten.
    """
    from scipy import stats

    total = np.ones(1)
    for label, marked in zip(*np.unique(hits, return_counts=True), strict=True):
        size, num = int((everything == label).sum()), int((forgotten == label).sum())
        total = np.convolve(total, stats.hypergeom.pmf(np.arange(marked + 1), size, num, marked))
    return min(1.0, float(total[count:].sum()))


def _upper(s: Floats, t: Floats, own: Labels, others: Labels) -> tuple[Booleans, float]:
    classes, counts = np.unique(others, return_counts=True)
    large = classes[counts >= LARGE_CLASS]
    above, sizes, p = np.zeros(len(s), dtype=bool), [], []
    for label in np.intersect1d(large, own):
        members, among = own == label, t[others == label]
        above[members] = _beyond(s[members], among)
        sizes.append((int(members.sum()), len(among)))
    if sizes:
        p.append(_among_large(int(above.sum()), sizes))
    rest, pool = ~np.isin(own, large), ~np.isin(others, large)
    if rest.any():
        pool = pool if pool.any() else np.ones(len(t), dtype=bool)
        above[rest] = _beyond(s[rest], t[pool])
        p.append(_among_rest(int(above[rest].sum()), s[rest], t[pool], own[rest], others[pool]))
    return above, min(1.0, len(p) * min(p))


def _beyond(s: Floats, among: Floats) -> Booleans:
    rank = tail_rank(len(among))
    return np.asarray(s > np.sort(among)[-rank]) if rank else np.zeros(len(s), dtype=bool)


def _among_large(count: int, sizes: list[tuple[int, int]]) -> float:
    """The share of a class's scores above the r-th largest of m is Beta(r, m + 1 − r), whatever they are."""
    from scipy import stats

    if count == 0:
        return 1.0
    total = np.ones(1)
    for n, m in sizes:
        rank = tail_rank(m)
        total = np.convolve(total, stats.betabinom.pmf(np.arange(n + 1), n, rank, m + 1 - rank))
    return min(1.0, float(total[count:].sum()))


def _among_rest(count: int, s: Floats, t: Floats, own: Labels, others: Labels) -> float:
    """`count` are above the r-th largest held-out score where they are among the count + r − 1 highest of all."""
    if count == 0:
        return 1.0
    everything = np.concatenate([others, own])
    order = np.argsort(-np.concatenate([t, s]), kind="stable")  # of equals, held-out ones first
    return chance_of_as_many(everything[order[: count + tail_rank(len(t)) - 1]], own, everything, count)
