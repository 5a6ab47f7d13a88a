"""The default audit: what can be told from the model before and after, the forget set and a held-out test set."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.arrays import Floats
from expunge.auditing.forward import Outputs, outputs_of
from expunge.auditing.relearning import relearn
from expunge.auditing.report import (
    AuditReport,
    Correction,
    Leakage,
    Margins,
    Recognisable,
    Relearning,
    Roc,
    Unseen,
)
from expunge.data import Examples, as_examples, audit_side, check_disjoint
from expunge.data.examples import check_logits, first_copies, shared
from expunge.errors import InputError
from expunge.metrics.difficulty import Difficulty, difficulty_calibrated_scores
from expunge.metrics.distances import parameter_change
from expunge.metrics.leakage import update_leakage
from expunge.metrics.membership import clopper_pearson, roc
from expunge.metrics.ranks import percentile_ranks
from expunge.metrics.scores import cross_entropy, logit_scaled_confidence
from expunge.metrics.tails import chance_of_as_many
from expunge.metrics.verdict import score_test, tails_of
from expunge.models import calibration_seeds, device_and_dtype, device_name, last_layer
from expunge.randomness import as_seed
from expunge.records import Measurement

_Corrected = tuple[Floats, Floats, float]
"""Corrected scores of forgotten and of held-out examples, and the slope."""

BINS = 40
"""Bins of the margins' histograms."""

ROC_POINTS = 200
"""The most points of a ROC curve that a report keeps."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One model's outputs on the sets at hand, and how long they took; None stands for a set that was not given."""

    forget: Outputs
    heldout: Outputs | None = None
    retain: Outputs | None = None
    seconds: float = 0.0

    def measurement(self) -> Measurement:
        """Accuracies."""
        return Measurement(
            forget_accuracy=self.forget.accuracy,
            retain_accuracy=self.retain.accuracy if self.retain else None,
            test_accuracy=self.heldout.accuracy if self.heldout else None,
        )

    def margins(self) -> dict[str, Floats]:
        """Logit margins of each set."""
        sets = {"forget": self.forget, "heldout": self.heldout, "retain": self.retain}
        return {name: logit_scaled_confidence(found.logits, found.labels) for name, found in sets.items() if found}


