"""The default audit: what the model before and after shows of the forget set and of unseen examples."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.arrays import Floats
from expunge.auditing.forward import Outputs, outputs_of
from expunge.auditing.preparation import AuditSets, Given, prepare, sequence_of
from expunge.auditing.relearning import relearn
from expunge.auditing.report import (
    AuditReport,
    DifficultyCalibration,
    Histograms,
    Leakage,
    Recognisable,
    Relearning,
    Roc,
    Unseen,
    with_caveats,
)
from expunge.data.examples import check_logits
from expunge.errors import InputError, caution
from expunge.metrics.difficulty import Difficulty, difficulty_calibrated_scores
from expunge.metrics.distances import parameter_change, update_leakage
from expunge.metrics.membership import clopper_pearson, roc
from expunge.metrics.rank_test import percentile_ranks
from expunge.metrics.scores import cross_entropy
from expunge.metrics.tail_counts import chance_of_as_many, tails
from expunge.metrics.verdict import score_test
from expunge.models import device_and_dtype, device_name, last_layer
from expunge.randomness import as_seed
from expunge.records import Measurement, Trace

BINS = 40
"""Bins of the scores' histograms."""

ROC_POINTS = 200
"""The most points of a ROC curve that a report keeps."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pass of a model over `forget` and, where they were given, `test` and `retain`; wall-clock seconds."""

    outputs: Mapping[str, Outputs]
    seconds: float

    @property
    def measurement(self) -> Measurement:
        """The accuracies."""
        accuracy = {name: outputs.accuracy for name, outputs in self.outputs.items()}
        return Measurement(
            forget_accuracy=accuracy["forget"],
            retain_accuracy=accuracy.get("retain"),
            test_accuracy=accuracy.get("test"),
        )


def audit(
    before: nn.Module,
    after: nn.Module,
    forget: Given,
    test: Given,
    *,
    retain: Given | None = None,
    difficulty: Difficulty | None = None,
    trace: Trace | None = None,
    seed: int = 0,
) -> AuditReport:
    """Tests whether `after` still reveals the forgotten examples that `before` was trained on.

    Each model sees each example once, and nothing is trained but the last layer, on features kept from that one pass.
    `prepare` chooses the examples that count: copies of a forgotten example count once, and test examples that are
    forgotten or retained ones, or that `after` was calibrated on (`unlearn(test=)`), are left out. The report's
    `left_out` says so. docs/audit.md says what each figure means.

    Args:
        before: the original model; maps a batch to logits (B, C).
        after: the unlearned model, with the same parameters by name and shape.
        forget: the forgotten examples, of (input, label). Its attribute `class_names`, or torchvision's `classes`,
            names the classes in the report, and its `ids` the examples (default: positions).
        test: unseen examples, which neither model was trained on.
        retain: retained training examples, for accuracy and histograms alone.
        difficulty: of the same examples, from `auditing.difficulty_of`: for a non-random forget set, such as
            mislabelled or unusually hard examples. The verdict is then that of the calibrated scores.
        trace: what `unlearn` said it did, for a model that lost it, as in a bare state dict: it tells which test
            examples the method was calibrated on.
        seed: of the draws of relearning's controls.

    Warns:
        ExpungeWarning: each caveat of this audit alone, such as which examples it left out.

    Raises:
        InputError: empty or mislabelled sets, more than a few examples in two sets, inputs that a model cannot take,
            other networks, a wrong number of ids, or NaN or infinity in the logits.
        SettingError: a seed out of range.

    >>> from expunge.data import Examples
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> data = Examples(torch.rand(60, 4), torch.arange(60) % 3)
    >>> report = audit(net, net, data.take(torch.arange(5)), data.take(torch.arange(5, 60)))
    >>> report.num_forget, report.change.l1
    (5, 0.0)
    """
    seed = as_seed(seed)
    sets = prepare(forget, test, retain).uncalibrated(after, trace)
    names = [sequence_of(getattr(forget, name, None)) for name in ("class_names", "classes")]
    report = report_of(
        before,
        after,
        sets,
        (evaluate(before, sets), evaluate(after, sets)),
        class_names=names[0] if len(names[0]) else names[1],
        difficulty=difficulty,
        seed=seed,
    )
    caution(report.cautions)
    return report


