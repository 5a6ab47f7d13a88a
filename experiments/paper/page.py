"""The paper's tables, figures and claims from results/paper, for docs/research/paper.md and the pages beside it.

    python -m experiments paper

draws the figures into docs/research/figures/ and writes their captions; `python -m experiments docs` writes the tables.
"""

import csv
from collections import Counter
from functools import cache
from io import StringIO
from pathlib import Path
from statistics import mean

from experiments import places
from experiments.audits.rejudged import judged
from experiments.grid import Result, current, load_grid, read_results
from experiments.paper.claims import Comparison, compare
from experiments.paper.figures import draw_figures
from experiments.paper.measured import Measured, load_measured
from experiments.paper.printed import ARCHITECTURES, DATASETS, ROWS, SIZES
from experiments.paper.tables import entries, to_csv, to_markdown
from expunge.markdown import markdown

RESULTS = places.ROOT / "results" / "paper"
GRID = places.ROOT / "grids" / "paper.toml"
WEAK = places.ROOT / "grids" / "paper-weak.toml"
"""The same from weaker originals: what counts of a setting until `GRID` has more of it."""
RETRAIN = places.ROOT / "grids" / "retrain.toml"
UNDO = places.ROOT / "grids" / "undo.toml"
FIGURES = places.DOCS / "research" / "figures"
CAPTIONS = places.DOCS / "research" / "paper-figures.md"


@cache
def measured() -> Measured:
    """What results/paper holds."""
    return load_measured(RESULTS)


@cache
def found_of(path: Path) -> dict[str, dict[str, Result]]:
    """{original: {cell: result}} of a grid, of each original by the profile with the most; also those that failed."""
    grid, results = load_grid(path), read_results(RESULTS)
    found: dict[str, dict[str, Result]] = {}
    for original in grid.originals:
        for profile in grid.profiles:
            cells = [cell for cell in grid.cells(profile) if cell.original == original]
            here = current(cells, results)
            if len(here) >= len(found.get(original.name, {})):
                found[original.name] = here
    return found


def of_grid(path: Path) -> list[Result]:
    """The results that belong to a grid and count, without those that failed."""
    other = {GRID: WEAK, WEAK: GRID}.get(path)
    against = {} if other is None else found_of(other)
    return [
        result
        for name, found in found_of(path).items()
        for result in found.values()
        if result.failed is None and (len(found), path == GRID) > (len(against.get(name, {})), other == GRID)
    ]


def source(*paths: Path) -> str:
    """The line under a table of these grids: commands, machine, commit."""
    found = {path: of_grid(path) for path in paths}
    results = [r for of_path in found.values() for r in of_path]
    commands = [f"`python -m experiments run grids/{path.name} --out results/paper`" for path in found if found[path]]
    devices, commits = sorted({r.device for r in results}), sorted({r.commit for r in results})
    versions = sorted({r.versions["torch"] for r in results})
    return f"{', '.join(commands)} · {' or '.join(devices)} · torch {', '.join(versions)} · commit {', '.join(commits)}"


def coverage_table() -> str:
    """Cells measured, failed and missing of each setting, and what its original reached."""
    grid = load_grid(GRID)
    rows = []
    for original in grid.originals:
        total = sum(cell.original == original for cell in grid.cells("cpu"))
        done = max((found_of(path)[original.name] for path in (GRID, WEAK)), key=len)
        before = next((r for r in done.values() if r.method == "before" and r.failed is None), None)
        failed = sum(r.failed is not None for r in done.values())
        aims = [original.target.get(f"{split}_accuracy") for split in ("retain", "test")]
        reached = [before.retain_accuracy, before.test_accuracy] if before else [None, None]
        rows.append(
            [
                f"{DATASETS[original.dataset]}, {ARCHITECTURES[original.architecture]}",
                f"{len(done) - failed} of {total}",
                str(failed),
                *(_percent(value) for pair in zip(reached, aims, strict=True) for value in pair),
            ]
        )
    head = ["setting", "cells measured", "failed", "D_r before", "the paper's", "D_t before", "the paper's"]
    return markdown(head, rows)


def tables() -> str:
    """The tables with a number, beside the paper's. A dash says what is not measured."""
    text = to_markdown(entries(measured()), measured(), beside_paper=True)
    parts = [part for part in text.rstrip().split("\n\n")[1:] if not part.startswith("Not measured")]
    return "\n\n".join(parts)


