"""Frozen records that are written to disk as JSON and read back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from expunge.errors import InputError
from expunge.metrics.distances import ParameterChange
from expunge.parsing import parse_json, record


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the examples, measured on the forward passes that training made anyway.

    Attributes:
        loss: mean over the examples of the pass, each under the weights that it met; None where the method minimises
            none.
        forget_accuracy: share of the forget set predicted as its true label, in [0, 1], with the normalisation
            layers in the mode that they train in, before each step's update; None where the pass does not see
            the forget set.
    """

    loss: float | None
    forget_accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """How the labels that a method trains the forget set toward came about: counts that add up to its size.

    Attributes:
        kept: the true label, kept with probability δ.
        second_best: the most likely label other than the predicted one, where the prediction was right.
        already_mispredicted: the model's own wrong prediction.
        random: a wrong label drawn uniformly.
        adversarial: the model's wrong prediction for the perturbed input.
    """

    kept: int = 0
    second_best: int = 0
    already_mispredicted: int = 0
    random: int = 0
    adversarial: int = 0


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What `unlearn` did: enough to repeat it and to see how it went.

    Attributes:
        method: the method's registry name.
        settings: its fields, JSON values.
        seed: the seed of everything random.
        forget_digest: SHA-256 over the sorted digests and labels of the forget set, hexadecimal. Whoever holds
            the images can recognise it: do not publish it for small sets.
        num_forget, num_retain: examples in the forget set, and retained examples used.
        num_calibration: test examples used: the calibration side of those that were given, by a split with `seed`.
        calibration_digest: SHA-256 over the sorted digests of those examples, hexadecimal; None where none were used.
        num_unlabelled: unlabelled examples used.
        pseudo_labels: None where the method uses none.
        epochs: one entry a pass.
        first_step_all_reached: the number of updates after which every forgotten example was first predicted as
            the method wants it; 0 if it was so from the start, None if never seen. It is looked at in eval mode at the
            start of each pass with stop="forgotten", and in the mode of the training where a pass is one batch.
        steps: updates made.
        examples_seen: examples put through those updates, with repetition.
        forget_accuracy_before, forget_accuracy_after: in [0, 1], in eval mode.
        seconds: wall clock.
        peak_bytes: the process's highest resident memory so far (on a GPU: memory that torch allocated); None on
            Windows without a GPU, where it is not measured.
        change: how far the parameters moved.
        warnings: one sentence each; empty when nothing is odd.
        versions: of expunge, torch, numpy and Python.
        device: where it ran.
    """

    method: str
    settings: Mapping[str, Any]
    seed: int
    forget_digest: str
    num_forget: int
    num_retain: int
    pseudo_labels: PseudoLabels | None
    epochs: tuple[Epoch, ...]
    first_step_all_reached: int | None
    steps: int
    examples_seen: int
    forget_accuracy_before: float
    forget_accuracy_after: float
    seconds: float
    peak_bytes: int | None
    change: ParameterChange
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    num_calibration: int = 0
    num_unlabelled: int = 0
    calibration_digest: str | None = None

    def summary(self) -> str:
        """Two lines: what was done, and what became of the forget set."""
        right = f"{100 * self.forget_accuracy_before:.1f}% to {100 * self.forget_accuracy_after:.1f}%"
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"{self.method}: {self.num_forget:,} examples in {self.steps:,} steps, {self.seconds:.1f} s{warned}\n"
            f"forget accuracy {right}, L1 change {self.change.l1:.4g}"
        )

    def to_json(self) -> str:
        """JSON text with sorted keys."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Trace":
        """The inverse of `to_json`. Raises `InputError` when `text` is not a trace."""
        try:
            return record(cls, parse_json(text))
        except InputError as error:
            raise InputError(f"this is not a trace that expunge wrote: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Accuracies of one model, each in [0, 1], in eval mode; None where that set was not given."""

    forget_accuracy: float
    retain_accuracy: float | None = None
    test_accuracy: float | None = None

    def __repr__(self) -> str:
        shown = {"forget": self.forget_accuracy, "retain": self.retain_accuracy, "test": self.test_accuracy}
        return ", ".join(f"{name} {100 * value:.1f}%" for name, value in shown.items() if value is not None)