def evaluate(model: nn.Module, sets: AuditSets) -> Evaluation:
    """Runs a model once over each of the sets. Raises `InputError` as `audit` does."""
    started = time.perf_counter()
    found = {}
    for name, examples in sets.by_name.items():
        outputs = outputs_of(model, examples, features=name != "retain", label=f"evaluating {name} set")
        check_logits(outputs.logits.shape, examples.labels, f"{name} set")
        if not np.isfinite(outputs.logits).all():
            raise InputError(f"the model's logits on the {name} set hold NaN or infinity; take another checkpoint")
        found[name] = outputs
    return Evaluation(outputs=found, seconds=time.perf_counter() - started)


def report_of(
    before: nn.Module,
    after: nn.Module,
    sets: AuditSets,
    evaluations: tuple[Evaluation, Evaluation],
    *,
    class_names: Sequence[str] = (),
    difficulty: Difficulty | None = None,
    seed: int = 0,
) -> AuditReport:
    """`audit` of sets that are prepared, a test set among them, and that both models were run on."""
    started = time.perf_counter()
    own, others = dict(before.named_parameters()), dict(after.named_parameters())
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in others.items()}:
        raise InputError("the two models are not the same network: their parameters differ in name or shape")
    change = parameter_change(own, others, last_layer=last_layer(after))
    seen = dict(zip(("before", "after"), evaluations, strict=True))
    forget, heldout = (seen["after"].outputs[name] for name in ("forget", "test"))
    scores = {when: {name: said.scores for name, said in found.outputs.items()} for when, found in seen.items()}
    labels = {"forget_labels": forget.labels, "test_labels": heldout.labels}
    tests = {when: score_test(found["forget"], found["test"], **labels) for when, found in scores.items()}
    correction, decisive = None, scores["after"]
    if difficulty is not None:
        correction, decisive = _calibrated(scores, sets.of(difficulty), labels)
    leakage, interval = update_leakage(
        *(seen[when].outputs[name].probabilities for name in ("forget", "test") for when in ("before", "after"))
    )
    l1 = sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in own.values())
    l2 = sum(float(p.detach().double().square().sum()) for p in own.values()) ** 0.5
    statistics = time.perf_counter() - started
    relearning, why_not = _relearning(after, seen["before"].outputs["forget"], forget, heldout, seed)
    seconds = {
        "forward": sum(found.seconds for found in evaluations),
        "statistics": statistics,
        "relearning": time.perf_counter() - started - statistics,
    }
    return with_caveats(
        AuditReport(
            before=seen["before"].measurement,
            after=seen["after"].measurement,
            num_forget=len(forget.labels),
            num_test=len(heldout.labels),
            num_retain=len(sets.retain) if sets.retain is not None else 0,
            num_classes=forget.logits.shape[1],
            change=change,
            relative_l1=change.l1 / l1 if l1 else 0.0,
            relative_l2=change.l2 / l2 if l2 else 0.0,
            scores_before=tests["before"],
            scores_after=tests["after"],
            confidences=histograms(scores),
            roc_before=_curve(scores["before"]),
            roc_after=_curve(scores["after"]),
            relearning=relearning,
            leakage=Leakage(auc=leakage, interval=interval),
            recognisable=_recognisable(forget, heldout, decisive, sets.ids, class_names),
            seconds=seconds,
            seed=seed,
            versions={"expunge": version("expunge"), "torch": torch.__version__, "numpy": np.__version__},
            device=device_name(device_and_dtype(after)[0]),
            correction=correction,
            unseen=_unseen(forget, heldout),
            left_out=sets.left_out,
        ),
        why_not,
        calibration_known=sets.calibration_known,
    )


