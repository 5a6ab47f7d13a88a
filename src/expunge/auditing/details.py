"""What a report shows beside the verdict: histograms, curves, the examples that stand out, the accuracy to expect."""

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.arrays import Floats, Integers
from expunge.auditing.forward import Outputs
from expunge.auditing.report import Histograms, Recognisable, Roc, Unseen
from expunge.metrics.membership import clopper_pearson, roc
from expunge.metrics.rank_test import percentile_ranks
from expunge.metrics.tail_counts import chance_of_as_many, tails

BINS = 40
"""Bins of the scores' histograms."""

ROC_POINTS = 200
"""The most points of a ROC curve that a report keeps."""


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


def curve(scores: Mapping[str, Floats]) -> Roc:
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


def sorted_ranks(scores: Mapping[str, Floats], labels: Mapping[str, Integers]) -> tuple[float, ...]:
    """The percentile ranks of `forget` among `test`, sorted, to four digits; not of classes that `test` lacks."""
    ranked = percentile_ranks(
        scores["forget"], scores["test"], forget_labels=labels["forget"], test_labels=labels["test"]
    )
    return tuple(round(float(u), 4) for u in np.sort(ranked.u[ranked.group >= 0]))


def recognisable(
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

    return tuple(
        Recognisable(
            id=ids[n] if ids is not None else str(n),
            label=name_of(int(own[n]), class_names),
            predicted=name_of(int(predictions[n]), class_names),
            percentile_rank=float(u[n]),
            side="memorised" if outer.above[n] else "over-forgotten",
        )
        for n in np.argsort(-np.abs(u - 0.5), kind="stable")
        if outer.above[n] or outer.below[n]
    )


def unseen(forget: Outputs, heldout: Outputs) -> Unseen | None:
    """The accuracy to expect on the forget set, and how likely one as low is."""
    own, others = forget.labels, heldout.labels
    wrong, others_wrong = forget.logits.argmax(1) != own, heldout.logits.argmax(1) != others
    by_class = [1 - others_wrong[others == label].mean() for label in own if label in others]
    if not by_class:
        return None
    hits = np.concatenate([own[wrong], others[others_wrong]])
    chance = chance_of_as_many(hits, own, np.concatenate([own, others]), int(wrong.sum()))
    return Unseen(accuracy=float(np.mean(by_class)), p_value=chance)


def name_of(label: int, class_names: Sequence[str]) -> str:
    """What a class is called, or its number."""
    return str(class_names[label]) if label < len(class_names) else str(label)
