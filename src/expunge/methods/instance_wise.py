"""Gradient ascent, held back by adversarial examples and by the weights that the forget set does not need."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._gradient import MOMENTUM, GradientMethod, gradients, trainable
from expunge.methods._inputs import continuous, targeted_pgd
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.methods.random_label import wrong_labels
from expunge.models import forward
from expunge.records import PseudoLabels
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class InstanceWise(GradientMethod):
    """Forgets by gradient ascent, beside adversarial examples of the forgotten images and with other weights held.

    Cha et al. 2024, "Learning to Unlearn". Adversarial examples, made once from the forgotten images with the
    original model (targeted PGD in L2), are learned with the wrong labels that they were made for: they stand in
    for retained data. Parameters that matter little to the model's output on the forget set are held where they
    were by a quadratic penalty. With θ₀ the original parameters and Ω̄ in [0, 1] the importance of each, scaled
    within its tensor and turned over, the loss is

        mean over forgotten and adversarial examples of (−CE(x, y) or CE(x̃, ỹ)) + λ/2 · Σ Ω̄ (θ − θ₀)².

    Defaults are those of the authors' run on CIFAR-10, but for optimizer and budget.

    Attributes:
        adversarial: adversarial examples for each forgotten one, ≥ 0; 0 leaves plain ascent.
        importance: λ ≥ 0, weight of the penalty; 0: adversarial examples alone, the paper's other variant.
        toward: `away` from the true label, or to a `wrong` label drawn uniformly, once (the paper's relabelling).
        radius: of the L2 ball of an adversarial example, > 0, in units of the range of the forget set's values
            (see `targeted_pgd`). It does not grow with the number of pixels: 4 is what the authors take for all.
        attack_step: length of a step of the attack, > 0, in the same units.
        attack_steps: steps of the attack, ≥ 0, each of which costs a pass over all adversarial examples.
    """

    adversarial: int = 20
    importance: float = 1.0
    toward: Literal["away", "wrong"] = "away"
    radius: float = 4.0
    attack_step: float = 0.1
    attack_steps: int = 100

    name = "instance_wise"
    summary = "gradient ascent beside adversarial examples, other weights held"
    source = "Cha et al. 2024, instance-wise unlearning"
    needs = Needs.FORGET
    moves_inputs = True
    presets: ClassVar[Presets] = {
        "paper": {},
        "cha2024": {
            **MOMENTUM,
            "weight_decay": 1e-4,
            "lr": 1e-3,
            "batch_size": 288,
            "epochs": 1000,
            "stop": "forgotten",
        },
    }

    ranges: ClassVar[Ranges] = {
        "adversarial": "at least 0",
        "importance": "at least 0",
        "radius": "above 0",
        "attack_step": "above 0",
        "attack_steps": "at least 0",
    }

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Makes the adversarial examples, measures the importance, and minimises the loss."""
        true = task.forget.labels
        forget = continuous(model, task).inputs if self.adversarial else task.forget.inputs
        wrong = wrong_labels(true, task.num_classes, rng) if self.toward == "wrong" else None
        sign = torch.full_like(true, -1 if wrong is None else 1)
        if wrong is not None:
            record.pseudo_labels = PseudoLabels(random=len(wrong))
        inputs, labels = forget, true if wrong is None else wrong
        if self.adversarial:
            repeated = forget.repeat(self.adversarial, *[1] * (forget.ndim - 1))
            targets = wrong_labels(true.repeat(self.adversarial), task.num_classes, rng)
            attacked = targeted_pgd(
                model,
                repeated,
                targets,
                radius=self.radius,
                step=self.attack_step,
                steps=self.attack_steps,
                rng=rng,
                batch_size=self.batch_size,
            )
            inputs, labels = torch.cat([forget, attacked]), torch.cat([labels, targets])
            sign = torch.cat([sign, torch.ones_like(targets)])
        parameters = trainable(model)
        original = [p.detach().clone() for p in parameters]
        held = [turned_over(omega) for omega in importances(model, forget, parameters)] if self.importance else []
        descent = self.descent(
            model,
            task,
            inputs=inputs,
            goal=None if wrong is None else lambda logits: logits.argmax(1) == wrong,
            rng=rng,
            record=record,
        )
        for index, logits in descent:
            losses = sign[index] * F.cross_entropy(logits, labels[index], reduction="none")
            penalty = [(h * (p - p0).square()).sum() for h, p, p0 in zip(held, parameters, original, strict=False)]
            descent.step(losses + self.importance / 2 * torch.stack(penalty).sum() if penalty else losses)
        return model


def importances(model: nn.Module, inputs: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Ω of each parameter: the mean over `inputs` of |∂‖f(x)‖²/∂θ| (Aljundi et al. 2018, MAS), in eval mode."""
    total = [torch.zeros_like(p) for p in parameters]
    model.eval()
    for x in inputs.split(1):
        value = forward(model, x).square().sum()
        for omega, gradient in zip(total, gradients(value, parameters), strict=True):
            omega += gradient.abs()
    return [omega / len(inputs) for omega in total]


def turned_over(omega: Tensor) -> Tensor:
    """1 for the least important entry of a tensor, 0 for the most; 1 throughout where all are equal.

    >>> turned_over(torch.tensor([2.0, 4.0, 6.0])), turned_over(torch.tensor([3.0]))
    (tensor([1.0000, 0.5000, 0.0000]), tensor([1.]))
    """
    spread = omega.max() - omega.min()
    return 1 - (omega - omega.min()) / torch.where(spread > 0, spread, torch.ones_like(spread))
