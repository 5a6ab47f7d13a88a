"""Difficulty calibration: what an audit of a non-random forget set takes off the scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from expunge.arrays import Floats, as_scores
from expunge.errors import InputError
from expunge.metrics.rank_test import positions

FULL_CORRELATION = 0.5
"""From this correlation of scores and difficulty on, over held-out examples, all of the difficulty is taken off."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """The mean margin of each example under two reference networks that never saw it; low is hard.

    Attributes:
        forget: float64, shape (n,), in the order of the forget set.
        test: float64, shape (m,), in the order of the held-out set.
        num_references: networks that were trained.
        accuracy: in [0, 1], of the references on the held-out examples that they never saw.
        forget_accuracy: likewise on the forget set: about what a network that never saw it gets right.
    """

    forget: Floats
    test: Floats
    num_references: int
    accuracy: float
    forget_accuracy: float


def difficulty_calibrated_scores(
    forget_scores: ArrayLike,
    test_scores: ArrayLike,
    forget_difficulty: ArrayLike,
    test_difficulty: ArrayLike,
) -> tuple[Floats, Floats, float]:
    """How much further up an example stands under the audited model than under networks that never saw it.

    Calibrated scores are z(s) − β z(d). z is the normal score of a value's rank among the held-out ones, Φ⁻¹(u) with u
    its percentile rank, so that neither the scale of scores nor their long tails matter. β is min(1, r /
    `FULL_CORRELATION`) with r the correlation of z(s) and z(d) over held-out examples, 0 where that is negative:
    difficulty that explains little is not taken off, since then only its noise would be.

    The score test on calibrated scores is an approximation, whose false alarms docs/research/audit-difficulty.md
    measures. For difficulty calibration in general see Watson et al. 2022 (arXiv 2111.08440).

    Args:
        forget_scores, test_scores: `logit_scaled_confidence` under the audited model, float, shapes (n,) and (m,).
        forget_difficulty, test_difficulty: of `Difficulty`, same shapes.

    Returns:
        float64, shapes (n,) and (m,), and β in [0, 1].

    Raises:
        InputError: other shapes, NaN or infinity.

    >>> difficulty_calibrated_scores([-7.0, 9.0], [0.0, 2.0, 4.0], [-3.0, -3.0], [0.0, 1.0, 2.0])[0].round(2).tolist()
    [0.0, 2.3]
    """
    scores = as_scores(forget_scores, "forget_scores"), as_scores(test_scores, "test_scores")
    hard = as_scores(forget_difficulty, "forget_difficulty"), as_scores(test_difficulty, "test_difficulty")
    for given, found in zip(scores, hard, strict=True):
        if given.shape != found.shape:
            raise InputError(f"there are {len(given)} scores and {len(found)} difficulties; give one for each example")
    of_scores, of_hard = (_normal_scores(values, values) for values in (scores[1], hard[1]))
    spread = float(of_scores.std() * of_hard.std())
    r = float((of_scores * of_hard).mean()) / spread if spread > 0 else 0.0  # their means are zero
    slope = min(1.0, max(0.0, r) / FULL_CORRELATION)
    ours = _normal_scores(scores[0], scores[1]) - slope * _normal_scores(hard[0], hard[1])
    return ours, of_scores - slope * of_hard, slope


def _normal_scores(values: Floats, among: Floats) -> Floats:
    below, through = positions(values, among)
    return np.asarray(special.ndtri((0.5 * (below + through) + 0.5) / (len(among) + 1)))
