"""Random wrong labels on the forget set, beside retained examples with their true labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from expunge.methods._gradient import GradientMethod
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.methods.random_label import wrong_labels
from expunge.records import PseudoLabels


@dataclass(frozen=True, kw_only=True)
class Amnesiac(GradientMethod):
    """Learns random wrong labels of the forgotten examples and the true labels of some retained ones together.

    What public code calls amnesiac unlearning, and what the paper's numbers fit: its text describes the undoing of
    recorded updates (see `AmnesiacUndo`), for which the 300 retained examples that it grants have no use. Labels
    are drawn once, never the true one.

    Attributes:
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given. The paper: 300.
    """

    retain_size: int | None = 300

    name = "amnesiac"
    summary = "random wrong labels beside retained examples with true labels"
    source = "the paper's Amnesiac; Graves et al. 2021, as public code reads it"
    needs = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[Presets] = {
        "paper": {},
        "chundawat2023": {"epochs": 3, "batch_size": 256, "retain_size": None, "weight_decay": 0.0},
    }

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Draws the labels and minimises the cross-entropy over both sets."""
        wrong = wrong_labels(task.forget.labels, task.num_classes, rng)
        both = task.forget_and_retain()
        both.labels[: len(wrong)] = wrong
        record.pseudo_labels = PseudoLabels(random=len(wrong))
        descent = self.descent(
            model, task, inputs=both.inputs, goal=lambda logits: logits.argmax(1) == wrong, rng=rng, record=record
        )
        for index, logits in descent:
            descent.step(F.cross_entropy(logits, both.labels[index], reduction="none"))
        return model
