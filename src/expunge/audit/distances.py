"""How far a model's outputs are from those of a reference: activation distance, and ZRF."""

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import InputError
from expunge.theory._checks import Floats, as_probabilities


def activation_distance(p: ArrayLike, q: ArrayLike) -> float:
    """The mean Euclidean distance between two models' softmax outputs on the same examples.

    Golatkar et al. 2020/2021 and Chundawat et al. 2023, "activation distance", where `q` comes from a retrained
    model. It is never 0 even between two retrained models: compare with their distance from each other.

    Args:
        p, q: probabilities, float, shape (..., C), the same shape; leading axes may be (models, examples).

    Returns:
        In [0, √2].

    Raises:
        InputError: rows that are no distributions, different shapes, or no example.

    >>> activation_distance([[1.0, 0.0]], [[0.4, 0.6]])
    0.848528137423857
    """
    first, second = _alike(p, q)
    return float(np.sqrt(((first - second) ** 2).sum(-1)).mean())


def zrf(p: ArrayLike, q: ArrayLike) -> float:
    """The zero-retrain forgetting score: 1 − the mean Jensen–Shannon divergence from an untrained network, in bits.

        ZRF = 1 − mean_i JS(p_i, q_i)
        JS(p, q) = ½ Σ_k p_k log₂(p_k / m_k) + ½ Σ_k q_k log₂(q_k / m_k),    m = (p + q) / 2

    Chundawat et al. 2023, "Can bad teaching induce forgetting?", section 4.1. The logarithm is base 2, so that the
    score has the range [0, 1] which the paper states; the divergence is summed over classes and averaged over
    examples. Diagnostic only: it rewards random answers, which no model retrained without an example gives.

    Args:
        p: the unlearned model's probabilities on the forget set, float, shape (..., C).
        q: those of a network of the same kind with random weights, same shape.

    Returns:
        In [0, 1]; 1 where both agree.

    Raises:
        InputError: as `activation_distance`.

    >>> zrf([[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]])
    0.5
    """
    first, second = _alike(p, q)
    middle = (first + second) / 2
    divergence = (_kl_bits(first, middle) + _kl_bits(second, middle)) / 2
    return float(np.clip(1 - divergence.mean(), 0.0, 1.0))


def _kl_bits(p: Floats, m: Floats) -> Floats:
    """Σ_k p_k log₂(p_k / m_k) of each row; 0 log 0 = 0. `m` is positive wherever `p` is, unless it underflows."""
    ratio = np.divide(p, m, out=np.ones_like(p), where=(p > 0) & (m > 0))
    return np.asarray((p * np.log2(ratio)).sum(-1))


def _alike(p: ArrayLike, q: ArrayLike) -> tuple[Floats, Floats]:
    first, second = as_probabilities(p), as_probabilities(q)
    if first.shape != second.shape or first.size == 0:
        raise InputError(
            f"both must hold the same examples and classes, at least one, not {first.shape} and {second.shape}"
        )
    return first, second
