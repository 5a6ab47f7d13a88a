"""Scores of how much a model shows that it knows an example: pure functions of logits and labels, in float64."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def logit_margin(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """The score of the default audit: s = z_y − logsumexp_{j≠y} z_j, the log-odds of the true class.

    Higher is surer of the label, so more memorised; s < 0 where p_y < ½. It is the logit-scaled confidence
    ln(p_y / (1 − p_y)) of Carlini et al., "Membership Inference Attacks From First Principles", without its loss of
    digits where p_y is close to 0 or 1.

    Args:
        logits: z, float, shape (N, C), C ≥ 2, finite.
        labels: y, integers in [0, C), shape (N,).

    Returns:
        float64, shape (N,).

    Raises:
        InputError: other shapes, no examples, NaN or infinity, labels out of range.

    >>> logit_margin([[2.0, 0.0], [-800.0, 0.0]], [0, 0])
    array([   2., -800.])
    """
    z, y = _as_logits(logits, labels)
    own, others = _split(z, y)
    return np.asarray(own - _logsumexp(others))


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """The loss of each example in nats: −ln p_y = ln(1 + exp(−s)) with s its `logit_margin`. Lower is more memorised.

    Args, Raises: as for `logit_margin`.

    Returns:
        float64, shape (N,), ≥ 0; no digits are lost near p_y = 1, where it is about exp(−s).

    >>> cross_entropy([[0.0, 0.0], [50.0, 0.0]], [0, 0])
    array([6.93147181e-01, 1.92874985e-22])
    """
    return np.asarray(np.logaddexp(0.0, -logit_margin(logits, labels)))


def modified_entropy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """The modified prediction entropy, in nats. Lower is more memorised.

        −(1 − p_y) ln p_y − Σ_{j≠y} p_j ln(1 − p_j)

    It is 0 for a sure and right prediction and grows without bound for a sure and wrong one, unlike the entropy,
    which is 0 for both. Source: Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning
    Models", Eq. (8). Everything is computed from log-probabilities, and 1 − p as the sum of the other classes', so
    that neither a saturated softmax nor 0 · ln 0 arises.

    Args, Raises: as for `logit_margin`.

    Returns:
        float64, shape (N,), ≥ 0.

    >>> modified_entropy([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]], [0, 0, 0])
    array([6.93147181e-01, 0.00000000e+00, 2.00000000e+03])
    """
    z, y = _as_logits(logits, labels)
    log_p = z - _logsumexp(z)[:, None]
    log_rest = _log_of_the_others(z) - _logsumexp(z)[:, None]
    own, _ = _split(log_p, y)
    own_rest, rest = _split(log_rest, y)
    _, others = _split(log_p, y)
    return np.asarray(np.exp(own_rest) * -own + (np.exp(others) * -rest).sum(1))


def _log_of_the_others(z: Floats) -> Floats:
    """logsumexp over all classes but j, for every j: shape (N, C)."""
    best = z.argmax(1)
    top, below = _split(z, best)
    powers = np.exp(z - top[:, None])
    # Without a class that is not the largest, at least the largest (1) is left: no digits cancel.
    powers_left = powers.sum(1, keepdims=True) - powers
    np.put_along_axis(powers_left, best[:, None], 1.0, axis=1)
    left = top[:, None] + np.log(powers_left)
    np.put_along_axis(left, best[:, None], _logsumexp(below)[:, None], axis=1)
    return np.asarray(left)


def _split(values: Floats, columns: Integers) -> tuple[Floats, Floats]:
    """One column of each row, shape (N,), and the C − 1 others, shape (N, C − 1)."""
    rows, num_columns = values.shape
    chosen = np.arange(num_columns) == columns[:, None]
    return values[chosen], values[~chosen].reshape(rows, num_columns - 1)


def _logsumexp(values: Floats) -> Floats:
    top = values.max(1)
    return np.asarray(top + np.log(np.exp(values - top[:, None]).sum(1)))


def _as_logits(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Integers]:
    try:
        z = np.asarray(logits, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"logits must be an array of numbers: {error}") from error
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] < 2:
        raise InputError(f"logits must have shape (N, C) with N ≥ 1 and C ≥ 2, not {z.shape}")
    if not bool(np.isfinite(z).all()):
        raise InputError("logits hold NaN or infinity")
    y = np.asarray(labels)
    if y.dtype.kind not in "iu":
        raise InputError(f"labels must hold integer classes, not {y.dtype}")
    if y.shape != z.shape[:1]:
        raise InputError(f"labels must have shape ({len(z)},), one an example, not {y.shape}")
    if not bool(((y >= 0) & (y < z.shape[1])).all()):
        raise InputError(f"labels must lie in [0, {z.shape[1]}), the classes that the logits have")
    return z, y.astype(np.int64)
