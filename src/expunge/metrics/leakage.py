"""Whether the update itself tells which examples were forgotten."""

import numpy as np
from numpy.typing import ArrayLike

from expunge.arrays import Floats, as_probabilities
from expunge.errors import InputError
from expunge.metrics.membership import auc, auc_interval


def update_leakage(
    p_before_forget: ArrayLike,
    p_after_forget: ArrayLike,
    p_before_test: ArrayLike,
    p_after_test: ArrayLike,
    *,
    confidence: float = 0.95,
) -> tuple[float, tuple[float, float]]:
    """AUC of ‖p_before − p_after‖₂, forgotten against test examples, for someone who holds both models.

    Chen et al. 2021, "When machine unlearning jeopardizes privacy". A warning, never a gate: exact retraining changes
    its answers on forgotten examples too. What helps is to withdraw the old model.

    Args:
        p_before_forget, p_after_forget: both models' probabilities on the forget set, float, shape (n, C).
        p_before_test, p_after_test: the same on examples that neither was trained on, shape (m, C).
        confidence: of the interval, in (0, 1).

    Returns:
        The AUC, in [0, 1], ½ where the update tells nothing, and its interval (low, high), that of `auc_interval`.

    Raises:
        InputError: rows that are no distributions, different shapes, or no example.
        SettingError: `confidence` is not in (0, 1).

    >>> update_leakage([[0.9, 0.1]], [[0.2, 0.8]], [[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.6, 0.4]])[0]
    1.0
    """
    forget, test = _moved(p_before_forget, p_after_forget), _moved(p_before_test, p_after_test)
    return auc(forget, test), auc_interval(forget, test, confidence=confidence)


def _moved(before: ArrayLike, after: ArrayLike) -> Floats:
    first, second = as_probabilities(before), as_probabilities(after)
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"probabilities before and after must be alike, (N, C), not {first.shape} and {second.shape}")
    return np.asarray(np.sqrt(((first - second) ** 2).sum(1)))
