"""Less input sensitivity of the true class, more of another one."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.methods._gradient import GradientMethod
from expunge.methods._inputs import continuous
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.methods.random_label import wrong_labels
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class MUMis(GradientMethod):
    """Lowers the sensitivity of the true class's logit to the input, and raises that of another class.

    MU-Mis: Cheng et al. 2024, "Remaining-data-free Machine Unlearning by Suppressing Sample Contribution", Eq. (3).
    Training on an example makes its true logit more sensitive to it than the others; the method takes that back.
    The loss of an example is ‖∇ₓ f_c(x)‖² − ‖∇ₓ f_c′(x)‖², with f the logits, c the true class, and c′ another one,
    drawn uniformly each time that the loss is computed. Its gradient with respect to the parameters takes second
    derivatives of the model. Equations are numbered as in the version of ICLR 2026.

    Attributes:
        recovery: δ > 0, the paper's stopping rule (Algorithm 1). With s the root mean square over the forget set of
            ‖∇ₓ f_c′(x)‖, the run ends when s exceeds both its lowest value so far and δ times its first one. It is
            measured on the passes that are made anyway; a `recovery` that is not reached ends with the budget.
            None: the budget alone.

    What invalidates it: nothing in the loss asks for another prediction, and it has no lower bound, so `epsilon`
    means nothing. In train mode, batch normalisation ties the examples of a batch together, and ∇ₓ is then of the
    sum of their logits; `norm="eval"` gives each its own.
    """

    recovery: float | None = None

    name = "mu_mis"
    summary = "less input sensitivity of the true class, more of another one"
    source = "Cheng et al. 2024, MU-Mis, Eq. (3), Algorithm 1"
    needs = Needs.FORGET
    splits = False
    moves_inputs = True
    presets: ClassVar[Presets] = {
        "paper": {},
        "cheng2024": {"optimizer": "sgd", "weight_decay": 0.0, "recovery": 1.0, "epochs": 1000},
    }

    ranges: ClassVar[Ranges] = {"recovery": "above 0"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Minimises the difference of the sensitivities."""
        labels = task.forget.labels
        # A tensor of its own: the task's must not come to require gradients.
        found = continuous(model, task)
        inputs = found.inputs.detach().clone().requires_grad_()
        unit = found.high if task.forget.inputs.dtype == torch.uint8 else 1.0
        rule = Recovery(self.recovery, len(labels))

        def sensitivity(logits: Tensor, classes: Tensor, index: Tensor) -> Tensor:
            chosen = logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, inputs, create_graph=True)
            return (unit * gradient[index]).reshape(len(index), -1).square().sum(1)

        descent = self.descent(model, task, inputs=inputs, rng=rng, record=record)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            for index, logits in descent:
                others = wrong_labels(labels[index], task.num_classes, rng)
                irrelevant = sensitivity(logits, others, index)
                rule.add(irrelevant.detach())
                losses = sensitivity(logits, labels[index], index) - irrelevant
                if rule.met():
                    descent.end()
                descent.step(losses)
        if self.recovery is not None and self.stop == "budget" and not rule.met():
            record.warn("the budget ended before the sensitivity to other classes recovered; raise epochs or lr")
        return model


@dataclass
class Recovery:
    """The stopping rule: fed the squared sensitivities of every example, it says when they have recovered.

    Attributes:
        delta: δ; None: never.
        size: how many examples make a pass.
        passes: the root mean square sensitivity of each whole pass so far.
    """

    delta: float | None
    size: int
    passes: list[float] = field(default_factory=list)
    _squares: list[Tensor] = field(default_factory=list)

    def add(self, squares: Tensor) -> None:
        """Squared sensitivities, shape (B,), of a batch of the pass at hand."""
        self._squares.append(squares)
        if sum(map(len, self._squares)) == self.size:
            self.passes.append(float(torch.cat(self._squares).double().mean().sqrt()))
            self._squares.clear()

    def met(self) -> bool:
        """Whether the last pass exceeded both the lowest one and δ times the first one."""
        if self.delta is None or not self.passes:
            return False
        return self.passes[-1] > max(min(self.passes), self.delta * self.passes[0])
