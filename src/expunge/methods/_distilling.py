"""Forgetting while outputs on other inputs are held: what methods without retained examples share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.methods._loop import Descent, descend, require, step_size
from expunge.methods._margins import divergence, mixed
from expunge.methods._task import Recorder, Task
from expunge.models import logits_of

MIXTURES = 4
"""Mixtures that are made, for each that an epoch draws, where there are no held-out examples."""


@dataclass(frozen=True, kw_only=True)
class Distilling(Descent):
    """A descent that pulls on forgotten examples and holds the original's outputs on others by distillation.

    What is held are held-out examples where there are any, else mixtures of two forgotten ones.

    Attributes:
        pace: share of the pull's loss that a first step takes off, to first order, > 0: the step size follows from it
            and the gradient. None: `lr` is the step size.
        lr: the highest step size, > 0.
        retention: weight of the distillation, ≥ 0.
        retention_size: examples that are distilled an epoch, ≥ 1, drawn anew from all of them each time; at least as
            many as are forgotten, where there are so many.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 100
    batch_size: int | None = 128
    stop: Literal["budget", "epsilon", "forgotten"] = "forgotten"
    norm: Literal["train", "eval"] = "eval"
    pace: float | None = 0.2
    retention: float = 1.0
    retention_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "pace": self.pace is None or self.pace > 0,
            "retention": self.retention >= 0,
            "retention_size": self.retention_size >= 1,
        }
        require(self, ranges)

    def pull_and_hold(
        self,
        model: nn.Module,
        task: Task,
        pull: Callable[[Tensor, Tensor], Tensor],
        goal: Callable[[Tensor], Tensor],
        *,
        hold: Callable[[Tensor, Tensor], Tensor] = divergence,
        relax: float = 1.0,
        rng: torch.Generator,
        record: Recorder,
    ) -> nn.Module:
        """Minimises mean(pull) + `retention` · relax^epoch · mean(hold) on what is held.

        Args:
            model: the original, changed in place.
            task: with the forget set and, where there are any, held-out examples.
            pull: maps logits (B, C) and positions in the forget set (B,) to one loss an example (B,).
            hold: maps log-probabilities of the original and logits (B, C) to one loss an example (B,).
            relax: in (0, 1]; below 1 the pull wins in the end.
            goal, rng, record: as in `descend`.
        """
        inputs, num = task.forget.inputs, len(task.forget)
        wanted = max(self.retention_size, num)
        kept = mixed(inputs, MIXTURES * wanted, rng) if task.heldout is None else task.heldout.inputs
        taught = logits_of(model, kept).log_softmax(1)
        size = min(wanted, len(kept))
        whole = num + size
        weight = self.retention

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            at, other = index.clamp(max=num - 1), (index - num).clamp(min=0)
            held = weight * hold(taught[other], logits)
            return torch.where(index < num, pull(logits, at) * (whole / num), held * (whole / size))

        def passes(epoch: int) -> Sequence[tuple[Tensor, int | None]]:
            nonlocal weight
            weight = self.retention * relax**epoch
            drawn = torch.randperm(len(kept), generator=rng)[:size].sort().values
            positions = torch.cat([torch.arange(num), num + drawn]).to(inputs.device)
            return [(positions, self.batch_size)]

        return descend(
            model,
            torch.cat([inputs, kept]),
            loss,
            self if self.pace is None else replace(self, lr=step_size(model, inputs, pull, self, self.pace)),
            forget_labels=task.forget.labels,
            goal=goal,
            rng=rng,
            record=record,
            passes=passes,
        )
