"""What an attacker sees who has the model before and after: how the update treats forgotten and unseen examples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from expunge.arrays import Floats
from expunge.auditing.forward import Outputs, outputs_of
from expunge.data import Examples
from expunge.metrics.distances import update_leakage
from expunge.metrics.membership import auc, auc_interval
from expunge.models import copied

STEP = 0.01
"""How far along the update the score's slope is measured, as a share of the update."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One way to tell from both models who was forgotten.

    Attributes:
        name: `probabilities`: ‖p_before − p_after‖₂. `logits`: ‖z_before − z_after‖₂. `residual`: how far the
            score φ is from what its value before predicts, by a quadratic fitted to unseen examples. `slope`: how
            φ of the model after rises from θ_after toward θ_before, ⟨∇φ, θ_before − θ_after⟩.
        auc: forgotten against unseen examples, in [0, 1]; ½ where it shows nothing.
        interval: its 95% limits.
    """

    name: str
    auc: float
    interval: tuple[float, float]


def compare(
    before: Mapping[str, Outputs], after: Mapping[str, Outputs], slopes: Mapping[str, Floats] | None
) -> tuple[Comparison, ...]:
    """Every way, the one first that tells best.

    Args:
        before, after: outputs on `forget` and `test`.
        slopes: of `slopes_of`, likewise; None without the models.
    """
    sets = ("forget", "test")
    scores = {
        "logits": [np.linalg.norm(before[s].logits - after[s].logits, axis=1) for s in sets],
    }
    if slopes is not None:
        scores["slope"] = [slopes[s] for s in sets]
    fit = _quadratic(before["test"].scores, after["test"].scores)
    scores["residual"] = [np.abs(after[s].scores - fit(before[s].scores)).round(6) for s in sets]
    moved, interval = update_leakage(*(when[s].probabilities for s in sets for when in (before, after)))
    found = [Comparison(name="probabilities", auc=moved, interval=interval)]
    found += [
        Comparison(name=name, auc=auc(ours, theirs), interval=auc_interval(ours, theirs))
        for name, (ours, theirs) in scores.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.auc))


def _quadratic(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """The quadratic that fits y best, by a polynomial in standardised x; of lower degree where x has few values."""
    centre, spread = float(x.mean()), float(x.std()) or 1.0
    columns = np.vander((x - centre) / spread, 3)
    weights = np.linalg.lstsq(columns, y, rcond=None)[0]
    return lambda values: np.asarray(np.vander((values - centre) / spread, 3) @ weights)


def slopes_of(before: nn.Module, after: nn.Module, examples: Examples, outputs: Outputs) -> Floats:
    """⟨∇φ(x), θ_before − θ_after⟩ at the model after, by a finite difference of one more pass: float64, shape (N,).

    Args:
        before, after: the same network.
        examples: N of them.
        outputs: of `after` on them.
    """
    moved = copied(after)
    with torch.no_grad():
        own = dict(moved.named_parameters())
        for name, parameter in before.named_parameters():
            if own[name].is_floating_point():
                own[name].lerp_(parameter.to(own[name].device, own[name].dtype), STEP)
    return np.asarray((outputs_of(moved, examples, label="comparing the models").scores - outputs.scores) / STEP)
