"""What an audit found, in plain words: the sentences at the top of report.html and the command that repeats it."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.auditing.report import AuditReport
from expunge.methods import METHODS
from expunge.records import Trace

Question = tuple[str, str, str]
"""A question, its answer in a word or two, and what speaks for it."""

NAMES = {
    "rank test": "rank test on the confidence φ",
    "classifier": "classifier on all outputs",
    "reference models": "comparison with reference models",
}
"""The attacks, for readers."""

COMPARISONS = {
    "probabilities": "how far the probabilities moved",
    "logits": "how far the logits moved",
    "residual": "how far the confidence is from what its value before predicts",
    "slope": "how the confidence rises toward the old parameters",
}
"""The ways to compare both models, for readers."""


def headline(report: AuditReport) -> str:
    """The verdict in one sentence."""
    if report.loss.works == "no":
        return "The model no longer works."
    if report.verdict == "FAIL":
        return "The forgotten examples can still be distinguished from unseen ones."
    if report.verdict == "PASS":
        return "The forgotten examples look like examples that the model never saw."
    if not report.found_before:
        return "This audit cannot see these examples in the original either."
    return "This audit cannot tell whether the examples were forgotten."


def questions(report: AuditReport) -> list[Question]:
    """The three questions that make the verdict, with their answers."""
    loss = report.loss
    works = {"yes": "yes", "no": "no", "undecided": "not clear"}[loss.works]
    now = "yes" if report.found_after else "no" if report.decisive.verdict == "PASS" else "not clear"
    return [
        ("Were they found in the original?", "yes" if report.found_before else "no", strength(report)),
        ("Are they found now?", now, _now(report)),
        (
            "Does the model still work?",
            works,
            f"Test accuracy was {percent(report.before.test_accuracy)} and is {percent(report.after.test_accuracy)}; "
            f"{100 * loss.max_loss:g} points may be lost.",
        ),
    ]


def strength(report: AuditReport) -> str:
    """How strong the attacks were: what the best of them finds in the original."""
    best = report.strongest
    found = ""
    if best.found is not None:
        found = f", and finds {percent(best.found.value, 0)} of them at 1% false positives"
    by = f"the {NAMES[best.name]}"
    if not report.found_before:
        return f"No attack distinguishes them there; the best, {by}, has an AUC of {best.auc:.2f}, as chance may give."
    return f"The best attack, {by}, distinguishes them there with an AUC of {best.auc:.2f}{found}."


def _now(report: AuditReport) -> str:
    made = "; ".join(f"{NAMES[a.name]}: AUC {a.auc:.2f}, p {_p(a.p_value)}" for a in report.attacks_after)
    return f"{made[0].upper()}{made[1:]}."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def meaning(report: AuditReport) -> str:
    """What the verdict means, in a sentence or two; why it is so stands in the report's `reason`."""
    if report.loss.works == "no" and not report.found_after:
        return "A model that is wrong about everything gives nothing away, and is of no use."
    if report.verdict == "PASS":
        allowed = ", once it is allowed for how hard they are" if report.correction else ""
        return (
            "Attacks that found the examples in the original no longer distinguish them from unseen ones"
            f"{allowed}. This is a measurement, not a proof: it rules out these attacks, not every one."
        )
    if report.verdict == "INCONCLUSIVE" and not report.found_before:
        return (
            "These examples left no trace in the original that this audit can see. So it says nothing about whether "
            "they were forgotten."
        )
    if report.verdict == "INCONCLUSIVE":
        return (
            "The examples are too few, or lie too unevenly among unseen ones, for a sure answer. Nothing here says "
            "that they were forgotten, or that they were not."
        )
    can = "Whoever has this model and one of these examples can tell, better than by guessing, that it was among them:"
    sure = "the model is still surer of {} than of examples that it never saw"
    unsure = (
        "the model is less sure of {} than of examples that it never saw. They were forgotten too hard, which shows"
    )
    if memorised(report) and over_forgotten(report):
        return f"{can} {sure.format('some')}; {unsure.format('others')}."
    if memorised(report):
        return f"{can} {sure.format('them')}."
    if over_forgotten(report):
        return f"{can} {unsure.format('them')}."
    return "Taken together, these examples stand apart from unseen ones by more than chance explains."


