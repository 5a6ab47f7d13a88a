"""The tables of report.html: rows of text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from expunge.auditing.report import AuditReport, Recognisable
from expunge.metrics import ParameterChange
from expunge.metrics.verdict import ScoreTest
from expunge.records import Measurement, Trace
from expunge.report.figures import compact
from expunge.report.wording import COMPARISONS, NAMES, WAYS, percent

Row = tuple[str | tuple[str, str], ...]
"""Cells: text, or a value and what qualifies it."""


def accuracy_rows(before: Measurement, after: Measurement, counts: Mapping[str, int]) -> list[Row]:
    """A row a set, with its size of `counts`, by name of the set."""
    rows: list[Row] = []
    for name, key in (
        ("Forgotten examples", "forget"),
        ("Test examples, never seen", "test"),
        ("Retained examples", "retain"),
    ):
        was, now = (getattr(each, f"{key}_accuracy") for each in (before, after))
        if was is None or now is None:
            rows.append((name, "–", "not given", "not given", "–"))
        else:
            points = f"{100 * (now - was):+.1f}".replace("-", "−")
            count = counts.get(key)
            rows.append((name, "–" if count is None else f"{count:,}", percent(was), percent(now), points))
    return rows


def test_rows(before: ScoreTest, after: ScoreTest) -> list[Row]:
    """A row a figure of the rank test."""
    tests, n, p = (before, after), after.num_forget, after.p_values
    rows: list[Row] = [
        ("Mean percentile rank, A1", *((f"{t.a1:.3f}", _span(t.a1_interval)) for t in tests), "0.5", _p_value(p["a1"])),
        (
            "Distance from the middle, A2",
            *((f"{t.a2:.3f}", f"up to {t.a2_upper:.3f}") for t in tests),
            "0.5",
            _p_value(p["a2"]),
        ),
        (
            "Above 99% of unseen, k⁺",
            *(f"{t.k_plus:,} of {n:,}" for t in tests),
            f"{n / 100:.2g}",
            _p_value(p["k_plus"]),
        ),
        (
            "Below 99% of unseen, k⁻",
            *(f"{t.k_minus:,} of {n:,}" for t in tests),
            f"{n / 100:.2g}",
            _p_value(p["k_minus"]),
        ),
        *(
            (name, *(("–", "–")), "–", _p_value(p[key]))
            for name, key in (
                ("Above all of unseen", "highest"),
                ("Below all of unseen", "lowest"),
                ("The class that stands out most, A1", "one_class"),
            )
        ),
        ("Area under the ROC curve", *((f"{t.auc:.3f}", _span(t.auc_interval)) for t in tests), "0.5", "–"),
    ]
    for rate in (0.01, 0.001):
        name = f"Found at {100 * rate:g}% false positives"
        rows.append((name, *(_rate(t.tpr_at_fpr.get(rate)) for t in tests), f"{100 * rate:g}%", "–"))
    return rows


def _rate(rate: Any) -> str | tuple[str, str]:
    """A `Rate` in percent; where there is no threshold, n/a."""
    return "n/a" if rate is None else (percent(rate.value), f"{percent(rate.low)} to {percent(rate.high)}")


def _span(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def attack_rows(report: AuditReport) -> list[Row]:
    """A row an attack: on the model before, and after."""
    rows: list[Row] = []
    for before, after in zip(report.attacks_before, report.attacks_after, strict=True):
        cells = ((f"{a.auc:.3f}", _span(a.auc_interval)) for a in (before, after))
        chances = (_p_value(a.p_value) for a in (before, after))
        rows.append((_capital(NAMES[before.name]), *cells, *chances, f"{before.level:g}"))
    return rows


def comparison_rows(report: AuditReport) -> list[Row]:
    """A row a way to compare both models, the most telling first."""
    return [
        (_capital(COMPARISONS[each.name]), (f"{each.auc:.3f}", _span(each.interval)), "0.5")
        for each in report.comparisons
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def change_rows(change: ParameterChange, relative: tuple[float, float] | None) -> list[Row]:
    """A row a part of the network: how far its parameters moved; `relative` to the original, (L1, L2)."""
    rows: list[Row] = [("All parameters", compact(change.l1), compact(change.l2))]
    if relative is not None:
        rows.append(("relative to the original", *(percent(share, 2) for share in relative)))
    return [*rows, ("Last layer alone", compact(change.l1_last_layer), compact(change.l2_last_layer))]


def recognisable_rows(found: Sequence[Recognisable]) -> list[Row]:
    """A row an example, with which way it stands out."""
    return [
        (each.id, each.label, each.predicted, percent(each.percentile_rank, 2), _capital(WAYS[each.side]))
        for each in found
    ]


def sign_rows(report: AuditReport) -> list[Row]:
    """Of relearning."""
    rows: list[Row] = []
    if (relearning := report.relearning) is not None:
        controls = sorted(relearning.control_steps)
        span = f"{compact(controls[0])} to {compact(controls[-1])}" if controls else "–"
        rows += [
            ("Steps to relearn the forgotten examples", compact(relearning.steps), (span, f"{len(controls)} draws")),
            ("Steps relative to unseen examples, ρ", f"{relearning.ratio:.2f}", "1"),
            (
                "p-value of relearning so fast",
                "n/a" if relearning.p_value is None else _p_value(relearning.p_value),
                "above 0.05",
            ),
        ]
    return rows


def run_rows(report: AuditReport | None, trace: Trace | None) -> list[Row]:
    """What ran, how long, and with which versions."""
    rows: list[Row] = []
    versions: dict[str, str] = {}
    if trace is not None:
        labels = asdict(trace.pseudo_labels) if trace.pseudo_labels else {}
        rows += [
            ("method", trace.method),
            ("seed", str(trace.seed)),
            ("steps", f"{trace.steps:,}"),
            ("examples seen in them", f"{trace.examples_seen:,}"),
            *((f"pseudo-labels: {kind.replace('_', ' ')}", f"{count:,}") for kind, count in labels.items()),
            ("retained examples used", f"{trace.num_retain:,}"),
            ("seconds to forget", f"{trace.seconds:.1f}"),
            ("peak memory", "n/a" if trace.peak_bytes is None else f"{trace.peak_bytes / 2**20:,.0f} MiB"),
            ("ran on", trace.device),
            ("digest of the forget set", trace.forget_digest),
        ]
        versions |= trace.versions
    if report is not None:
        rows += [
            ("classes", f"{report.num_classes:,}"),
            *([("parameters", f"{report.change.num_parameters:,}")] if report.change else []),
            ("seed of the audit", str(report.seed)),
            *([("audited on", report.device)] if report.device else []),
            *((f"seconds of the audit: {part}", f"{seconds:.1f}") for part, seconds in report.seconds.items()),
        ]
        versions = {**report.versions, **versions}
    return [*rows, *sorted(versions.items())]
