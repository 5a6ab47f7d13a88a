"""What an audit found, in plain words: the sentences at the top of report.html and of the terminal."""

from expunge.auditing.attacks import Attack
from expunge.auditing.report import AuditReport

WAYS = {"memorised": "too confident", "over-forgotten": "too wrong"}
"""Which way a forgotten example is recognisable, for readers, by `Recognisable.side`."""

Question = tuple[str, str, str]
"""A question, its answer in a word or two, and what speaks for it."""

Finding = tuple[str, str]
"""A question and its answer."""

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
    if report.decisive.verdict == "PASS":
        return "The examples are no longer found, but whether the model still works is not clear."
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
    best, num = report.strongest, len(report.attacks_before)
    if not report.found_before:
        none = (
            "The only attack does not find them there:" if num == 1 else f"None of the {num} attacks finds them there:"
        )
        return f"{none} the {NAMES[best.name]} reaches an AUC of {best.auc:.2f}, and guessing has 0.50."
    said = f"{_share_of_attacks(len(report.found_before), num)} there."
    if best.auc <= 0.5:
        return f"{said} The strongest is the {NAMES[best.name]} (AUC {best.auc:.2f}, p {_p(best.p_value)})."
    return (
        f"{said} Shown a forgotten and an unseen example, the best one ({NAMES[best.name]}) picks the forgotten one in "
        f"{percent(best.auc, 0)} of cases; guessing: 50%."
    )


def clearest(report: AuditReport) -> Attack:
    """The attack to name for now: the clearest that finds them, else the one that was the strongest on the original."""
    if report.found_after:
        return min(report.found_after, key=lambda attack: attack.p_value / attack.level)
    same = report.strongest.name
    return next((attack for attack in report.attacks_after if attack.name == same), report.attacks_after[0])


def _now(report: AuditReport) -> str:
    num, found, named = len(report.attacks_after), report.found_after, clearest(report)
    measured = f"{NAMES[named.name]} (AUC {named.auc:.2f}, p {_p(named.p_value)})"
    if found:
        way = ways(report)
        return f"{_share_of_attacks(len(found), num)}, the clearest the {measured}.{f' {way}' if way else ''}"
    none = "The only attack does not find them." if num == 1 else f"None of the {num} attacks finds them."
    enough = "" if report.decisive.verdict == "PASS" else " That is too little to say no."
    if not report.found_before or report.strongest.name != named.name or named.auc <= 0.5:
        return f"{none} The same attack as above now: {measured}.{enough}"
    return (
        f"{none} The one that was the best on the original ({NAMES[named.name]}) picks the forgotten one in "
        f"{percent(named.auc, 0)} of cases now.{enough}"
    )


def _share_of_attacks(found: int, num: int) -> str:
    if num == 1:
        return "The only attack finds them"
    return f"{found} of {num} attacks find{'s' if found == 1 else ''} them"


