"""Gradient ascent on the true labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from expunge.methods._gradient import MOMENTUM, GradientMethod
from expunge.methods._task import Needs, Presets, Recorder, Task


@dataclass(frozen=True, kw_only=True)
class NegGrad(GradientMethod):
    """Climbs the cross-entropy of the forgotten examples: the loss of an example is −CE toward its true label.

    The paper's "NegGrad" (section 5, theorem 4.1). The loss has no lower bound, so the number of steps decides
    what is left of the model, and `epsilon` ends the run at once.

    What invalidates it: where the model is certain of an example (p_y = 1 in floating point), its gradient is zero
    and nothing is forgotten: only weight decay, where there is any, moves the parameters.

    `preset="salun2024"` is of the SalUn code until April 2024; since then it names no settings for this method.
    """

    name = "neg_grad"
    summary = "gradient ascent on the true labels"
    source = "the paper's NegGrad; Golatkar et al. 2020"
    needs = Needs.FORGET
    presets: ClassVar[Presets] = {
        "paper": {},
        "salun2024": {**MOMENTUM, "weight_decay": 5e-4, "lr": 1e-4, "batch_size": 256, "epochs": 5},
    }

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Minimises the negative cross-entropy."""
        labels = task.forget.labels
        descent = self.descent(model, task, rng=rng, record=record)
        for index, logits in descent:
            descent.step(-F.cross_entropy(logits, labels[index], reduction="none"))
        return model
