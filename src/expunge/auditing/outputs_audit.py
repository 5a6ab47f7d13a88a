"""The audit of outputs alone: for int8, ONNX, scikit-learn, or a model behind an API."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from expunge.arrays import as_floats
from expunge.auditing.attacks import attacked
from expunge.auditing.default_audit import Evaluation, judge
from expunge.auditing.forward import Outputs
from expunge.auditing.report import AuditReport, with_caveats
from expunge.auditing.settings import AuditSettings
from expunge.data.examples import check_logits
from expunge.errors import InputError, caution
from expunge.metrics.difficulty import Difficulty
from expunge.randomness import as_seed

SETS = ("forget", "test", "retain")
"""The sets; the last may be left out."""

NOT_SEEN = "Only outputs were audited: relearning, features, shifted images and the change of the parameters were not."


LOGARITHMS = "np.log(np.clip(p, 1e-6, 1))"
"""What stands for logits where a model gives probabilities."""


def audit_outputs(
    before: Mapping[str, ArrayLike],
    after: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike],
    *,
    ids: Sequence[str] | None = None,
    class_names: Sequence[str] = (),
    references: Difficulty | None = None,
    settings: AuditSettings | None = None,
    seed: int = 0,
) -> AuditReport:
    """`audit` from what the models say of the examples, where the models themselves cannot be handed over.

    Test examples that the method saw, and copies, have to be left out by you: the inputs are not there to tell. Of
    probabilities, give the logarithms.

    Args:
        before, after: logits by set, `forget` and `test`, and `retain` where you like: float, shape (N, C), finite. For
            one logit a class-1 score z, give the columns (0, z).
        labels: integer classes by set, shape (N,), each in [0, C).
        ids: one a forgotten example; default: positions.
        class_names: by class, for the report.
        references: the difficulty of the same examples (`auditing.difficulty_of`), for the attack by reference models.
        settings: None: `AuditSettings()`.
        seed: of what is drawn at random.

    Raises:
        InputError: a set that is missing or unknown, shapes, labels or numbers that do not fit, or a non-random
            forget set without `references`.
        SettingError: a seed out of range.

    >>> rng = np.random.default_rng(0)
    >>> logits = {"forget": rng.normal(size=(20, 3)), "test": rng.normal(size=(90, 3))}
    >>> labels = {"forget": np.arange(20) % 3, "test": np.arange(90) % 3}
    >>> audit_outputs(logits, logits, labels).verdict
    'INCONCLUSIVE'
    """
    seed = as_seed(seed)
    given = {"before": before, "after": after, "labels": labels}
    for name, sets in given.items():
        if unknown := set(sets) - set(SETS):
            raise InputError(f"{name} holds {min(map(str, unknown))!r}; its sets are {', '.join(SETS)}")
        if missing := ({"forget", "test"} | set(before)) - set(sets):
            raise InputError(f"{name} lacks the set {min(missing)!r}")
    known = {name: _labels(values, name) for name, values in labels.items()}
    seen = {when: _evaluation(when, given[when], known, seed) for when in ("before", "after")}
    columns = {found.logits.shape[1] for each in seen.values() for found in each.outputs.values()}
    if len(columns) > 1:
        raise InputError(f"the logits have {min(columns)} columns in one place and {max(columns)} in another")
    num = len(known["forget"])
    if ids is not None and len(ids) != num:
        raise InputError(f"there are {len(ids)} ids for {num} forgotten examples; give one for each, in their order")
    settings = settings or AuditSettings()
    if settings.non_random and references is None:
        raise InputError("a non-random forget set needs reference models: give references=")
    report = judge(seen, ids=ids, class_names=class_names, hard=references, settings=settings, seed=seed)
    not_done = [NOT_SEEN] if references else [NOT_SEEN, "No attack by reference models was made: none were given."]
    report = with_caveats(report, not_done, calibration_known=False)
    caution(report.cautions)
    return report


def _labels(values: ArrayLike, name: str) -> NDArray[np.int64]:
    found = np.asarray(values)
    if found.dtype.kind not in "iu" or found.ndim != 1 or found.size == 0:
        raise InputError(f"the labels of {name} must be integers of shape (N,), N ≥ 1, not {found.dtype} {found.shape}")
    return found.astype(np.int64)


def _evaluation(
    when: str, logits: Mapping[str, ArrayLike], labels: Mapping[str, NDArray[Any]], seed: int
) -> Evaluation:
    found = {}
    for name, values in logits.items():
        given = np.asarray(values)
        if given.dtype.kind == "f" and np.isneginf(given).any():
            raise InputError(f"{when}, {name}: there is −infinity, as of a probability of 0: give {LOGARITHMS}")
        z = as_floats(values, f"the logits of {name}, {when},")
        if z.size and z.min() >= 0 and np.allclose(z.sum(-1), 1, atol=1e-3):
            raise InputError(f"{when}, {name}: these are probabilities, and logits are needed: give {LOGARITHMS}")
        if z.shape[:1] != labels[name].shape:
            raise InputError(f"there are {len(labels[name])} labels for logits of shape {z.shape} of the {name} set")
        check_logits(z.shape, torch.from_numpy(labels[name]), f"{name} set")
        found[name] = Outputs(logits=z, labels=labels[name])
    chosen = attacked(labels["forget"], labels["test"], seed)
    part = {name: found[name].take(at) for name, at in chosen.items() if len(at)}
    return Evaluation(outputs=found, attacked=part)
