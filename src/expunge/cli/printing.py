"""What the commands print for people: tables and sentences."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.errors import printable

if TYPE_CHECKING:
    from expunge.auditing.full_audit import FullAudit
    from expunge.report.record import Report


def print_report(report: "Report", as_json: bool) -> int:
    """What `forget` or `audit` measured, or its JSON document. The exit code: 3 where the audit failed, else 0."""
    code = 3 if report.verdict == "FAIL" else 0
    if as_json:
        print(report.to_json())
        return code
    before, after, trace, audit = report.before, report.after, report.trace, report.audit
    rows = [
        (name, percent(getattr(before, key)), percent(getattr(after, key)))
        for name, key in (
            ("forget accuracy", "forget_accuracy"),
            ("retain accuracy", "retain_accuracy"),
            ("test accuracy", "test_accuracy"),
        )
    ]
    if audit is not None:
        rows += [
            (name, f"{getattr(audit.scores_before, key):.3f}", f"{getattr(audit.scores_after, key):.3f}")
            for name, key in (
                ("mean percentile rank A1 (0.5: as unseen)", "a1"),
                ("both tails A2 (0.5: as unseen)", "a2"),
            )
        ]
        if fixed := audit.correction:
            rows += [
                (
                    f"{name}, difficulty calibrated",
                    f"{getattr(fixed.before, key):.3f}",
                    f"{getattr(fixed.after, key):.3f}",
                )
                for name, key in (("A1", "a1"), ("A2", "a2"))
            ]
    change = trace.change if trace else audit.change if audit else None
    if change is not None:
        rows += [("parameter change, L1", "", f"{change.l1:.4g}"), ("parameter change, L2", "", f"{change.l2:.4g}")]
    if trace is not None:
        rows += [("steps", "", str(trace.steps)), ("seconds", "", f"{trace.seconds:.1f}")]
        title = f"{trace.method}: {trace.num_forget:,} examples to forget"
    else:
        title = f"audit of {audit.num_forget if audit else 0:,} forgotten examples"
    print_table(title, ["", "before", "after"], rows)
    left_out = audit.left_out if audit else ()
    for line in (*report.notes, *left_out, *(f"warning: {w}" for w in (trace.warnings if trace else ()))):
        print(line)
    if audit is not None:
        from expunge.report.wording import headline, questions

        print(f"Verdict: {audit.verdict}. {headline(audit)}")
        for question, answer, why in questions(audit):
            print(f"  {question} {answer.capitalize()}. {why}")
        print(audit.reason)
        for line in audit.doubts:
            print(line)
        from expunge.report.wording import mark_of_accuracy

        if mark := mark_of_accuracy(audit):
            print(mark)
    written = "The model and the report are" if trace else "The report is"
    print(f"{written} in {report.directory}.")
    return code


def print_full_audit(found: "FullAudit", out: Path, as_json: bool) -> None:
    """A full audit's rows in two tables, which fit 100 columns, or its JSON document."""
    if as_json:
        print(found.to_json())
        return
    head, rows = found.cells()
    for title, columns in (
        ("Can it be distinguished from retraining?", slice(1, 6)),
        ("What else it does", slice(6, None)),
    ):
        print_table(title, [head[0], *head[columns]], [(row[0], *row[columns]) for row in rows])
    for line in found.caveats:
        print(line)
    print(f"full_audit.json and full_audit.md are in {out}.")


def print_plan(num_forget: int | None, num_test: int | None, num_classes: int, as_json: bool) -> None:
    """How likely PASS is after perfect forgetting, and how many examples make it likely. Raises `InputError`."""
    from dataclasses import asdict

    from expunge.metrics.planning import MOST, WANTED, plan

    found = plan(num_forget=num_forget, num_test=num_test, num_classes=num_classes)
    if as_json:
        import json

        print(json.dumps(asdict(found), indent=2))
        return
    of = f" of {num_classes:,} classes" if num_classes > 1 else ""
    if found.pass_rate is not None:
        print(
            f"{num_forget:,} forgotten and {num_test:,} held-out examples{of}: a model that forgot perfectly passes in "
            f"about {found.pass_rate:.0%} of audits."
        )
    for given, given_as, needed, needed_as in (
        (num_forget, "forgotten", found.test_needed, "held-out"),
        (num_test, "held-out", found.forget_needed, "forgotten"),
    ):
        if given is None:
            continue
        if needed is None:
            print(f"With {given:,} {given_as} examples{of}, not even {MOST:,} {needed_as} ones make that {WANTED:.0%}.")
        else:
            print(f"With {given:,} {given_as} examples{of}, about {needed:,} {needed_as} ones make it {WANTED:.0%}.")


def print_table(title: str, columns: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    """A table under its title; without a head where `columns` are all empty."""
    from textwrap import fill

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=any(columns), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [tuple(map(printable, row)) for row in rows]
    needed = 2
    for n, column in enumerate(columns):
        if n == 0 or column.startswith("what"):
            table.add_column(column, overflow="fold")
            needed += 16
            continue
        # Names give way where the terminal is narrow; a number without its end would be another number.
        longest = max((len(line) for row in rows for line in row[n].splitlines()), default=0)
        head = fill(column, max(longest, 8), break_long_words=False, break_on_hyphens=False)
        table.add_column(head, justify="right", no_wrap=True)
        needed += 2 + max(longest, *map(len, head.splitlines() or [""]))
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, emoji=False)  # names of classes may look like either
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = max(console.width, 100)  # a file, or another program: nothing is narrow there
    console.width = max(console.width, needed)  # lines that the terminal breaks are better than cut ones
    if title:  # not the table's own, which wraps at the table's width
        console.print(title, style="italic", highlight=False)
    console.print(table)


def percent(value: float | None) -> str:
    """A share in percent, or that it was not given."""
    return "not given" if value is None else f"{100 * value:.2f}%"


def announce(line: str) -> None:
    """Prints what is to be known before the work is done on standard error."""
    print(printable(line), file=sys.stderr)
