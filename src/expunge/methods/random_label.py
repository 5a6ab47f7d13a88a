"""Random wrong labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._gradient import GradientMethod
from expunge.methods._task import Needs, Recorder, Task
from expunge.records import PseudoLabels


@dataclass(frozen=True, kw_only=True)
class RandomLabel(GradientMethod):
    """Relabels each example with a wrong class drawn uniformly, once, and learns that by cross-entropy.

    The paper's "RandL" (section 5). The true class is never drawn: with it, a tenth of the examples of a ten-class
    problem would keep their label, which the paper's forget accuracy of 0.00 ± 0.00 rules out.
    """

    name = "random_label"
    summary = "relabel with a uniformly drawn wrong class"
    source = "the paper's RandL; Golatkar et al. 2020"
    needs = Needs.FORGET

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Draws the labels and minimises the cross-entropy toward them."""
        labels = wrong_labels(task.forget.labels, task.num_classes, rng)
        record.pseudo_labels = PseudoLabels(random=len(labels))
        descent = self.descent(model, task, goal=lambda logits: logits.argmax(1) == labels, rng=rng, record=record)
        for index, logits in descent:
            descent.step(F.cross_entropy(logits, labels[index], reduction="none"))
        return model


def wrong_labels(labels: Tensor, num_classes: int, rng: torch.Generator) -> Tensor:
    """Draws for each label one of the other C − 1, uniformly.

    Args:
        labels: int64, shape (N,), in [0, C).
        num_classes: C ≥ 2.
        rng: a CPU generator.

    >>> bool((wrong_labels(torch.arange(5), 5, torch.Generator()) != torch.arange(5)).all())
    True
    """
    offset = torch.randint(1, num_classes, labels.shape, generator=rng, device="cpu").to(labels.device)
    return (labels + offset) % num_classes
