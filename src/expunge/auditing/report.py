"""The record of a default audit, with its verdict and caveats: what report.json holds and report.html shows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from expunge.auditing.attacks import Attack
from expunge.auditing.both_models import Comparison
from expunge.metrics.distances import ParameterChange
from expunge.metrics.utility import AccuracyLoss
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
        change: ‖Δθ‖ by norm and layer; None where only outputs were audited, as are the next two.
        relative_l1, relative_l2: ‖Δθ‖/‖θ‖ with the original's θ.
        attacks_before, attacks_after: what each attack found on each model. The verdict is taken from them.
        loss: test accuracy lost, and whether chance explains it.
        class_losses: by name, the classes that lost more than is accepted beyond what chance explains.
        scores_before, scores_after: the score test on each model's scores.
        correction: the same, calibrated for difficulty; None where it was not asked for.
        unseen: what accuracy on the forget set is to be expected; None where no forgotten class has held-out examples.
        confidences: histograms of the logit-scaled confidences.
        roc_before, roc_after: membership attacks on each model.
        roc_after_reversed: the attack on the model after that calls examples with low scores forgotten ones: what finds
            those that were forgotten too hard. None in reports that were made without it.
        percentile_ranks: {"before" | "after": of each forgotten example the share of unseen ones of its class that
            score lower, in (0, 1), sorted, so that no rank tells whose it is}. Of calibrated scores, where there are
            any; without examples of classes that have no unseen ones.
        fingerprints: {"before" | "after": SHA-256 of the model's tensors, of `models.fingerprint`}; empty where only
            outputs were audited.
        relearning: None where no control set could be drawn; `caveats` says why.
        comparisons: what both models together show of who was forgotten, the most telling first: never part of the
            verdict.
        recognisable: forgotten examples in either tail of the held-out scores (of the calibrated ones, where there
            are any), most extreme first.
        caveats: one sentence each: what these figures cannot say; `left_out` and `doubts` are among them.
        seconds: wall clock by part: `forward`, `references`, `statistics`, `relearning`.
        seed: of the draws of the relearning controls.
        versions, device: where it ran; no device where only outputs were audited.
        left_out: one sentence each: which of the given examples were not counted, and why.
    """

    before: Measurement
    after: Measurement
    num_forget: int
    num_test: int
    num_retain: int
    num_classes: int
    attacks_before: tuple[Attack, ...]
    attacks_after: tuple[Attack, ...]
    loss: AccuracyLoss
    class_losses: Mapping[str, AccuracyLoss]
    scores_before: ScoreTest
    scores_after: ScoreTest
    confidences: Histograms
    roc_before: Roc
    roc_after: Roc
    comparisons: tuple[Comparison, ...]
    recognisable: tuple[Recognisable, ...]
    seconds: Mapping[str, float]
    seed: int
    versions: Mapping[str, str]
    change: ParameterChange | None = None
    relative_l1: float | None = None
    relative_l2: float | None = None
    relearning: Relearning | None = None
    device: str = ""
    correction: DifficultyCalibration | None = None
    unseen: Unseen | None = None
    left_out: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    roc_after_reversed: Roc | None = None
    percentile_ranks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def decisive(self) -> ScoreTest:
        """The score test that the verdict is taken from: the calibrated one of the model after, where there is one."""
        return self.correction.after if self.correction else self.scores_after

    @property
    def found_before(self) -> tuple[Attack, ...]:
        """The attacks that distinguish the forgotten examples by the original."""
        return tuple(attack for attack in self.attacks_before if attack.succeeded)

    @property
    def found_after(self) -> tuple[Attack, ...]:
        """The attacks that distinguish them by the unlearned model."""
        return tuple(attack for attack in self.attacks_after if attack.succeeded)

    @property
    def strongest(self) -> Attack:
        """The attack that distinguishes best by the original: it says how strong this audit is."""
        return max(self.attacks_before, key=lambda attack: (attack.succeeded, attack.auc))

    @property
    def verdict(self) -> str:
        """PASS, FAIL or INCONCLUSIVE: the examples were found in the original, are not now, and the model works.

        FAIL where an attack still finds them, or where the model no longer works. INCONCLUSIVE where no attack finds
        them in the original either, or where too few examples leave an answer open.
        """
        if self.loss.works == "no" or self.found_after:
            return "FAIL"
        if not self.found_before or self.loss.works == "undecided":
            return "INCONCLUSIVE"
        return self.decisive.verdict

    @property
    def reason(self) -> str:
        """Why that is the verdict, in a sentence or a few."""
        allowed = "Allowing for how hard the examples are: " if self.correction else ""
        found = []
        if self.loss.works != "yes":
            found.append(self._why_loss())
        if any(attack.name == "rank test" for attack in self.found_after):
            found.append(allowed + self.decisive.reason)
        elif self.found_after:
            found.append(self._why_found())
        elif self.loss.works == "no":
            pass
        elif not self.found_before:
            best = self.strongest
            found.append(
                "This audit cannot see these examples in the original either: there, the best attack "
                f"({best.name}) reaches an AUC of {best.auc:.2f}, which chance explains. So nothing is shown about "
                "forgetting."
            )
        else:
            found.append(allowed + self.decisive.reason)
        return " ".join(found)

    def _why_loss(self) -> str:
        accuracies = f"{self.before.test_accuracy:.1%} to {self.after.test_accuracy:.1%}"
        said = f"Test accuracy fell from {accuracies}, where {100 * self.loss.max_loss:g} points may be lost"
        if self.loss.works == "no":
            return f"The model no longer works. {said}."
        return f"{said}. With {self.num_test:,} test examples chance may explain that."

    def _why_found(self) -> str:
        said = "; ".join(
            f"{HOW[attack.name]} (AUC {attack.auc:.2f}, p {attack.p_value:.2g})" for attack in self.found_after
        )
        return f"The forgotten examples are recognisable: {said}."

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the verdict, one sentence each; they are among the caveats too."""
        found, test = [], self.decisive
        if self.class_losses:
            worst = sorted(self.class_losses.items(), key=lambda each: -each[1].loss)
            named = ", ".join(f"{name} ({100 * lost.loss:.0f} points)" for name, lost in worst[:MOST_CLASSES])
            more = f" and {len(worst) - MOST_CLASSES:,} more" if len(worst) > MOST_CLASSES else ""
            found.append(f"Test accuracy fell on some classes by more than chance explains: {named}{more}.")
        if self.change is not None and self.change.l1 == 0:
            found.append("The parameters did not change: nothing was forgotten.")
        if test.unmatched:
            found.append(
                f"{test.unmatched:,} of the {test.num_forget:,} forgotten examples are of classes without any held-out "
                "example. Nothing is said about them: give held-out examples of their classes."
            )
        return tuple(found)

    @property
    def cautions(self) -> tuple[str, ...]:
        """The caveats of this audit alone: the first two hold for every one."""
        return self.caveats[2:]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the verdict, its reason and the three answers come first."""
        answers = {
            "found_before": [attack.name for attack in self.found_before],
            "found_after": [attack.name for attack in self.found_after],
            "works": self.loss.works,
        }
        return {"verdict": self.verdict, "reason": self.reason, **answers, **asdict(self)}


