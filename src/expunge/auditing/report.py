"""The record of a default audit, with its verdict and caveats: what report.json holds and report.html shows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from expunge.metrics.distances import ParameterChange
from expunge.metrics.verdict import ScoreTest
from expunge.records import Measurement


@dataclass(frozen=True, kw_only=True)
class Histograms:
    """Histograms of the logit-scaled confidences: counts, so that no example's score is given away.

    Attributes:
        edges: increasing, shape (B + 1,); the first and last bin also hold what lies beyond.
        counts: {"forget" | "test" | "retain": {"before" | "after": B counts}}; no `retain` where none was given.
    """

    edges: tuple[float, ...]
    counts: Mapping[str, Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Roc:
    """Points of the ROC curve of a membership attack that calls examples with high scores forgotten ones.

    Attributes:
        fpr, tpr: in [0, 1], non-decreasing, from (0, 0) to (1, 1).
        low, high: Clopper-Pearson limits (95%) of each tpr.
    """

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Whether the update itself shows who was forgotten: ‖p_before − p_after‖₂ of forgotten against test examples.

    Attributes:
        auc: in [0, 1]; ½ where the update shows nothing.
        interval: its 95% limits.
    """

    auc: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Relearning:
    """How fast the unlearned model relearns the forget set, against sets of the same size and classes it never saw.

    Attributes:
        steps: T(D_f): optimiser steps until the stop, fractional.
        control_steps: T(C_r) of the controls, in the order of their draws.
        ratio: ρ = T(D_f) / median T(C_r); below 1: faster than unseen examples.
        p_value: (1 + #{T(C_r) ≤ T(D_f)}) / (R + 1); None where the control sets share too many examples to say so.
        note: how it was measured, in a sentence; "" where there is nothing to say.
    """

    steps: float
    control_steps: tuple[float, ...]
    ratio: float
    p_value: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Recognisable:
    """A forgotten example whose score lies in the outer hundredth of the held-out ones.

    Attributes:
        id: the example's id.
        label, predicted: class names (or numbers, where there are none), of the truth and of the unlearned model.
        percentile_rank: its rank among the held-out scores, in [0, 1].
        side: `memorised` (above) or `over-forgotten` (below).
    """

    id: str
    label: str
    predicted: str
    percentile_rank: float
    side: str


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """How many of the forgotten examples the unlearned model would get right had it never seen them.

    Attributes:
        accuracy: in [0, 1], of the unlearned model on held-out examples, each class weighted by its share of the
            forgotten examples; classes without held-out examples are left out.
        p_value: how likely so many of the forgotten examples would be wrong by chance, by a permutation test within
            classes.
    """

    accuracy: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class DifficultyCalibration:
    """The score test once more, on scores calibrated for each example's difficulty (`metrics.difficulty`).

    Attributes:
        before, after: the score test on each model's calibrated scores. That of `after` is the audit's verdict.
        slope_before, slope_after: what the difficulty was multiplied by.
        num_references: networks, trained on held-out examples alone, that the difficulty comes from.
        expected_forget_accuracy, reference_accuracy: in [0, 1], of those networks on the forget set and on held-out
            examples, neither of which they saw.
    """

    before: ScoreTest
    after: ScoreTest
    slope_before: float
    slope_after: float
    num_references: int
    expected_forget_accuracy: float
    reference_accuracy: float


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit measured on the model before and after; `audit` in report.json.

    Attributes:
        before, after: accuracies, in [0, 1].
        num_forget, num_test, num_retain: examples in each set; num_retain is 0 where none was given.
        num_classes: classes of the model.
        change: ‖Δθ‖ by norm and layer.
        relative_l1, relative_l2: ‖Δθ‖/‖θ‖ with the original's θ.
        scores_before, scores_after: the score test on each model's scores.
        correction: the same, calibrated for difficulty; None where it was not asked for.
        unseen: what accuracy on the forget set is to be expected; None where no forgotten class has held-out examples.
        confidences: histograms of the logit-scaled confidences.
        roc_before, roc_after: membership attacks on each model.
        relearning: None where no control set could be drawn; `caveats` says why.
        leakage: what the update shows of who was forgotten: a warning, never part of the verdict.
        recognisable: forgotten examples in either tail of the held-out scores (of the calibrated ones, where there
            are any), most extreme first.
        caveats: one sentence each: what these figures cannot say; `left_out` and `doubts` are among them.
        seconds: wall clock by part: `forward`, `statistics`, `relearning`.
        seed: of the draws of the relearning controls.
        versions, device: where it ran.
        left_out: one sentence each: which of the given examples were not counted, and why.
    """

    before: Measurement
    after: Measurement
    num_forget: int
    num_test: int
    num_retain: int
    num_classes: int
    change: ParameterChange
    relative_l1: float
    relative_l2: float
    scores_before: ScoreTest
    scores_after: ScoreTest
    confidences: Histograms
    roc_before: Roc
    roc_after: Roc
    relearning: Relearning | None
    leakage: Leakage
    recognisable: tuple[Recognisable, ...]
    seconds: Mapping[str, float]
    seed: int
    versions: Mapping[str, str]
    device: str
    correction: DifficultyCalibration | None = None
    unseen: Unseen | None = None
    left_out: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def decisive(self) -> ScoreTest:
        """The score test that the verdict is taken from: the calibrated one of the model after, where there is one."""
        return self.correction.after if self.correction else self.scores_after

    @property
    def verdict(self) -> str:
        """PASS, FAIL or INCONCLUSIVE."""
        return self.decisive.verdict

    @property
    def reason(self) -> str:
        """Why that is the verdict, in a sentence."""
        allowed = "Allowing for how hard the examples are: " if self.correction else ""
        return allowed + self.decisive.reason

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the verdict, one sentence each; they are among the caveats too."""
        found, test = [], self.decisive
        if self.change.l1 == 0:
            found.append("The parameters did not change: nothing was forgotten.")
        if test.unmatched:
            found.append(
                f"{test.unmatched:,} of the {test.num_forget:,} forgotten examples are of classes without any held-out "
                "example. They were compared with those of other classes, which may be harder or easier: give held-out "
                "examples of theirs."
            )
        return tuple(found)

    @property
    def cautions(self) -> tuple[str, ...]:
        """The caveats of this audit alone: the first two hold for every one."""
        return self.caveats[2:]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the verdict and its reason come first."""
        return {"verdict": self.verdict, "reason": self.reason, **asdict(self)}


UNKNOWN_CALIBRATION = (
    "The model does not say whether a method was calibrated on some of these test examples; its trace would tell."
)


def with_caveats(report: AuditReport, why_no_relearning: str = "", *, calibration_known: bool = True) -> AuditReport:
    """The report with all that is to be said of it: what it cannot see, what was left out, what speaks against it."""
    general = (
        "Difficulty calibration is an approximation. It removes most of what makes hard examples stand out from a "
        "model that was retrained without them, not all, and does not help with examples that are alike: false alarms "
        "may exceed 5%. Histograms, ROC curves and relearning are not calibrated."
        if report.correction
        else "A non-random forget set (mislabelled examples, or all of one person) stands out even from a model that "
        "was retrained without it: the test compares it with ordinary unseen examples. Difficulty calibration "
        "(expunge audit --difficulty-calibration) allows for hard examples, though not for ones that are alike.",
        "A membership test that finds nothing does not prove that nothing is left; it bounds what this attack sees.",
    )
    relearning = (why_no_relearning,) if why_no_relearning else ()
    unknown = () if calibration_known else (UNKNOWN_CALIBRATION,)
    return replace(report, caveats=(*general, *relearning, *unknown, *report.left_out, *report.doubts))
