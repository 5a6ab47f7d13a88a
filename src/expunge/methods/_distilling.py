"""What methods share that pull on forgotten examples and hold the original's outputs on others."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples
from expunge.methods._gradient import (
    GradientMethod,
    paced_lr,
)
from expunge.methods._inputs import mixable, mixed_with, pasted
from expunge.methods._task import Task
from expunge.models import copied, refusing, split_logits_of
from expunge.settings import Ranges
from expunge.training import are_images, augmented

REPEATED = 0.25
"""Share of the held-out examples above which those of an epoch are shifted: epochs would share many."""


@dataclass(frozen=True, kw_only=True)
class Distilling(GradientMethod):
    """The settings of a method that pulls on forgotten examples and holds the original's outputs on others.

    Dropout is off: what is held and pulled to are outputs in eval mode.

    Attributes:
        pace: share of the pull's loss that the first step takes off, to first order, > 0: the step size follows from
            it and the gradient. None: `lr` is the step size.
        lr: the highest step size, > 0.
        retention: weight of the distillation, of held-out examples and mixtures together, in the first epoch, ≥ 0.
        relax: what that is multiplied by after each epoch, in (0, 1]: below 1, the pull wins in the end.
        retention_size: other examples, or mixtures without any, that are distilled an epoch, ≥ 1; at least as many as
            are forgotten, where there are so many.
        norm: as in `GradientMethod`.
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

    dropout: ClassVar[bool] = False
    missed: ClassVar[str] = "the budget ended before every example was forgotten; raise epochs"

    ranges: ClassVar[Ranges] = {"pace": "above 0", "retention": "at least 0", "relax": "above 0, at most 1"}

    def paced(self, model: nn.Module, task: Task, pull: Callable[[Tensor, Tensor], Tensor]) -> Self:
        """These settings with the step size that `pace` gives, where it is set."""
        if self.pace is None:
            return self
        return replace(self, lr=paced_lr(self, self.pace, model, task.forget.inputs, pull, most=self.lr))


@dataclass(frozen=True, kw_only=True)
class Mixing(Distilling):
    """The settings of a method that holds outputs on other examples, where there are any, and on mixtures.

    Attributes:
        mixtures: whether as many mixtures of a forgotten and another example are held too, which takes about twice the
            time. Without other examples it has no effect: forgotten ones pasted together are all that is held.
        mixing: how a forgotten and another example are mixed: `paste` sets a part of one into the other, whatever they
            are; `blend` takes a weighted mean of two, and nothing of integers such as token ids.
    """

    mixtures: bool = True
    mixing: Literal["paste", "blend"] = "paste"


class Held:
    """What a run holds: inputs beside the forgotten ones, the original's outputs there, and the weight of that.

    Held are test and unlabelled examples and as many mixtures of one of them and a forgotten one, since these examples
    alone say little of the outputs near what is forgotten; without any, forgotten ones that are pasted together.

    Attributes:
        inputs: the forgotten inputs and then those that are held, shape (N, ...).
        taught: the original's log-probabilities on the latter.
    """

    def __init__(self, method: Mixing, model: nn.Module, task: Task, rng: torch.Generator) -> None:
        self._method, self._task, self._rng, self._num = method, task, rng, len(task.forget)
        self._original = copied(model)
        self._others = others_of(task, self._original)
        held = self._drawn()
        self.inputs = torch.cat([task.forget.inputs, held])

    def renew(self, epoch: int) -> None:
        """Sets the weight for an epoch, and draws other inputs for each but the first."""
        self._weight = self._method.retention * self._method.relax**epoch
        if epoch:
            self.inputs[self._num :] = self._drawn()

    def losses(
        self,
        index: Tensor,
        logits: Tensor,
        *,
        pull: Callable[[Tensor, Tensor], Tensor],
        hold: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The losses of a batch of `inputs`, whose mean over all is mean(pull) + weight · mean(hold), shape (B,).

        Args:
            index, logits: positions (B,) and logits (B, C).
            pull: maps logits and positions in the forget set to one loss an example.
            hold: maps log-probabilities of the original and logits to one loss an example.
        """
        num, whole = self._num, len(self.inputs)
        forgotten, other = index.clamp(max=num - 1), (index - num).clamp(min=0)
        held = self._weight * hold(self.taught[other], logits)
        return torch.where(index < num, pull(logits, forgotten) * (whole / num), held * (whole / (whole - num)))

    def _drawn(self) -> Tensor:
        method = self._method
        size = max(method.retention_size, self._num)
        held = drawn(self._task.forget, self._others, size, self._rng, method.mixing if method.mixtures else None)
        with refusing(held, "what is held (mixtures=false holds no mixtures)"):
            self.taught = split_logits_of(self._original, held).log_softmax(1)
        return held


def others_of(task: Task, original: nn.Module) -> Examples | None:
    """All examples but the forgotten ones; those without labels have the model's predictions."""
    if task.unlabelled is None:
        return task.calibration
    guessed = Examples(task.unlabelled, split_logits_of(original, task.unlabelled).argmax(1))
    if task.calibration is None:
        return guessed
    both = task.calibration, guessed
    return Examples(torch.cat([part.inputs for part in both]), torch.cat([part.labels for part in both]))


def drawn(
    forget: Examples, others: Examples | None, num: int, rng: torch.Generator, mixing: Literal["paste", "blend"] | None
) -> Tensor:
    """Inputs whose outputs are to be held, shape (K, ...).

    With other examples K is `num`, or how many there are if fewer, and twice that with mixtures; without, K = `num`. Of
    pasted ones K is 2 `num` whatever there is: pairs of forgotten ones make up for other examples that are missing.
    Where more than `REPEATED` of the other images are drawn, these are shifted at random. Elsewhere they are not: a
    network may be poor at shifted images, and holding it there costs accuracy.
    """
    if others is None:
        return pasted(forget, num, rng)
    chosen = torch.randperm(len(others), generator=rng, device="cpu")[:num].to(others.inputs.device)
    inputs = others.inputs[chosen]
    if len(inputs) > REPEATED * len(others) and are_images(inputs):
        inputs = augmented(inputs, "shift", rng)
    if mixing == "paste":
        crossed, missing = pasted(forget, len(inputs), rng, parts=others), 2 * (num - len(inputs))
        return torch.cat([inputs, crossed, *([pasted(forget, missing, rng)] if missing else [])])
    if mixing == "blend" and mixable(inputs):
        return torch.cat([inputs, mixed_with(others.inputs, forget.inputs, len(inputs), rng)])
    return inputs


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """KL(wanted ‖ softmax(logits)) of each example, shape (N,); `wanted` are log-probabilities, shape (N, C)."""
    return F.kl_div(logits.log_softmax(1), wanted, reduction="none", log_target=True).sum(1)
