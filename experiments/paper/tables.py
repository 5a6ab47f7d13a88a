"""The paper's Tables 1 to 16 from our measurements: Markdown, LaTeX and CSV, alone and beside the paper's numbers."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO

from experiments.paper.measured import Measured
from experiments.paper.printed import (
    ARCHITECTURES,
    DATASETS,
    DOUBTED,
    DOUBTS,
    GROUPS,
    MEAN,
    PROVENANCE,
    ROWS,
    SEEDS,
    SIZES,
    SPLITS,
    TABLES,
    USES_RETAIN,
    Printed,
    printed,
    title,
)
from experiments.paper.statistics import BySeed, ahead, pooled_sd, summarize
from expunge.markdown import markdown

MISSING = "–"
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cell of a table: what was measured, in percent, and what the paper has.

    Attributes:
        table, split, row, size: where it stands.
        n: seeds measured; in Tables 1 to 4, seeds that all three architectures have.
        failed: seeds that failed, of all architectures of the table.
        mean, sd, low, high: None where not measured; sd, low and high also where n = 1. The deviation is the
            sample's over seeds; in Tables 1 to 4, where n = 1 has one too, the population's over architectures and
            seeds, as in the paper. The interval is for the mean over seeds, in Tables 1 to 4 of the average over the
            three architectures.
        best: significantly better than every other row of its group: retained and test accuracy higher, accuracy on
            the forget set lower. See `experiments.paper.statistics.ahead`.
        paper: the paper's cell.
        difference: ours less the paper's, of the numbers as shown; None where either is missing.
    """

    table: int
    split: str
    row: str
    size: int
    n: int
    failed: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    best: bool
    paper: Printed
    difference: float | None


Entries = dict[tuple[int, str, str, int], Entry]


def entries(measured: Measured) -> Entries:
    """All 2,016 cells of the 16 tables, measured or not."""
    found: Entries = {}
    for table in TABLES:
        for split in SPLITS:
            for size in SIZES:
                values = {row: _values(measured, table, split, row, size) for row in ROWS}
                averages = {row: _averaged(of_architectures) for row, of_architectures in values.items()}
                best = _best(averages, split)
                for row in ROWS:
                    found[table, split, row, size] = _entry(
                        table,
                        split,
                        row,
                        size,
                        values[row],
                        averages[row],
                        row in best,
                        _failed(measured, table, row, size),
                    )
    return found


def _architectures(table: int) -> tuple[str, ...]:
    architecture = TABLES[table][1]
    return tuple(ARCHITECTURES) if architecture == MEAN else (architecture,)


def _values(measured: Measured, table: int, split: str, row: str, size: int) -> list[dict[int, float]]:
    """{seed: percent} of each architecture of the table."""
    dataset = TABLES[table][0]
    return [
        {seed: 100 * value for seed, value in measured.values(dataset, architecture, row, size, split).items()}
        for architecture in _architectures(table)
    ]


def _averaged(of_architectures: Sequence[BySeed]) -> dict[int, float]:
    """{seed: mean over architectures}, for the seeds that every one has."""
    seeds = set.intersection(*(set(values) for values in of_architectures))
    return {seed: sum(values[seed] for values in of_architectures) / len(of_architectures) for seed in sorted(seeds)}


def _failed(measured: Measured, table: int, row: str, size: int) -> int:
    dataset = TABLES[table][0]
    return sum(len(measured.failures.get((dataset, name, row, size), {})) for name in _architectures(table))


def _best(averages: dict[str, dict[int, float]], split: str) -> set[str]:
    """The rows that are significantly better than every other of their group, all of which must be measured."""
    sign = -1 if split == "forget" else 1
    signed = {row: {seed: sign * value for seed, value in values.items()} for row, values in averages.items()}
    return {
        row for group in GROUPS for row in group if ahead(signed[row], [signed[o] for o in group if o != row]) is True
    }


def _entry(
    table: int,
    split: str,
    row: str,
    size: int,
    values: Sequence[BySeed],
    average: dict[int, float],
    best: bool,
    failed: int,
) -> Entry:
    paper = printed()[table, split, row, size]
    if not average:
        return Entry(
            table=table, split=split, row=row, size=size, n=0, failed=failed, mean=None, sd=None, low=None, high=None,
            best=False, paper=paper, difference=None,
        )  # fmt: skip
    found = summarize(list(average.values()), least=0, most=100)
    sd = found.sd if len(values) == 1 else pooled_sd([[of_one[seed] for seed in average] for of_one in values])
    difference = None if paper.mean is None else round(round(found.mean, 2) - paper.mean, 2)
    return Entry(
        table=table, split=split, row=row, size=size, n=found.n, failed=failed, mean=found.mean, sd=sd, low=found.low,
        high=found.high, best=best, paper=paper, difference=difference,
    )  # fmt: skip


