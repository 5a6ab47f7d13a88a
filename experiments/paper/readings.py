"""Which reading of the paper's protocol comes closest, from an original that is as good as the paper's.

Cells are of grids/readings.toml and grids/readings-small-stem.toml, which `python -m experiments grid` measures.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean

from experiments import places
from experiments.grid import Result, current, load_grid, read_results
from experiments.grid.cells import BEFORE
from experiments.paper.printed import printed
from experiments.paper.protocol import ROWS, TABLE
from expunge.markdown import markdown

STEMS = {"standard": "readings.toml", "small-stem": "readings-small-stem.toml"}
SPLITS = ("forget", "retain", "test")
BASELINES = ("bad_teacher", "amnesiac")
"""Rows with retained images; some readings are theirs alone."""

Draws = list[Result]


def found(stem: str) -> dict[tuple[str, str, int], Draws]:
    """{(reading, row, size): one result a draw}; `before` has the reading ""."""
    directory = places.RESULTS / "protocol" / stem
    if not directory.exists():
        return {}
    cells = load_grid(places.ROOT / "grids" / STEMS[stem]).cells("cpu")
    known = current(cells, read_results(directory))
    results: dict[tuple[str, str, int], Draws] = {}
    for cell in cells:
        if cell.id in known and known[cell.id].failed is None:
            row, _, reading = cell.row.partition(": ")
            results.setdefault((reading, row, cell.forget_size), []).append(known[cell.id])
    return results


def gaps(results: Mapping[tuple[str, int], Draws]) -> list[float]:
    """Differences from the paper's Table 11 in points: a mean over draws for each row, size and split."""
    return [
        100 * fmean(getattr(draw, f"{split}_accuracy") for draw in draws) - mean
        for (row, size), draws in results.items()
        for split in SPLITS
        if (mean := printed()[TABLE, split, row, size].mean) is not None
    ]


def distance(results: Mapping[tuple[str, int], Draws], rows: tuple[str, ...], sizes: tuple[int, ...]) -> str:
    """Root mean square of the gaps, where every row is there at every size."""
    wanted = [(row, size) for row in rows for size in sizes]
    if not all(key in results for key in wanted):
        return "–"
    squares = [gap**2 for gap in gaps({key: results[key] for key in wanted})]
    return f"{fmean(squares) ** 0.5:.1f}"


def readings_table(stem: str) -> str:
    """A row a reading: what each method leaves at each size, and how far all are from the paper's."""
    results = found(stem)
    sizes = tuple(sorted({size for _, _, size in results}))
    readings = [reading for reading in dict.fromkeys(reading for reading, _, _ in results) if reading]
    if not readings:
        return "Not measured yet."
    alone = tuple(row for row in ROWS if row not in BASELINES)
    lines, draws = [], set()
    for reading in readings:
        mine = {(row, size): d for (name, row, size), d in results.items() if name == reading}
        draws |= {len(d) for d in mine.values()}
        shown = [_cell(mine, row, sizes) for row in ROWS]
        lines.append([reading, *shown, distance(mine, alone, sizes), distance(mine, BASELINES, sizes)])
    paper = [
        " · ".join("/".join(_whole(printed()[TABLE, split, row, size].mean) for split in SPLITS) for size in sizes)
        for row in ROWS
    ]
    lines.append(["the paper", *paper, "", ""])
    original = results["", BEFORE, sizes[0]][0]
    every = [draw for each in results.values() for draw in each]
    told = (
        f"D_f/D_r/D_t, %, at {' · '.join(map(str, sizes))} forgotten; means of {_span(draws)} draws; distance: RMS of "
        f"the differences from the paper's, points; original {100 * (original.retain_accuracy or 0):.1f} / "
        f"{100 * (original.test_accuracy or 0):.1f} (D_r / D_t) · `python -m experiments run grids/{STEMS[stem]} --out "
        f"results/protocol/{stem}` · {_all(each.device for each in every)} · torch "
        f"{_all(each.versions['torch'] for each in every)} · commit {_all(each.commit for each in every)}"
    )
    head = ["reading", *ROWS, "distance, no retained data", "distance, with it"]
    return markdown(head, lines) + "\n\n" + told


def _cell(results: Mapping[tuple[str, int], Draws], row: str, sizes: tuple[int, ...]) -> str:
    each = []
    for size in sizes:
        draws = results.get((row, size), [])
        means = [fmean(getattr(draw, f"{split}_accuracy") for draw in draws) if draws else None for split in SPLITS]
        each.append("/".join("–" if mean is None else _whole(100 * mean) for mean in means) if draws else "–")
    return "–" if set(each) == {"–"} else " · ".join(each)


def _whole(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.0f}"


def _span(counts: set[int]) -> str:
    return "–".join(str(count) for count in sorted({min(counts), max(counts)}))


def _all(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))
