"""An incompetent teacher for the forget set, the original model for the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from expunge.errors import InputError
from expunge.methods._gradient import GradientMethod
from expunge.methods._task import Needs, Presets, Recorder, Task
from expunge.models import built_by, refusing, split_logits_of
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class BadTeacher(GradientMethod):
    """Distils a randomly initialised network on the forget set, and the original model on retained examples.

    Chundawat et al. 2023, "Can bad teaching induce forgetting?", Eq. (1): KL(teacher ‖ student) of softened
    outputs. Both teachers run in eval mode, once; the incompetent one is built by the model's own factory.

    Attributes:
        temperature: T > 0; logits are divided by it and the loss multiplied by T², which the authors' code, with T = 1,
            does not do.
        divide_by_classes: also divide the loss by the number of classes, as the authors' code does (its
            `kl_div` averages over every element). Without it: the mean over examples.
        retain_size: how many retained examples are drawn, ≥ 1; None takes all that are given. The paper: 300.
    """

    temperature: float = 1.0
    divide_by_classes: bool = True
    retain_size: int | None = 300

    name = "bad_teacher"
    summary = "distil a random network on the forget set, the original on retained examples"
    source = "Chundawat et al. 2023, Eq. (1)"
    needs = Needs.FORGET | Needs.RETAIN | Needs.FACTORY
    presets: ClassVar[Presets] = {
        "paper": {},
        "chundawat2023": {"epochs": 1, "batch_size": 256, "retain_size": None, "weight_decay": 0.0},
        "kurmanji2023": {
            "epochs": 1,
            "batch_size": 128,
            "retain_size": None,
            "weight_decay": 5e-4,
            "lr": 1e-3,
            "temperature": 4.0,
            "divide_by_classes": False,
        },
    }

    ranges: ClassVar[Ranges] = {"temperature": "above 0"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Asks both teachers once, and minimises the divergence from them."""
        assert task.retain is not None
        assert task.factory is not None
        incompetent = built_by(task.factory, model)
        with refusing(task.forget.inputs, "the factory's network"):
            random_logits = split_logits_of(incompetent, task.forget.inputs)
        if random_logits.shape != task.forget_logits.shape:
            shapes = tuple(random_logits.shape), tuple(task.forget_logits.shape)
            raise InputError(f"the factory's network gives logits of shape {shapes[0]}, the model's {shapes[1]}")
        taught = torch.cat([random_logits, split_logits_of(model, task.retain.inputs)])
        targets = (taught / self.temperature).softmax(1)
        scale = self.temperature**2 / (task.num_classes if self.divide_by_classes else 1)
        both = task.forget_and_retain()
        descent = self.descent(model, task, inputs=both.inputs, rng=rng, record=record)
        for index, logits in descent:
            student = (logits / self.temperature).log_softmax(1)
            descent.step(scale * F.kl_div(student, targets[index], reduction="none").sum(1))
        return model