def measured_tables(found: Entries) -> list[int]:
    """The tables with a number."""
    return [table for table in TABLES if any(e.n for e in found.values() if e.table == table)]


def to_csv(found: Entries) -> str:
    """One line a cell, in percent and percentage points; empty where there is no number."""
    out = StringIO()
    head = (
        "table dataset architecture split row forget_size n failed mean_percent sd_percent low_percent high_percent "
        "best paper_mean_percent paper_sd_percent paper_provenance paper_doubt difference_points"
    )
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head.split())
    for e in found.values():
        ours = ["" if value is None else f"{value:.6f}" for value in (e.mean, e.sd, e.low, e.high)]
        theirs = ["" if value is None else f"{value:.2f}" for value in (e.paper.mean, e.paper.sd)]
        gap = "" if e.difference is None else f"{e.difference:+.2f}"
        place = (e.table, *TABLES[e.table], e.split, e.row, e.size)
        writer.writerow([*place, e.n, e.failed, *ours, int(e.best), *theirs, e.paper.provenance, e.paper.doubt, gap])
    return out.getvalue()


def to_markdown(found: Entries, measured: Measured, *, beside_paper: bool = False) -> str:
    """All tables with a number, what they hold, and what was not measured."""
    heading = "# Accuracies beside the paper's" if beside_paper else "# Accuracies"
    parts = [heading, *_legend(beside_paper)]
    cell = _beside if beside_paper else _alone
    for table in measured_tables(found):
        rows = []
        for split, sign in SPLITS.items():
            for row, name in ROWS.items():
                label = f"{name}{' ᴿ' if row in USES_RETAIN else ''}"
                cells = (cell(found[table, split, row, size]) for size in SIZES)
                rows.append((sign if row == "before" else "", label, *cells))
        head = ("", "method", *map(str, SIZES))
        parts += [f"## {title(table)}", markdown(head, rows, left=2), *_gaps(found, measured, table)]
    return "\n\n".join([*parts, *_absent(found), *measured.notes]) + "\n"


def _alone(e: Entry) -> str:
    if e.mean is None:
        return MISSING
    number = f"{e.mean:.2f}" if e.sd is None else f"{e.mean:.2f}{_NO_BREAK}±{_NO_BREAK}{e.sd:.2f}"
    number = f"**{number}**" if e.best else number
    interval = "" if e.low is None or e.high is None else f" [{e.low:.2f}, {e.high:.2f}]"
    return f"{number}{interval}{'' if e.n == SEEDS else f' n={e.n}'}"


def _beside(e: Entry) -> str:
    ours = MISSING if e.mean is None else f"**{e.mean:.2f}**" if e.best else f"{e.mean:.2f}"
    theirs = MISSING if e.paper.mean is None else f"{e.paper.mean:.2f}{e.paper.mark}"
    gap = "" if e.difference is None else f", {_signed(e.difference)}"
    return f"{ours} ({theirs}{gap})"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _legend(beside_paper: bool) -> list[str]:
    what = (
        "Each cell: our mean (the paper's, ours less the paper's), in percent and points."
        if beside_paper
        else f"Each cell: mean ± standard deviation [95% interval of the mean], in percent; n = {SEEDS} seeds but "
        "where a cell says otherwise. The deviation is the sample's over seeds; in Tables 1 to 4, averages over three "
        "architectures, it is the population's over architectures and seeds, as in the paper."
    )
    shared = (
        "Columns: size of the forget set D_f. D_r: retained examples. D_t: test set. **Bold**: significantly better "
        "than every other method of its group (higher on D_r and D_t, lower on D_f): paired t-tests by seed, Holm over "
        f"the others, 5%. Methods marked ᴿ use retained examples too and are a group of their own. {MISSING}: none."
    )
    if not beside_paper:
        return [what, shared]
    doubts = "; ".join(DOUBTS.values())
    marks = (
        f"{PROVENANCE['collapsed']}: the paper's text has it once for several columns. {PROVENANCE['recomputed']}: "
        f"lost from the paper's text, averaged from the tables of its architectures. {DOUBTED}: doubtful ({doubts})."
    )
    return [what, shared, marks]


def _gaps(found: Entries, measured: Measured, table: int) -> list[str]:
    """What the table lacks: seeds, settings, failed cells."""
    dataset, architecture = TABLES[table]
    counts = Counter(found[table, "forget", row, size].n for row in ROWS for size in SIZES)
    told = [f"{count} with {n} of {SEEDS} seeds" for n, count in sorted(counts.items(), reverse=True) if n]
    lines = [f"Measured of {len(ROWS) * len(SIZES)} settings: {', '.join(told)}."]
    missing = [
        f"{name} {', '.join(map(str, sizes))}"
        for row, name in ROWS.items()
        if (sizes := [size for size in SIZES if not found[table, "forget", row, size].n])
    ]
    if missing:
        lines.append(f"Not measured: {'; '.join(missing)}.")
    failures = [
        f"{ROWS[row]} at {size}, seed {seed}{f' ({ARCHITECTURES[name]})' if architecture == MEAN else ''}: "
        + " ".join(why.split())
        for name in _architectures(table)
        for row in ROWS
        for size in SIZES
        for seed, why in sorted(measured.failures.get((dataset, name, row, size), {}).items())
    ]
    if failures:
        lines.append(f"Failed: {len(failures)}. {'; '.join(failures)}.")
    return lines


