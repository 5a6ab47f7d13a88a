"""What the commands print for people: tables and sentences."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.errors import MOST_SHOWN, printable

if TYPE_CHECKING:
    from rich.console import Console

    from expunge.auditing.full_audit import FullAudit
    from expunge.auditing.report import AuditReport
    from expunge.report.record import Report

COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow", "DONE": "blue"}


def print_report(report: "Report", as_json: bool) -> int:
    """What `forget` or `audit` measured, or its JSON document. The exit code: 3 where the audit failed, else 0."""
    code = 3 if report.verdict == "FAIL" else 0
    if as_json:
        print(report.to_json())
        return code
    trace, audit = report.trace, report.audit
    if audit is not None:
        from expunge.report.wording import advice, headline, mark_of_accuracy

        _say_verdict(audit.verdict, headline(audit))
        _print_facts(_of_audit(audit))
        say(audit.reason)
        marks = [mark for mark in [mark_of_accuracy(audit)] if mark]
        said = [*audit.left_out, *audit.doubts, *marks]
        next_step = advice(audit)
    else:
        assert trace is not None
        _say_verdict(
            "DONE",
            f"{trace.method} was run on {trace.num_forget:,} examples. Nothing tested whether they are forgotten.",
        )
        _print_facts(_of_trace(report))
        said, next_step = [], "Give unseen examples (--test DATA): then the result is audited."
    for line in (*report.notes, *said, *(trace.warnings if trace else ())):
        say(f"Note: {line}")
    print()
    page = Path(report.directory) / "report.html"  # which takes an extra to be drawn
    say(f"Report: {page if page.exists() else page.with_suffix('.json')}", whole=True)
    if trace is not None:
        say(f"Model:  {Path(report.directory)}", whole=True)
    say(f"Next:   {next_step}")
    for line in remaining(report):
        say(line)
    return code


def _say_verdict(verdict: str, sentence: str) -> None:
    """The first line: the verdict, coloured where there is a terminal, and what it says."""
    from rich.text import Text

    console = _console()
    line = Text(f" {verdict} ", style=f"bold {COLOURS[verdict]} reverse" if console.is_terminal else "")
    console.print(line.append(f" {sentence}", style="bold not reverse default" if console.is_terminal else ""))
    print()


def _of_audit(audit: "AuditReport") -> list[tuple[str, str]]:
    """Four facts of an audit, and one more where retained examples were given."""
    from expunge.report.wording import clearest

    found = {True: "found", False: "not found"}
    now = clearest(audit)
    best, fixed = audit.strongest, audit.correction is not None
    way = ": they score lower than unseen ones" if now.succeeded and now.auc < 0.5 else ""
    right = f"{percent(audit.before.forget_accuracy)} → {percent(audit.after.forget_accuracy)}"
    if audit.unseen is not None:
        right += f"; of unseen examples of these classes {percent(audit.unseen.accuracy)} are right"
    lost = f"{100 * audit.loss.max_loss:g} points may be lost"
    retained = [("Retained right", f"{percent(audit.before.retain_accuracy)} → {percent(audit.after.retain_accuracy)}")]
    return [
        (
            f"The {audit.num_forget:,} forgotten",
            f"{found[bool(audit.found_before)]} in the original (AUC {best.auc:.2f}) → "
            f"{found[bool(audit.found_after)]} now (AUC {now.auc:.2f}{way}){'; difficulty is allowed for' * fixed}",
        ),
        (
            "Test accuracy",
            f"{percent(audit.before.test_accuracy)} → {percent(audit.after.test_accuracy)}; {lost}",
        ),
        *(retained if audit.before.retain_accuracy is not None else ()),
        ("Forgotten still right", right),
        ("Not ruled out", "; ".join(_not_ruled_out(audit))),
    ]


def _not_ruled_out(audit: "AuditReport") -> list[str]:
    by = f"attacks other than {'the one' if len(audit.attacks_after) == 1 else f'the {len(audit.attacks_after)}'} made"
    both = audit.comparisons[0]
    tells = f"can tell who was forgotten (AUC {both.auc:.2f})" if both.interval[0] > 0.5 else "may compare both"
    return [f"whoever has the old model too {tells}", by]


def _of_trace(report: "Report") -> list[tuple[str, str]]:
    before, after, trace = report.before, report.after, report.trace
    assert trace is not None
    accuracies = [
        ("Forgotten still right", before.forget_accuracy, after.forget_accuracy),
        ("Retained right", before.retain_accuracy, after.retain_accuracy),
    ]
    change = [("Parameters", f"changed by {trace.change.l2:.3g} in the L2 norm")] if trace.change else []
    return [
        *((name, f"{percent(one)} → {percent(other)}") for name, one, other in accuracies if one is not None),
        *change,
        ("Work", f"{trace.steps:,} steps, {trace.seconds:.1f} s"),
    ]


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """A fact a line, wrapped at words beside its name."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, fact in facts:
        grid.add_row(Text(f"  {name}"), Text(printable(fact, most=MOST_SHOWN)))
    _console().print(grid)
    print()


def remaining(report: "Report") -> list[str]:
    """What is still there of the examples that were to be deleted, so that the user can see to it."""
    if report.trace is None:
        return []
    sources = report.sources
    copies = [f"the examples in {sources['forget']}"] if not str(sources.get("forget", "")).startswith("sample") else []
    copies += [f"the list {sources['ids']}"] if sources.get("ids") else []
    copies += [f"the original model {sources['model']}"]
    return [
        f"Still there, for you to delete: {', '.join(copies)}. The report names the forgotten examples; only you can "
        "read it.",
    ]


def say(line: str, *, whole: bool = False) -> None:
    """Prints a line with what would command the terminal written out: wrapped at words there, unless `whole`."""
    from rich.text import Text

    wraps = not whole and (sys.stdout.isatty() or "COLUMNS" in os.environ)
    _console().print(Text(printable(line, most=MOST_SHOWN)), soft_wrap=not wraps)


def _console() -> "Console":
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)  # names of classes may look like either
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = max(console.width, 100)  # a file, or another program: nothing is narrow there
    return console


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
        say(line)
    say(f"full_audit.json and full_audit.md are in {out}.")


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
    from rich.table import Table

    table = Table(show_header=any(columns), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [tuple(printable(cell, most=MOST_SHOWN) for cell in row) for row in rows]
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
    console = _console()
    console.width = max(console.width, needed)  # lines that the terminal breaks are better than cut ones
    if title:  # not the table's own, which wraps at the table's width
        console.print(printable(title, most=MOST_SHOWN), style="italic")
    console.print(table)


def percent(value: float | None) -> str:
    """A share in percent, or that it was not given."""
    return "not given" if value is None else f"{value:.1%}"


def announce(line: str) -> None:
    """Prints what is to be known before the work is done on standard error."""
    print(printable(line, most=MOST_SHOWN), file=sys.stderr)
