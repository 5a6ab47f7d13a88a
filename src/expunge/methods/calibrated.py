"""Confidences moved to where the model's own lie on unseen examples, and no further."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.errors import InputError, SettingError
from expunge.methods._confidence import (
    apart,
    followed,
    huber,
    ranks,
    scaled_confidence,
    shifted_confidence,
    student_confidence,
    transported,
    with_confidence,
)
from expunge.methods._distilling import Held, Mixing, divergence
from expunge.methods._targets import nearer
from expunge.methods._task import Needs, Recorder, Task
from expunge.models import split_logits_of
from expunge.settings import Ranges
from expunge.training import are_images

LEAST_HELDOUT, LEAST_SIDE = 20, 8
"""Examples to calibrate on, at least, held-out or else forgotten ones; pixels from which on a side is shifted."""

LEAST_WATCHED, MOST_WATCHED = 25, 500
"""How many held-out examples targets follow: a quarter of what there is, within these. Fewer tell no spread."""


@dataclass(frozen=True, kw_only=True)
class Calibrated(Mixing):
    """Moves the confidence of each forgotten example to what the model shows on unseen data.

    The confidence is φ(x) = z_y − logsumexp_{j≠y} z_j. Targets are the original model's φ on held-out examples, handed
    to the forgotten ones in order of their own: the least move that makes the two distributions equal (Peyré and Cuturi
    2019, section 2.6). A Huber loss pulls each example to its target, in `unit`, the standard deviation of the held-out
    φ. Outputs on other inputs (see `Held`) are held by distillation, and the φ of their likeliest classes by the same
    loss. Unheld φ drift down all the same. So a quarter of the held-out examples is only scored, and targets follow.

    Attributes:
        tolerance: a run ends when the mean distance to the targets in eval mode is at most this, in `unit`, > 0.
        match: `margin` pulls φ; `distribution` the output, to the original one with φ set to the target.
        rank: who gets which target: `margin` goes by the original model's φ, `student` by the sum of that rank and that
            by φ under a student which never met them. Without held-out examples it is `margin`.
        accuracy: on unseen data, in (0, 1), where no test examples tell it. None: as for shifted copies, often lower.
        follow: whether targets move with the φ of unseen examples; never with fewer than 100 to calibrate on.
        targets: `ranks`, as above; `residuals` keeps confident examples, and ranks take what features do not foretell.
        mixtures, mixing: as in `Mixing`; pace, retention, relax, retention_size, norm: as in `Distilling`.

    What invalidates it: held-out examples that are unlike the training data, or that the model was trained on.
    """

    epochs: int = 200
    pace: float | None = 0.5
    retention: float = 1.0
    relax: float = 0.99
    mixing: Literal["paste", "blend"] = "blend"
    tolerance: float = 0.05
    match: Literal["margin", "distribution"] = "margin"
    rank: Literal["margin", "student"] = "student"
    accuracy: float | None = None
    follow: bool = True
    targets: Literal["ranks", "residuals"] = "ranks"

    name = "calibrated"
    summary = "move margins to those of unseen examples, and no further"
    source = "this package"
    needs = Needs.FORGET | Needs.TEST | Needs.UNLABELLED
    missed = "the budget ended before margins were within tolerance of their targets; raise epochs or lower retention"

    ranges: ClassVar[Ranges] = {"tolerance": "above 0", "accuracy": "above 0, below 1"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Finds the targets, chooses the step size and minimises the distance to them."""
        task = task.distinct()
        require_enough(self, task)
        labels, heldout = task.forget.labels, task.calibration
        order = ranks(own := scaled_confidence(task.forget_logits, labels))
        if heldout is None:
            unseen, unseen_labels = shifted_confidence(model, task.forget, rng), labels
            unseen = unseen if self.accuracy is None else unseen - unseen.quantile(1 - self.accuracy)
            record.warn("no test examples: margins of unseen data are estimated from shifted forgotten images")
        else:
            if self.rank == "student":
                student = student_confidence(
                    model, task.forget, heldout, rng, mixtures=self.mixtures, batch_size=self.batch_size, record=record
                )
                order = order + ranks(student)
            unseen, unseen_labels = split_logits_of(model, heldout.inputs), heldout.labels
            unseen = scaled_confidence(unseen, unseen_labels)
            if absent := set(labels.tolist()) - set(unseen_labels.tolist()):
                record.warn(f"no held-out example is of {len(absent)} forgotten classes: their targets are of all")
        unit = unseen.std(correction=0).clamp(min=1e-6)
        ceiling = torch.where(task.forget_logits.argmax(1) != labels, own, torch.inf)  # wrong ones are not taught
        plan = transported(order, labels, unseen, unseen_labels)
        if self.targets == "residuals" and heldout is not None:
            plan = nearer(order, plan, model, task.forget, heldout, record)
        planned = targets = torch.minimum(plan, ceiling)
        watched, size = None, min(MOST_WATCHED, len(unseen) // 4)
        if self.follow and heldout is not None and size >= LEAST_WATCHED:
            shuffled = torch.randperm(len(heldout), generator=rng, device="cpu").to(labels.device)
            watched, before = heldout.take(shuffled[:size]), unseen[shuffled[:size]]
            task = replace(task, calibration=heldout.take(shuffled[size:]))

        def pull(logits: Tensor, index: Tensor) -> Tensor:
            if self.match == "distribution":
                wanted = with_confidence(task.forget_logits[index], labels[index], targets[index])
                return divergence(wanted.log_softmax(1), logits)
            return huber((scaled_confidence(logits, labels[index]) - targets[index]) / unit)

        def goal(logits: Tensor) -> Tensor:
            gap = (scaled_confidence(logits, labels) - targets) / unit
            return (gap.abs().mean() <= self.tolerance).expand(len(labels))

        held = Held(self, model, task, rng)
        settled = self.paced(model, task, pull)
        descent = settled.descent(model, task, inputs=held.inputs, goal=goal, rng=rng, record=record)
        for epoch in descent.epochs():
            held.renew(epoch)
            if watched is not None:
                now = scaled_confidence(split_logits_of(model, watched.inputs), watched.labels)
                targets = torch.minimum(followed(planned, before, now), ceiling)
            for index, logits in descent.batches():
                descent.step(held.losses(index, logits, pull=pull, hold=partial(apart, unit=unit)))
        return model


def require_enough(method: Calibrated, task: Task) -> None:
    """Raises `InputError` where too little tells how unseen examples are scored, `SettingError` for a wrong setting."""
    if method.accuracy is not None and task.calibration is not None:
        raise SettingError("accuracy is for runs without test examples, which say more: leave out one of them")
    if method.targets == "residuals" and task.calibration is None:
        raise SettingError('targets="residuals" takes held-out examples: give some (test=, --test), or leave it out')
    num, inputs, lacks = len(task.forget if task.calibration is None else task.calibration), task.forget.inputs, ""
    if task.calibration is None and not (are_images(inputs) and max(inputs.shape[-2:]) >= LEAST_SIDE):
        lacks = f"calibrated needs held-out examples (test=, --test), or images of {LEAST_SIDE} pixels a side, to shift"
    if num < LEAST_HELDOUT and task.calibration is None:
        lacks = f"{num} forgotten examples are too few to guess from: give held-out ones (test=, --test)"
    elif num < LEAST_HELDOUT:
        lacks = f"{num} held-out examples are left to calibrate on, of the {LEAST_HELDOUT} that it takes: give more"
    if lacks:
        raise InputError(f"{lacks}, or name another method, such as targeted")
