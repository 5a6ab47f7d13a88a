"""Dampening, in one shot, of the weights that matter more to the forget set than to the rest."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples
from expunge.methods._gradient import gradients, trainable
from expunge.methods._task import Method, Needs, Presets, Recorder, Task
from expunge.models import forward
from expunge.progress import track
from expunge.settings import require, require_types


@dataclass(frozen=True, kw_only=True)
class SSD(Method):
    """Shrinks each weight that is far more important to the forget set than to the reference examples.

    Foster et al. 2024, "Selective Synaptic Dampening". The importance I of a weight for a set is the mean of the
    squared gradient of an example's cross-entropy: the diagonal of the empirical Fisher information, at the original
    model in eval mode. Where I_forget > α·I_reference, the weight is multiplied by min(λ·I_reference / I_forget, 1).
    No descent.

    Attributes:
        alpha: α > 0; the larger, the fewer weights are dampened. Published: 10.
        lam: λ > 0; the smaller, the more they are. Published: 1.
        reference: what I_reference is measured on: `retain`, the retained examples; `all`, those and the forget set,
            which is the training set where the retained examples are all the rest of it, as in the authors' code.
        batch_size: examples whose mean gradient is squared, ≥ 1. 1 is the definition, the mean over examples; the
            authors' code takes the mean over batches of 128, which is quicker and shrinks the noise of both sides.
            Batches are drawn at random, as theirs are: gradients of one class, in which folders are sorted, would not
            cancel.
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.

    What invalidates it: with `all` and single examples, I_reference ≥ f·I_forget where the forget set is a share f
    of all, so nothing is dampened once α·f ≥ 1.
    """

    alpha: float = 10.0
    lam: float = 1.0
    reference: Literal["retain", "all"] = "retain"
    batch_size: int = 1
    retain_size: int | None = 300

    name = "ssd"
    summary = "dampen, once, the weights that matter most to the forget set"
    source = "Foster et al. 2024 (Selective Synaptic Dampening)"
    needs = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[Presets] = {
        "paper": {},
        "foster2024": {"reference": "all", "batch_size": 128, "retain_size": None},
    }

    def __post_init__(self) -> None:
        require_types(self)
        ranges = {
            "alpha": self.alpha > 0,
            "lam": self.lam > 0,
            "batch_size": self.batch_size >= 1,
            "retain_size": self.retain_size is None or self.retain_size >= 1,
        }
        require(self, ranges)

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Measures both importances, and dampens."""
        assert task.retain is not None
        reference = task.retain
        if self.reference == "all":
            reference = Examples(
                torch.cat([task.retain.inputs, task.forget.inputs]),
                torch.cat([task.retain.labels, task.forget.labels]),
            )
        on_forget = importance(model, task.forget, self.batch_size, rng)
        on_reference = importance(model, reference, self.batch_size, rng)
        for weight, forget, other in zip(trainable(model), on_forget, on_reference, strict=True):
            factor = (self.lam * other / forget).clamp(max=1)
            # Where 0 / 0 makes the factor NaN, the condition is false: no importance is not more than none.
            weight.data.copy_(torch.where(forget > self.alpha * other, weight.data * factor, weight.data))
        record.steps = 1
        record.examples_seen = len(task.forget) + len(reference)
        return model


def importance(model: nn.Module, examples: Examples, batch_size: int, rng: torch.Generator) -> list[Tensor]:
    """The mean over batches of the squared gradient of a batch's mean cross-entropy.

    Args:
        model: left in eval mode, otherwise unchanged.
        examples: of which batches are drawn.
        batch_size: ≥ 1; a smaller last batch counts as one.
        rng: a CPU generator; draws nothing where batches hold one example.

    Returns:
        One tensor a trainable parameter, of its shape, ≥ 0; 0 where the output does not depend on it.
    """
    model.eval()
    weights = trainable(model)
    totals = [torch.zeros_like(weight) for weight in weights]
    if batch_size > 1:
        order = torch.randperm(len(examples), generator=rng, device="cpu")
        examples = examples.take(order.to(examples.inputs.device))
    batches = list(zip(examples.inputs.split(batch_size), examples.labels.split(batch_size), strict=True))
    for inputs, labels in track(batches, "measuring importance", len(batches)):
        value = F.cross_entropy(forward(model, inputs), labels)
        for total, part in zip(totals, gradients(value, weights), strict=True):
            total += part.square()
    return [total / len(batches) for total in totals]
