"""Fine-tuning on the nearest adversarial example of each forgotten one, with the wrong label that it gets."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._confidence import scaled_confidence
from expunge.methods._gradient import MOMENTUM, GradientMethod
from expunge.methods._inputs import Continuous, at_once, continuous, norms, of_length_one
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.models import forward
from expunge.records import PseudoLabels
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class Amun(GradientMethod):
    """Learns that the nearest misclassified neighbour of each forgotten example is what the model takes it for.

    AMUN, Ebrahimpour-Boroojeny et al. 2025, "Not All Wrong is Bad: Using Adversarial Examples for Unlearning" (ICML). A
    neighbour is found by projected gradient ascent in L2 on the original model. Its label is the wrong class predicted
    there. Training on both, by cross-entropy, puts the decision boundary between them, so that the model is less sure
    of the forgotten example.

    Attributes:
        with_true: train on the forgotten examples with their true labels too. False: on the neighbours alone.
        radius: of the first L2 ball around an example, > 0, in units of the range of the forget set's values (see
            `targeted_pgd`). Where no neighbour in it is misclassified, it is doubled. The authors' code: 0.04.
        attack_steps: steps in each ball, ≥ 1, each a tenth of its radius long. The authors' code: 50.
        decay: the step size is multiplied by it after each epoch, in (0, 1].

    What invalidates it: a model that predicts one class for every input has no such neighbour. The label is then the
    likeliest wrong class of the last point, which the trace counts as `second_best`.
    """

    with_true: bool = True
    radius: float = 0.04
    attack_steps: int = 50
    decay: float = 1.0

    name = "amun"
    summary = "learn the nearest adversarial examples of the forgotten ones with their wrong labels"
    source = "Ebrahimpour-Boroojeny et al. 2025, AMUN (ICML)"
    needs = Needs.FORGET
    moves_inputs = True
    presets: ClassVar[Presets] = {
        "paper": {},
        "ebrahimpour2025": {
            **MOMENTUM,
            "weight_decay": 5e-4,
            "lr": 0.01,
            "decay": 0.1,
            "batch_size": 128,
            "epochs": 10,
        },
    }

    ranges: ClassVar[Ranges] = {"radius": "above 0", "attack_steps": "at least 1", "decay": "above 0, at most 1"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Finds the neighbours on the original model, and minimises the cross-entropy."""
        forget, true = continuous(model, task), task.forget.labels
        near, wrong, reached = neighbours(model, forget, true, self.radius, self.attack_steps, self.batch_size)
        record.pseudo_labels = PseudoLabels(adversarial=reached, second_best=len(true) - reached)
        inputs, labels = torch.cat([forget.inputs, near]), torch.cat([true, wrong])
        if task.retain is not None:
            inputs = torch.cat([inputs, forget.alike(task.retain.inputs)])
            labels = torch.cat([labels, task.retain.labels])
        used = torch.arange(0 if self.with_true else len(true), len(labels), device=labels.device)
        descent = self.descent(model, task, inputs=inputs, rng=rng, record=record)
        for epoch in descent.epochs():
            if epoch:
                descent.slow(self.decay)
            for index, logits in descent.batches(used, self.batch_size):
                descent.step(F.cross_entropy(logits, labels[index], reduction="none"))
        return model


def neighbours(
    model: nn.Module, forget: Continuous, labels: Tensor, radius: float, steps: int, batch_size: int | None = None
) -> tuple[Tensor, Tensor, int]:
    """For each input a near one that the model misclassifies.

    The search starts at the input, in a ball of `radius`. Each step climbs the cross-entropy by a tenth of the radius,
    then goes back into the ball and the range of values. It ends where the prediction is wrong. After `steps` without
    success the radius is doubled, as long as it is below the longest distance there is.

    Args:
        model: the original; left in eval mode, its gradients untouched.
        forget: inputs (N, ...) and their range.
        labels: true labels, int64, shape (N,).
        radius: > 0, in units of the range.
        steps: ≥ 1, in each ball.
        batch_size: examples a pass; None: as many as are taken at once.

    Returns:
        Inputs (N, ...), the wrong classes, int64, shape (N,), and how many of these are predictions.
    """
    model.eval()
    span = forget.high - forget.low or 1.0
    near, wrong, reached = forget.inputs.clone(), torch.empty_like(labels), 0
    for part in torch.arange(len(labels), device=labels.device).split(at_once(batch_size)):
        left, ball = part, radius * span
        while len(left):
            for _ in range(steps):
                point = near[left].detach().requires_grad_(True)
                logits = forward(model, point)
                # Where the model is certain, the cross-entropy's gradient is rounded away; φ's has the same direction.
                (slope,) = torch.autograd.grad(scaled_confidence(logits, labels[left]).sum(), point)
                found = logits.argmax(1) != labels[left]
                wrong[left] = logits.detach().scatter(1, labels[left, None], -torch.inf).argmax(1)
                reached, left, slope = reached + int(found.sum()), left[~found], slope[~found]
                if not len(left):
                    break
                start = forget.inputs[left]
                moved = near[left] - ball / 10 * of_length_one(slope) - start
                moved = moved * (ball / norms(moved)).clamp_max(1)
                near[left] = (start + moved).clamp(forget.low, forget.high)
            if ball > span * near[0].numel() ** 0.5:
                break
            ball *= 2
    return near, wrong, reached