def advice(report: AuditReport) -> str:
    """What to do next."""
    if report.loss.works == "no":
        return (
            "Keep the original until there is a better model. Try another method, or a gentler setting: with a test "
            "set, the default method seldom costs more than a point."
        )
    if report.verdict == "PASS":
        return (
            "Put the unlearned model in place of the original, and withdraw the original: "
            "whoever holds both can compare them."
        )
    if report.verdict == "INCONCLUSIVE" and not report.found_before:
        return (
            "Audit again with more of what is to be forgotten, or with more test examples; `expunge audit --plan` says "
            "how many. Stronger is the full audit, which needs the training data. The original may give as little away."
        )
    if report.verdict == "INCONCLUSIVE":
        return (
            "Treat forgetting as unproven. Audit again with more test examples, or, where several deletions are "
            "due, with all of their examples together; retraining without them needs no such audit."
        )
    if over_forgotten(report) and not memorised(report):
        return (
            "If it matters that nobody can see what was deleted, do not release this model. The method calibrated, "
            "with a test set, an earlier end or a gentler setting may leave less of a mark; retraining leaves none."
        )
    return (
        "Do not call these examples forgotten. Try a stronger setting or another method, then audit again; "
        "retraining without them is sure to work."
    )


def memorised(report: AuditReport) -> bool:
    """Whether the score test found examples ranked too high."""
    test = report.decisive
    high = min(test.p_values["k_plus"], test.p_values["highest"]) < test.significant
    return high or (test.a1 > 0.5 and test.p_values["a1"] < test.significant)


def over_forgotten(report: AuditReport) -> bool:
    """Whether it found examples ranked too low, or more of them lie in the lower tail than chance explains."""
    test = report.decisive
    low = test.a1 < 0.5 and min(test.p_values["a1"], test.p_values["a2"]) < test.significant
    return low or test.p_values["k_minus"] < test.significant


def mark_of_accuracy(report: AuditReport) -> str | None:
    """The note that an accuracy far below the one to expect is itself a mark, or None where it is not.

    To be expected is that on unseen examples of the same classes or, with a correction, that of networks that never saw
    the forgotten ones.
    """
    forget, n = report.after.forget_accuracy, report.num_forget
    if report.correction is not None:
        expected = report.correction.expected_forget_accuracy
        chance = binomial_tail(n - round(forget * n), n, 1 - expected)
    elif report.unseen is not None:
        expected, chance = report.unseen.accuracy, report.unseen.p_value
    else:
        return None
    if expected - forget < 0.1 or chance >= 0.01:
        return None
    if report.correction is not None:
        return (
            f"The unlearned model is right on {percent(forget)} of the forgotten examples, networks that never saw "
            f"them on {percent(expected)}. So low an accuracy is itself a mark that they were deleted."
        )
    return (
        f"The unlearned model is right on {percent(forget)} of the forgotten examples and on {percent(expected)} of "
        "examples of their classes that it never saw. Had it never seen the forgotten ones, it would be right on about "
        "as many of them. So low an accuracy is itself a mark that they were deleted."
    )


def binomial_tail(count: int, trials: int, share: float) -> float:
    """P(K ≥ count) of a binomial K.

    >>> round(binomial_tail(2, 2, 0.5), 6), binomial_tail(0, 5, 0.1)
    (0.25, 1.0)
    """
    from scipy import stats

    return float(stats.binom.sf(count - 1, trials, share))


def repetition(
    report: AuditReport, trace: Trace | None, sources: Mapping[str, Any] | None, *, with_images: bool = False
) -> str:
    """The command line that does it again, one option a line; or, without sources, the call in Python."""
    if sources is None:
        if trace is None:
            return f"expunge.audit(before, after, forget, test, seed={report.seed})"
        method = METHODS[trace.method].__name__ if trace.method in METHODS else trace.method
        settings = ", ".join(f"{name}={value!r}" for name, value in trace.settings.items())
        call = ("model", "forget", f"method=expunge.{method}({settings})", f"seed={trace.seed}")
        return "".join(["expunge.unlearn(\n", *(f"    {argument},\n" for argument in call), ")"])
    options: list[Sequence[str]] = [["expunge", "forget" if trace else "audit"]]
    for name, value in {**sources, "with_images": with_images}.items():
        option = "--before" if name == "model" and trace is None else f"--{name.replace('_', '-')}"
        if value is True:
            options.append([option])
        elif value is not None and value is not False:
            options.append([option, str(value)])
    if trace is not None:
        options.append(["--method", trace.method])
        options += [["--set", f"{name}={_setting(value)}"] for name, value in trace.settings.items()]
    options += [["--seed", str(trace.seed if trace else report.seed)], ["--out", "NEW-DIRECTORY"]]
    return " \\\n  ".join(" ".join(map(shlex.quote, words)) for words in options)


def _setting(value: Any) -> str:
    """As `--set` reads it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage, or a dash.

    >>> percent(0.125), percent(None)
    ('12.5%', '–')
    """
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "example"), counted(2000, "example")
    ('1 example', '2,000 examples')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
