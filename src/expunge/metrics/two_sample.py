"""A classifier that tries to distinguish forgotten from unseen examples by all that a model shows of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from expunge.arrays import Floats, as_floats
from expunge.errors import InputError, SettingError

RIDGE = 0.1
"""Of the linear classifier, as a multiple of the number of examples: its columns have variance 1."""

FOLDS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoSample:
    """What `two_sample` found.

    Attributes:
        auc: of the classifier of the view that distinguishes best, in [0, 1]; about ½ where nothing does.
        p_value: how likely one of the views reaches such an AUC by chance, in (0, 1].
        forget, test: the scores of that classifier, each by a fit that did not see the example: float64, (n,) and (m,).
        view: which of the views it is.
    """

    auc: float
    p_value: float
    forget: Floats
    test: Floats
    view: int


def two_sample(
    forget: Sequence[ArrayLike],
    test: Sequence[ArrayLike],
    forget_labels: ArrayLike,
    test_labels: ArrayLike,
    *,
    num_permutations: int = 999,
    seed: int = 0,
) -> TwoSample:
    """The two-sample test by a classifier (Lopez-Paz and Oquab 2017), with an exact p-value by permutation.

    For each view, a ridge regression of "forgotten" on the columns scores each example by a fit to the other nine
    tenths. Scores are linear in who is forgotten, so that each permutation costs one matrix product. Examples are
    permuted within their class, which is exact where forgotten and unseen ones of a class are exchangeable. The
    p-value is of the largest AUC over the views.

    Args:
        forget, test: a view each: columns, float, shapes (n, d) and (m, d), d ≥ 1. `as_columns` makes good ones.
        forget_labels, test_labels: integer classes, shapes (n,) and (m,).
        num_permutations: B ≥ 1; the least p-value is 1 / (B + 1).
        seed: of the folds and permutations.

    Raises:
        InputError: no view, no examples, or shapes that do not match.
        SettingError: `num_permutations` < 1.

    >>> rng = np.random.default_rng(0)
    >>> found = two_sample([rng.normal(1, 1, (50, 3))], [rng.normal(0, 1, (200, 3))], [0] * 50, [0] * 200)
    >>> found.auc > 0.8, found.p_value
    (True, 0.001)
    """
    if num_permutations < 1:
        raise SettingError(f"num_permutations={num_permutations} is out of range; it is at least 1")
    if not len(forget) == len(test) >= 1:
        raise InputError(
            f"give as many views of the forgotten as of the test examples, not {len(forget)} and {len(test)}"
        )
    labels = np.concatenate([np.asarray(forget_labels), np.asarray(test_labels)])
    n = len(np.asarray(forget_labels))
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(labels)) % FOLDS
    drawn = _memberships(labels, n, num_permutations, rng)
    aucs, scores = [], []
    for ours, theirs in zip(forget, test, strict=True):
        columns = np.concatenate([as_floats(ours, "forget"), as_floats(theirs, "test")])
        if columns.ndim != 2 or len(columns) != len(labels) or len(np.asarray(ours)) != n:
            raise InputError(f"a view must have a row an example, {n} and {len(labels) - n}, not {columns.shape}")
        predicted = cross_fitted(columns, fold) @ drawn
        ranks = stats.rankdata(predicted, axis=0)
        aucs.append(((ranks * drawn).sum(0) - n * (n + 1) / 2) / (n * (len(labels) - n)))
        scores.append(predicted[:, 0])
    best = np.max(aucs, axis=0)
    view = int(np.argmax([each[0] for each in aucs]))
    return TwoSample(
        auc=float(best[0]),
        p_value=float((1 + (best[1:] >= best[0] - 1e-12).sum()) / (1 + num_permutations)),
        forget=scores[view][:n],
        test=scores[view][n:],
        view=view,
    )


def as_columns(values: ArrayLike, labels: ArrayLike, *, most: int | None = None) -> Floats:
    """Columns for `two_sample`, made without knowing who is forgotten.

    Each is ranked within its class and brought to the normal distribution, so that no outlier and no difference between
    classes matters. With `most`, they are then replaced by that many principal components at most.

    Args:
        values: of forgotten and test examples together, float, shape (N, d).
        labels: integer classes, shape (N,).
        most: ≥ 1, or None for all columns as they are.

    Returns:
        float64, shape (N, d) or (N, most), each column of mean 0 within a class, and of variance 1 or 0.
    """
    columns, own = as_floats(values, "values"), np.asarray(labels)
    found = np.zeros_like(columns)
    for label in np.unique(own):
        members = own == label
        ranks = stats.rankdata(columns[members], axis=0)
        found[members] = special.ndtri((ranks - 0.5) / members.sum())
    if most is not None and min(found.shape) > most:
        left, sizes, _ = np.linalg.svd(found, full_matrices=False)
        found = left[:, :most] * sizes[:most]
    spread = found.std(0)
    return np.asarray(found / np.where(spread > 1e-12, spread, 1.0))


def cross_fitted(columns: Floats, fold: NDArray[Any]) -> Floats:
    """The matrix (N, N) that takes a response to its predictions, each by a ridge regression on the other folds."""
    found = np.zeros((len(columns), len(columns)))
    for number in np.unique(fold):
        inside, outside = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        centre = columns[outside].mean(0)
        fitted, wanted = columns[outside] - centre, columns[inside] - centre
        gram = fitted.T @ fitted + RIDGE * len(outside) * np.eye(columns.shape[1])
        weights = np.linalg.solve(gram, fitted.T)
        found[np.ix_(inside, outside)] = wanted @ weights  # `fitted` has mean 0: the response's own mean drops out
    return found


def _memberships(labels: NDArray[Any], n: int, num: int, rng: np.random.Generator) -> Floats:
    """Who is forgotten, 1.0 or 0.0, shape (N, 1 + num): the truth, then permutations of it within classes."""
    drawn = np.zeros((len(labels), 1 + num))
    drawn[:n, 0] = 1.0
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn[members, 1:] = rng.permuted(np.tile(drawn[members, :1], num), axis=0)
    return drawn
