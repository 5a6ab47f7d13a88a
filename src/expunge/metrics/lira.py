"""U-LiRA: can an attacker with reference models distinguish an unlearned model from a retrained one?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from expunge.arrays import Floats, as_floats
from expunge.errors import InputError, SettingError

SIGMA_FLOOR = 1e-6
"""The least standard deviation that a Gaussian is given, in logits: models that agree exactly leave none."""
_CHUNK = 2**22  # weights held at once by the bootstrap: 32 MiB


@dataclass(frozen=True, kw_only=True)
class Lira:
    """What `lira` measured. JSON values.

    Attributes:
        num_unlearned, num_retrained: models on either side.
        num_examples: n.
        auc: of Λ pooled over models and examples, in [0, 1]; ½ where the two kinds cannot be distinguished.
        auc_interval: (low, high) of the two-way cluster bootstrap.
        fprs: false positive rates asked for.
        tprs: share of the unlearned scores above the threshold of each; None below the resolution of the data.
        tpr_intervals: (low, high) of the same bootstrap; None likewise.
        auc_worst_decile: the AUC of single examples that one in ten exceeds. It is above ½ by chance alone: 0.61, 0.58
            and 0.55 with 16, 32 and 64 models a side that do not differ (simulated).
        confidence: of the intervals.
    """

    num_unlearned: int
    num_retrained: int
    num_examples: int
    auc: float
    auc_interval: tuple[float, float]
    fprs: tuple[float, ...]
    tprs: tuple[float | None, ...]
    tpr_intervals: tuple[tuple[float, float] | None, ...]
    auc_worst_decile: float
    confidence: float


def lira(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    fprs: Sequence[float] = (0.01, 0.001),
    num_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Lira:
    """Pooled AUC and TPR of the likelihood-ratio attack on unlearning, with bootstrap intervals.

    Hayes et al. 2024 (arXiv 2403.01218), U-LiRA, with leave-one-out Gaussians (`likelihood_ratios`). Models and
    examples are both resampled with replacement (two-way clusters: the scores of one model, and those of one
    example, are not independent); the ratios are not fitted anew. The interval is the percentile one, which shrinks
    to a point where the two kinds are distinguished without error.

    The threshold for a false positive rate α is the k-th largest of the m pooled retrained ratios,
    k = ⌊α (m + 1)⌋; a score counts as found when it lies above.

    Args:
        unlearned: logit-scaled confidences, float, shape (N_U, n): a row a model, a column an example.
        retrained: the same of models that never saw the examples, shape (N_R, n).
        fprs: each in (0, 1).
        num_bootstrap: B ≥ 1.
        confidence: in (0, 1).
        seed: of the bootstrap.

    Raises:
        InputError: fewer than three models on a side, other shapes, NaN or infinity.
        SettingError: a setting out of range.

    >>> rng = np.random.default_rng(0)
    >>> found = lira(rng.normal(1.0, 1.0, (16, 40)), rng.normal(0.0, 1.0, (16, 40)))
    >>> 0.6 < found.auc_interval[0] < found.auc < found.auc_interval[1] < 0.9
    True
    """
    if not all(0 < rate < 1 for rate in fprs) or num_bootstrap < 1 or not 0 < confidence < 1:
        raise SettingError("fprs and confidence lie in (0, 1), num_bootstrap is at least 1")
    above, below = likelihood_ratios(unlearned, retrained)
    pooled = _Pooled(above, below)
    ones = [np.ones((1, size)) for size in (len(above), len(below), above.shape[1])]
    ranks = [int(rate * (below.size + 1) + 1e-9) for rate in fprs]
    auc, tprs = pooled.measure(ones, ranks)
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(size, np.full(size, 1 / size), num_bootstrap)
        for size in (*map(len, (above, below)), above.shape[1])
    ]
    part = max(1, _CHUNK // (above.size + below.size))
    measured = [
        pooled.measure([weights[start : start + part].astype(np.float64) for weights in drawn], ranks)
        for start in range(0, num_bootstrap, part)
    ]
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]

    def interval(values: Floats) -> tuple[float, float]:
        low, high = np.quantile(values, ends)
        return float(low), float(high)

    replicas = np.concatenate([t for _, t in measured], axis=1)
    return Lira(
        num_unlearned=len(above),
        num_retrained=len(below),
        num_examples=above.shape[1],
        auc=float(auc[0]),
        auc_interval=interval(np.concatenate([a for a, _ in measured])),
        fprs=tuple(fprs),
        tprs=tuple(float(t[0]) if k else None for t, k in zip(tprs, ranks, strict=True)),
        tpr_intervals=tuple(interval(t) if k else None for t, k in zip(replicas, ranks, strict=True)),
        auc_worst_decile=float(np.quantile(example_aucs(above, below), 0.9)),
        confidence=confidence,
    )


def likelihood_ratios(unlearned: ArrayLike, retrained: ArrayLike) -> tuple[Floats, Floats]:
    """Λ = ln N(s; μ_U, σ_U) − ln N(s; μ_R, σ_R) of every score, its own model left out of the Gaussians.

    For each example the means and standard deviations (n − 1 in the denominator, at least `SIGMA_FLOOR`) are those of
    the other models' scores.

    Args:
        unlearned, retrained: logit-scaled confidences, float, shapes (N_U, n) and (N_R, n), N ≥ 3 each.

    Returns:
        Λ of the unlearned scores, (N_U, n), and of the retrained ones, (N_R, n): float64; large means "unlearned".

    Raises:
        InputError: fewer than three models on a side, other shapes, NaN or infinity.

    >>> above, below = likelihood_ratios([[3.0], [4.0], [5.0]], [[0.0], [1.0], [2.0]])
    >>> bool(above.min() > 0 > below.max())
    True
    """
    u, r = as_model_scores(unlearned, retrained, least=3)
    above = np.stack([log_ratio(row, np.delete(u, i, axis=0), r) for i, row in enumerate(u)])
    below = np.stack([log_ratio(row, u, np.delete(r, i, axis=0)) for i, row in enumerate(r)])
    return above, below


def example_aucs(above: ArrayLike, below: ArrayLike) -> Floats:
    """The AUC of each example (column) alone: the share of pairs of models in which `above` is larger, ties ½.

    Args:
        above, below: float, shapes (N_U, n) and (N_R, n).

    Returns:
        float64, shape (n,), in [0, 1].

    >>> example_aucs([[1.0, 0.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 2.0]])
    array([0.875, 0.125])
    """
    u, r = as_model_scores(above, below, least=1)
    wins = np.zeros(u.shape[1])
    for row in u:
        wins += (row > r).sum(0) + 0.5 * (row == r).sum(0)
    return wins / (len(u) * len(r))


def as_model_scores(unlearned: ArrayLike, retrained: ArrayLike, *, least: int) -> tuple[Floats, Floats]:
    """Both as float64, (N_U, n) and (N_R, n). Raises `InputError` unless there are `least` models and one example."""
    u, r = as_floats(unlearned, "scores of unlearned models"), as_floats(retrained, "scores of retrained models")
    if u.ndim != 2 or r.ndim != 2 or u.shape[1] != r.shape[1] or u.shape[1] == 0:
        raise InputError(
            f"scores must have shapes (models, examples) with the same examples, not {u.shape} and {r.shape}"
        )
    if min(len(u), len(r)) < least:
        raise InputError(
            f"{len(u)} unlearned and {len(r)} retrained models are too few; at least {least} of each are needed"
        )
    return u, r


def log_ratio(scores: Floats, unlearned: Floats, retrained: Floats) -> Floats:
    """Λ of `scores` (..., n) under Gaussians fitted to the columns of the other two, (N_U, n) and (N_R, n)."""
    return _log_density(scores, unlearned) - _log_density(scores, retrained)


def _log_density(scores: Floats, sample: Floats) -> Floats:
    """ln N(s; μ, σ) less the constant ln √(2π), which drops out of every ratio."""
    sigma = np.maximum(sample.std(0, ddof=1), SIGMA_FLOOR)
    return np.asarray(-0.5 * ((scores - sample.mean(0)) / sigma) ** 2 - np.log(sigma))


class _Pooled:
    """AUC and TPR of pooled ratios under weights of models and examples: sorted once, weighted many times."""

    def __init__(self, above: Floats, below: Floats) -> None:
        self.shapes = (above.shape, below.shape)
        values = np.concatenate([above.ravel(), below.ravel()])
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.searchsorted(ordered, ordered, side="left")  # of each entry's group of ties
        self.ends = np.searchsorted(ordered, ordered, side="right")
        self.positive = self.order < above.size

    def measure(self, weights_of: Sequence[Floats], ranks: Sequence[int]) -> tuple[Floats, Floats]:
        """For b rows of weights (b, N_U), (b, N_R), (b, n): AUC (b,), and TPR (ranks, b); 0 where the rank is 0."""
        models_u, models_r, examples = weights_of
        (num_u, n), (num_r, _) = self.shapes
        b = len(examples)
        weights = np.concatenate(
            [(models[:, :, None] * examples[:, None, :]).reshape(b, -1) for models in (models_u, models_r)], axis=1
        )[:, self.order]
        found = np.where(self.positive, weights, 0.0)
        missed = np.zeros((b, weights.shape[1] + 1))
        np.cumsum(weights - found, axis=1, out=missed[:, 1:])  # weight of the retrained entries before each place
        at = np.flatnonzero(self.positive)
        middle = 0.5 * (missed[:, self.starts[at]] + missed[:, self.ends[at]])
        total_u, total_r = float(num_u * n), float(num_r * n)  # multinomial weights keep the totals
        auc = (found[:, at] * middle).sum(1) / (total_u * total_r)
        hits = np.zeros((b, weights.shape[1] + 1))
        np.cumsum(found, axis=1, out=hits[:, 1:])
        tprs = np.zeros((len(ranks), b))
        for row, rank in zip(tprs, ranks, strict=True):
            # The last place with at least `rank` retrained entries from it on holds the rank-th largest of them.
            last = (missed[:, :-1] <= total_r - rank).sum(1) - 1
            row[:] = (total_u - hits[np.arange(b), self.ends[last]]) / total_u if rank else 0.0
        return auc, tprs
