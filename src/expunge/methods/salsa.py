"""Probability moved step by step off the predicted class, with the parameters anchored."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import SettingError
from expunge.methods._gradient import GradientMethod
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.methods.delete import masked_softmax
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class Salsa(GradientMethod):
    """Takes a share of the probability of the predicted class and spreads it over the others, near the start.

    SALSA, Makroo et al. 2025, "A Secure, Adaptive and Label-Agnostic Scalable Algorithm for Machine Unlearning" (UAI);
    the formulas are read from the authors' code. With p the model's softmax on an example and c the class that the
    original model predicts, the target has (1 − α)·p_c for c, and the rest in proportion to p. The loss is
    KL(target ‖ p) + Σ λ_l ‖θ_l − θ⁰_l‖², the target being a constant of each step. True labels are not used.

    Attributes:
        alpha_min, alpha_max: the share α rises from one to the other along half a cosine over the run;
            0 < alpha_min ≤ alpha_max ≤ 1.
        shift, slope, gamma: ≥ 0. Counted from the output (1) to the input, parameter tensor number k has the weight
            λ = shift + slope · k at the start, which rises by gamma along the same half cosine.

    What invalidates it: the class that loses is the predicted one, right or wrong, so an example that the model
    mispredicts may come out right. `lr` decides how far a run gets: a target is never far from p.
    """

    alpha_min: float = 0.3
    alpha_max: float = 0.6
    shift: float = 5e-3
    slope: float = 5e-4
    gamma: float = 1e-2

    name = "salsa"
    summary = "move probability off the predicted class, with the parameters anchored"
    source = "Makroo et al. 2025, SALSA (UAI), as in the authors' code"
    needs = Needs.FORGET
    presets: ClassVar[Presets] = {
        "paper": {},
        "makroo2025": {
            "optimizer": "adamw",
            "lr": 9e-4,
            "weight_decay": 0.01,
            "batch_size": 32,
            "epochs": 1500,
            "max_steps": 1500,
        },
    }

    ranges: ClassVar[Ranges] = {
        "alpha_min": "above 0, at most 1",
        "alpha_max": "above 0, at most 1",
        "shift": "at least 0",
        "slope": "at least 0",
        "gamma": "at least 0",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha_min > self.alpha_max:
            raise SettingError(f"alpha_min={self.alpha_min!r} is above alpha_max={self.alpha_max!r}")

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Minimises the divergence from targets that move with the model, plus the anchor."""
        predicted = task.forget_logits.argmax(1)
        parameters = list(model.parameters())
        anchors = [
            (parameter, parameter.detach().clone(), self.shift + self.slope * number)
            for number, parameter in zip(range(len(parameters), 0, -1), parameters, strict=True)
            if parameter.requires_grad
        ]
        last = max(1, self._steps(len(task.forget)) - 1)
        descent = self.descent(model, task, goal=lambda logits: logits.argmax(1) != predicted, rng=rng, record=record)
        for index, logits in descent:
            risen = (1 - math.cos(math.pi * record.steps / last)) / 2
            alpha = self.alpha_min + (self.alpha_max - self.alpha_min) * risen
            target = redistributed(logits.detach(), predicted[index], alpha)
            divergence = F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)
            distance = sum(
                (weight + self.gamma * risen) * (parameter - origin).square().sum()
                for parameter, origin, weight in anchors
            )
            descent.step(divergence + distance)
        return model

    def _steps(self, num_forget: int) -> int:
        """How many updates the budget allows."""
        steps = self.epochs * math.ceil(num_forget / min(self.batch_size or num_forget, num_forget))
        return steps if self.max_steps is None else min(steps, self.max_steps)


def redistributed(logits: Tensor, classes: Tensor, alpha: float) -> Tensor:
    """The softmax after the share `alpha` of one class's probability went to the others, in proportion to theirs.

    Args:
        logits: floating-point, shape (N, C), C ≥ 2.
        classes: the class that gives, int64, shape (N,).
        alpha: in [0, 1].

    >>> redistributed(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0]), 0.5)
    tensor([[0.2500, 0.3750, 0.3750]])
    """
    kept = (1 - alpha) * logits.softmax(1).gather(1, classes[:, None])
    # The odds of the others come from their logits: their probabilities may all be 0 in floating point.
    return ((1 - kept) * masked_softmax(logits, classes)).scatter(1, classes[:, None], kept)
