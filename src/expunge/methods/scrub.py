"""A student that disobeys its teacher on the forget set and obeys it on retained examples."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._gradient import MOMENTUM, GradientMethod
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.models import split_logits_of
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class Scrub(GradientMethod):
    """Alternates passes away from the original model on the forget set with passes toward it on retained examples.

    Kurmanji et al. 2023, "Towards Unbounded Machine Unlearning" (SCRUB). The teacher is the original model, asked
    once in eval mode; the student starts from it. With d = T²·KL(teacher ‖ student) of outputs softened by T, the loss
    of an example is −d on the forget set (max-steps) and α·d + γ·CE toward its true label on retained examples
    (min-steps). Each of the first `msteps` epochs is a pass of max-steps, then one of min-steps; later epochs are
    min-steps alone. One optimizer makes all steps. The rewinding of SCRUB+R is left out.

    Attributes:
        alpha: α ≥ 0, the weight of d on retained examples.
        gamma: γ ≥ 0, the weight of the cross-entropy there.
        msteps: epochs that begin with max-steps, ≥ 0.
        temperature: T > 0.
        forget_batch_size: examples a max-step, ≥ 1; None takes the whole forget set at once.
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.

    `batch_size` is that of min-steps. `stop="forgotten"` ends when no forgotten example is predicted as its true
    label; there is no single loss to hold against `epsilon`, so `stop="epsilon"` is refused.

    What invalidates it: few max-steps. Student and teacher agree at first, so that the gradient of the first max-step
    is zero but for weight decay (and the mode of normalisation and dropout layers): forgetting starts at the second.
    """

    alpha: float = 0.001
    gamma: float = 0.99
    msteps: int = 2
    temperature: float = 4.0
    forget_batch_size: int | None = None
    retain_size: int | None = 300
    stop: Literal["budget", "forgotten"] = "budget"

    name = "scrub"
    summary = "away from the original model on the forget set, toward it on retained examples"
    source = "Kurmanji et al. 2023 (SCRUB)"
    needs = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[Presets] = {
        "paper": {},
        "kurmanji2023": {
            **MOMENTUM,
            "weight_decay": 5e-4,
            "lr": 5e-4,
            "epochs": 3,
            "forget_batch_size": 512,
            "batch_size": 256,
            "retain_size": None,
        },
        "kurmanji2023-small": {
            "alpha": 0.5,
            "gamma": 1.0,
            "msteps": 3,
            **MOMENTUM,
            "weight_decay": 5e-4,
            "lr": 5e-4,
            "epochs": 5,
            "forget_batch_size": 16,
            "batch_size": 32,
            "retain_size": None,
        },
    }

    ranges: ClassVar[Ranges] = {
        "alpha": "at least 0",
        "gamma": "at least 0",
        "msteps": "at least 0",
        "temperature": "above 0",
    }

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Asks the teacher once, and alternates."""
        assert task.retain is not None
        both, num_forget = task.forget_and_retain(), len(task.forget)
        taught = torch.cat([task.forget_logits, split_logits_of(model, task.retain.inputs)])
        targets = (taught / self.temperature).softmax(1)
        forget, retain = torch.arange(len(both), device=both.labels.device).tensor_split([num_forget])

        def divergence(logits: Tensor, index: Tensor) -> Tensor:
            student = (logits / self.temperature).log_softmax(1)
            return self.temperature**2 * F.kl_div(student, targets[index], reduction="none").sum(1)

        descent = self.descent(model, task, inputs=both.inputs, rng=rng, record=record)
        for epoch in descent.epochs():
            if epoch < self.msteps:
                for index, logits in descent.batches(forget, self.forget_batch_size):
                    descent.step(-divergence(logits, index))
            for index, logits in descent.batches(retain, self.batch_size):
                cross_entropy = F.cross_entropy(logits, both.labels[index], reduction="none")
                descent.step(self.alpha * divergence(logits, index) + self.gamma * cross_entropy)
        return model
