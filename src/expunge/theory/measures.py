"""How concentrated a non-negative vector is: the majorization order, and two numbers that respect it."""

import numpy as np
from numpy.typing import ArrayLike

from expunge.arrays import Booleans, Floats, as_sizes
from expunge.errors import InputError

TOLERANCE = 1e-12
"""Partial sums that differ by no more than this share of the total count as equal."""


def majorizes(a: ArrayLike, b: ArrayLike, *, tolerance: float = TOLERANCE) -> Booleans:
    """Whether `a` majorizes `b`: for every t, the t largest entries of `a` sum to at least those of `b`.

    This is what "more concentrated at equal total" (Definition 4.1) is taken to mean. It is a partial order: it may
    hold in neither direction. It holds in both exactly for permutations of each other; it is strict where
    `majorizes(a, b) & ~majorizes(b, a)`.

    Args:
        a, b: float, shape (..., K), ≥ 0, with the same totals; the leading axes broadcast.
        tolerance: ≥ 0, as a share of the total; partial sums are compared with this slack.

    Returns:
        bool, shape (...).

    Raises:
        InputError: negative or non-finite entries, zero rows, different K, or totals that differ by more than
            1e-9 of themselves (scale both to total 1 first).

    >>> bool(majorizes([0.4, 0.5, 0.1], [0.5, 0.3125, 0.1875]))
    True
    >>> bool(majorizes([0.5, 0.3125, 0.1875], [0.4, 0.5, 0.1]))
    False
    """
    first, second = as_sizes(a, "a"), as_sizes(b, "b")
    if not tolerance >= 0:
        raise InputError(f"tolerance must be ≥ 0, not {tolerance}")
    if first.shape[-1] != second.shape[-1]:
        raise InputError(f"a and b have {first.shape[-1]} and {second.shape[-1]} entries; they must be alike")
    try:
        total, other = np.broadcast_arrays(first.sum(-1), second.sum(-1))
    except ValueError as error:
        raise InputError(f"a and b have shapes {first.shape} and {second.shape}") from error
    if not bool((np.abs(total - other) <= 1e-9 * total).all()):
        raise InputError("a and b must have the same totals; divide each by its own")
    gap = _sums_of_largest(first) - _sums_of_largest(second)
    return np.asarray((gap >= -tolerance).all(-1))


def participation_ratio(sizes: ArrayLike) -> Floats:
    """The number of entries that take part: PR = (Σ s)² / Σ s², 1 / Σ s² for shares.

    K equal entries have PR = K, a single one PR = 1. It falls as the vector is concentrated (it is Schur-concave). Of
    an outer product v wᵀ it is PR(v) · PR(w). For `row_shares`, 2 ≤ PR ≤ 4 (C − 1) / C < 4, whatever the label.

    Args:
        sizes: float, shape (..., K), ≥ 0, any positive total. Flatten a matrix to measure its entries.

    Returns:
        float64, shape (...), in [1, K].

    Raises:
        InputError: negative or non-finite entries, or a zero row.

    >>> float(participation_ratio([0.5, 0.5, 0.0, 0.0]))
    2.0
    """
    values = as_sizes(sizes, "sizes")
    shares = values / values.max(-1, keepdims=True)  # neither overflows nor underflows when squared
    return np.asarray(shares.sum(-1) ** 2 / (shares**2).sum(-1))


def gini(sizes: ArrayLike) -> Floats:
    """The Gini coefficient: Σ_i (2i − K − 1) s_(i) / (K Σ s), with s_(1) ≤ … ≤ s_(K).

    0 where all entries are equal, 1 − 1/K where there is but one. It rises as the vector is concentrated (it is
    Schur-convex).

    Args:
        sizes: float, shape (..., K), ≥ 0, any positive total. Flatten a matrix to measure its entries.

    Returns:
        float64, shape (...), in [0, 1 − 1/K].

    Raises:
        InputError: negative or non-finite entries, or a zero row.

    >>> float(gini([1.0, 1.0])), float(gini([0.0, 1.0]))
    (0.0, 0.5)
    """
    values = np.sort(as_sizes(sizes, "sizes"), axis=-1)
    shares = values / values.max(-1, keepdims=True)
    num = shares.shape[-1]
    weights = 2.0 * np.arange(1, num + 1) - num - 1
    return np.asarray(np.clip((shares * weights).sum(-1) / (num * shares.sum(-1)), 0.0, 1.0 - 1.0 / num))


def _sums_of_largest(sizes: Floats) -> Floats:
    """Sums of the 1, 2, …, K largest entries, as shares of the total, shape (..., K)."""
    sums: Floats = np.cumsum(np.sort(sizes, axis=-1)[..., ::-1], axis=-1)
    return sums / sums[..., -1:]
