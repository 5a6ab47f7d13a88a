"""Scores of how much a model shows that it knows an example: pure functions of logits and labels, in float64."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from expunge.arrays import Floats, as_floats, as_labels
from expunge.errors import InputError


def logit_scaled_confidence(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """The score of the audits: φ = z_y − logsumexp_{j≠y} z_j, the log odds of the true class.

    Higher is surer of the label, so more memorised; φ < 0 where p_y < ½. It is ln(p_y / (1 − p_y)) of Carlini et al.
    2022, "Membership Inference Attacks From First Principles", without its loss of digits where p_y is close to 0 or 1.

    Args:
        logits: z, float, shape (N, C), C ≥ 2, finite.
        labels: y, integers in [0, C), shape (N,).

    Returns:
        float64, shape (N,).

    Raises:
        InputError: other shapes, no examples, NaN or infinity, labels out of range.

    >>> logit_scaled_confidence([[2.0, 0.0], [-800.0, 0.0]], [0, 0])
    array([   2., -800.])
    """
    z = as_floats(logits, "logits")
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] < 2:
        raise InputError(f"logits must have shape (N, C) with N ≥ 1 and C ≥ 2, not {z.shape}")
    if np.shape(labels) != z.shape[:1]:
        raise InputError(f"labels must have shape ({len(z)},), one an example, not {np.shape(labels)}")
    own = np.arange(z.shape[1]) == as_labels(labels, z, "labels")[:, None]
    return np.asarray(z[own] - special.logsumexp(z[~own].reshape(len(z), -1), axis=1))


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """The loss of each example in nats: −ln p_y = ln(1 + exp(−φ)). Lower is more memorised.

    Args, Raises: as for `logit_scaled_confidence`.

    Returns:
        float64, shape (N,), ≥ 0; no digits are lost near p_y = 1, where it is about exp(−φ).

    >>> cross_entropy([[0.0, 0.0], [50.0, 0.0]], [0, 0])
    array([6.93147181e-01, 1.92874985e-22])
    """
    return np.asarray(np.logaddexp(0.0, -logit_scaled_confidence(logits, labels)))