def audit(
    before: nn.Module,
    after: nn.Module,
    forget: "Examples | Dataset[Any]",
    test: "Examples | Dataset[Any]",
    *,
    retain: "Examples | Dataset[Any] | None" = None,
    ids: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    difficulty: Difficulty | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> AuditReport:
    """Tells how well `after` forgot what `before` was trained on. docs/audit.md says what each figure means.

    Each model sees each example once; of equal forgotten inputs one counts. Nothing is trained but the last layer, on
    features kept from that one pass.

    Args:
        before: the original model; maps a batch to logits (B, C).
        after: the unlearned model, with the same parameters by name and shape.
        forget: the forgotten examples, of (input, label).
        test: held-out examples that neither model was trained on; they must not share an input with `forget`. Those
            that `after` was calibrated on (`unlearn(heldout=)`) are left out.
        retain: retained training examples, for accuracy and histograms alone. A few may be in `test` too, as some
            published datasets have them in both splits: those are left out of it.
        ids: one a forgotten example, for the list of recognisable ones; default: the dataset's, else positions.
        class_names: by class; default: the dataset's, else numbers.
        difficulty: of the same examples, from `difficulty_of`: for a forget set that is no random draw, such as
            mislabelled or unusually hard examples. The verdict is then that of the corrected margins.
        seed: of the draws of relearning's controls.
        batch_size: examples a forward pass.

    Raises:
        InputError: empty or mislabelled sets, sets that overlap, inputs that a model cannot take, other networks, a
            wrong number of ids, NaN or infinity in the logits, or more than a tenth of `test` in `retain`.
        SettingError: a seed or batch size out of range.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> data = Examples(torch.rand(60, 4), torch.arange(60) % 3)
    >>> report = audit(net, net, data.take(torch.arange(5)), data.take(torch.arange(5, 60)))
    >>> report.num_forget, report.change.l1
    (5, 0.0)
    """
    seed = as_seed(seed)
    examples = {
        "forget": as_examples(forget, "forget"),
        "test": as_examples(test, "test"),
        **({"retain": as_examples(retain, "retain")} if retain is not None else {}),
    }
    check_disjoint(examples["forget"].inputs, examples["test"].inputs, "forget", "test")
    named = _ids(ids, forget, len(examples["forget"]))
    kept, all_forgotten = first_copies(examples["forget"].inputs), len(examples["forget"])
    if len(kept) < all_forgotten:
        examples["forget"] = examples["forget"].take(kept)
        named = [named[n] for n in kept.tolist()] if named is not None else None
        if difficulty is not None and len(difficulty.forget) == all_forgotten:
            difficulty = replace(difficulty, forget=difficulty.forget[kept.numpy()])
    given = len(examples["test"])
    left = audited(examples["test"].inputs, after)
    used = given - len(left)
    if "retain" in examples:
        left = left[~_trained_on(examples["retain"].inputs, examples["test"].inputs)[left]]
    examples["test"] = examples["test"].take(left)
    if difficulty is not None and len(difficulty.heldout) == given:
        difficulty = replace(difficulty, heldout=difficulty.heldout[left.numpy()])
    report = audit_outputs(
        before,
        after,
        observe(before, examples, batch_size),
        observe(after, examples, batch_size),
        ids=named,
        class_names=_names(getattr(forget, "class_names", ())) if class_names is None else class_names,
        difficulty=difficulty,
        seed=seed,
    )
    told = []
    if copies := all_forgotten - len(kept):
        told.append(f"{copies:,} of the {all_forgotten:,} forgotten examples are copies of others: each counts once.")
    if used:
        told.append(f"The model was calibrated on {used:,} of the {given:,} test examples; the audit used the others.")
    if twins := given - used - len(left):
        told.append(f"Left out {twins:,} of the {given:,} test examples: the retain set holds them too.")
    return replace(report, caveats=(*report.caveats, *told))


def _trained_on(retain: Tensor, test: Tensor) -> Tensor:
    """Which test inputs are retained ones too, bool, (N,); `InputError` where more than a tenth are."""
    twins = shared(retain, test)
    if 10 * int(twins.sum()) > len(twins):
        raise InputError(
            f"{int(twins.sum())} of the {len(twins)} test examples are in the retain set too: an audit needs examples "
            "that the model was never trained on"
        )
    return twins


def audited(heldout: Tensor, after: nn.Module) -> Tensor:
    """Positions of the held-out examples that an audit of `after` may use: those that it was not calibrated on.

    Args:
        heldout: inputs, shape (N, ...), in the dtype in which the dataset holds them.
        after: the unlearned model.

    Raises:
        InputError: there are none.
    """
    left = audit_side(heldout, calibration_seeds(after)).nonzero()[:, 0]
    if len(left) == 0:
        raise InputError(f"the model was calibrated on all {len(heldout)} held-out examples; audit it with others")
    return left


def observe(model: nn.Module, examples: Mapping[str, Examples], batch_size: int = 500) -> Observed:
    """One pass of a model over the sets named `forget` and, where they are given, `test` and `retain`."""
    started = time.perf_counter()
    outputs = {
        name: outputs_of(model, held, features=name != "retain", batch_size=batch_size, label=f"evaluating {name} set")
        for name, held in examples.items()
    }
    for name, found in outputs.items():
        check_logits(found.logits.shape, examples[name].labels, f"{name} set")
        if not np.isfinite(found.logits).all():
            raise InputError(f"the model's logits on the {name} set hold NaN or infinity; take a sound checkpoint")
    return Observed(
        forget=outputs["forget"],
        heldout=outputs.get("test"),
        retain=outputs.get("retain"),
        seconds=time.perf_counter() - started,
    )


def audit_outputs(
    before: nn.Module,
    after: nn.Module,
    seen_before: Observed,
    seen_after: Observed,
    *,
    ids: Sequence[str] | None = None,
    class_names: Sequence[str] = (),
    difficulty: Difficulty | None = None,
    seed: int = 0,
) -> AuditReport:
    """`audit` where both models' outputs are there already: the models serve for their parameters alone."""
    started = time.perf_counter()
    if seen_before.heldout is None or seen_after.heldout is None:
        raise InputError("an audit needs held-out examples; give a test set")
    change = _change(before, after)
    margins = {"before": seen_before.margins(), "after": seen_after.margins()}
    labels, heldout_labels = seen_after.forget.labels, seen_after.heldout.labels
    tests = {
        when: score_test(found["forget"], found["heldout"], forget_labels=labels, heldout_labels=heldout_labels)
        for when, found in margins.items()
    }
    correction, placed = None, margins["after"]
    if difficulty is not None:
        fixed = {
            when: difficulty_calibrated_scores(found["forget"], found["heldout"], difficulty.forget, difficulty.heldout)
            for when, found in margins.items()
        }
        correction = _correction(fixed["before"], fixed["after"], labels, heldout_labels, difficulty)
        placed = {"forget": fixed["after"][0], "heldout": fixed["after"][1]}
    leakage_auc, leakage_interval = update_leakage(
        seen_before.forget.probabilities,
        seen_after.forget.probabilities,
        seen_before.heldout.probabilities,
        seen_after.heldout.probabilities,
    )
    sizes = [sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in before.parameters())]
    sizes.append(sum(float(p.detach().double().square().sum()) for p in before.parameters()) ** 0.5)
    statistics = time.perf_counter() - started
    relearning, why_not = _relearning(after, seen_before, seen_after, seed)
    seconds = {
        "forward": seen_before.seconds + seen_after.seconds,
        "statistics": statistics,
        "relearning": time.perf_counter() - started - statistics,
    }
    report = AuditReport(
        before=seen_before.measurement(),
        after=seen_after.measurement(),
        num_forget=len(labels),
        num_heldout=len(heldout_labels),
        num_retain=len(seen_after.retain.labels) if seen_after.retain else 0,
        num_classes=seen_after.forget.logits.shape[1],
        change=change,
        relative_l1=change.l1 / sizes[0] if sizes[0] else 0.0,
        relative_l2=change.l2 / sizes[1] if sizes[1] else 0.0,
        scores_before=tests["before"],
        scores_after=tests["after"],
        margins=histograms(margins),
        roc_before=_curve(margins["before"]),
        roc_after=_curve(margins["after"]),
        relearning=relearning,
        leakage=Leakage(auc=leakage_auc, interval=leakage_interval),
        recognisable=_recognisable(seen_after, placed, ids, class_names),
        caveats=_caveats(why_not, correction is not None),
        seconds=seconds,
        seed=seed,
        versions={"expunge": version("expunge"), "torch": torch.__version__, "numpy": np.__version__},
        device=device_name(device_and_dtype(after)[0]),
        correction=correction,
        unseen=_unseen(seen_after.forget, seen_after.heldout),
    )
    return replace(report, caveats=(*report.caveats, *report.doubts))


