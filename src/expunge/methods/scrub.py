"""A student that disobeys its teacher on the forget set and obeys it on retained examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._loop import Descent, descend
from expunge.methods._task import Needs, Recorder, Task
from expunge.models import logits_of
from expunge.settings import require


@dataclass(frozen=True, kw_only=True)
class Scrub(Descent):
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

    name: ClassVar[str] = "scrub"
    summary: ClassVar[str] = "away from the original model on the forget set, toward it on retained examples"
    source: ClassVar[str] = "Kurmanji et al. 2023 (SCRUB)"
    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "kurmanji2023": {
            "optimizer": "sgd",
            "momentum": 0.9,
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
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "lr": 5e-4,
            "epochs": 5,
            "forget_batch_size": 16,
            "batch_size": 32,
            "retain_size": None,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "alpha": self.alpha >= 0,
            "gamma": self.gamma >= 0,
            "msteps": self.msteps >= 0,
            "temperature": self.temperature > 0,
            "forget_batch_size": self.forget_batch_size is None or self.forget_batch_size >= 1,
            "retain_size": self.retain_size is None or self.retain_size >= 1,
            "stop": self.stop != "epsilon",
        }
        require(self, ranges)

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Asks the teacher once, and alternates."""
        assert task.retain is not None
        num_forget = len(task.forget)
        taught = torch.cat([task.forget_logits, logits_of(model, task.retain.inputs)])
        targets = (taught / self.temperature).softmax(1)
        labels = torch.cat([task.forget.labels, task.retain.labels])
        positions = torch.arange(len(labels), device=labels.device)
        max_pass = (positions[:num_forget], self.forget_batch_size)
        min_pass = (positions[num_forget:], self.batch_size)

        def passes(epoch: int) -> Sequence[tuple[Tensor, int | None]]:
            return [max_pass, min_pass] if epoch < self.msteps else [min_pass]

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            student = (logits / self.temperature).log_softmax(1)
            divergence = self.temperature**2 * F.kl_div(student, targets[index], reduction="none").sum(1)
            cross_entropy = F.cross_entropy(logits, labels[index], reduction="none")
            return torch.where(index < num_forget, -divergence, self.alpha * divergence + self.gamma * cross_entropy)

        return descend(
            model,
            torch.cat([task.forget.inputs, task.retain.inputs]),
            loss,
            self,
            forget_labels=task.forget.labels,
            goal=lambda logits: logits.argmax(1) != task.forget.labels,
            rng=rng,
            record=record,
            passes=passes,
        )
