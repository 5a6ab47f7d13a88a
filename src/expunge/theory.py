"""How one step of unlearning spreads over the last linear layer, in closed form.

docs/research/theory.md states what follows.

For one example with features o and softmax probabilities p, the cross-entropy toward class k has the last-layer
gradient (p − e_k) oᵀ ("Towards Safe Machine Unlearning", appendix A, Eq. (7)). Descending toward k and ascending from
k differ in sign alone: in both cases the size of the update, scaled to total 1, is the outer product of
`row_shares(p, k)` and `feature_shares(o)`. δ-Targeted^λ has k = y′ (`second_best`), gradient ascent k = y.
"""

import numpy as np
from numpy.typing import ArrayLike

from expunge.arrays import Booleans, Floats, Integers, as_features, as_labels, as_probabilities, as_sizes
from expunge.errors import InputError

TOLERANCE = 1e-12
"""Partial sums that differ by no more than this share of the total count as equal."""


def row_shares(probabilities: ArrayLike, label: ArrayLike) -> Floats:
    """The share of each class's row in ‖Δφ‖₁ for one gradient step on the cross-entropy of `label`.

        v_k = ½,    v_i = p_i / (2 (1 − p_k)) for i ≠ k        with k = `label`

    Descending toward k and ascending from k give the same shares: targeted unlearning is
    `row_shares(p, second_best(p, y))`, gradient ascent `row_shares(p, y)`. Step size, power λ of the loss (for one
    example) and features drop out. 1 − p_k is summed over the other classes, so that a nearly certain model loses
    no digits. Source: "Towards Safe Machine Unlearning", appendix A, from Eq. (7); there `|Δp| / ‖Δp‖₁`.

    Args:
        probabilities: p, float, shape (..., C), C ≥ 2; in [0, 1], each row summing to 1 within 1e-5.
        label: k, integers in [0, C), shape (...) or broadcastable to it.

    Returns:
        v, float64, shape (..., C): in [0, ½], each row summing to 1.

    Raises:
        InputError: arguments out of range, or an example with p_k = 1, whose gradient is zero.

    >>> row_shares([0.6, 0.25, 0.15], 0).round(4)  # ascent from the predicted class
    array([0.5   , 0.3125, 0.1875])
    >>> row_shares([0.6, 0.25, 0.15], 1).round(4)  # descent toward the second-best one
    array([0.4, 0.5, 0.1])
    """
    p = as_probabilities(probabilities)
    at = as_labels(label, p)[..., None]
    others = p.copy()
    np.put_along_axis(others, at, 0.0, axis=-1)
    rest = others.sum(-1, keepdims=True)
    if not bool((rest > 0).all()):
        raise InputError("an example has probability 1 on its label: its gradient is zero and has no shares")
    shares: Floats = 0.5 * (others / rest)
    np.put_along_axis(shares, at, 0.5, axis=-1)
    return shares


def feature_shares(features: ArrayLike, *, bias: bool = False) -> Floats:
    """The share of each feature's column in ‖Δφ‖₁ for one example: w = |o| / ‖o‖₁.

    Args:
        features: o, float, shape (..., M), any sign.
        bias: appends the bias, one more feature of constant value 1, as column M.

    Returns:
        w, float64, shape (..., M), or (..., M + 1) with `bias`; each row sums to 1.

    Raises:
        InputError: NaN, infinity, or an example whose features are all zero.

    >>> feature_shares([3.0, -1.0], bias=True)
    array([0.6, 0.2, 0.2])
    """
    o = np.abs(as_features(features))
    if bias:
        o = np.concatenate([o, np.ones((*o.shape[:-1], 1))], axis=-1)
    sizes = as_sizes(o, "features")
    scaled = sizes / sizes.max(-1, keepdims=True)
    shares: Floats = scaled / scaled.sum(-1, keepdims=True)
    return shares


