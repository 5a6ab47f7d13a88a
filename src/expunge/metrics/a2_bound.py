"""A2 among infinitely many held-out examples, bounded from above by what few show of it.

docs/research/audit-formulas.md explains it.
"""

from functools import lru_cache

import numpy as np
from scipy import optimize, special

from expunge.arrays import Floats

FEW = 100
"""Held-out examples up to which the bound is computed. With more, Jensen's inequality gives away less than 0.005."""

LOW = -1.0
"""Values of the bound are drawn toward this constant: lower means a smaller bias and a larger variance."""

POINTS = 60
"""Places p at which the bound is held to be one."""


def upper_values(num_test: int) -> Floats:
    """What an example with b of m held-out scores below its own contributes to an upper bound of A2.

    The example's true rank p is unknown, b has the binomial distribution (m, p), and wanted is |2p − 1|. By Jensen's
    inequality the expectation of |2b/m − 1| is at least that, but with m = 10 by 0.05 too much on average. So φ(b) is
    chosen with the least Σ (φ − `LOW`)² of all symmetric functions with E φ(b) ≥ |2p − 1| for every p: then neither its
    mean nor its variance is large. The mean of φ over examples is, on average, at least their A2, whatever their p.

    Args:
        num_test: m ≥ 1, the held-out examples of the class.

    Returns:
        φ, float64, shape (m + 1,); |2b/m − 1| for m > `FEW`. It may be below 0 in the middle and above 1 at the ends.

    >>> upper_values(1), round(float(upper_values(10).mean()), 3)
    (array([1., 1.]), 0.524)
    """
    if num_test > FEW:
        return np.asarray(np.abs(2 * np.arange(num_test + 1) / num_test - 1))
    return _least(num_test)


@lru_cache(maxsize=1024)
def upper_moments(num_test: int) -> tuple[float, float]:
    """The mean and the variance of `upper_values` over ranks that are equally likely, as under the null.

    The mean is at least ½. The variance is given as at least 1/12, that among infinitely many.
    """
    values = upper_values(num_test)
    return float(values.mean()), max(1 / 12, float(values.var()))


@lru_cache(maxsize=FEW)
def _least(m: int) -> Floats:
    b = np.arange(m + 1)
    place = np.minimum(b, m - b)
    p = np.linspace(0.5, 1.0, POINTS)
    chance = np.exp(
        special.gammaln(m + 1)
        - special.gammaln(b + 1)
        - special.gammaln(m - b + 1)
        + special.xlogy(b, p[:, None])
        + special.xlog1py(m - b, -p[:, None])
    )
    weights = np.sqrt(np.bincount(place))
    sums = np.stack([chance[:, place == k].sum(1) for k in range(m // 2 + 1)], axis=1)
    # Least distance programming (Lawson and Hanson 1974, chapter 23), solved by non-negative least squares.
    wanted = 2 * p - 1 - LOW
    target = np.zeros(len(weights) + 1)
    target[-1] = 1.0
    dual, _ = optimize.nnls(np.vstack([(sums / weights).T, wanted]), target)
    residual = np.vstack([(sums / weights).T, wanted]) @ dual - target
    return np.asarray((-residual[:-1] / residual[-1] / weights + LOW)[place])
