"""A lower bound on ε from what an attacker finds: how far from exact unlearning the models provably are."""

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.arrays import Floats
from expunge.errors import InputError, SettingError
from expunge.metrics.lira import as_model_scores, log_ratio
from expunge.metrics.membership import clopper_pearson

DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class EpsilonBound:
    """Lower bounds on ε over the examples of a forget set. JSON values.

    Attributes:
        median, maximum: over the examples, each bound at `confidence`. Of n true zeros, up to (1 − confidence) n are
            expected above 0: the maximum is no statement about the set.
        simultaneous: the maximum with each bound at 1 − (1 − confidence) / n, which holds for the whole set at once.
        ceiling: what a perfect attack would have shown with as many models: no bound can exceed it.
        num_evaluated: models that the bounds were measured on, on the smaller side; as many again chose the
            thresholds.
        delta, confidence: as given.
    """

    median: float
    maximum: float
    simultaneous: float
    ceiling: float
    num_evaluated: int
    delta: float
    confidence: float


def epsilon_bound(
    unlearned: ArrayLike, retrained: ArrayLike, *, delta: float = DELTA, confidence: float = 0.95, seed: int = 0
) -> EpsilonBound:
    """`epsilon_lower_bound` of every example, in short: median, maximum, and the bound for all examples at once.

    Args, Raises: as `epsilon_lower_bound`.

    >>> rng = np.random.default_rng(0)
    >>> far = epsilon_bound(rng.normal(9.0, 1.0, (64, 5)), rng.normal(0.0, 1.0, (64, 5)))
    >>> round(far.median, 2), round(far.ceiling, 2)
    (2.1, 2.1)
    """
    single = epsilon_lower_bound(unlearned, retrained, delta=delta, confidence=confidence, seed=seed)
    strict = 1 - (1 - confidence) / len(single)
    joint = epsilon_lower_bound(unlearned, retrained, delta=delta, confidence=strict, seed=seed)
    num_u, num_r = (len(scores) - len(scores) // 2 for scores in as_model_scores(unlearned, retrained, least=4))
    return EpsilonBound(
        median=float(np.median(single)),
        maximum=float(single.max()),
        simultaneous=float(joint.max()),
        ceiling=max(0.0, float(_bound(np.array(num_u), num_u, np.array(0), num_r, delta, confidence))),
        num_evaluated=min(num_u, num_r),
        delta=delta,
        confidence=confidence,
    )


def epsilon_lower_bound(
    unlearned: ArrayLike, retrained: ArrayLike, *, delta: float = DELTA, confidence: float = 0.95, seed: int = 0
) -> Floats:
    """For each example, a lower bound on the ε of (ε, δ)-unlearning that holds with probability `confidence`.

        ε = max(0, ln((TPR_L − δ) / FPR_H), ln((TNR_L − δ) / FNR_H))

    Unlearning is (ε, δ)-indistinguishable from retraining when every attack has TPR ≤ e^ε FPR + δ and the same of
    TNR and FNR. Half of the models, drawn by `seed`, fit the Gaussians of `likelihood_ratios` and choose the threshold
    with the largest bound; the rates and their Clopper–Pearson limits, each at (1 + confidence) / 2 one-sided, are
    those of the other half. Jagielski et al. 2020 (arXiv 2006.07709); Hayes et al. 2024 (arXiv 2403.01218).

    Args:
        unlearned, retrained: logit-scaled confidences, float, shapes (N_U, n) and (N_R, n), N ≥ 4 each.
        delta: δ in [0, 1).
        confidence: in (0, 1), for each example by itself.
        seed: of the split of the models.

    Returns:
        float64, shape (n,), in [0, `epsilon_ceiling`] of the number of models evaluated.

    Raises:
        InputError: fewer than four models on a side, other shapes, NaN or infinity.
        SettingError: delta or confidence out of range.

    >>> rng = np.random.default_rng(0)
    >>> bool((epsilon_lower_bound(rng.normal(9.0, 1.0, (16, 3)), rng.normal(0.0, 1.0, (16, 3))) > 0).all())
    True
    """
    _check(delta, confidence)
    u, r = as_model_scores(unlearned, retrained, least=4)
    rng = np.random.default_rng(seed)
    u, r = (scores[rng.permutation(len(scores))] for scores in (u, r))
    (u_fit, u_rest), (r_fit, r_rest) = (np.split(scores, [len(scores) // 2]) for scores in (u, r))
    chosen = _threshold(log_ratio(u_fit, u_fit, r_fit), log_ratio(r_fit, u_fit, r_fit), delta, confidence)
    found = (log_ratio(u_rest, u_fit, r_fit) >= chosen).sum(0)
    false = (log_ratio(r_rest, u_fit, r_fit) >= chosen).sum(0)
    return np.maximum(0.0, _bound(found, len(u_rest), false, len(r_rest), delta, confidence))


def epsilon_ceiling(num_models: int, *, delta: float = DELTA, confidence: float = 0.95) -> float:
    """The bound that an attack without a single error shows on `num_models` ≥ 1 models of either kind.

    >>> [round(epsilon_ceiling(n), 2) for n in (32, 64, 128, 256)]
    [2.1, 2.82, 3.53, 4.23]
    """
    _check(delta, confidence)
    if num_models < 1:
        raise InputError(f"num_models must be at least 1, not {num_models}")
    low = ((1 - confidence) / 2) ** (1 / num_models)
    return max(0.0, log((low - delta) / (1 - low))) if low > delta else 0.0


def _bound(
    found: NDArray[np.int64], num_u: int, false: NDArray[np.int64], num_r: int, delta: float, confidence: float
) -> Floats:
    """The larger of the two logarithms, from counts in any shape; it may be negative."""
    tpr_low = clopper_pearson(np.arange(num_u + 1), num_u, confidence=confidence)[0]
    fpr_high = clopper_pearson(np.arange(num_r + 1), num_r, confidence=confidence)[1]
    with np.errstate(divide="ignore"):
        one = np.log(np.maximum(tpr_low[found] - delta, 0.0)) - np.log(fpr_high[false])
        other = np.log(np.maximum(1 - fpr_high[false] - delta, 0.0)) - np.log(1 - tpr_low[found])
    return np.asarray(np.maximum(one, other))


def _threshold(above: Floats, below: Floats, delta: float, confidence: float) -> Floats:
    """For each column the threshold with the largest bound, halfway between two neighbouring entries: (n,)."""
    ordered = np.sort(np.concatenate([above, below]), axis=0)
    best, chosen = np.full(above.shape[1], -np.inf), ordered[0].copy()
    for row in (ordered[1:] + ordered[:-1]) / 2:
        bound = _bound((above >= row).sum(0), len(above), (below >= row).sum(0), len(below), delta, confidence)
        better = bound > best
        best, chosen = np.where(better, bound, best), np.where(better, row, chosen)
    return np.asarray(chosen)


def _check(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise SettingError(f"delta={delta} must lie in [0, 1), confidence={confidence} in (0, 1)")
