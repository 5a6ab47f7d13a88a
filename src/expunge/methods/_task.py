"""What a method is, what it is given, and what it reports back."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from expunge.data import Examples
from expunge.data.content import first_copies
from expunge.records import Epoch, PseudoLabels

Presets = dict[str, dict[str, Any]]
"""Named bundles of a method's settings."""


class Needs(Flag):
    """The inputs that a method reads; it is handed no others. `IF_GIVEN` are read where they are, the rest must be."""

    FORGET = auto()
    RETAIN = auto()
    FACTORY = auto()
    UPDATES = auto()
    TEST = auto()
    UNLABELLED = auto()
    IF_GIVEN = TEST | UNLABELLED


@dataclass(frozen=True, kw_only=True)
class Task:
    """The inputs of one run, checked, on the model's device.

    Attributes:
        forget: the examples to forget.
        forget_digests: digests of their inputs as the caller gave them, before any change of dtype.
        forget_logits: the original model's logits on them, in eval mode; float32 or float64, shape (N, C).
        retain: retained examples, for methods that need RETAIN.
        factory: builds the model's network with fresh random weights, for methods that need FACTORY.
        updates: the directory of the update log, for methods that need UPDATES.
        calibration: the calibration side of the test examples, for methods that read TEST; None: there are none.
        unlabelled: inputs of other examples, shape (M, ...), for methods that read UNLABELLED; None: there are none.
    """

    forget: Examples
    forget_digests: tuple[bytes, ...]
    forget_logits: Tensor
    retain: Examples | None = None
    factory: Callable[[], nn.Module] | None = None
    updates: Path | None = None
    calibration: Examples | None = None
    unlabelled: Tensor | None = None

    def distinct(self) -> "Task":
        """The task with each forgotten input once: copies of one input have one output."""
        if len(kept := first_copies(self.forget.inputs)) == len(self.forget):
            return self
        index, digests = kept.to(self.forget.inputs.device), tuple(self.forget_digests[n] for n in kept.tolist())
        logits = self.forget_logits[index]
        return replace(self, forget=self.forget.take(index), forget_digests=digests, forget_logits=logits)

    def forget_and_retain(self) -> Examples:
        """A copy of the forget set with the retained examples after it, for methods that need RETAIN."""
        assert self.retain is not None
        both = self.forget, self.retain
        return Examples(torch.cat([part.inputs for part in both]), torch.cat([part.labels for part in both]))

    @property
    def num_classes(self) -> int:
        """C."""
        return self.forget_logits.shape[1]


@dataclass
class Recorder:
    """Collects what a method reports while it runs.

    Attributes:
        epochs: one an epoch, or a pass where an epoch has several.
        pseudo_labels: how many labels came about in which way, where a method relabels.
        first_step_all_reached: after how many updates every example was first predicted as the method wants it.
        steps: updates so far.
        examples_seen: examples in them, each counted as often as it was used.
        warnings: what the user should know.
        callback: the caller's, called with each epoch; True from it ends the run.
    """

    epochs: list[Epoch] = field(default_factory=list)
    pseudo_labels: PseudoLabels | None = None
    first_step_all_reached: int | None = None
    steps: int = 0
    examples_seen: int = 0
    warnings: list[str] = field(default_factory=list)
    callback: Callable[[Epoch], object] | None = None

    def add(self, epoch: Epoch) -> bool:
        """Adds an epoch; whether the caller wants the run to end after it."""
        self.epochs.append(epoch)
        return self.callback is not None and self.callback(epoch) is True

    def warn(self, sentence: str) -> None:
        """Adds a warning, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)


class Method(Protocol):
    """A frozen dataclass whose fields are the hyperparameters, JSON values, with one `run`.

    Attributes:
        name: what the trace calls it.
        needs: the inputs that it reads.
        moves_inputs: whether it runs the model on inputs that it moved a little: then they must be floats, and for
            token ids stands what the model looks up for them. Where it is missing: False.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Changes `model`, which is the run's own copy, or makes another one, and returns it.

        Args:
            model: the copy, in float32 or float64.
            task: what the method declared in `needs`, and nothing else.
            rng: a CPU generator for everything random.
            record: what is reported goes here.
        """
        ...
