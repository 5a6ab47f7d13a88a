"""Further training on retained examples."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._loop import Descent, descend
from expunge.methods._task import Needs, Recorder, Task
from expunge.settings import require


@dataclass(frozen=True, kw_only=True)
class FineTune(Descent):
    """Trains on retained examples alone, and lets the forgotten ones fade. A weak but harmless baseline.

    Golatkar et al. 2020, section 5 ("fine-tune"). There is no goal on the forget set, so `stop="forgotten"` is
    refused.

    Attributes:
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.
    """

    epochs: int = 1
    batch_size: int | None = 256
    retain_size: int | None = None

    name: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "further training on retained examples alone"
    source: ClassVar[str] = "Golatkar et al. 2020, section 5"
    needs: ClassVar[Needs] = Needs.RETAIN
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "retain_size": self.retain_size is None or self.retain_size >= 1,
            "stop": self.stop != "forgotten",
        }
        require(self, ranges)

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Minimises the cross-entropy on the retained examples."""
        assert task.retain is not None
        labels = task.retain.labels

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels[index], reduction="none")

        return descend(
            model,
            task.retain.inputs,
            loss,
            self,
            forget_labels=labels[:0],
            goal=lambda logits: logits.argmax(1) < 0,  # never: nothing is asked of the forget set
            rng=rng,
            record=record,
        )