def entry_shares(probabilities: ArrayLike, label: ArrayLike, features: ArrayLike, *, bias: bool = False) -> Floats:
    """The share of each entry of φ in ‖Δφ‖₁ for one example and one step: v wᵀ.

    Args:
        probabilities, label: as for `row_shares`, shapes (..., C) and (...).
        features, bias: as for `feature_shares`, shape (..., M).

    Returns:
        float64, shape (..., C, M), or (..., C, M + 1) with `bias`, its last column; sums to 1 an example.

    Raises:
        InputError: as `row_shares` and `feature_shares`, or when the numbers of examples differ.

    >>> entry_shares([0.5, 0.25, 0.25], 0, [1.0, -3.0])
    array([[0.125 , 0.375 ],
           [0.0625, 0.1875],
           [0.0625, 0.1875]])
    """
    rows, columns = row_shares(probabilities, label), feature_shares(features, bias=bias)
    if rows.shape[:-1] != columns.shape[:-1]:
        raise InputError(f"probabilities hold {rows.shape[:-1]} examples, features {columns.shape[:-1]}")
    shares: Floats = rows[..., :, None] * columns[..., None, :]
    return shares


def second_best(probabilities: ArrayLike, label: ArrayLike) -> Integers:
    """The likeliest class other than `label`: the pseudo-label y′ at δ = 0 (Algorithm 1, lines 7 to 16).

    Where the model predicts y, that is the second-best class; where it does not, its own prediction. Among equals,
    the lowest class.

    Args:
        probabilities: as for `row_shares`, shape (..., C).
        label: y, integers in [0, C), shape (...).

    Returns:
        int64, shape (...).

    >>> second_best([[0.6, 0.25, 0.15], [0.6, 0.25, 0.15]], [0, 2])
    array([1, 0])
    """
    p = as_probabilities(probabilities).copy()
    np.put_along_axis(p, as_labels(label, p)[..., None], -1.0, axis=-1)
    return np.asarray(p.argmax(-1), dtype=np.int64)


def pair_share(probabilities: ArrayLike, label: ArrayLike, pseudo_label: ArrayLike) -> Floats:
    """The share S of the rows of y and y′ together in ‖Δφ‖₁, for descending toward y′.

        S = ½ + p_y / (2 (1 − p_y′))

    The update of gradient ascent puts `pair_share(p, pseudo_label, label)` there: exchange the two. With
    frozen features, the margin z_y − z_y′ falls by S ‖o‖₂² / ‖o‖₁ for each unit of ‖Δφ‖₁ in one step.

    Args:
        probabilities: as for `row_shares`, shape (..., C).
        label: y, integers in [0, C), shape (...).
        pseudo_label: y′ ≠ y, any wrong class, shape (...).

    Returns:
        float64, shape (...), in [½, 1].

    Raises:
        InputError: as `row_shares`, or where the two labels are equal.

    >>> float(pair_share([0.5, 0.25, 0.25], 1, 0)), float(pair_share([0.5, 0.25, 0.25], 0, 1).round(4))
    (0.75, 0.8333)
    """
    shares = row_shares(probabilities, pseudo_label)
    labels = as_labels(label, shares)
    if bool((labels == as_labels(pseudo_label, shares, "pseudo_label")).any()):
        raise InputError("label and pseudo_label must differ")
    return np.asarray(0.5 + np.take_along_axis(shares, labels[..., None], axis=-1)[..., 0])


def l1_to_boundary_ratio(probabilities: ArrayLike, label: ArrayLike, pseudo_label: ArrayLike) -> Floats:
    """‖Δφ‖₁ with which targeted unlearning levels y and y′, over that of gradient ascent: S_GA / S_TD.

    Each takes one step along its first gradient, with frozen features, as long as it takes. Where y is the
    prediction and y′ second-best, the ratio lies in [½ + 1/(2 (C − 1)), 1]: at best, targeted unlearning needs
    little more than half of the change.

    Args, Raises: as for `pair_share`.

    Returns:
        float64, shape (...), > 0.

    >>> float(l1_to_boundary_ratio([0.6, 0.25, 0.15], 0, 1).round(4))
    0.9028
    """
    targeted = pair_share(probabilities, label, pseudo_label)
    ascent = pair_share(probabilities, pseudo_label, label)
    return np.asarray(ascent / targeted)


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