def tables_csv() -> str:
    """Every cell of the paper's tables."""
    return to_csv(entries(measured()))


@cache
def compared() -> Comparison:
    """The paper's claims, judged."""
    return compare(measured())


def claims_in_short() -> str:
    """A row a claim: the verdict, one figure, in how many settings it holds."""
    rows = []
    for claim in compared().claims:
        counts = Counter(setting.outcome for setting in claim.settings)
        figure = claim.measured.rpartition("; ")[2].replace(" -", " −")
        rows.append([claim.claim, f"**{claim.verdict}**", figure, f"{counts['holds']} of {len(claim.settings)}"])
    verdicts = Counter(claim.verdict for claim in compared().claims)
    hold, against, still = (verdicts[verdict] for verdict in ("yes", "no", "undecided"))
    told = f"Of {len(rows)} claims {hold} hold, {against} do not, and {still} are undecided."
    return f"{told}\n\n{markdown(['the paper claims', 'holds?', 'measured', 'settings where it holds'], rows, left=3)}"


def claims() -> str:
    """The claims with their verdicts, the evidence and the rules."""
    return compared().to_markdown().partition("\n\n")[2].replace("\n## ", "\n### ").rstrip()


def claims_csv() -> str:
    """A line a setting of a claim that was judged."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["claim", "verdict", "setting", "outcome", "estimate_of", "estimate", "low", "high", "n"])
    for claim in compared().claims:
        for s in claim.settings:
            numbers = ["" if value is None else f"{value:.4g}" for value in (s.estimate, s.low, s.high)]
            writer.writerow([claim.claim, claim.verdict, s.setting, s.outcome, claim.estimates, *numbers, s.n])
    return out.getvalue()


def audit_table() -> str:
    """How many verdicts by three questions pass, end open and fail, and the mean A1, by row and size."""
    results = [r for path in (GRID, WEAK) for r in of_grid(path)]
    before = {(r.model_digest, r.forget_size, r.seed): r for r in results if r.method == "before"}
    results = [r for r in results if (r.model_digest, r.forget_size, r.seed) in before]
    rows = []
    for setting in dict.fromkeys((r.dataset, r.architecture) for r in results):
        for row in ROWS:
            here = [r for r in results if (r.dataset, r.architecture, r.row) == (*setting, row)]
            if here:
                shown = [_audited([r for r in here if r.forget_size == size], before) for size in SIZES]
                rows.append([f"{DATASETS[setting[0]]}, {ARCHITECTURES[setting[1]]}: {ROWS[row]}", *shown])
    return markdown(["PASS / INCONCLUSIVE / FAIL, mean A1", *map(str, SIZES)], rows) + "\n\n" + source(GRID, WEAK)


def single_table(path: Path) -> str:
    """A line a result of a grid."""
    rows = [
        [
            f"{DATASETS[r.dataset]}, {r.architecture}",
            str(r.forget_size),
            str(r.seed),
            *map(_percent, (r.forget_accuracy, r.retain_accuracy, r.test_accuracy)),
            f"{r.delta_l1:,.0f}",
            f"{r.seconds:,.0f}",
        ]
        for r in sorted(of_grid(path), key=lambda r: (r.forget_size, r.seed))
    ]
    if not rows:
        return "not measured"
    head = ["setting", "forgotten", "seed", "D_f", "D_r", "D_t", "‖Δθ‖₁", "seconds"]
    return markdown(head, rows) + "\n\n" + source(path)


def _audited(results: list[Result], before: dict[tuple[str, int, int], Result]) -> str:
    if not results:
        return "–"
    verdicts = Counter(judged(before[r.model_digest, r.forget_size, r.seed], r) for r in results)
    counts = " / ".join(str(verdicts[name]) for name in ("PASS", "INCONCLUSIVE", "FAIL"))
    return f"{counts}, {mean(r.audit_a1 or 0.0 for r in results):.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def main() -> None:
    """Draws the figures."""
    FIGURES.mkdir(exist_ok=True)
    captions = draw_figures(measured(), FIGURES)
    page = captions.replace("](figure-", f"]({FIGURES.name}/figure-").replace("# Figures", "# The paper's figures", 1)
    CAPTIONS.write_text(page, encoding="utf-8")
    print(captions)
