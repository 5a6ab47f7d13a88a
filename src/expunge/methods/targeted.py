"""δ-Targeted^λ label noise injection: the paper's method."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._gradient import GradientMethod, paced_lr
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.records import PseudoLabels
from expunge.settings import Ranges

PACE = 0.1
"""Share of the loss that the first step takes off, to first order, where no step size is given."""


@dataclass(frozen=True, kw_only=True)
class Targeted(GradientMethod):
    """Relabels each example with the wrong class that the model already finds most likely, and learns that.

    "Towards Safe Machine Unlearning", Algorithm 1 and Eq. (1). Pseudo-labels are drawn once, from the original
    model in eval mode. The loss of an example is its cross-entropy toward the pseudo-label, raised to λ.

    Attributes:
        delta: δ in [0, 1], the probability of keeping the true label. The paper's experiments: 0.
        lam: λ ≥ 1, real. The paper's experiments: 1 and 3; `preset="paper"` gives 1. For λ > 1 an example's
            gradient is scaled by λ·ℓ^(λ−1), which exceeds 1 where ℓ > λ^(−1/(λ−1)) (0.577 for λ = 3): a large λ
            makes large first steps and small last ones. A threshold `epsilon` on ℓ^λ is not comparable between
            values of λ.
        reduction: `mean` divides the sum of losses by the number of examples once; `paper` twice, as Eq. (1) is
            printed, which shrinks the gradient (and moves `epsilon`) with the size of the forget set.
        lr: the step size, > 0. None: from the gradient, so that the first step takes the share `PACE` off the loss.

    The defaults kept 7 to 9 points less test accuracy than the best setting that forgot everything, in a fraction of
    its steps (docs/research/choices.md): λ = 2, a third of the paper's learning rate there, about what `lr=None` finds,
    with a large budget, normalisation layers in train mode, an end as soon as all are forgotten.

    What invalidates it: δ = 0 forces every forgotten example to be mispredicted, which is itself a mark that it
    was forgotten. An example that the model mispredicts already keeps that prediction as its pseudo-label (at
    δ > 0 it may be trained toward its true label, as Algorithm 1, line 8 says).

    >>> Targeted(lam=3.0).lam
    3.0
    """

    delta: float = 0.0
    lam: float = 2.0
    lr: float | None = None  # type: ignore[assignment]
    epochs: int = 1000
    stop: Literal["budget", "epsilon", "forgotten"] = "forgotten"
    reduction: Literal["mean", "paper"] = "mean"

    name = "targeted"
    summary = "relabel with the most likely wrong class, cross-entropy to the power λ"
    source = "Towards Safe Machine Unlearning, Algorithm 1, Eq. (1)"
    needs = Needs.FORGET
    presets: ClassVar[Presets] = {"paper": {"lam": 1.0, "lr": 1e-4, "epochs": 20, "stop": "budget"}}

    ranges: ClassVar[Ranges] = {"delta": "at least 0, at most 1", "lam": "at least 1"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Draws the pseudo-labels and minimises Eq. (1) on them."""
        labels, record.pseudo_labels = pseudo_labels(task.forget_logits, task.forget.labels, self.delta, rng)
        scale = 1 / len(labels) if self.reduction == "paper" else 1.0

        def losses(logits: Tensor, index: Tensor) -> Tensor:
            cross_entropy = F.cross_entropy(logits, labels[index], reduction="none")
            return scale * (cross_entropy if self.lam == 1 else cross_entropy**self.lam)

        lr: float | None = self.lr
        if lr is None:
            most = 1.0 if self.optimizer == "sgd" else 1e-3
            lr = paced_lr(self, PACE, model, task.forget.inputs, losses, most=most)
        descent = replace(self, lr=lr).descent(
            model, task, goal=lambda logits: logits.argmax(1) == labels, rng=rng, record=record
        )
        for index, logits in descent:
            descent.step(losses(logits, index))
        return model


def pseudo_labels(logits: Tensor, labels: Tensor, delta: float, rng: torch.Generator) -> tuple[Tensor, PseudoLabels]:
    """The label that each forgotten example is trained toward (Algorithm 1, lines 3 to 17).

    With α ~ U(0, 1) drawn for each example: the true label where α < δ; else the prediction where it is wrong, and
    the most likely other class where it is right.

    Args:
        logits: the original model's, shape (N, C), C ≥ 2.
        labels: true labels, int64, shape (N,).
        delta: δ in [0, 1].
        rng: a CPU generator; one uniform number an example is drawn from it, whatever δ.

    Returns:
        Pseudo-labels, int64, shape (N,); and how many came about in which way.

    >>> logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    >>> pseudo_labels(logits, torch.tensor([0, 2]), 0.0, torch.Generator())[0]  # right; wrong already
    tensor([1, 0])
    """
    best, second = logits.sort(dim=1, descending=True, stable=True).indices[:, :2].T  # of equal ones the first
    right = best == labels
    kept = (torch.rand(len(labels), generator=rng, device="cpu") < delta).to(labels.device)
    drawn = torch.where(kept, labels, torch.where(right, second, best))
    counts = PseudoLabels(
        kept=int(kept.sum()),
        second_best=int((~kept & right).sum()),
        already_mispredicted=int((~kept & ~right).sum()),
    )
    return drawn, counts
