"""Training from scratch without the forgotten examples: the reference."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from expunge.methods._task import Method, Needs, Presets, Recorder, Task
from expunge.models import built_by, check_same_network
from expunge.records import Epoch
from expunge.training import Recipe, train


@dataclass(frozen=True, kw_only=True)
class Retrain(Recipe, Method):
    """Trains a network with fresh random weights on the retained examples alone.

    Exact by definition, and what every other method is measured against. Its fields are those of `Recipe`; give it
    the original's, or the comparison says more about the recipe than about forgetting.

    What invalidates it: retained examples that are not the whole of the remaining training set.
    """

    name = "retrain"
    summary = "train from scratch on the retained examples: the reference"
    source = "the definition of exact unlearning"
    needs = Needs.RETAIN | Needs.FACTORY
    presets: ClassVar[Presets] = {"paper": {}}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Builds a fresh network and trains it; `model` lends only its device and precision."""
        assert task.retain is not None
        assert task.factory is not None
        fresh = built_by(task.factory, model)
        check_same_network(fresh, model)
        history = train(fresh, task.retain, self.recipe, rng=rng, label="retraining")
        record.epochs += [Epoch(loss=epoch.loss, forget_accuracy=None) for epoch in history]
        batch_size = min(self.batch_size, len(task.retain))
        record.steps = self.epochs * (len(task.retain) // batch_size)
        record.examples_seen = record.steps * batch_size
        return fresh