HOW = {
    "classifier": "a classifier on all that the model says of an example tells them apart",
    "reference models": "they score otherwise than networks that never saw them lead to expect",
}
"""What an attack other than the rank test found, as a clause."""

MOST_CLASSES = 5
"""Classes that lost accuracy and are named in the doubts."""

UNKNOWN_CALIBRATION = (
    "The model does not say whether a method was calibrated on some of these test examples; its trace would tell."
)


def with_caveats(report: AuditReport, not_done: Sequence[str] = (), *, calibration_known: bool = True) -> AuditReport:
    """The report with all that is to be said of it: what it cannot see, what was left out, what speaks against it."""
    general = (
        "Difficulty calibration is an approximation. It removes most of what makes hard examples stand out from a "
        "model that was retrained without them, not all, and does not help with examples that are alike: false alarms "
        "may exceed 5%. Histograms, ROC curves and relearning are not calibrated."
        if report.correction
        else "A non-random forget set (mislabelled examples, or all of one person) stands out even from a model that "
        "was retrained without it: the test compares it with ordinary unseen examples. Difficulty calibration "
        "(expunge audit --difficulty-calibration) allows for hard examples, though not for ones that are alike.",
        "Attacks that find nothing do not prove that nothing is left: they bound what these attacks see.",
    )
    unknown = () if calibration_known else (UNKNOWN_CALIBRATION,)
    return replace(report, caveats=(*general, *not_done, *unknown, *report.left_out, *report.doubts))
