"""How much accuracy an unlearned model lost, and whether chance explains it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from expunge.arrays import Booleans
from expunge.errors import InputError, SettingError

LEVEL = 0.05
"""A loss counts as beyond `max_loss` where chance explains it in fewer cases than this."""


@dataclass(frozen=True, kw_only=True)
class AccuracyLoss:
    """What `accuracy_loss` found on the same test examples before and after.

    Attributes:
        loss: accuracy before minus accuracy after, in [-1, 1].
        max_loss: the largest loss that is accepted, in [0, 1).
        p_value: how likely a loss this large is by the draw of the test examples if the true one is `max_loss`.
    """

    loss: float
    max_loss: float
    p_value: float

    @property
    def works(self) -> Literal["yes", "no", "undecided"]:
        """Whether the model still works: "no" where the loss is larger than `max_loss` beyond chance."""
        if self.loss < self.max_loss or self.loss <= 0:
            return "yes"
        return "no" if self.p_value < LEVEL else "undecided"


def accuracy_loss(right_before: ArrayLike, right_after: ArrayLike, max_loss: float = 0.05) -> AccuracyLoss:
    """The accuracy lost on m test examples, and the score test of "at most `max_loss`" for paired shares (Tango 1998).

    b examples were right and are now wrong, c the other way round. Under the null, with c's probability q,

        Z = (b − c − m δ) / √(m (2 q + δ (1 − δ))),    δ = max_loss,

    with q its maximum likelihood estimate. With δ = 0 that is McNemar's test.

    Args:
        right_before, right_after: bool, shape (m,), m ≥ 1: whether each model is right on each example.
        max_loss: δ, in [0, 1).

    Raises:
        InputError: no examples, or other shapes or types.
        SettingError: `max_loss` out of range.

    >>> found = accuracy_loss([True] * 100, [True] * 80 + [False] * 20)
    >>> found.loss, found.works
    (0.2, 'no')
    """
    before, after = _as_booleans(right_before, "right_before"), _as_booleans(right_after, "right_after")
    if before.shape != after.shape:
        raise InputError(f"both must be of the same examples, not {len(before)} and {len(after)}")
    if not 0 <= max_loss < 1:
        raise SettingError(f"max_loss={max_loss} is out of range; it is at least 0 and below 1")
    m = len(before)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    slope = (2 * m - lost + gained) * max_loss - lost - gained
    root = math.sqrt(max(0.0, slope**2 + 8 * m * gained * max_loss * (1 - max_loss)))
    q = (root - slope) / (4 * m)
    variance = m * (2 * q + max_loss * (1 - max_loss))
    z = (lost - gained - m * max_loss) / math.sqrt(variance) if variance > 0 else 0.0
    return AccuracyLoss(loss=(lost - gained) / m, max_loss=max_loss, p_value=float(special.ndtr(-z)))


def class_losses(
    labels: ArrayLike, right_before: ArrayLike, right_after: ArrayLike, max_loss: float = 0.05
) -> dict[int, AccuracyLoss]:
    """The classes that lost more than `max_loss` beyond what chance explains, all classes taken together (Bonferroni).

    Args:
        labels: integer classes, shape (m,).
        right_before, right_after, max_loss: as for `accuracy_loss`, which says what is raised too.

    >>> list(class_losses([0] * 50 + [1] * 50, [True] * 100, [True] * 50 + [False] * 50))
    [1]
    """
    own, before, after = np.asarray(labels), np.asarray(right_before), np.asarray(right_after)
    classes = np.unique(own)
    found = {int(each): accuracy_loss(before[own == each], after[own == each], max_loss) for each in classes}
    return {each: lost for each, lost in found.items() if lost.p_value < LEVEL / len(classes)}


def _as_booleans(values: ArrayLike, name: str) -> Booleans:
    array = np.asarray(values)
    if array.dtype != np.bool_ or array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} must be booleans of shape (m,), m ≥ 1, not {array.dtype} of {array.shape}")
    return array
