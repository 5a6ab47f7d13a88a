"""What the experiments print for people."""

from typing import TYPE_CHECKING

from expunge.cli.printing import print_table

if TYPE_CHECKING:
    from experiments.grid import BenchSummary
    from experiments.paper.claims import Comparison


def print_grid(done: "BenchSummary", as_json: bool) -> None:
    """How far a grid of experiments is, or its JSON document."""
    if as_json:
        print(done.to_json())
        return
    head, rows = done.table()
    print_table("Experiments", head, rows)
    for line in done.problems:
        print(line)
    new, left = (sum(getattr(o, key) for o in done.originals) for key in ("new", "left"))
    print(
        f"{new:,} results in {done.seconds:.0f} seconds, {left:,} cells left{', the time is up' * done.limit_reached}."
    )
    if done.nodes:
        print(f"Ray nodes that took part: {len(done.nodes)}.")
    print(f"The results are in {done.directory}.")


def print_comparison(found: "Comparison", as_json: bool) -> None:
    """The paper's claims with a verdict each, then the rules, or the JSON document."""
    if as_json:
        print(found.to_json())
        return
    from textwrap import fill

    from experiments.paper.claims import rules

    rows = [(fill(c.claim, 32), c.verdict, fill(c.measured, 28), fill(c.paper, 20)) for c in found.claims]
    print_table("The paper's claims", ["claim", "verdict", "what we measured", "what the paper has"], rows)
    for text in (rules(), *found.notes):
        print(text)