def histograms(margins: Mapping[str, Mapping[str, Floats]]) -> Margins:
    """Counts of margins in `BINS` bins, which span 99% of all of them; the outer bins take the rest.

    Args:
        margins: {"before" | "after": {set: margins}}.
    """
    everything = np.concatenate([values for found in margins.values() for values in found.values()])
    low, high = np.quantile(everything, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    counts: dict[str, dict[str, tuple[int, ...]]] = {}
    for when, found in margins.items():
        for name, values in found.items():
            counted = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
            counts.setdefault(name, {})[when] = tuple(int(c) for c in counted)
    return Margins(edges=tuple(float(edge) for edge in edges), counts=counts)


def _names(value: object) -> Sequence[str]:
    """What a dataset's attribute says, if it is a sequence of names at all."""
    named = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    return cast(Sequence[str], value) if named else ()


def _ids(given: Sequence[str] | None, forget: object, num: int) -> Sequence[str] | None:
    """One id a forgotten example: those given, the dataset's own, or None."""
    if given is None:
        own = _names(getattr(forget, "ids", ()))
        return own if len(own) == num else None
    if len(given) != num:
        raise InputError(f"there are {len(given)} ids for {num} forgotten examples; give one for each, in their order")
    return given


def _change(before: nn.Module, after: nn.Module) -> Any:
    originals = dict(before.named_parameters())
    if {name: p.shape for name, p in originals.items()} != {name: p.shape for name, p in after.named_parameters()}:
        raise InputError("the two models are not the same network: their parameters differ in name or shape")
    return parameter_change(originals, dict(after.named_parameters()), last_layer=last_layer(after))


def _correction(before: _Corrected, after: _Corrected, labels: Any, heldout_labels: Any, of: Difficulty) -> Correction:
    """The score test of both models on margins less what difficulty explains."""
    tests = [
        score_test(ours, theirs, forget_labels=labels, heldout_labels=heldout_labels)
        for ours, theirs, _ in (before, after)
    ]
    return Correction(
        before=tests[0],
        after=tests[1],
        slope_before=before[2],
        slope_after=after[2],
        num_references=of.num_references,
        expected_forget_accuracy=of.forget_accuracy,
        reference_accuracy=of.accuracy,
    )


def _curve(margins: Mapping[str, Floats]) -> Roc:
    """The ROC curve, thinned to `ROC_POINTS` points that lie evenly on the logarithm of the false positive rate."""
    fpr, tpr = roc(margins["forget"], margins["heldout"])
    num = len(margins["forget"])
    if len(fpr) > ROC_POINTS:
        wanted = np.concatenate([[0], np.geomspace(1 / len(margins["heldout"]), 1, ROC_POINTS - 1)])
        keep = np.unique([0, *(np.searchsorted(fpr, wanted, side="right") - 1), len(fpr) - 1])
        fpr, tpr = fpr[keep], tpr[keep]
    hits = np.round(tpr * num)
    low, high = clopper_pearson(hits, num)
    columns = ([float(value) for value in column] for column in (fpr, tpr, low, high))
    return Roc(**dict(zip(("fpr", "tpr", "low", "high"), map(tuple, columns), strict=True)))


def _recognisable(
    seen: Observed, margins: Mapping[str, Floats], ids: Sequence[str] | None, class_names: Sequence[str]
) -> tuple[Recognisable, ...]:
    assert seen.heldout is not None
    own, others = seen.forget.labels, seen.heldout.labels
    placed = percentile_ranks(margins["forget"], margins["heldout"], forget_labels=own, heldout_labels=others).u
    outer = tails_of(margins["forget"], margins["heldout"], own, others)
    predictions = seen.forget.logits.argmax(1)

    def named(label: int) -> str:
        return str(class_names[label]) if label < len(class_names) else str(label)

    found = [
        Recognisable(
            id=str(ids[n]) if ids is not None else str(n),
            label=named(int(seen.forget.labels[n])),
            predicted=named(int(predictions[n])),
            placement=float(placed[n]),
            side="memorised" if outer.above[n] else "over-forgotten",
        )
        for n in np.argsort(-np.abs(placed - 0.5), kind="stable")
        if outer.above[n] or outer.below[n]
    ]
    return tuple(found)


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
    after: nn.Module, seen_before: Observed, seen_after: Observed, seed: int
) -> tuple[Relearning | None, str]:
    """The relearning of the last layer on kept features, or why there is none."""
    assert seen_after.heldout is not None
    original_loss = float(cross_entropy(seen_before.forget.logits, seen_before.forget.labels).mean())
    try:
        return relearn(after, seen_after.forget, seen_after.heldout, original_loss=original_loss, seed=seed), ""
    except (InputError, MemoryError) as error:
        return None, f"Relearning was left out: {error}."


def _caveats(why_no_relearning: str, corrected: bool) -> tuple[str, ...]:
    caveats = [
        "The correction for difficulty is an approximation: it removes most of what makes hard examples stand out "
        "from a model that was retrained without them, not all, and does not help with examples that are alike, so "
        "that false alarms may exceed 5%. Histograms, ROC curves and relearning are not corrected."
        if corrected
        else "An odd forget set (mislabelled examples, or all of one person) stands out even from a model that was "
        "retrained without it: the test compares it with ordinary unseen examples. The audit's correction for "
        "difficulty (expunge audit --correct-difficulty) allows for hard examples, though not for ones that are alike.",
        "A membership test that finds nothing does not prove that nothing is left; it bounds what this attack sees.",
    ]
    if why_no_relearning:
        caveats.append(why_no_relearning)
    return tuple(caveats)
