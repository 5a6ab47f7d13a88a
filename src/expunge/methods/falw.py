"""Random wrong labels, weighted by how much more sure the model is of an example than of unseen ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples
from expunge.errors import InputError
from expunge.methods._gradient import GradientMethod
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.methods.random_label import wrong_labels
from expunge.models import split_logits_of
from expunge.records import PseudoLabels
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class FaLW(GradientMethod):
    """Relabels at random beside retained examples, and pushes hardest where the model is surer than of unseen data.

    FaLW, Yu et al. 2026, "A Forgetting-aware Loss Reweighting for Long-tailed Unlearning" (ICLR). Let p be the
    probability of an example's true class c, and μ, σ its mean and standard deviation over held-out examples of class
    c; z = (p − μ) / σ. The loss of a forgotten example is w·CE toward a wrong label drawn once, with

        w = 1 + sign(z)·tanh(|z|)^(1/B),    B = (N / (C·N_c))^τ,

    where N examples are forgotten and N_c of them are of class c. Retained examples have the plain cross-entropy. w is
    a constant of each step, for which μ and σ are measured anew, in eval mode.

    Attributes:
        tau: τ ≥ 0. The larger, the more sharply w of a rare class reacts. Published: 0.1 to 0.2.
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given.

    What invalidates it: few held-out examples. A class without any has w = 1.
    """

    tau: float = 0.15
    retain_size: int | None = 300

    name = "falw"
    summary = "random wrong labels, weighted by how unlike unseen examples the forgotten ones score"
    source = "Yu et al. 2026 (FaLW), as torchunlearn reads it"
    needs = Needs.FORGET | Needs.RETAIN | Needs.TEST
    presets: ClassVar[Presets] = {"paper": {}}

    ranges: ClassVar[Ranges] = {"tau": "at least 0"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Draws the labels, and minimises the weighted cross-entropy over both sets."""
        if task.calibration is None:
            raise InputError("falw needs held-out examples (test=, --test)")
        true, both, heldout = task.forget.labels, task.forget_and_retain(), task.calibration
        both.labels[: len(true)] = wrong_labels(true, task.num_classes, rng)
        record.pseudo_labels = PseudoLabels(random=len(true))
        counts = torch.bincount(true, minlength=task.num_classes)[true].to(task.forget_logits.dtype)
        balance = (len(true) / (task.num_classes * counts)) ** self.tau
        if absent := set(true.tolist()) - set(heldout.labels.tolist()):
            record.warn(f"no held-out example is of {len(absent)} forgotten classes: their weights stay 1")
        descent = self.descent(model, task, inputs=both.inputs, rng=rng, record=record)
        for index, logits in descent:
            losses, forgotten = F.cross_entropy(logits, both.labels[index], reduction="none"), index < len(true)
            own = index[forgotten]
            mean, spread = true_class_statistics(model, heldout, task.num_classes)
            p = logits.detach()[forgotten].softmax(1).gather(1, true[own, None])[:, 0]
            weights = torch.ones_like(losses)
            weights[forgotten] = forgetting_weights(p, mean[true[own]], spread[true[own]], balance[own]).to(losses)
            descent.step(weights * losses)
        return model


def forgetting_weights(p: Tensor, mean: Tensor, spread: Tensor, balance: Tensor) -> Tensor:
    """w of each example, shape (N,), in [0, 2]: 1 at the mean of unseen ones, and where that is NaN.

    >>> level, scale = torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.1])
    >>> forgetting_weights(torch.tensor([0.5, 1.0]), level, scale, torch.ones(2))
    tensor([1.0000, 1.9999])
    """
    z = (p - mean) / spread
    weights = 1 + z.sign() * z.abs().tanh() ** (1 / balance)
    return weights.where(weights.isfinite(), torch.ones_like(weights))


def true_class_statistics(model: nn.Module, examples: Examples, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, by class, of the probability of the true class, shape (C,); NaN without examples.

    In eval mode; the model's modes are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    logits = split_logits_of(model, examples.inputs)
    for module, training in modes:
        module.training = training
    labels, counts = examples.labels, torch.bincount(examples.labels, minlength=num_classes)

    def averaged(values: Tensor) -> Tensor:
        return torch.zeros_like(logits[0]).index_add(0, labels, values) / counts

    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    mean = averaged(p)
    return mean, averaged((p - mean[labels]).square()).sqrt().clamp(min=1e-8)
