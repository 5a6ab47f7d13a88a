"""The default audit: what the model before and after shows of the forget set and of unseen examples."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.arrays import Floats
from expunge.auditing import details
from expunge.auditing.attacks import (
    FALSE_ALARMS,
    Attack,
    attacked,
    classifier_attack,
    rank_attack,
    reference_attack,
    with_shifts,
)
from expunge.auditing.both_models import compare, slopes_of
from expunge.auditing.difficulty import references_within
from expunge.auditing.forward import Outputs, outputs_of
from expunge.auditing.preparation import AuditSets, prepare, sequence_of
from expunge.auditing.relearning import relearn
from expunge.auditing.report import AuditReport, DifficultyCalibration, Relearning, with_caveats
from expunge.auditing.settings import AuditSettings
from expunge.data.examples import check_logits
from expunge.doubts import doubts_of_labels, doubts_of_scale, doubts_of_test_labels, whole_classes
from expunge.errors import InputError, caution
from expunge.inputs import fitted
from expunge.metrics.difficulty import Difficulty, difficulty_calibrated_scores
from expunge.metrics.distances import parameter_change
from expunge.metrics.scores import cross_entropy
from expunge.metrics.utility import accuracy_loss, class_losses
from expunge.metrics.verdict import ScoreTest, score_test
from expunge.models import (
    check_module,
    check_no_sigmoid,
    device_and_dtype,
    device_name,
    fingerprint,
    in_precision,
    last_layer,
    slow_in,
    unwrapped,
)
from expunge.randomness import as_seed
from expunge.records import Measurement, Trace


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model says of `forget` and, where they were given, of `test` and `retain`; wall-clock seconds.

    Attributes:
        outputs: by set.
        attacked: of the examples of `forget` and `test` that the classifier is fitted to, shifted ones too; empty
            without a test set, or where no class is in both.
    """

    outputs: Mapping[str, Outputs]
    attacked: Mapping[str, Outputs]
    seconds: float = 0.0

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
    forget: Any,
    test: Any,
    *,
    retain: Any = None,
    references: Difficulty | None = None,
    trace: Trace | None = None,
    settings: AuditSettings | None = None,
    seed: int = 0,
) -> AuditReport:
    """Tests whether `after` still reveals the forgotten examples that `before` was trained on, and whether it works.

    `prepare` chooses the examples that count: copies of a forgotten example count once, and test examples that are
    forgotten or retained ones, or that `after` was calibrated on (`unlearn(test=)`), are left out. The report's
    `left_out` says so. docs/research/audit.md says what each figure means.

    Args:
        before: the original model; maps a batch to logits (B, C), or to an output that has them, as in
            `expunge.unlearn`.
        after: the unlearned model, with the same parameters by name and shape.
        forget: the forgotten examples, in any form that `expunge.forget` takes. Its attribute `class_names`, or
            torchvision's `classes`, names the classes in the report, and its `ids` the examples (default: positions).
            Where the model names its classes too, labels are matched by name; so are those of the other sets.
        test: unseen examples, which neither model was trained on.
        retain: retained training examples, for accuracy and histograms alone.
        references: from `auditing.difficulty_of`, of the same examples. None: trained here, as `settings` say.
        trace: what `unlearn` said it did, for a model that lost it, as in a bare state dict: it tells which test
            examples the method was calibrated on.
        settings: None: `AuditSettings()`.
        seed: of what is drawn at random.

    Warns:
        ExpungeWarning: each caveat of this audit alone, such as which examples it left out, labels that were matched
            by name, and labels that the original contradicts; before the work, that bf16 is slow on this processor.

    Raises:
        InputError: empty or mislabelled sets, more than a few examples in two sets, inputs that a model cannot take,
            other networks, a wrong number of ids, NaN or infinity in the logits, or a non-random forget set for which
            no reference models can be trained.
        SettingError: a seed out of range.

    >>> from expunge.data import Examples
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> data = Examples(torch.rand(60, 4), torch.arange(60) % 3)
    >>> report = audit(net, net, data.take(torch.arange(5)), data.take(torch.arange(5, 60)))
    >>> report.verdict, report.num_forget, report.change.l1
    ('INCONCLUSIVE', 5, 0.0)
    """
    seed = as_seed(seed)
    for model in (before, after):
        check_module(model)
    fit = fitted(before, {"forget": forget, "test": test, "retain": retain})
    sets = prepare(fit.sets["forget"], fit.sets["test"], fit.sets.get("retain")).uncalibrated(after, trace)
    names = [sequence_of(getattr(fit.sets["forget"], name, None)) for name in ("class_names", "classes")]
    before, after = fit.around(before), fit.around(after)
    settings = settings or AuditSettings()
    settings = replace(settings, factory=fit.building(settings.factory))
    caution(slow_in(settings.precision, device_and_dtype(before)[0]))
    evaluations = tuple(evaluate(model, sets, seed, settings.precision) for model in (before, after))
    check_no_sigmoid(before, sets.forget.inputs, evaluations[0].outputs["forget"].logits.shape[1])
    report = report_of(
        before,
        after,
        sets,
        evaluations,
        class_names=names[0] if len(names[0]) else names[1],
        references=references,
        settings=settings,
        seed=seed,
    )
    report = replace(report, caveats=(*report.caveats, *fit.said, *doubts_of(sets, *evaluations)))
    caution(report.cautions)
    return report


