"""What can be set about an audit."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from expunge.settings import Ranges, check_settings
from expunge.training import Recipe

QUICK_RECIPE = Recipe(epochs=20, batch_size=64, lr=1e-3, momentum=0.9, weight_decay=0.0, optimizer="adam")
"""Of reference models where nobody says how the audited one was trained."""


def _reference_minutes() -> Any:
    return os.environ.get("EXPUNGE_REFERENCE_MINUTES", 5.0)  # converted and checked as any setting is


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """The settings of a quick audit.

    Attributes:
        max_loss: the most test accuracy that may be lost, in [0, 1). Where more is lost than chance explains, the
            verdict is FAIL: the model no longer works.
        non_random: the forget set is no random draw, such as mislabelled or unusually hard examples. The verdict is
            then that of difficulty-calibrated scores, and no other attack counts.
        reference_minutes: the reference models of an attack are trained where that takes at most so long; 0 leaves it
            out. Default: that of the environment variable EXPUNGE_REFERENCE_MINUTES, else 5.
        recipe: how they are trained: best as the audited model was.
        factory: builds its network with fresh weights, for them; the model's own are refused. None: every layer of a
            copy is initialised anew.
        precision: `bf16` runs both models under autocast in bfloat16; `fp32` in that of their weights.
    """

    max_loss: float = 0.05
    non_random: bool = False
    reference_minutes: float = field(default_factory=_reference_minutes)
    recipe: Recipe = QUICK_RECIPE
    factory: Callable[[], nn.Module] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    ranges: ClassVar[Ranges] = {"max_loss": "at least 0, below 1", "reference_minutes": "at least 0"}

    def __post_init__(self) -> None:
        check_settings(self)
