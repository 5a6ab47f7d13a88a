"""Every forgotten example predicted wrong, from the model and these examples alone, at little cost to the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.distributed import agreed
from expunge.methods._distilling import Distilling, divergence, drawn, others_of
from expunge.methods._inputs import pasted
from expunge.methods._modes import kept_statistics, set_mode
from expunge.methods._task import Needs, Recorder, Task
from expunge.models import copied, forward, last_layer, logits_of, split_logits_of
from expunge.settings import Ranges

PROBED = 256
"""Pasted inputs on which it is tried whether normalisation layers can take the statistics of batches."""

LEAST_ALIKE = 0.92
"""Share of them that is to be predicted alike, or the layers keep their own statistics."""


@dataclass(frozen=True, kw_only=True)
class HeldBoundary(Distilling):
    """Moves each forgotten example just over a decision boundary, and holds the model everywhere around it.

    The pull of an example is the hinge max(0, z_y − max_{j≠y} z_j + gap): it ends as soon as the example is wrong by
    `gap`. Held are the original's outputs, and what enters its last layer, on inputs that are pasted together from two
    forgotten ones, drawn anew each epoch. Test and unlabelled examples are held too where they are given. The weight of
    that is high at first and falls with each update: what can be forgotten at no cost is, and then the rest.

    Attributes:
        gap: by which the true class's logit is to fall below another's, ≥ 0.
        features: weight of the squared change of what enters the last layer, as a share of its variance, beside the
            divergence of the outputs, ≥ 0.
        retention_size: held inputs an epoch, ≥ 1; at least twice as many as are forgotten.
        relax: what the weight is multiplied by after each update, in (0, 1].
        norm: `train` lets normalisation layers take the statistics of each batch. Where that changes more than one
            prediction in twelve, of few examples or of one class, they keep their own, as with `eval`.
        pace, retention: as in `Distilling`.

    What invalidates it: a model that never saw the examples predicts most of them right, so that being wrong on all of
    them is itself a mark that they were forgotten.
    """

    epochs: int = 2000
    batch_size: int | None = 384
    max_steps: int | None = 2000
    pace: float | None = 0.25
    relax: float = 0.995
    gap: float = 0.5
    features: float = 1.0

    name = "held_boundary"
    summary = "push just over the boundary, hold outputs on inputs pasted from the forget set"
    source = "this package; pasted inputs after Yun et al. 2019 (CutMix)"
    needs = Needs.FORGET | Needs.TEST | Needs.UNLABELLED
    missed: ClassVar[str] = "the budget ended before every example was forgotten; lower relax"

    ranges: ClassVar[Ranges] = {"gap": "at least 0", "features": "at least 0"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Pulls until all are predicted wrong."""
        forget, num, original = task.forget, len(task.forget), copied(model)
        others, size = others_of(task, original), max(self.retention_size, 2 * num)

        def pull(logits: Tensor, index: Tensor) -> Tensor:
            own = forget.labels[index][:, None]
            best = logits.scatter(1, own, -torch.inf).amax(1)
            return (logits.gather(1, own)[:, 0] - best + self.gap).clamp(min=0)

        made = size if others is None else 2 * (size // 2)
        inputs = torch.cat([forget.inputs, forget.inputs.new_empty(made, *forget.inputs.shape[1:])])
        settled = self.paced(model, task, pull)
        probe = pasted(forget, PROBED, torch.Generator().manual_seed(0))
        if self.norm == "train" and not predicts_batches(original, probe):
            record.warn("the examples are few or alike: normalisation layers kept their statistics, as with norm=eval")
            settled = replace(settled, norm="eval")

        def run(teacher: nn.Module, part: Tensor) -> Tensor:
            taught_entering.clear()  # a pass that found too little memory may have left something
            logits, features = forward(teacher, part), once_each(taught_entering, len(part))
            return logits if features is None else torch.cat([logits, features], 1)

        descent = settled.descent(model, task, inputs=inputs, rng=rng, record=record)
        with entering_last_layer(model) as entering, entering_last_layer(original) as taught_entering:
            for _ in descent.epochs():
                held = drawn(forget, others, made if others is None else made // 2, rng, "paste")
                inputs[num:], both = held, split_logits_of(original, held, run=run)
                taught = both[:, : task.num_classes].log_softmax(1)
                taught_features = both[:, task.num_classes :] if both.shape[1] > task.num_classes else None
                entering.clear()  # of the stop rule's passes
                for index, logits in descent.batches():
                    forgotten, other = index < num, (index - num).clamp(min=0)
                    apart, features = divergence(taught[other], logits), once_each(entering, len(index))
                    if features is not None and taught_features is not None:
                        spread = taught_features.var(0).sum().clamp(min=1e-12)
                        moved = (features - taught_features[other]).square().sum(1)
                        apart = apart + self.features * moved / spread
                    weight = self.retention * self.relax**record.steps
                    share = len(inputs) / num, len(inputs) / made
                    losses = torch.where(
                        forgotten, share[0] * pull(logits, index.clamp(max=num - 1)), share[1] * weight * apart
                    )
                    descent.step(losses)
        return model


def predicts_batches(model: nn.Module, inputs: Tensor) -> bool:
    """Whether as much as `LEAST_ALIKE` is predicted as with the statistics of normalisation layers from `inputs` alone.

    Few inputs that are much alike, or of one class, have statistics of their own, under which a model makes no sense.
    """
    taking = copied(model)
    set_mode(taking, kept_statistics(taking, "train"), dropout=False)
    with torch.no_grad():
        alike = forward(taking, inputs).argmax(1) == logits_of(model, inputs).argmax(1)
    return agreed(float(alike.double().mean()) >= LEAST_ALIKE)


@contextmanager
def entering_last_layer(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what enters the last layer inside the block, shape (B, D) each time that it is run."""
    caught: list[Tensor] = []
    layer = model.get_submodule(last_layer(model))
    hook = layer.register_forward_pre_hook(lambda _, entering: caught.extend(part.flatten(1) for part in entering[:1]))
    try:
        yield caught
    finally:
        hook.remove()


def once_each(caught: list[Tensor], num: int) -> Tensor | None:
    """Takes out what entered for `num` examples, (num, D); None where the layer was not run once for each."""
    taken = list(caught)
    caught.clear()
    return torch.cat(taken) if sum(map(len, taken)) == num else None