def histograms(scores: Mapping[str, Mapping[str, Floats]]) -> Histograms:
    """Counts of {"before" | "after": {set: scores}} in `BINS` bins, which span 99%; the outer bins take the rest."""
    everything = np.concatenate([values for found in scores.values() for values in found.values()])
    low, high = np.quantile(everything, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    counts: dict[str, dict[str, tuple[int, ...]]] = {}
    for when, found in scores.items():
        for name, values in found.items():
            counted = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
            counts.setdefault(name, {})[when] = tuple(int(c) for c in counted)
    return Histograms(edges=tuple(float(edge) for edge in edges), counts=counts)


def _calibrated(
    scores: Mapping[str, Mapping[str, Floats]], hard: Difficulty, labels: Mapping[str, Any]
) -> tuple[DifficultyCalibration, dict[str, Floats]]:
    """The score test of both models on scores less what difficulty explains, and those scores of the model after."""
    found = {
        when: difficulty_calibrated_scores(said["forget"], said["test"], hard.forget, hard.test)
        for when, said in scores.items()
    }
    tests = {when: score_test(ours, theirs, **labels) for when, (ours, theirs, _) in found.items()}
    correction = DifficultyCalibration(
        before=tests["before"],
        after=tests["after"],
        slope_before=found["before"][2],
        slope_after=found["after"][2],
        num_references=hard.num_references,
        expected_forget_accuracy=hard.forget_accuracy,
        reference_accuracy=hard.accuracy,
    )
    return correction, {"forget": found["after"][0], "test": found["after"][1]}


def _curve(scores: Mapping[str, Floats]) -> Roc:
    """The ROC curve, thinned to `ROC_POINTS` points that lie evenly on the logarithm of the false positive rate."""
    fpr, tpr = roc(scores["forget"], scores["test"])
    num = len(scores["forget"])
    if len(fpr) > ROC_POINTS:
        wanted = np.concatenate([[0], np.geomspace(1 / len(scores["test"]), 1, ROC_POINTS - 1)])
        keep = np.unique([0, *(np.searchsorted(fpr, wanted, side="right") - 1), len(fpr) - 1])
        fpr, tpr = fpr[keep], tpr[keep]
    hits = np.round(tpr * num)
    low, high = clopper_pearson(hits, num)
    columns = ([float(value) for value in column] for column in (fpr, tpr, low, high))
    return Roc(**dict(zip(("fpr", "tpr", "low", "high"), map(tuple, columns), strict=True)))


def _recognisable(
    forget: Outputs,
    heldout: Outputs,
    scores: Mapping[str, Floats],
    ids: Sequence[str] | None,
    class_names: Sequence[str],
) -> tuple[Recognisable, ...]:
    own, others = forget.labels, heldout.labels
    u = percentile_ranks(scores["forget"], scores["test"], forget_labels=own, test_labels=others).u
    outer = tails(scores["forget"], scores["test"], own, others)
    predictions = forget.logits.argmax(1)

    def named(label: int) -> str:
        return str(class_names[label]) if label < len(class_names) else str(label)

    return tuple(
        Recognisable(
            id=ids[n] if ids is not None else str(n),
            label=named(int(own[n])),
            predicted=named(int(predictions[n])),
            percentile_rank=float(u[n]),
            side="memorised" if outer.above[n] else "over-forgotten",
        )
        for n in np.argsort(-np.abs(u - 0.5), kind="stable")
        if outer.above[n] or outer.below[n]
    )


def _unseen(forget: Outputs, heldout: Outputs) -> Unseen | None:
    """The accuracy to expect on the forget set, and how likely one as low is."""
    own, others = forget.labels, heldout.labels
    wrong, others_wrong = forget.logits.argmax(1) != own, heldout.logits.argmax(1) != others
    by_class = [1 - others_wrong[others == label].mean() for label in own if label in others]
    if not by_class:
        return None
    hits = np.concatenate([own[wrong], others[others_wrong]])
    chance = chance_of_as_many(hits, own, np.concatenate([own, others]), int(wrong.sum()))
    return Unseen(accuracy=float(np.mean(by_class)), p_value=chance)


def _relearning(
    after: nn.Module, original: Outputs, forget: Outputs, heldout: Outputs, seed: int
) -> tuple[Relearning | None, str]:
    """The relearning of the last layer on kept features, or why there is none."""
    loss = float(cross_entropy(original.logits, original.labels).mean())
    try:
        return relearn(after, forget, heldout, original_loss=loss, seed=seed), ""
    except (InputError, MemoryError) as error:
        return None, f"Relearning was left out: {error}."
