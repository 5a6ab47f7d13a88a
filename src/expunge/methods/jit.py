"""Smoothing of the model around the forgotten examples."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from expunge.methods._gradient import GradientMethod
from expunge.methods._inputs import continuous, movable
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.models import forward
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class JiT(GradientMethod):
    """Makes the outputs on the forgotten examples insensitive to noise in the inputs.

    JiT, Foster et al. 2024, "Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization", Algorithm 1. The
    loss of an example is the mean over N draws ε ~ N(0, σ²) of ‖f(x) − f(x + ε)‖₂ / ‖ε‖₂, f being the logits. New
    noise is drawn in every step. Labels are not used.

    Attributes:
        sigma: σ > 0. Both σ and ‖ε‖ are in units of the standard deviation of all values of the forget inputs,
            which is 1 for standardised images, such as the authors'. Their code: 0.01 to 1.5, by network and task.
        draws: N ≥ 1, forward passes a step beside the clean one. The authors' code: 25.
        detach: take f(x + ε) as a constant, as the authors' code does. Algorithm 1 does not say so, and it is
            another descent: only f(x) moves, toward its noisy neighbours.
        reduction: `mean` over the examples of a batch, or `sum`, as the authors' code, where the step of SGD grows
            with the batch.
        accumulate: add each step's gradient to those of all steps before, as the authors' code does, which zeroes them
            once, before its first batch. With a single step it makes no difference.

    What invalidates it: nothing in the loss asks for a wrong prediction, and a model that is smooth around an
    example may still be right about it. Dropout adds noise of its own to the difference.
    """

    sigma: float = 0.01
    draws: int = 25
    detach: bool = False
    reduction: Literal["mean", "sum"] = "mean"
    accumulate: bool = False

    name = "jit"
    summary = "make the outputs insensitive to noise around the forgotten examples"
    source = "Foster et al. 2024, JiT, Algorithm 1"
    needs = Needs.FORGET
    splits = False
    moves_inputs = True
    _CODE: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "weight_decay": 0.0,
        "batch_size": 128,
        "epochs": 1,
        "draws": 25,
        "detach": True,
        "reduction": "sum",
        "accumulate": True,
    }
    presets: ClassVar[Presets] = {
        "paper": {},
        "foster2024": {**_CODE, "sigma": 0.01, "lr": 3e-4},
        "foster2024-vit": {**_CODE, "sigma": 0.5, "lr": 0.1},
    }

    ranges: ClassVar[Ranges] = {"sigma": "above 0", "draws": "at least 1"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Minimises the mean sensitivity to noise."""
        inputs = continuous(model, task).inputs
        free = movable(inputs)
        unit = float(inputs.std(correction=0)) or 1.0  # inputs that are all one value have no spread
        descent = self.descent(model, task, inputs=inputs, rng=rng, record=record)
        for index, logits in descent:
            total = torch.zeros(len(index), dtype=logits.dtype, device=logits.device)
            clean = inputs[index]
            for _ in range(self.draws):
                noise = torch.randn(clean.shape, dtype=clean.dtype, generator=rng, device="cpu")
                noise = self.sigma * noise.to(clean.device) * free
                with torch.set_grad_enabled(not self.detach):
                    noisy = forward(model, clean + unit * noise)
                total = total + (logits - noisy).norm(dim=1) / noise.reshape(len(noise), -1).norm(dim=1)
            scale = len(index) if self.reduction == "sum" else 1
            descent.step(total / self.draws * scale, fresh=not self.accumulate)
        return model
