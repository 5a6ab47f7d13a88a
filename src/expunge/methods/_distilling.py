"""Forgetting while outputs on other inputs are held: what methods without retained examples share."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.methods._loop import NORMALISATION, Descent, descend, step_size
from expunge.methods._margins import divergence, mixable, mixed, mixed_with
from expunge.methods._task import Recorder, Task
from expunge.models import logits_of, refusing
from expunge.settings import require
from expunge.training import are_images, augmented

REPEATED = 0.25
"""Share of the held-out examples that an epoch may draw as they are."""


@dataclass(frozen=True, kw_only=True)
class Distilling(Descent):
    """A descent that pulls on forgotten examples and holds the original's outputs on others by distillation.

    What is held are held-out examples where there are any, and as many mixtures of one of them and a forgotten one,
    since held-out examples alone say little of the outputs near what is forgotten; else mixtures of two forgotten ones.
    Each epoch draws its own. Where it draws more than `REPEATED` of all held-out examples, so that epochs share many,
    these (not the mixtures) are shifted at random. Elsewhere they are not: holding a network on shifted images, which
    it may be poor at, costs it accuracy. Dropout is off: what is held and pulled to are outputs in eval mode.

    Attributes:
        pace: share of the pull's loss that a first step takes off, to first order, > 0: the step size follows from it
            and the gradient. None: `lr` is the step size.
        lr: the highest step size, > 0.
        retention: weight of the distillation, of held-out examples and mixtures together, in the first epoch, ≥ 0.
        relax: what that is multiplied by after each epoch, in (0, 1]: below 1, the pull wins in the end.
        retention_size: held-out examples, or mixtures without any, that are distilled an epoch, ≥ 1; at least as many
            as are forgotten, where there are so many.
        mixtures: whether as many mixtures of a held-out and a forgotten example are distilled beside, which takes about
            twice the time. Token ids and other integers never are mixed, and without held-out examples it says nothing.
        norm: as in `Descent`; without held-out examples it is `eval`, since mixtures alone would spoil the statistics.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 100
    batch_size: int | None = 128
    stop: Literal["budget", "epsilon", "forgotten"] = "forgotten"
    norm: Literal["train", "eval"] = "train"
    pace: float | None = 0.2
    retention: float = 64.0
    relax: float = 0.98
    retention_size: int = 256
    mixtures: bool = True

    dropout: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "pace": self.pace is None or self.pace > 0,
            "retention": self.retention >= 0,
            "relax": 0 < self.relax <= 1,
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
        watch: Callable[[], None] = lambda: None,
        missed: str = "the budget ended before every example was forgotten; raise epochs",
        rng: torch.Generator,
        record: Recorder,
    ) -> nn.Module:
        """Minimises mean(pull) + `retention` · `relax`^epoch · mean(hold) on what is held.

        Args:
            model: the original, changed in place.
            task: with the forget set and, where there are any, held-out examples.
            pull: maps logits (B, C) and positions in the forget set (B,) to one loss an example (B,).
            hold: maps log-probabilities of the original and logits (B, C) to one loss an example (B,).
            watch: called at the start of each epoch, once the stop rule has judged the last one.
            goal, missed, rng, record: as in `descend`.

        Raises:
            InputError: no held-out examples, and a single forgotten one or inputs that cannot be mixed.
        """
        inputs, num = task.forget.inputs, len(task.forget)
        if task.heldout is None and num < 2:
            raise InputError(
                "one forgotten example alone leaves nothing to hold: give held-out examples (heldout=, --test), or "
                "name another method, such as targeted"
            )
        if task.heldout is None and not mixable(inputs):
            raise InputError(
                f"{inputs.dtype} inputs cannot be mixed as images can: give held-out examples (heldout=, --test), or "
                "name another method, such as targeted"
            )
        wanted, original = max(self.retention_size, num), copy.deepcopy(model)

        def teach() -> tuple[Tensor, Tensor]:
            held = drawn(task, wanted, self.mixtures, rng)
            with refusing(held, "what is held (mixtures=false holds no mixtures)"):
                return held, logits_of(original, held).log_softmax(1)

        held, taught = teach()
        everything = torch.cat([inputs, held])
        whole, size = len(everything), len(held)
        positions = torch.arange(whole, device=inputs.device)
        weight = self.retention

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            at, other = index.clamp(max=num - 1), (index - num).clamp(min=0)
            kept = weight * hold(taught[other], logits)
            return torch.where(index < num, pull(logits, at) * (whole / num), kept * (whole / size))

        def passes(epoch: int) -> Sequence[tuple[Tensor, int | None]]:
            nonlocal weight, taught
            weight = self.retention * self.relax**epoch
            watch()
            if epoch:
                everything[num:], taught = teach()
            return [(positions, self.batch_size)]

        settings = self
        if task.heldout is None and self.norm == "train":
            if any(isinstance(module, NORMALISATION) for module in model.modules()):
                record.warn("no held-out examples: normalisation layers kept their statistics, as with norm=eval")
            settings = replace(self, norm="eval")
        if self.pace is not None:
            settings = replace(settings, lr=step_size(model, inputs, pull, self, self.pace))
        return descend(
            model,
            everything,
            loss,
            settings,
            forget_labels=task.forget.labels,
            goal=goal,
            rng=rng,
            record=record,
            passes=passes,
            missed=missed,
        )


def drawn(task: Task, num: int, mixtures: bool, rng: torch.Generator) -> Tensor:
    """Inputs whose outputs are to be held, shape (K, ...).

    With held-out examples K is `num`, or how many there are if fewer, and twice that with mixtures of held-out and
    forgotten ones; without, K = `num` mixtures of two forgotten ones.
    """
    if task.heldout is None:
        return mixed(task.forget.inputs, num, rng)
    everything, forgotten = task.heldout.inputs, task.forget.inputs
    inputs = everything[torch.randperm(len(everything), generator=rng, device="cpu")[:num].to(everything.device)]
    if len(inputs) > REPEATED * len(everything) and are_images(inputs):
        inputs = augmented(inputs, "shift", rng)
    if not mixtures or not mixable(inputs):
        return inputs
    return torch.cat([inputs, mixed_with(everything, forgotten, len(inputs), rng)])
