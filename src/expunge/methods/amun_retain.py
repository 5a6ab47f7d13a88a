"""The nearest adversarial examples of the forgotten ones, learned beside retained examples."""

from dataclasses import dataclass
from typing import ClassVar

from expunge.methods._task import Needs, Presets
from expunge.methods.amun import Amun


@dataclass(frozen=True, kw_only=True)
class AmunRetain(Amun):
    """`Amun` where retained examples are there: they are learned too, with their true labels.

    Ebrahimpour-Boroojeny et al. 2025, whose main setting it is. All examples are in one shuffled pool.

    Attributes:
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.
    """

    retain_size: int | None = 300

    name = "amun_retain"
    summary = "learn the nearest adversarial examples of the forgotten ones beside retained examples"
    source = "Ebrahimpour-Boroojeny et al. 2025, AMUN (ICML)"
    needs = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[Presets] = {
        "paper": {},
        "ebrahimpour2025": {**Amun.presets["ebrahimpour2025"], "retain_size": None},
    }