def _absent(found: Entries) -> list[str]:
    there = measured_tables(found)
    averages = [str(table) for table in TABLES if table not in there and TABLES[table][1] == MEAN]
    others = [
        f"{table} ({DATASETS[TABLES[table][0]]}, {ARCHITECTURES[TABLES[table][1]]})"
        for table in TABLES
        if table not in there and TABLES[table][1] != MEAN
    ]
    lines = [f"Not measured at all: Table{'s' * (len(others) > 1)} {', '.join(others)}."] if others else []
    if averages:
        which = f"Tables {', '.join(averages)} average" if len(averages) > 1 else f"Table {averages[0]} averages"
        lines.append(f"{which} over three architectures, which are not all measured.")
    return lines


def to_latex(found: Entries, measured: Measured, *, beside_paper: bool = False) -> str:
    r"""All tables with a number as `table*` environments, to \input; they need the package booktabs."""
    parts = ["% Needs \\usepackage{booktabs}.", *(f"% {_ascii(line)}" for line in _legend(beside_paper))]
    for table in measured_tables(found):
        lines = [
            "\\begin{table*}",
            "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
            f"\\caption{{{_tex(title(table).partition('. ')[2])}. {_tex(' '.join(_gaps(found, measured, table)))}}}",
            f"\\label{{tab:{'beside' if beside_paper else 'ours'}-{table}}}",
            "\\begin{tabular}{ll" + "r" * len(SIZES) + "}",
            "\\toprule",
            " & Method & " + " & ".join(f"$|D_f|={size}$" for size in SIZES) + " \\\\",
        ]
        for split, sign in SPLITS.items():
            lines.append("\\midrule")
            for row, name in ROWS.items():
                cells = [found[table, split, row, size] for size in SIZES]
                label = _tex(name) + ("$^R$" if row in USES_RETAIN else "")
                first = f"${sign}$" if row == "before" else ""
                lines.append(_tex_row(first, label, (_tex_beside if beside_paper else _tex_alone), cells))
                if not beside_paper and any(e.low is not None for e in cells):
                    lines.append(_tex_row("", "", _tex_interval, cells))
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table*}"]))
    return "\n\n".join([*parts, *(f"% {_ascii(line)}" for line in (*_absent(found), *measured.notes))]) + "\n"


def _tex_row(first: str, label: str, cell: Callable[[Entry], str], cells: Iterable[Entry]) -> str:
    return " & ".join([first, label, *map(cell, cells)]) + " \\\\"


def _tex_alone(e: Entry) -> str:
    if e.mean is None:
        return "--"
    number = f"{e.mean:.2f}" if e.sd is None else f"{e.mean:.2f} $\\pm$ {e.sd:.2f}"
    return f"\\textbf{{{number}}}" if e.best else number


def _tex_interval(e: Entry) -> str:
    if e.low is None or e.high is None:
        return ""
    return f"{{\\tiny [{e.low:.2f}, {e.high:.2f}]{'' if e.n == SEEDS else f' $n={e.n}$'}}}"


def _tex_beside(e: Entry) -> str:
    ours = "--" if e.mean is None else f"\\textbf{{{e.mean:.2f}}}" if e.best else f"{e.mean:.2f}"
    theirs = "--" if e.paper.mean is None else f"{e.paper.mean:.2f}{_tex(e.paper.mark)}"
    gap = "" if e.difference is None else f", ${e.difference:+.2f}$"
    return f"{ours} ({theirs}{gap})"


_TEX = {
    "\\": "\\textbackslash{}", "%": "\\%", "&": "\\&", "#": "\\#", "_": "\\_", "$": "\\$", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "δ": "$\\delta$", "¹": "$^1$", "³": "$^3$",
    "†": "$^\\dagger$", "‡": "$^\\ddagger$", "?": "$^?$", "–": "--", "−": "$-$", "±": "$\\pm$", "ᴿ": "$^R$",
}  # fmt: skip


def _tex(text: str) -> str:
    """Text for LaTeX; what it has no sign for here becomes a question mark."""
    return "".join(_TEX.get(letter, letter if letter.isascii() and letter.isprintable() else "?") for letter in text)


_ASCII = str.maketrans({"±": "+-", "–": "--", "−": "-", "ᴿ": "^R", "†": "dagger", "‡": "double dagger"})


def _ascii(text: str) -> str:
    return " ".join(text.translate(_ASCII).encode("ascii", "replace").decode().split())
