"""Margins moved to where the model's margins on unseen examples lie, and no further."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.methods._difficulty import student_margins
from expunge.methods._distilling import Distilling
from expunge.methods._margins import divergence, followed, held_loss, huber, margins, ranks, transported, with_margins
from expunge.methods._task import Needs, Recorder, Task
from expunge.models import logits_of
from expunge.settings import require
from expunge.training import are_images, augmented

VIEWS = 16
"""Shifted copies of each forgotten image, by whose mean margin it is ranked or, without held-out ones, judged."""

LEAST_HELDOUT = 20
"""Examples to calibrate on, at least, held-out ones or else the forgotten ones: fewer give no distribution."""

LEAST_SIDE = 8
"""Pixels from which on a side is shifted."""

LEAST_WATCHED = 25
"""Held-out examples that targets follow, at least: fewer tell no spread. They are a quarter of what there is."""

MOST_WATCHED = 500
"""And at most."""

MISSED = "the budget ended before margins were within tolerance of their targets; raise epochs or lower retention"


@dataclass(frozen=True, kw_only=True)
class Calibrated(Distilling):
    """Moves each forgotten example's margin to what the model shows on unseen data, so that it looks never seen.

    The margin is s(x) = z_y − logsumexp_{j≠y} z_j. Targets are the original model's margins on held-out examples,
    handed to the forgotten ones in order of their own: the least move that makes the two distributions equal (optimal
    transport in one dimension; Peyré and Cuturi 2019, section 2.6). The loss of an example is the Huber loss of its
    distance to the target, in units of the held-out margins' standard deviation. Beside it the outputs on held-out
    examples, and on mixtures of them with forgotten ones, are held by distillation, and the margins of their likeliest
    classes by the same loss: a divergence alone would let those of confident outputs sink, and forgotten examples stand
    out above them. Margins that nothing holds sink a little nevertheless. So a quarter of the held-out examples is not
    distilled, but scored each epoch, and the targets go the way that those margins have gone since.

    Without held-out examples, margins of unseen data are estimated by those of shifted copies of the forgotten images,
    and mixtures of forgotten images are distilled; docs/methods/calibrated.md shows what that costs.

    Attributes:
        tolerance: `stop="forgotten"` ends when the mean distance of margins to their targets, in eval mode, is at most
            this share of the held-out margins' standard deviation, > 0.
        match: `margin`, or `distribution`: the divergence from the original output with its margin set to the target.
        rank: what decides which example gets which target: `margin`, the original model's; or `student`, the sum of
            the ranks of that and of the margin under a student that was not taught on forgotten examples, which tells
            typical examples from odd ones (without held-out examples as `margin`).
        follow: whether targets go the way of unseen margins; with fewer than 100 held-out examples to calibrate on they
            never do.
        pace, retention, relax, retention_size, mixtures, norm: as in `Distilling`.

    What invalidates it: held-out examples that are unlike the training data, or that the model was trained on.
    """

    epochs: int = 200
    pace: float | None = 0.5
    retention: float = 1.0
    relax: float = 0.99
    tolerance: float = 0.05
    match: Literal["margin", "distribution"] = "margin"
    rank: Literal["margin", "student"] = "student"
    follow: bool = True

    name: ClassVar[str] = "calibrated"
    summary: ClassVar[str] = "move margins to those of unseen examples, and no further"
    source: ClassVar[str] = "this package"
    needs: ClassVar[Needs] = Needs.FORGET | Needs.HELDOUT
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "tolerance": self.tolerance > 0,
            "match": self.match in {"margin", "distribution"},
            "rank": self.rank in {"margin", "student"},
        }
        require(self, ranges)

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Finds the targets, chooses the step size and minimises the distance to them."""
        task = task.distinct()
        inputs, labels = task.forget.inputs, task.forget.labels
        own = margins(task.forget_logits, labels)
        if task.heldout is not None and len(task.heldout) < LEAST_HELDOUT:
            raise InputError(
                f"{len(task.heldout)} held-out examples are left to calibrate on, of the {LEAST_HELDOUT} that it "
                "takes: give more, or name another method, such as targeted"
            )
        if task.heldout is None and len(labels) < LEAST_HELDOUT:
            raise InputError(
                f"{len(labels)} forgotten examples are too few to guess unseen margins from, of the {LEAST_HELDOUT} "
                "that it takes without held-out examples: give some (heldout=, --test), or name another method, such "
                "as targeted"
            )
        if task.heldout is None and not (are_images(inputs) and max(inputs.shape[-2:]) >= LEAST_SIDE):
            wanted = f"images of {LEAST_SIDE} pixels a side or more, which can be shifted"
            raise InputError(f"calibrated needs held-out examples (heldout=, --test) where inputs are no {wanted}")
        order = ranks(own)
        if self.rank == "student" and task.heldout is not None:
            settings: dict[str, Any] = {"mixtures": self.mixtures, "batch_size": self.batch_size, "record": record}
            order = order + ranks(student_margins(model, task.forget, task.heldout, rng, **settings))
        if task.heldout is None:
            views = [margins(logits_of(model, augmented(inputs, "shift", rng)), labels) for _ in range(VIEWS)]
            unseen, unseen_labels = torch.stack(views).mean(0), labels
            record.warn("no held-out examples: margins of unseen data are estimated from shifted forgotten images")
        else:
            unseen_labels = task.heldout.labels
            unseen = margins(logits_of(model, task.heldout.inputs), unseen_labels)
            if absent := set(labels.tolist()) - set(unseen_labels.tolist()):
                record.warn(f"no held-out example is of {len(absent)} forgotten classes: their targets are of all")
        planned = transported(order, labels, unseen, unseen_labels)
        ceiling = torch.where(task.forget_logits.argmax(1) != labels, own, torch.inf)  # wrong ones are not taught
        planned = torch.minimum(planned, ceiling)
        unit = unseen.std(correction=0).clamp(min=1e-6)
        targets, watched, size = planned, None, min(MOST_WATCHED, len(unseen) // 4)
        if self.follow and task.heldout is not None and size >= LEAST_WATCHED:
            shuffled = torch.randperm(len(task.heldout), generator=rng, device="cpu").to(inputs.device)
            watched, before = task.heldout.take(shuffled[:size]), unseen[shuffled[:size]]
            task = replace(task, heldout=task.heldout.take(shuffled[size:]))

        def watch() -> None:
            nonlocal targets
            if watched is not None:
                now = margins(logits_of(model, watched.inputs), watched.labels)
                targets = torch.minimum(followed(planned, before, now), ceiling)

        def pull(logits: Tensor, index: Tensor) -> Tensor:
            if self.match == "distribution":
                wanted = with_margins(task.forget_logits[index], labels[index], targets[index])
                return divergence(wanted.log_softmax(1), logits)
            return huber((margins(logits, labels[index]) - targets[index]) / unit)

        def goal(logits: Tensor) -> Tensor:
            gap = (margins(logits, labels) - targets) / unit
            return (gap.abs().mean() <= self.tolerance).expand(len(labels))

        return self.pull_and_hold(
            model, task, pull, goal, hold=held_loss(unit), watch=watch, missed=MISSED, rng=rng, record=record
        )
