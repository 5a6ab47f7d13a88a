"""Random wrong labels, learned by the weights that matter most to the forget set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._gradient import MOMENTUM, GradientMethod, gradients, trainable
from expunge.methods._inputs import at_once
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.methods.random_label import wrong_labels
from expunge.models import forward
from expunge.records import PseudoLabels
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class SalUn(GradientMethod):
    """Relabels at random and learns that beside retained examples, moving only the weights salient to the forget set.

    Fan et al. 2024, "SalUn". The mask keeps the share of weights with the largest |∂ loss / ∂θ|, the loss being the
    cross-entropy of the forget set at the original model in eval mode. Weights outside it stay as they are, to the
    bit. Labels are drawn anew every epoch, never the true one.

    Attributes:
        share: the share of weights that may move, in (0, 1], counted over all trainable parameters at once.
            Published: 0.5.
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.

    `stop="forgotten"` ends when no forgotten example is predicted as its true label.

    What invalidates it: where the model is certain of every forgotten example, the gradients are zero and the mask
    is arbitrary.
    """

    share: float = 0.5
    retain_size: int | None = 300

    name = "salun"
    summary = "random wrong labels beside retained examples, on the most salient weights alone"
    source = "Fan et al. 2024 (SalUn)"
    needs = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[Presets] = {
        "paper": {},
        "fan2024": {
            **MOMENTUM,
            "weight_decay": 5e-4,
            "lr": 0.013,
            "batch_size": 256,
            "epochs": 10,
            "retain_size": None,
        },
    }

    ranges: ClassVar[Ranges] = {"share": "above 0, at most 1"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Computes the mask, and minimises the cross-entropy over both sets within it."""
        true, both = task.forget.labels, task.forget_and_retain()
        record.pseudo_labels = PseudoLabels(random=len(true))
        weights = trainable(model)
        masks = salient(model, weights, task, self.share, self.batch_size)
        original = [weight.detach().clone() for weight in weights]
        descent = self.descent(model, task, inputs=both.inputs, rng=rng, record=record)
        for _ in descent.epochs():
            both.labels[: len(true)] = wrong_labels(true, task.num_classes, rng)
            for index, logits in descent.batches():
                descent.step(F.cross_entropy(logits, both.labels[index], reduction="none"))
                # A masked gradient would not do: weight decay and momentum move weights without one.
                for weight, mask, before in zip(weights, masks, original, strict=True):
                    weight.data.copy_(torch.where(mask, weight.data, before))
        return model


def salient(
    model: nn.Module, weights: Sequence[Tensor], task: Task, share: float, batch_size: int | None = None
) -> list[Tensor]:
    """Which weights may move: the int(share·n) of all n with the largest |gradient| of the forget set's loss.

    Args:
        model: the original; it is left in eval mode.
        weights: its trainable parameters.
        task: gives the forget set.
        share: in (0, 1].
        batch_size: examples a backward pass; None: as many as are taken at once.

    Returns:
        One bool tensor a parameter, of its shape. Of equal gradients the first in the model's order are taken.
    """
    model.eval()
    totals = [torch.zeros_like(weight) for weight in weights]
    size = at_once(batch_size)
    for inputs, labels in zip(task.forget.inputs.split(size), task.forget.labels.split(size), strict=True):
        value = F.cross_entropy(forward(model, inputs), labels, reduction="sum")
        for total, part in zip(totals, gradients(value, weights), strict=True):
            total += part
    sizes = torch.cat([total.abs().flatten() for total in totals])
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(descending=True, stable=True)[: int(share * len(sizes))]] = True
    parts_kept = kept.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts_kept, weights, strict=True)]
