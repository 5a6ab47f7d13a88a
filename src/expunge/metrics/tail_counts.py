"""How many forgotten examples lie beyond the outermost hundredth of held-out scores.

docs/research/audit-formulas.md explains it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

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
    that is a large one (`LARGE_CLASS`). The other classes are compared together, each less its median. Examples of
    classes without held-out ones are in no tail, unless all are.

    Attributes:
        above, below: bool, shape (n,): in the upper, and in the lower tail.
        p_above, p_below: P(as many or more) under the null, in [0, 1].
        num_highest, num_lowest: how many lie above the highest held-out score, and below the lowest.
        p_highest, p_lowest: P(as many or more of those) under the null.
    """

    above: Booleans
    below: Booleans
    p_above: float
    p_below: float
    num_highest: int
    num_lowest: int
    p_highest: float
    p_lowest: float

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

    Small classes are compared less the median of their forgotten and held-out scores together, which no permutation
    changes: else those of a hard class would hide below the scores of an easy one.

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
    known = np.isin(own, others)
    if not known.any():  # nothing to go by but all of them
        own, others, known = np.zeros_like(own), np.zeros_like(others), np.ones(len(s), dtype=bool)
    found = [
        _upper(sign * s[known], sign * t, own[known], others, rank) for rank in (tail_rank, _first) for sign in (1, -1)
    ]
    above, below = np.zeros(len(s), dtype=bool), np.zeros(len(s), dtype=bool)
    above[known], below[known] = found[0][0], found[1][0]
    (_, p_above), (_, p_below), (highest, p_highest), (lowest, p_lowest) = found
    return Tails(
        above=above,
        below=below,
        p_above=p_above,
        p_below=p_below,
        num_highest=int(highest.sum()),
        num_lowest=int(lowest.sum()),
        p_highest=p_highest,
        p_lowest=p_lowest,
    )


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
    total = np.ones(1)
    for label, marked in zip(*np.unique(hits, return_counts=True), strict=True):
        size, num = int((everything == label).sum()), int((forgotten == label).sum())
        k = np.arange(max(0, marked - size + num), min(marked, num) + 1)
        chances = np.zeros(marked + 1)  # hypergeometric
        chances[k] = np.exp(_log_choose(num, k) + _log_choose(size - num, marked - k) - _log_choose(size, marked))
        total = np.convolve(total, chances)
    return min(1.0, float(total[count:].sum()))


def _first(num_test: int) -> int:
    """The rank of the highest held-out score."""
    return 1


def _upper(
    s: Floats, t: Floats, own: Labels, others: Labels, rank_among: Callable[[int], int]
) -> tuple[Booleans, float]:
    """Who lies above the held-out score of that rank, from the top, and P(as many or more)."""
    classes, counts = np.unique(others, return_counts=True)
    large = classes[counts >= LARGE_CLASS]
    above, sizes, p = np.zeros(len(s), dtype=bool), [], []
    for label in np.intersect1d(large, own):
        members, among = own == label, t[others == label]
        rank = rank_among(len(among))
        above[members] = _beyond(s[members], among, rank)
        sizes.append((int(members.sum()), len(among), rank))
    if sizes:
        p.append(_among_large(int(above.sum()), sizes))
    rest, pool = ~np.isin(own, large), ~np.isin(others, large)
    if rest.any():
        ours, theirs = _less_medians(s[rest], t[pool], own[rest], others[pool])
        rank = rank_among(len(theirs))
        above[rest] = _beyond(ours, theirs, rank)
        p.append(_among_rest(int(above[rest].sum()), rank, ours, theirs, own[rest], others[pool]))
    return above, min(1.0, len(p) * min(p))


def _less_medians(s: Floats, t: Floats, own: Labels, others: Labels) -> tuple[Floats, Floats]:
    """Scores less the median of their class, over forgotten and held-out examples together."""
    scores = np.concatenate([s, t])
    classes, place = np.unique(np.concatenate([own, others]), return_inverse=True)
    order = np.lexsort((scores, place))
    counts = np.bincount(place)
    ends = np.cumsum(counts)
    ranked = scores[order]
    medians = (ranked[ends - counts + (counts - 1) // 2] + ranked[ends - counts + counts // 2]) / 2
    centred = scores - medians[place] if len(classes) > 1 else scores
    return centred[: len(s)], centred[len(s) :]


def _beyond(s: Floats, among: Floats, rank: int) -> Booleans:
    return np.asarray(s > np.sort(among)[-rank]) if rank else np.zeros(len(s), dtype=bool)


def _among_large(count: int, sizes: list[tuple[int, int, int]]) -> float:
    """The share of a class's scores above the r-th largest of m is Beta(r, m + 1 − r), whatever they are."""
    if count == 0:
        return 1.0
    total = np.ones(1)
    for n, m, rank in sizes:
        k = np.arange(n + 1)
        chances = np.exp(
            _log_choose(n, k) + special.betaln(k + rank, n - k + m + 1 - rank) - special.betaln(rank, m + 1 - rank)
        )
        total = np.convolve(total, chances)
    return min(1.0, float(total[count:].sum()))


def _among_rest(count: int, rank: int, s: Floats, t: Floats, own: Labels, others: Labels) -> float:
    """`count` are above the r-th largest held-out score where they are among the count + r − 1 highest of all."""
    if count == 0:
        return 1.0
    everything = np.concatenate([others, own])
    order = np.argsort(-np.concatenate([t, s]), kind="stable")  # of equals, held-out ones first
    return chance_of_as_many(everything[order[: count + rank - 1]], own, everything, count)


def _log_choose(n: ArrayLike, k: ArrayLike) -> Floats:
    n, k = np.asarray(n, dtype=np.float64), np.asarray(k, dtype=np.float64)
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))
