"""Distillation of the original model with the true class masked out."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._gradient import MOMENTUM, GradientMethod
from expunge.methods._task import Needs, Presets, Recorder, Task


@dataclass(frozen=True, kw_only=True)
class Delete(GradientMethod):
    """Distils the original model's opinion of the wrong classes: the true one is taken out of its softmax.

    DELETE, Zhou et al. 2025, "Decoupled Distillation to Erase" (CVPR). With z the original model's logits in eval
    mode, the target of an example of class y is softmax(z) after z_y is set to −∞, and its loss is
    KL(target ‖ softmax of the model's logits). The wrong classes keep their odds against each other. `Targeted` asks
    for the likeliest of them alone.

    What invalidates it: the KL nears 0 only as the true class's probability does, so every forgotten example ends
    up mispredicted, which is itself a mark that it was forgotten.
    """

    name = "delete"
    summary = "distil the original model with the true class masked out"
    source = "Zhou et al. 2025, DELETE (CVPR)"
    needs = Needs.FORGET
    presets: ClassVar[Presets] = {
        "paper": {},
        "zhou2025": {**MOMENTUM, "weight_decay": 0.0, "lr": 1e-4, "batch_size": 128, "epochs": 20},
    }

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Masks the original logits once and minimises the divergence from what is left."""
        labels = task.forget.labels
        targets = masked_softmax(task.forget_logits, labels)
        descent = self.descent(model, task, rng=rng, record=record)
        for index, logits in descent:
            descent.step(F.kl_div(logits.log_softmax(1), targets[index], reduction="none").sum(1))
        return model


def masked_softmax(logits: Tensor, classes: Tensor) -> Tensor:
    """The softmax without one class an example, whose probability is exactly 0.

    Args:
        logits: floating-point, shape (N, C), C ≥ 2.
        classes: the class to leave out, int64, shape (N,).

    >>> masked_softmax(torch.tensor([[9.0, 1.0, 1.0]]), torch.tensor([0]))
    tensor([[0.0000, 0.5000, 0.5000]])
    """
    return logits.scatter(1, classes[:, None], -torch.inf).softmax(1)
