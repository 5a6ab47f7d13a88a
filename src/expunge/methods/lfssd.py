"""Dampening of weights without labels: importance is the sensitivity of the output's norm."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.methods._task import Presets
from expunge.methods.ssd import SSD


@dataclass(frozen=True, kw_only=True)
class LFSSD(SSD):
    """`SSD` with an importance that needs no labels: how much a weight moves the squared norm of the logits.

    Foster et al. 2024, "Loss-Free Machine Unlearning". The importance I of a weight for a set is the mean of
    |∂‖f(x)‖² / ∂θ|, with f the logits. All else is as in `SSD`.

    Attributes:
        alpha: as in `SSD`. Importances are not squared, so that a ratio of 3.5 here is one of 12 there. Published for
            random examples: 3.5.

    What invalidates it: it sees no labels, so it takes the model's outputs on the forgotten examples for what is to be
    forgotten, whether they are right or wrong.
    """

    alpha: float = 3.5

    name = "lfssd"
    summary = "dampen, once, the weights that move the outputs on the forget set most"
    source = "Foster et al. 2024 (Loss-Free Machine Unlearning)"
    presets: ClassVar[Presets] = {
        "paper": {},
        "foster2024": {"reference": "all", "batch_size": 128, "forget_last": True, "retain_size": None},
    }
    power: ClassVar[int] = 1

    def measure(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What a batch's gradient is of: the mean squared norm of the logits, a scalar. Labels are not used."""
        return logits.square().sum(1).mean()
