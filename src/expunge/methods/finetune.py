"""Further training on retained examples."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from expunge.methods._gradient import GradientMethod
from expunge.methods._task import Needs, Recorder, Task


@dataclass(frozen=True, kw_only=True)
class FineTune(GradientMethod):
    """Trains on retained examples alone, and lets the forgotten ones fade. A weak but harmless baseline.

    Golatkar et al. 2020, section 5 ("fine-tune"). There is no goal on the forget set, so `stop="forgotten"` is
    refused.

    Attributes:
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.
    """

    epochs: int = 1
    batch_size: int | None = 256
    stop: Literal["budget", "epsilon"] = "budget"
    retain_size: int | None = None

    name = "finetune"
    summary = "further training on retained examples alone"
    source = "Golatkar et al. 2020, section 5"
    needs = Needs.RETAIN

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Minimises the cross-entropy on the retained examples."""
        assert task.retain is not None
        labels = task.retain.labels
        descent = self.descent(model, task, inputs=task.retain.inputs, rng=rng, record=record)
        for index, logits in descent:
            descent.step(F.cross_entropy(logits, labels[index], reduction="none"))
        return model
