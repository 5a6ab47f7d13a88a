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
from expunge.settings import Ranges, check_settings


@dataclass(frozen=True, kw_only=True)
class SSD(Method):
    """Shrinks each weight that is far more important to the forget set than to the reference examples.

    Foster et al. 2024, "Selective Synaptic Dampening". The importance I of a weight for a set is the mean of the
    squared gradient of an example's cross-entropy: the diagonal of the empirical Fisher information, at the original
    model in eval mode. Where I_forget > α·I_reference, the weight is multiplied by min(λ·I_reference / I_forget, 1).
    No descent.

    A subclass measures importance by another `measure` and `power`.

    Attributes:
        alpha: α > 0; the larger, the fewer weights are dampened. Published: 10.
        lam: λ > 0; the smaller, the more they are. Published: 1.
        reference: what I_reference is measured on: `retain`, the retained examples; `all`, those and the forget set,
            which is the training set where the retained examples are all the rest of it, as in the authors' code.
        batch_size: examples whose mean gradient is squared, ≥ 1. 1 is the definition, the mean over examples; the
            authors' code takes the mean over batches of 128, which is quicker and shrinks the noise of both sides.
            Batches are drawn at random: gradients of one class, in which folders are sorted, would not cancel.
        forget_last: with `all`, put the forgotten examples into the last batches instead, as the authors' code does: it
            appends them to the retained ones and shuffles neither. Each set is in random order here too.
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.

    What invalidates it: with `all` and single examples, I_reference ≥ f·I_forget where the forget set is a share f
    of all, so nothing is dampened once α·f ≥ 1.
    """

    alpha: float = 10.0
    lam: float = 1.0
    reference: Literal["retain", "all"] = "retain"
    batch_size: int = 1
    forget_last: bool = False
    retain_size: int | None = 300

    name = "ssd"
    summary = "dampen, once, the weights that matter most to the forget set"
    source = "Foster et al. 2024 (Selective Synaptic Dampening)"
    needs = Needs.FORGET | Needs.RETAIN
    presets: ClassVar[Presets] = {
        "paper": {},
        "foster2024": {"reference": "all", "batch_size": 128, "forget_last": True, "retain_size": None},
    }
    power: ClassVar[int] = 2
    """Of the absolute gradient of a batch's `measure`, whose mean over batches is the importance."""

    ranges: ClassVar[Ranges] = {"alpha": "above 0", "lam": "above 0"}

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Measures both importances, and dampens."""
        assert task.retain is not None
        forget, reference = self._shuffled(task.forget, rng), task.retain
        if self.reference == "all" and self.forget_last:
            reference = _joined(self._shuffled(reference, rng), forget)
        else:
            reference = self._shuffled(_joined(reference, task.forget) if self.reference == "all" else reference, rng)
        on_forget = self.importance(model, forget)
        on_reference = self.importance(model, reference)
        for weight, own, other in zip(trainable(model), on_forget, on_reference, strict=True):
            factor = (self.lam * other / own).clamp(max=1)
            # Where 0 / 0 makes the factor NaN, the condition is false: no importance is not more than none.
            weight.data.copy_(torch.where(own > self.alpha * other, weight.data * factor, weight.data))
        record.steps = 1
        record.examples_seen = len(task.forget) + len(reference)
        return model

    def measure(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What a batch's gradient is of: the mean cross-entropy, a scalar."""
        return F.cross_entropy(logits, labels)

    def importance(self, model: nn.Module, examples: Examples) -> list[Tensor]:
        """The mean over batches of |∂ measure / ∂θ| to the `power`.

        Args:
            model: left in eval mode, otherwise unchanged.
            examples: batches are taken in their order; a smaller last one counts as one.

        Returns:
            One tensor a trainable parameter, of its shape, ≥ 0; 0 where the output does not depend on it.
        """
        model.eval()
        weights = trainable(model)
        totals = [torch.zeros_like(weight) for weight in weights]
        parts = examples.inputs.split(self.batch_size), examples.labels.split(self.batch_size)
        batches = list(zip(*parts, strict=True))
        for inputs, labels in track(batches, "measuring importance", len(batches)):
            value = self.measure(forward(model, inputs), labels)
            for total, slope in zip(totals, gradients(value, weights), strict=True):
                total += slope.abs().pow(self.power)
        return [total / len(batches) for total in totals]

    def _shuffled(self, examples: Examples, rng: torch.Generator) -> Examples:
        """The examples in random order; as they are, and nothing drawn, where batches hold one."""
        if self.batch_size == 1:
            return examples
        order = torch.randperm(len(examples), generator=rng, device="cpu")
        return examples.take(order.to(examples.inputs.device))


def _joined(first: Examples, second: Examples) -> Examples:
    return Examples(torch.cat([first.inputs, second.inputs]), torch.cat([first.labels, second.labels]))