def evaluate(model: nn.Module, sets: AuditSets, seed: int = 0, precision: str = "fp32") -> Evaluation:
    """Runs a model over each of the sets, and over shifted images. Raises `InputError` as `audit` does."""
    with in_precision(precision, model):
        return _evaluate(model, sets, seed)


def _evaluate(model: nn.Module, sets: AuditSets, seed: int) -> Evaluation:
    started = time.perf_counter()
    found = {}
    for name, examples in sets.by_name.items():
        outputs = outputs_of(model, examples, features=name != "retain", label=f"evaluating {name} set")
        check_logits(outputs.logits.shape, examples.labels, f"{name} set")
        if not np.isfinite(outputs.logits).all():
            raise InputError(f"the model's logits on the {name} set hold NaN or infinity; take another checkpoint")
        found[name] = outputs
    part = {}
    if "test" in found:
        for name, at in attacked(found["forget"].labels, found["test"].labels, seed).items():
            if len(at):
                part[name] = with_shifts(model, sets.by_name[name].take(at), found[name].take(at))
    return Evaluation(outputs=found, attacked=part, seconds=time.perf_counter() - started)


def doubts_of(held: AuditSets, before: Evaluation, after: Evaluation) -> list[str]:
    """What speaks against labels and preprocessing, and the test accuracy without a class that is forgotten."""
    sets = {
        name: (torch.from_numpy(said.logits), torch.from_numpy(said.labels)) for name, said in before.outputs.items()
    }
    said: list[str] = []
    for name, of in (("forget", "forgotten"), ("retain", "retained")):
        if name in sets:
            unseen = (None, before.measurement.test_accuracy)
            found = (list(doubts_of_labels(*sets[name], accuracy, of)) for accuracy in unseen)
            said += next((doubts for doubts in found if doubts), [])
    for name in [name for name in sets if name != "forget"]:
        said += doubts_of_scale(held.forget.inputs, held.by_name[name].inputs, name)
    said += doubts_of_test_labels(*sets["test"])
    retained = sets["retain"][1] if "retain" in sets else None
    whole = whole_classes(sets["forget"][1], retained, before.outputs["forget"].logits.shape[1])
    kept = ~np.isin(before.outputs["test"].labels, whole)
    if whole and kept.any():
        shares = [float(found.outputs["test"].right[kept].mean()) for found in (before, after)]
        said.append(
            f"Without class {', '.join(map(str, whole))}, which is forgotten as a whole, the test accuracy is "
            f"{shares[0]:.1%} before and {shares[1]:.1%} after"
        )
    return said


def report_of(
    before: nn.Module,
    after: nn.Module,
    sets: AuditSets,
    evaluations: Sequence[Evaluation],
    *,
    class_names: Sequence[str] = (),
    references: Difficulty | str | None = None,
    settings: AuditSettings | None = None,
    seed: int = 0,
) -> AuditReport:
    """`audit` of sets that are prepared, a test set among them, and that both models were run on.

    `references` may also be a sentence that says why there are none.
    """
    started = time.perf_counter()
    settings = settings or AuditSettings()
    own, others = (dict(unwrapped(model).named_parameters()) for model in (before, after))
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in others.items()}:
        raise InputError("the two models are not the same network: their parameters differ in name or shape")
    assert sets.test is not None
    if references is None:
        references = references_within(settings, before, sets.forget, sets.test, seed=seed)
    hard = sets.of(references) if isinstance(references, Difficulty) else None
    if settings.non_random and hard is None:
        raise InputError(f"a non-random forget set needs reference models: {references}")
    trained = time.perf_counter()
    seen = dict(zip(("before", "after"), evaluations, strict=True))
    with in_precision(settings.precision, before):
        slopes = {
            name: slopes_of(before, after, examples, seen["after"].outputs[name])
            for name, examples in (("forget", sets.forget), ("test", sets.test))
        }
    change = parameter_change(own, others, last_layer=last_layer(unwrapped(after)))
    l1 = sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in own.values())
    l2 = sum(float(p.detach().double().square().sum()) for p in own.values()) ** 0.5
    compared = time.perf_counter()
    relearning, why_not = _relearning(after, seen, seed)
    relearned = time.perf_counter()
    report = judge(seen, ids=sets.ids, class_names=class_names, hard=hard, settings=settings, seed=seed, slopes=slopes)
    seconds = {
        "forward": sum(found.seconds for found in evaluations),
        "references": trained - started,
        "comparing the models": compared - trained,
        "relearning": relearned - compared,
        "statistics": time.perf_counter() - relearned,
    }
    report = replace(
        report,
        change=change,
        relative_l1=change.l1 / l1 if l1 else 0.0,
        relative_l2=change.l2 / l2 if l2 else 0.0,
        relearning=relearning,
        device=device_name(device_and_dtype(after)[0]) + (", bf16" if settings.precision == "bf16" else ""),
        seconds=seconds,
        left_out=sets.left_out,
        fingerprints={"before": fingerprint(before), "after": fingerprint(after)},
    )
    not_done = [said for said in (why_not, references) if isinstance(said, str) and said]
    return with_caveats(report, not_done, calibration_known=sets.calibration_known)


