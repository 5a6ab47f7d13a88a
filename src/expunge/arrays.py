"""What the arrays that are given to the metrics and to the theory must be."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

SUM_TOLERANCE = 1e-5
"""How far a row of probabilities may be from 1: the rounding of a float32 softmax."""


def as_floats(values: ArrayLike, name: str) -> Floats:
    """`values` as float64, any shape. Raises `InputError` on what is no number, NaN or infinity."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of numbers: {error}") from error
    if not bool(np.isfinite(array).all()):
        raise InputError(f"{name} must be finite, without NaN or infinity")
    return array


def as_scores(values: ArrayLike, name: str) -> Floats:
    """`values` as float64, shape (N,), N ≥ 1. Raises `InputError` on other shapes, NaN or infinity."""
    scores = as_floats(values, name)
    if scores.ndim != 1 or scores.size == 0:
        raise InputError(f"{name} must have shape (N,) with N ≥ 1, not {scores.shape}")
    return scores


def as_probabilities(probabilities: ArrayLike) -> Floats:
    """`probabilities` as float64, shape (..., C) with C ≥ 2. Raises `InputError` unless each row is a distribution."""
    p = as_floats(probabilities, "probabilities")
    if p.ndim == 0 or p.shape[-1] < 2:
        raise InputError(f"probabilities must have shape (..., C) with C ≥ 2, not {p.shape}")
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise InputError("probabilities must lie in [0, 1]; pass the softmax of the logits")
    if not bool((np.abs(p.sum(-1) - 1) <= SUM_TOLERANCE).all()):
        raise InputError(f"each row of probabilities must sum to 1 within {SUM_TOLERANCE}")
    return p


def as_labels(label: ArrayLike, rows: Floats, name: str = "label") -> Integers:
    """`label` as int64, broadcast to the shape (...) of `rows` (..., C), which has a column a class.

    Raises `InputError` unless it holds integers in [0, C) and broadcasts to that shape.
    """
    labels = np.asarray(label)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name} must hold integer classes, not {labels.dtype}")
    if labels.size and not bool(((labels >= 0) & (labels < rows.shape[-1])).all()):
        raise InputError(f"{name} must lie in [0, {rows.shape[-1]}), as there are {rows.shape[-1]} classes")
    try:
        return np.broadcast_to(labels.astype(np.int64), rows.shape[:-1])
    except ValueError as error:
        raise InputError(f"{name} has shape {labels.shape}, but there are {rows.shape[:-1]} examples") from error


def as_sizes(values: ArrayLike, name: str) -> Floats:
    """`values` as float64, shape (..., K). Raises `InputError` on negative entries or rows without a positive one."""
    sizes = as_floats(values, name)
    if sizes.ndim == 0 or sizes.shape[-1] == 0:
        raise InputError(f"{name} must have shape (..., K) with K ≥ 1, not {sizes.shape}")
    if bool((sizes < 0).any()):
        raise InputError(f"{name} must not be negative; take absolute values first")
    if not bool((sizes > 0).any(-1).all()):
        raise InputError(f"a row of {name} is zero: nothing changed, so that there are no shares")
    return sizes


def as_features(features: ArrayLike) -> Floats:
    """`features` as float64, shape (..., M), of any sign. Raises `InputError` on NaN or infinity."""
    values = as_floats(features, "features")
    if values.ndim == 0:
        raise InputError("features must have shape (..., M), not ()")
    return values
