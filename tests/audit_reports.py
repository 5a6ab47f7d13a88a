"""Audits to render, made of drawn margins, with names that would break out of HTML if they could."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from expunge.auditing.attacks import Attack, rank_attack
from expunge.auditing.both_models import Comparison
from expunge.auditing.report import (
    AuditReport,
    DifficultyCalibration,
    Histograms,
    Recognisable,
    Relearning,
    Roc,
    Unseen,
)
from expunge.data import ImageSet
from expunge.metrics import ParameterChange
from expunge.metrics.membership import roc
from expunge.metrics.rank_test import percentile_ranks
from expunge.metrics.utility import AccuracyLoss
from expunge.metrics.verdict import ScoreTest, score_test
from expunge.records import Measurement, PseudoLabels, Trace

HOSTILE = "<script>alert('a&b')</script>"
CLASSES = ("shirt", "coat", HOSTILE)


def sample(
    shift: float = -3.0,
    *,
    num_forget: int = 128,
    num_test: int = 2_000,
    retain: bool = True,
    relearning: bool = True,
    layers: int = 12,
    listed: int | None = None,
    corrected: bool = False,
    lost: float = 0.01,
) -> AuditReport:
    """An audit of margins drawn from normal distributions: `shift` is how far off the forgotten ones lie after."""
    rng = np.random.default_rng(7)
    heldout = {"before": rng.normal(3.2, 2.4, num_test), "after": rng.normal(2.2, 2.0, num_test)}
    forget = {"before": rng.normal(5.2, 1.8, num_forget), "after": rng.normal(2.2 + shift, 2.0, num_forget)}
    sets = {"forget": forget, "test": heldout}
    if retain:
        sets["retain"] = {"before": rng.normal(5.1, 2.0, 3_000), "after": rng.normal(3.4, 2.2, 3_000)}
    edges = np.linspace(-8, 11, 41)
    tests = {when: score_test(forget[when], heldout[when]) for when in ("before", "after")}
    number = num_forget // 4 if listed is None else listed
    correction = None
    made = {"before": attacks(tests["before"], 0.001), "after": attacks(tests["after"], 0.4)}
    decisive = {when: (forget[when], heldout[when]) for when in heldout}
    if corrected:
        decisive = {
            "before": (forget["before"] + 1.0, heldout["before"]),
            "after": (heldout["after"][:num_forget], heldout["after"]),
        }
        correction = DifficultyCalibration(
            before=score_test(*decisive["before"]),
            after=score_test(*decisive["after"]),
            slope_before=0.8,
            slope_after=1.1,
            num_references=4,
            expected_forget_accuracy=0.125,
            reference_accuracy=0.798,
        )
        made = {"before": (rank_attack(correction.before),), "after": (rank_attack(correction.after),)}
    by_layer = {f"layer{n // 4}.{n % 4}.conv": (1500.0 / (n + 1), 9.0 / (n + 1)) for n in range(layers)}
    return AuditReport(
        before=accuracies(forget["before"], heldout["before"], 0.97 if retain else None),
        after=accuracies(forget["after"], heldout["after"], 0.81 if retain else None),
        num_forget=num_forget,
        num_test=num_test,
        num_retain=3_000 if retain else 0,
        num_classes=len(CLASSES),
        change=ParameterChange(
            l1=sum(l1 for l1, _ in by_layer.values()),
            l2=18.2,
            l1_last_layer=312.5,
            l2_last_layer=2.4,
            by_layer=by_layer,
            num_parameters=308_074,
        ),
        relative_l1=0.034,
        relative_l2=0.021,
        attacks_before=made["before"],
        attacks_after=made["after"],
        loss=AccuracyLoss(loss=lost, max_loss=0.05, p_value=0.9 if lost < 0.05 else 0.001),
        class_losses={},
        scores_before=tests["before"],
        scores_after=tests["after"],
        confidences=Histograms(
            edges=tuple(edges.tolist()),
            counts={
                kind: {
                    when: tuple(np.histogram(values.clip(-8, 11), edges)[0].tolist()) for when, values in drawn.items()
                }
                for kind, drawn in sets.items()
            },
        ),
        roc_before=curve(forget["before"], heldout["before"]),
        roc_after=curve(forget["after"], heldout["after"]),
        roc_after_reversed=curve(-forget["after"], -heldout["after"]),
        percentile_ranks={when: sorted_ranks(ours, theirs) for when, (ours, theirs) in decisive.items()},
        fingerprints={"before": "b0" * 32, "after": "af" * 32},
        relearning=Relearning(
            steps=3.4,
            control_steps=tuple(5.0 + 0.1 * n for n in range(39)),
            ratio=0.49,
            p_value=0.025,
            note="The last layer alone was trained.",
        )
        if relearning
        else None,
        comparisons=(
            Comparison(name="logits", auc=0.93, interval=(0.9, 0.96)),
            Comparison(name="probabilities", auc=0.54, interval=(0.48, 0.6)),
        ),
        recognisable=tuple(
            Recognisable(
                id=f"{CLASSES[n % 2]}/{n:04d}.png" if n else HOSTILE,
                label=CLASSES[n % 2],
                predicted=CLASSES[2],
                percentile_rank=0.0002 * (n + 1) if n % 3 else 0.9995,
                side="over-forgotten" if n % 3 else "memorised",
            )
            for n in range(number)
        ),
        caveats=("An odd forget set stands out even from a model that was retrained without it.",),
        seconds={"forward": 12.3, "statistics": 0.4, "relearning": 3.1},
        seed=0,
        versions={"expunge": "0.2.0", "torch": "2.9.0", "numpy": "2.3.0"},
        device="x86_64, 2 threads",
        correction=correction,
        unseen=Unseen(
            accuracy=float((heldout["after"] > 0).mean()),
            p_value=float(stats.binom.sf((forget["after"] <= 0).sum() - 1, num_forget, (heldout["after"] <= 0).mean())),
        ),
    )


def sorted_ranks(forget: NDArray[np.float64], heldout: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.sort(percentile_ranks(forget, heldout).u).tolist())


def attacks(test: ScoreTest, p_value: float) -> tuple[Attack, ...]:
    """The rank test, and a classifier with a p-value of its own."""
    return rank_attack(test), Attack(
        name="classifier",
        p_value=p_value,
        level=0.005,
        auc=0.6 if p_value < 0.01 else 0.5,
        auc_interval=(0.45, 0.65),
        found=test.tpr_at_fpr[0.01],
    )


def accuracies(forget: NDArray[np.float64], heldout: NDArray[np.float64], retain: float | None) -> Measurement:
    right = (float((margins > 0).mean()) for margins in (forget, heldout))
    return Measurement(forget_accuracy=next(right), test_accuracy=next(right), retain_accuracy=retain)


def curve(forget: NDArray[np.float64], heldout: NDArray[np.float64]) -> Roc:
    fpr, tpr = roc(forget, heldout)
    half = 1.96 * np.sqrt(tpr * (1 - tpr) / len(forget)) + 1 / len(forget)
    columns = (fpr, tpr, (tpr - half).clip(0, 1), (tpr + half).clip(0, 1))
    return Roc(**dict(zip(("fpr", "tpr", "low", "high"), (tuple(c.tolist()) for c in columns), strict=True)))


def trace(report: AuditReport) -> Trace:
    assert report.change is not None
    return Trace(
        method="targeted",
        settings={"delta": 0.0, "lam": 3.0, "epsilon": None, "shuffle": True, "stop": "forgotten"},
        seed=4,
        forget_digest="5e" * 32,
        num_forget=report.num_forget,
        num_retain=0,
        pseudo_labels=PseudoLabels(second_best=120, already_mispredicted=8),
        epochs=(),
        first_step_all_reached=24,
        steps=24,
        examples_seen=3_072,
        forget_accuracy_before=report.before.forget_accuracy,
        forget_accuracy_after=report.after.forget_accuracy,
        seconds=5.92,
        peak_bytes=700 * 2**20,
        change=report.change,
        warnings=("normalisation layers saw batches of one size only",),
        versions={"expunge": "0.2.0", "torch": "2.9.0", "numpy": "2.3.0", "python": "3.11.9"},
        device="x86_64, 2 threads",
    )


SOURCES: Mapping[str, Any] = {
    "model": "runs/original model",
    "forget": "folder:photos",
    "ids": "ids.txt",
    "retain": None,
    "test": "fashion-mnist:test",
    "allow_pickle": False,
    "resize": True,
}


def thumbnails_of(report: AuditReport, *, channels: int = 1, side: int = 28) -> ImageSet:
    ids = tuple(each.id for each in report.recognisable)
    return ImageSet(
        images=torch.randint(0, 256, (len(ids), channels, side, side), dtype=torch.uint8),
        labels=torch.zeros(len(ids), dtype=torch.int64),
        class_names=CLASSES,
        ids=ids,
        name="folder:photos",
    )
