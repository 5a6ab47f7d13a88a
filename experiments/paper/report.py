"""`python -m experiments tables`, `figures` and `compare`: what a directory of results says, beside the paper."""

from pathlib import Path

from experiments.paper.claims import Comparison
from experiments.paper.claims import compare as judge
from experiments.paper.measured import load_measured
from experiments.paper.tables import entries, to_csv, to_latex, to_markdown
from expunge.files import check_unused, new_directory


def bench_tables(directory: str | Path, *, beside_paper: bool = False, out: str | Path | None = None) -> str:
    """The paper's Tables 1 to 16 from the results in a directory.

    Args:
        directory: results of `python -m experiments run`.
        beside_paper: give back the version with the paper's number and the difference in each cell.
        out: a new directory for `tables.md`, `tables.tex`, `beside_paper.md`, `beside_paper.tex` and `tables.csv`;
            None writes nothing.

    Returns:
        Markdown.

    Raises:
        InputError: no results, a line that is none, or `out` exists.
    """
    if out is not None:
        check_unused(out)
    measured = load_measured(directory)
    found = entries(measured)
    if out is not None:
        with new_directory(out) as temporary:
            for name, beside in (("tables", False), ("beside_paper", True)):
                markdown = to_markdown(found, measured, beside_paper=beside)
                (temporary / f"{name}.md").write_text(markdown, encoding="utf-8")
                (temporary / f"{name}.tex").write_text(to_latex(found, measured, beside_paper=beside), encoding="utf-8")
            (temporary / "tables.csv").write_text(to_csv(found), encoding="utf-8")
    return to_markdown(found, measured, beside_paper=beside_paper)


def bench_figures(directory: str | Path, out: str | Path) -> str:
    """The paper's Figures 1 to 8 from the results in a directory.

    Args:
        directory: results of `python -m experiments run`.
        out: a new directory for `figure-1.svg` to `figure-8.svg` and `figures.md`, which has captions, descriptions
            and correlations.

    Returns:
        The text of `figures.md`.

    Raises:
        InputError: no results, a line that is none, or `out` exists.
        MissingExtraError: matplotlib is not installed.
    """
    from experiments.paper.figures import draw_figures
    from experiments.theory.figure import check_available

    check_available()
    check_unused(out)
    measured = load_measured(directory)
    with new_directory(out) as temporary:
        captions = draw_figures(measured, temporary)
        (temporary / "figures.md").write_text(captions, encoding="utf-8")
    return captions


def bench_compare(directory: str | Path, *, out: str | Path | None = None) -> Comparison:
    """Which of the paper's claims hold in the results in a directory; see `experiments.paper.claims` for the rules.

    Args:
        directory: results of `python -m experiments run`.
        out: a new directory for `compare.json` and `compare.md`; None writes nothing.

    Raises:
        InputError: no results, a line that is none, or `out` exists.
    """
    if out is not None:
        check_unused(out)
    found = judge(load_measured(directory))
    if out is not None:
        with new_directory(out) as temporary:
            (temporary / "compare.json").write_text(found.to_json() + "\n", encoding="utf-8")
            (temporary / "compare.md").write_text(found.to_markdown(), encoding="utf-8")
    return found
