"""The full audit: unlearned models against models that were retrained without the forget set, many of each."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from expunge.arrays import Floats, Integers
from expunge.auditing.references import References
from expunge.errors import InputError
from expunge.markdown import markdown
from expunge.metrics.distances import activation_distance
from expunge.metrics.epsilon import EpsilonBound, epsilon_bound
from expunge.metrics.klom import klom
from expunge.metrics.lira import Lira, lira
from expunge.metrics.scores import logit_scaled_confidence
from expunge.metrics.verdict import score_test
from expunge.parsing import parse_json, record
from expunge.progress import track

LEAST_MODELS = 8
"""The fewest models of each kind: their halves are compared, and halves of those choose the thresholds."""
ADVISED_MODELS = 64
VERDICTS = ("PASS", "INCONCLUSIVE", "FAIL")


@dataclass(frozen=True, kw_only=True)
class FullAuditRow:
    """One kind of model, N of them, compared with N retrained ones; `retrained` itself, half with the other half.

    Attributes:
        name: `original`, a method's name, or `retrained`.
        lira: the attack on the forgotten examples.
        lira_retained: the same on retained examples, which both kinds were trained on: unlearning may leave marks
            there, too.
        epsilon: lower bounds on ε, by forgotten example.
        klom: `Klom.to_dict`: `forward` is KL(this ‖ retrained) and `backward` the other direction, both in nats, less
            what models without a difference show, averaged over the forgotten examples.
        activation_distance: mean ‖p − p_retrained‖₂ on the forget set, in [0, √2].
        relearn_steps: median T(D_f) of the whole network, in SGD steps; at most `relearn_max_steps`.
        relearn_ratio: that over the retrained models' median; below 1: faster than a model that never saw them. None
            where theirs is 0.
        forget_accuracy, test_accuracy, retained_accuracy: means over the models, in [0, 1].
        verdicts: {"PASS" | "INCONCLUSIVE" | "FAIL": how many models the default audit's score test judges so}.
    """

    name: str
    lira: Lira
    lira_retained: Lira
    epsilon: EpsilonBound
    klom: Mapping[str, float]
    activation_distance: float
    relearn_steps: float
    relearn_ratio: float | None
    forget_accuracy: float
    test_accuracy: float
    retained_accuracy: float
    verdicts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class FullAudit:
    """What `full_audit` measured.

    Attributes:
        rows: `original`, each method, `retrained`.
        num_models: N, of each kind; the `retrained` row has half of them on either side.
        num_forget, num_test, num_retained: examples.
        methods, settings, subject: as in `References`.
        relearn_max_steps: where relearning was cut.
        caveats: one sentence each: what these figures cannot tell.
        seed: of the bootstrap, splits and exchanges.
    """

    rows: tuple[FullAuditRow, ...]
    num_models: int
    num_forget: int
    num_test: int
    num_retained: int
    methods: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    subject: str
    relearn_max_steps: int
    caveats: tuple[str, ...]
    seed: int

    def row(self, name: str) -> FullAuditRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> str:
        """JSON text with sorted keys."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "FullAudit":
        """The inverse of `to_json`. Raises `InputError` when `text` is not a full audit."""
        try:
            found = record(cls, parse_json(text))
            for row in found.rows:
                _check_row(row)
        except InputError as error:
            raise InputError(f"this is not a full audit that expunge wrote: {error}") from error
        return found

    def cells(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """The head and the rows of a table, as text: a row a kind of model, percent for rates and accuracies."""
        head = (
            "model", "U-LiRA AUC [95%]", "worst decile", "TPR @ 1% FPR", "ε median / of all at once (ceiling)",
            "KLoM → / ←", "activation distance", "relearn steps", "forget %", "test %", "AUC on retained",
            "pass / inconclusive / fail",
        )  # fmt: skip
        return head, tuple(_cells(row) for row in self.rows)

    def table(self) -> str:
        """The same as a Markdown table."""
        return markdown(*self.cells())


def full_audit(references: References, *, num_bootstrap: int = 2000, seed: int = 0) -> FullAudit:
    """Compares original, unlearned and retrained models by their logits: all that needs many models.

    Rows: `original` (what the attack finds where nothing is forgotten), each method, and `retrained`, the control: one
    half of the retrained models against the other, which no attack can tell apart. A method has forgotten as far as
    this can tell when its row looks like the last one.

    Args:
        references: of at least `LEAST_MODELS` models of each kind; `ADVISED_MODELS` for bounds that say something.
        num_bootstrap: B, of the intervals of `lira`.
        seed: of everything random.

    Raises:
        InputError: too few models.

    >>> rng = np.random.default_rng(0)
    >>> def logits(n, shift):
    ...     return (rng.normal(size=(8, n, 3)) + shift * np.eye(3)[np.arange(n) % 3]).astype(np.float32)
    >>> shifts = {"original": 5.0, "retrained": 1.0, "mine": 1.0}
    >>> said = {row: {s: logits(30, 1 if s == "heldout" else x) for s in ("forget", "heldout", "retained")}
    ...         for row, x in shifts.items()}
    >>> labels = {s: np.arange(30) % 3 for s in ("forget", "heldout", "retained")}
    >>> steps = {row: np.ones(8) for row in shifts}
    >>> settings = {"relearn": {"max_steps": 100}}
    >>> found = full_audit(References(
    ...     logits=said, labels=labels, relearn_steps=steps, methods={"mine": {}}, settings=settings))
    >>> [row.name for row in found.rows], found.row("original").lira.auc > 0.9 > found.row("mine").lira.auc
    (['original', 'mine', 'retrained'], True)
    """
    num = references.num_models
    if num < LEAST_MODELS:
        raise InputError(f"a full audit needs at least {LEAST_MODELS} models of each kind, not {num}")
    names = ("original", *references.methods, "retrained")
    rows = []
    for name in track(names, "comparing models", len(names)):
        rows.append(_row(references, name, num_bootstrap, seed))
    counts = {name: len(labels) for name, labels in references.labels.items()}
    return FullAudit(
        rows=tuple(rows),
        num_models=num,
        num_forget=counts["forget"],
        num_test=counts["heldout"],
        num_retained=counts["retained"],
        methods=references.methods,
        settings=references.settings,
        subject=references.subject,
        relearn_max_steps=int(references.settings["relearn"]["max_steps"]),
        caveats=_caveats(references),
        seed=seed,
    )


def _row(references: References, name: str, num_bootstrap: int, seed: int) -> FullAuditRow:
    these, others = references.logits[name], references.logits["retrained"]
    labels = references.labels
    own, base = slice(None), slice(None)
    if name == "retrained":
        own, base = slice(0, references.num_models // 2), slice(references.num_models // 2, None)
    margins = {set_name: scores_of(these[set_name], labels[set_name]) for set_name in labels}
    against = {set_name: scores_of(others[set_name], labels[set_name]) for set_name in ("forget", "retained")}
    u, r = margins["forget"][own], against["forget"][base]
    steps = float(np.median(references.relearn_steps[name]))
    usual = float(np.median(references.relearn_steps["retrained"]))
    verdicts: Counter[str] = Counter(
        score_test(f, h, forget_labels=labels["forget"], test_labels=labels["heldout"]).verdict
        for f, h in zip(margins["forget"], margins["heldout"], strict=True)
    )
    p, q = (special.softmax(z.astype(np.float64), axis=-1) for z in (these["forget"][own], others["forget"][base]))
    shared = min(len(p), len(q))
    return FullAuditRow(
        name=name,
        lira=lira(u, r, num_bootstrap=num_bootstrap, seed=seed),
        lira_retained=lira(margins["retained"][own], against["retained"][base], num_bootstrap=num_bootstrap, seed=seed),
        epsilon=epsilon_bound(u, r, seed=seed),
        klom=klom(u, r, seed=seed).to_dict(),
        activation_distance=activation_distance(p[:shared], q[:shared]),
        relearn_steps=steps,
        relearn_ratio=steps / usual if usual else None,
        forget_accuracy=_accuracy(these["forget"], labels["forget"]),
        test_accuracy=_accuracy(these["heldout"], labels["heldout"]),
        retained_accuracy=_accuracy(these["retained"], labels["retained"]),
        verdicts={verdict: verdicts[verdict] for verdict in VERDICTS},
    )


def scores_of(logits: NDArray[Any], labels: Integers) -> Floats:
    """`logit_scaled_confidence` of many models: logits (N, n, C) and labels (n,) to float64 (N, n)."""
    num, n, num_classes = logits.shape
    return logit_scaled_confidence(logits.reshape(-1, num_classes), np.tile(labels, num)).reshape(num, n)


def _accuracy(logits: NDArray[Any], labels: Integers) -> float:
    return float((logits.argmax(-1) == labels).mean())


def _caveats(references: References) -> tuple[str, ...]:
    caveats = [
        "An attack that finds nothing does not prove forgetting: ε is bounded from below, and this attack need not be "
        "the best one.",
        "The bounds on ε are for the forget set and the method's settings at hand, over the randomness of training.",
    ]
    num = references.num_models
    if num < ADVISED_MODELS:
        caveats.append(
            f"{num} models of each kind are few: {ADVISED_MODELS} is the least that is advised. With so few, AUCs of "
            "models that do not differ lie a little below ½."
        )
    if references.subject:
        caveats.append(f"Subject: {references.subject}.")
    return tuple(caveats)


def _check_row(row: FullAuditRow) -> None:
    """Raises `InputError` for a row that lacks what the table shows."""
    for name, held, needed in (("klom", row.klom, ("forward", "backward")), ("verdicts", row.verdicts, VERDICTS)):
        if missing := [key for key in needed if key not in held]:
            raise InputError(f"{name} lacks {missing[0]!r}")
    for name, each in (("lira", row.lira), ("lira_retained", row.lira_retained)):
        if not len(each.fprs) == len(each.tprs) == len(each.tpr_intervals) > 0:
            raise InputError(f"{name} must have as many rates as intervals of them, at least one")


def _cells(row: FullAuditRow) -> tuple[str, ...]:
    low, high = row.lira.auc_interval
    tpr = row.lira.tprs[0]
    return (
        row.name,
        f"{row.lira.auc:.3f} [{low:.3f}, {high:.3f}]",
        f"{row.lira.auc_worst_decile:.3f}",
        "n/a" if tpr is None else f"{100 * tpr:.1f}%",
        f"{row.epsilon.median:.2f} / {row.epsilon.simultaneous:.2f} ({row.epsilon.ceiling:.2f})",
        f"{row.klom['forward']:.2f} / {row.klom['backward']:.2f}",
        f"{row.activation_distance:.3f}",
        f"{row.relearn_steps:.1f}",
        f"{100 * row.forget_accuracy:.1f}",
        f"{100 * row.test_accuracy:.1f}",
        f"{row.lira_retained.auc:.3f}",
        " / ".join(str(row.verdicts[verdict]) for verdict in VERDICTS),
    )
