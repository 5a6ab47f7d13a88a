"""The class beyond the nearest decision boundary as the new label."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._confidence import scaled_confidence
from expunge.methods._gradient import MOMENTUM, GradientMethod
from expunge.methods._inputs import Continuous, at_once, continuous
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.models import forward
from expunge.records import PseudoLabels
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(GradientMethod):
    """Relabels each example with the wrong class that one adversarial step leads to, and learns that.

    Boundary Shrink, Chen et al. 2023, "Boundary Unlearning" (CVPR). The step is FGSM's: the input moves by `bound`
    along the sign of the gradient of its cross-entropy toward the true label, on the original model in eval mode.
    The label is the likeliest wrong class there. Labels are found once, and training is on the unperturbed inputs.

    Attributes:
        bound: > 0, the step in each input value, as a fraction of the range of values: 0 to 255 for uint8 images,
            the smallest to the largest value of the forget set for floating-point inputs. Moved values stay within
            that range. The authors' code: 0.1.

    What invalidates it: where the step crosses no boundary, the label is the runner-up at the moved input, since
    the authors' code would there train toward the true label; the trace counts these as `second_best`.
    """

    bound: float = 0.1

    name = "boundary_shrink"
    summary = "relabel with the wrong class that an adversarial step leads to"
    source = "Chen et al. 2023, Boundary Shrink (CVPR)"
    needs = Needs.FORGET
    moves_inputs = True
    presets: ClassVar[Presets] = {
        "paper": {},
        "chen2023": {**MOMENTUM, "weight_decay": 0.0, "lr": 1e-5, "batch_size": 64, "epochs": 10},
    }

    ranges: ClassVar[Ranges] = {"bound": "above 0"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Finds the labels on the original model and minimises the cross-entropy toward them."""
        labels, record.pseudo_labels = nearest_wrong(
            model, continuous(model, task), task.forget.labels, self.bound, self.batch_size
        )
        descent = self.descent(model, task, goal=lambda logits: logits.argmax(1) == labels, rng=rng, record=record)
        for index, logits in descent:
            descent.step(F.cross_entropy(logits, labels[index], reduction="none"))
        return model


def nearest_wrong(
    model: nn.Module, forget: Continuous, labels: Tensor, bound: float, batch_size: int | None = None
) -> tuple[Tensor, PseudoLabels]:
    """The likeliest wrong class after one FGSM step of `bound` times the range of values.

    Args:
        model: the original; left in eval mode, its gradients untouched.
        forget: inputs (N, ...) and their range.
        labels: true labels, int64, shape (N,).
        bound: > 0, a fraction of the range.
        batch_size: examples a pass; None: as many as are taken at once.

    Returns:
        Labels, int64, shape (N,), none of them the true one; and how many were reached (`adversarial`) and how many
        are runners-up (`second_best`).
    """
    model.eval()
    size = at_once(batch_size)
    step = bound * (forget.high - forget.low)
    found = []
    reached = 0
    for inputs, true in zip(forget.inputs.split(size), labels.split(size), strict=True):
        start = inputs.detach().clone().requires_grad_(True)
        # The cross-entropy is softplus(−φ), so its gradient has the sign of φ's, turned round; but where the model is
        # certain it is rounded away. The sum keeps every example's gradient its own.
        (gradient,) = torch.autograd.grad(scaled_confidence(forward(model, start), true).sum(), start)
        moved = (inputs - step * gradient.sign()).clamp(forget.low, forget.high)
        with torch.no_grad():
            logits = forward(model, moved)
        reached += int((logits.argmax(1) != true).sum())
        found.append(logits.scatter(1, true[:, None], -torch.inf).argmax(1))
    return torch.cat(found), PseudoLabels(adversarial=reached, second_best=len(labels) - reached)
