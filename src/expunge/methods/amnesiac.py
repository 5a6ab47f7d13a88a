"""Random wrong labels on the forget set, beside retained examples with their true labels."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._loop import Descent, descend
from expunge.methods._task import Needs, Recorder, Task
from expunge.methods.random_label import wrong_labels
from expunge.records import PseudoLabels
from expunge.settings import require


@dataclass(frozen=True, kw_only=True)
class Amnesiac(Descent):
    """Learns random wrong labels of the forgotten examples and the true labels of some retained ones together.

    What public code calls amnesiac unlearning, and what the paper's numbers fit: its text describes the undoing of
    recorded updates (see `AmnesiacUndo`), for which the 300 retained examples that it grants have no use. Labels
    are drawn once, never the true one.

    Attributes:
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given. The paper: 300.
    """

    retain_size: int | None = 300

    name: ClassVar[str] = "amnesiac"
    summary: ClassVar[str] = "random wrong labels beside retained examples with true labels"
    source: ClassVar[str] = "the paper's Amnesiac; Graves et al. 2021, as public code reads it"
    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "chundawat2023": {"epochs": 3, "batch_size": 256, "retain_size": None, "weight_decay": 0.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {"retain_size": self.retain_size is None or self.retain_size >= 1})

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Draws the labels and minimises the cross-entropy over both sets."""
        assert task.retain is not None
        wrong = wrong_labels(task.forget.labels, task.num_classes, rng)
        labels = torch.cat([wrong, task.retain.labels])
        record.pseudo_labels = PseudoLabels(random=len(wrong))

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels[index], reduction="none")

        return descend(
            model,
            torch.cat([task.forget.inputs, task.retain.inputs]),
            loss,
            self,
            forget_labels=task.forget.labels,
            goal=lambda logits: logits.argmax(1) == wrong,
            rng=rng,
            record=record,
        )
