"""`expunge bench tables`, `figures` and `compare`: parsing and printing, like `expunge.cli`."""

from pathlib import Path
from typing import Annotated

import typer

from expunge.terminal import print_comparison

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Results = Annotated[Path, typer.Argument(metavar="DIR", help="Results of `expunge bench run`.")]


def tables(
    directory: Results,
    beside_paper: Annotated[
        bool, typer.Option("--beside-paper", help="Print the paper's number and the difference in each cell.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="New directory for Markdown, LaTeX and CSV.")] = None,
) -> None:
    """Print the paper's Tables 1 to 16 from our results, as Markdown."""
    from expunge.commands import bench_report

    print(bench_report.bench_tables(directory, beside_paper=beside_paper, out=out), end="")


def figures(
    directory: Results, out: Annotated[Path, typer.Option(help="New directory for the figures (SVG) and figures.md.")]
) -> None:
    """Draw the paper's Figures 1 to 8 from our results, and print their captions and correlations."""
    from expunge.commands import bench_report

    print(bench_report.bench_figures(directory, out), end="")


def compare(
    directory: Results,
    out: Annotated[Path | None, typer.Option(help="New directory for compare.json and compare.md.")] = None,
    as_json: Json = False,
) -> None:
    """Say which of the paper's claims hold in our results: yes, no or undecided, each with the evidence."""
    from expunge.commands import bench_report

    print_comparison(bench_report.bench_compare(directory, out=out), as_json)
