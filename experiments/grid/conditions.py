"""What a method may run under besides its own settings: precision, augmentation, a schedule, moments carried over."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples
from expunge.methods import GradientMethod
from expunge.models import Classifier, as_float, computes_in_bf16
from expunge.randomness import stream
from expunge.training import augmented, quickest_layout

Moments = Mapping[str, Mapping[str, Tensor]]
"""{parameter: Adam's state of it}."""

CARRIED_STEPS = 1000
"""Steps of training that Adam's moments are gathered over: its second moments remember about as many."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The values of `CONDITIONS`, each with the one that stands for nothing."""

    precision: str = "fp32"
    augment: str = "none"
    schedule: str = "constant"
    carried: bool = False

    def network(self, network: nn.Module) -> nn.Module:
        """The network as it runs under them; its tensors are those of `network`."""
        if self.precision == "fp32" and self.augment == "none":
            return network
        assert isinstance(network, Classifier)
        return _Conditioned(network, self)

    @contextmanager
    def applied(self, total: int, moments: Callable[[], Moments]) -> Iterator[None]:
        """Gives the methods that run inside of the block an optimizer under these conditions.

        Args:
            total: the steps of the whole budget.
            moments: gathers Adam's state, by the names of the model's parameters.
        """
        if self.schedule == "constant" and not self.carried:
            yield
            return
        usual = GradientMethod.make_optimizer

        def optimizer(method: GradientMethod, model: nn.Module) -> torch.optim.Optimizer:
            made = usual(method, model)
            if self.carried:
                known = moments()
                for name, parameter in model.named_parameters():
                    if name in known:
                        made.state[parameter] = {key: value.clone() for key, value in known[name].items()}
            if self.schedule == "cosine":
                _follow_cosine(made, total)
            return made

        with patch.object(GradientMethod, "make_optimizer", optimizer):
            yield


class _Conditioned(Classifier):
    """A classifier that augments its input in train mode, or runs under autocast."""

    def __init__(self, of: Classifier, conditions: Conditions) -> None:
        nn.Module.__init__(self)
        self.spec, self.normalise, self.network = of.spec, of.normalise, of.network
        self.conditions = conditions
        self.layout = quickest_layout(of)
        self.train(of.training)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C), float32, of images (B, channels, H, W)."""
        if self.training:
            images = augmented(images, self.conditions.augment, torch.default_generator)
        pixels = self.normalise(images).contiguous(memory_format=self.layout)
        quick = self.conditions.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=quick):
            logits: Tensor = self.network(pixels)
        return logits.float()


def adam_moments(network: nn.Module, examples: Examples) -> dict[str, dict[str, Tensor]]:
    """Adam's state after `CARRIED_STEPS` more batches of 128 of training, in which no weight moved.

    Args:
        network: left as it is.
        examples: the training set, on the network's device.
    """
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
    draws, layout = stream("carried moments", 0), quickest_layout(network)
    for _ in range(CARRIED_STEPS):
        index = torch.randint(len(examples), (128,), generator=draws).to(examples.labels.device)
        images = examples.inputs[index].contiguous(memory_format=layout)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=computes_in_bf16(images.device)):
            logits = as_float(network(images))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, examples.labels[index]).backward()
        optimizer.step()
    return {name: dict(optimizer.state[parameter]) for name, parameter in network.named_parameters()}


def _follow_cosine(optimizer: torch.optim.Optimizer, total: int) -> None:
    """Lets the step size fall from its value to zero along half a cosine over `total` steps."""
    group = optimizer.param_groups[0]
    highest, taken = group["lr"], 0

    def fall(*_: Any) -> None:
        nonlocal taken
        taken += 1
        group["lr"] = highest * (1 + math.cos(math.pi * min(taken, total) / total)) / 2

    optimizer.register_step_post_hook(fall)