def judge(
    seen: Mapping[str, Evaluation],
    *,
    ids: Sequence[str] | None = None,
    class_names: Sequence[str] = (),
    hard: Difficulty | None = None,
    settings: AuditSettings,
    seed: int,
    slopes: Mapping[str, Floats] | None = None,
) -> AuditReport:
    """What follows from the outputs alone: the attacks, the verdict and a report without caveats.

    Args:
        seen: outputs of the model `before` and `after`, a test set among them.
        ids, class_names, settings, seed: as in `audit`.
        hard: from reference models, of these examples; a non-random forget set needs it.
        slopes: of `slopes_of`, by set; None without the models.
    """
    forget, heldout = (seen["after"].outputs[name] for name in ("forget", "test"))
    scores = {when: {name: said.scores for name, said in found.outputs.items()} for when, found in seen.items()}
    classes = {"forget": forget.labels, "test": heldout.labels}
    labels: dict[str, Any] = {"forget_labels": forget.labels, "test_labels": heldout.labels}
    level = FALSE_ALARMS["rank test"]
    tests = {
        when: score_test(found["forget"], found["test"], **labels, false_alarms=level) for when, found in scores.items()
    }
    correction, decisive = None, scores
    made: dict[str, tuple[Attack, ...]]
    if settings.non_random and hard is not None:
        correction, decisive = _calibrated(scores, hard, labels)
        made = {"before": (rank_attack(correction.before),), "after": (rank_attack(correction.after),)}
    else:
        made = {when: _attacks(tests[when], found, hard, seed) for when, found in seen.items()}
    right, right_after = (seen[when].outputs["test"].right for when in ("before", "after"))
    lost = class_losses(heldout.labels, right, right_after, settings.max_loss)
    retain = seen["after"].outputs.get("retain")
    return AuditReport(
        before=seen["before"].measurement,
        after=seen["after"].measurement,
        num_forget=len(forget.labels),
        num_test=len(heldout.labels),
        num_retain=0 if retain is None else len(retain.labels),
        num_classes=forget.logits.shape[1],
        attacks_before=made["before"],
        attacks_after=made["after"],
        loss=accuracy_loss(right, right_after, settings.max_loss),
        class_losses={details.name_of(each, class_names): loss for each, loss in lost.items()},
        scores_before=tests["before"],
        scores_after=tests["after"],
        confidences=details.histograms(scores),
        roc_before=details.curve(scores["before"]),
        roc_after=details.curve(scores["after"]),
        comparisons=compare(seen["before"].outputs, seen["after"].outputs, slopes),
        recognisable=details.recognisable(forget, heldout, decisive["after"], ids, class_names),
        seconds={},
        seed=seed,
        versions={"expunge": version("expunge"), "torch": torch.__version__, "numpy": np.__version__},
        correction=correction,
        unseen=details.unseen(forget, heldout),
        roc_after_reversed=details.curve({name: -values for name, values in scores["after"].items()}),
        percentile_ranks={when: details.sorted_ranks(found, classes) for when, found in decisive.items()},
    )


def _attacks(test: ScoreTest, found: Evaluation, hard: Difficulty | None, seed: int) -> tuple[Attack, ...]:
    made = [rank_attack(test)]
    if found.attacked:
        made.append(classifier_attack(found.attacked["forget"], found.attacked["test"], seed=seed))
    if hard is not None:
        made.append(reference_attack(found.outputs["forget"], found.outputs["test"], hard))
    return tuple(made)


def _calibrated(
    scores: Mapping[str, Mapping[str, Floats]], hard: Difficulty, labels: Mapping[str, Any]
) -> tuple[DifficultyCalibration, dict[str, dict[str, Floats]]]:
    """The score test of both models on scores less what difficulty explains, and those scores by model."""
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
    return correction, {when: {"forget": ours, "test": theirs} for when, (ours, theirs, _) in found.items()}


def _relearning(after: nn.Module, seen: Mapping[str, Evaluation], seed: int) -> tuple[Relearning | None, str]:
    """The relearning of the last layer on kept features, or why there is none."""
    original = seen["before"].outputs["forget"]
    forget, heldout = (seen["after"].outputs[name] for name in ("forget", "test"))
    loss = float(cross_entropy(original.logits, original.labels).mean())
    try:
        return relearn(after, forget, heldout, original_loss=loss, seed=seed), ""
    except (InputError, MemoryError) as error:
        return None, f"Relearning was left out, which the verdict does not need: {error}."
