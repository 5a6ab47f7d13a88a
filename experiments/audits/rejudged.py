"""The networks of other comparisons, judged by three questions: found in the original, found now, does it still work.

Their lines hold the score test's verdict and the test accuracy, of the original too. So this is the rank test alone,
without the other attacks.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import places
from experiments.grid.results import Result, read_results
from expunge.auditing import AuditSettings
from expunge.markdown import markdown

SETS = ("better", "paper")


def judged(original: Result, result: Result) -> str:
    """The verdict on a network, from that of the score test on it and on its original."""
    assert original.test_accuracy is not None
    assert result.test_accuracy is not None
    lost = original.test_accuracy - result.test_accuracy > AuditSettings().max_loss
    if lost or result.audit_verdict == "FAIL":
        return "FAIL"
    return str(result.audit_verdict) if original.audit_verdict == "FAIL" else "INCONCLUSIVE"


def rejudged_table() -> str:
    """How many originals, ruined networks and others passed by the score test alone, and pass by three questions."""
    rows = []
    for name in SETS:
        counts: Counter[tuple[str, str]] = Counter()
        for original, result in _pairs(places.RESULTS / name):
            assert original.test_accuracy is not None
            assert result.test_accuracy is not None
            lost = original.test_accuracy - result.test_accuracy >= AuditSettings().max_loss
            kind = "originals" if result is original else "lost 5 points or more" if lost else "others"
            counts[kind, "all"] += 1
            counts[kind, "alone"] += result.audit_verdict == "PASS"
            counts[kind, "three"] += judged(original, result) == "PASS"
        rows += [
            (f"results/{name}: {kind}", *(str(counts[kind, column]) for column in ("all", "alone", "three")))
            for kind in ("originals", "lost 5 points or more", "others")
        ]
    table = markdown(["networks", "number", "PASS by the score test alone", "PASS by three questions"], rows)
    of = "results/better and results/paper, whose lines name machine and commit"
    return f"{table}\n\n{of} · `python -m experiments docs`"


def _pairs(directory: Path) -> list[tuple[Result, Result]]:
    """Every result that was audited, with that of its own original on the same draw and test examples."""
    found: Sequence[Result] = [r for r in read_results(directory) if r.audit_verdict and r.test_accuracy is not None]
    originals: dict[Any, Result] = {_key(result): result for result in found if result.method == "before"}
    return [(originals[_key(result)], result) for result in found if _key(result) in originals]


def _key(result: Result) -> tuple[Any, ...]:
    return result.model_digest, result.forget_size, result.seed, result.test_measured