def ways(report: AuditReport) -> str:
    """Which way the forgotten examples stand out, in a sentence; "" where the rank test does not say."""
    high, low = memorised(report), over_forgotten(report)
    if high and low:
        return "The model is too confident about some of them, and too wrong about others."
    if high:
        return "The model is too confident about them."
    return "The model is too wrong about them." if low else ""


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def meaning(report: AuditReport) -> str:
    """What the verdict means, in a sentence or two; why it is so stands in the report's `reason`."""
    if report.loss.works == "no" and not report.found_after:
        return "It lost more accuracy than is accepted. A ruined model may give nothing away, and is of no use."
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
    if report.verdict == "INCONCLUSIVE" and report.decisive.verdict == "PASS":
        return (
            "Attacks that found the examples in the original no longer distinguish them from unseen ones. But accuracy "
            "fell, and the test examples are too few to say whether by more than is accepted."
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
    if report.verdict == "INCONCLUSIVE" and report.decisive.verdict == "PASS":
        return "Audit again with more test examples, which tell whether the model still works."
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


def still_right(report: AuditReport) -> Finding:
    """On how many forgotten examples the model is right, beside what to expect, and what follows."""
    n, right = report.num_forget, round(report.after.forget_accuracy * report.num_forget)
    question = f"{right:,} of {n:,} are still right: did it not forget?"
    if mark := mark_of_accuracy(report):
        return f"Only {right:,} of {n:,} are still right: is that forgotten?", mark
    before = f"The original was right on {round(report.before.forget_accuracy * n):,} of them."
    if report.correction is not None:
        expected = report.correction.expected_forget_accuracy
        like = f"Networks that never saw the forgotten examples are right on {percent(expected)} of them"
    elif report.unseen is not None:
        expected = report.unseen.accuracy
        like = f"On unseen examples of the same classes this model is right on {percent(expected)}"
    else:
        return question, (
            f"{before} Nothing says how many are to be expected, since there are no unseen examples of their classes."
        )
    if right / n - expected >= 0.05 and binomial_tail(right, n, expected) < 0.01:
        more = (
            "more, though no attack finds them" if report.verdict == "PASS" else "a sign that it still remembers some"
        )
        return question, (
            f"{before} {like}, so about {_about(expected * n)} of {n:,} are to be expected. "
            f"It is right on {right:,}: {more}."
        )
    return question, (
        f"{before} {like}, so about {_about(expected * n)} of {n:,} are to be expected if it treats them as unseen. "
        "Forgetting does not make a model wrong: it makes the model as good on them as on unseen examples."
    )


def _about(number: float) -> str:
    return f"{round(number):,}"


def shows(report: AuditReport) -> list[str]:
    """What the audit shows, one sentence each."""
    now, num, found = report.found_after, len(report.attacks_after), []
    attacks = "attack" if num == 1 else "attacks"
    if report.loss.works == "no":
        found.append(
            f"The model lost more than the {100 * report.loss.max_loss:g} points of accuracy that may be lost."
        )
    if now:
        which = "; ".join(NAMES[attack.name] for attack in now)
        found.append(f"{len(now)} of {num} {attacks} can still distinguish the examples from unseen ones: {which}.")
    elif not report.found_before:
        found.append(f"The {attacks} used here can distinguish the examples from unseen ones by neither model.")
    else:
        before = "It" if num == 1 else f"{len(report.found_before)} of {num}"
        none = "The attack used here cannot" if num == 1 else f"None of the {num} attacks used here can"
        found.append(f"{none} distinguish the examples from unseen ones. {before} could by the original.")
        if report.decisive.verdict != "PASS":
            found.append("The figures still leave room for doubt, so that this is no proof of forgetting.")
    accuracies = f"{percent(report.before.test_accuracy)} of the unseen ones before and "
    found.append(
        f"This was measured on {counted(report.num_forget, 'forgotten example')} and "
        f"{counted(report.num_test, 'unseen one')}. The model was right on {accuracies}"
        f"is right on {percent(report.after.test_accuracy)} now."
    )
    return found


def shows_not(report: AuditReport, method: str | None = None) -> list[str]:
    """What the audit does not show, one sentence each; which examples were left out stands elsewhere."""
    elsewhere = {*report.left_out, *report.doubts}
    found = [caveat for caveat in report.caveats if caveat not in elsewhere]
    found.append(with_both_models(report))
    if method == "calibrated":
        found.append("The method calibrated adjusts the score of the rank test. It was not made against other attacks.")
    found.append(
        "It is about this model alone. Copies of the examples in data, backups or other models may still be there."
    )
    found.append("It does not say whether a legal duty is fulfilled, or which model is in use: compare fingerprints.")
    return found


def with_both_models(report: AuditReport) -> str:
    """What someone sees who has the model before and after; never part of the verdict."""
    best = report.comparisons[0]
    if best.interval[0] > 0.5:
        return (
            "It does not count what someone sees who has both models. Comparing them picks out the forgotten examples "
            f"(AUC {best.auc:.2f}): withdraw the old model, and every copy of it."
        )
    return "It does not count what someone sees who has both models; none of the comparisons made here shows them."


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
