"""What the figures show, without drawing it: panels, points, titles, captions, coefficients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log

from experiments.paper.claims import AXES, Correlations, correlations
from experiments.paper.measured import MEASURES, Measured
from experiments.paper.printed import ARCHITECTURES, BASELINES, DATASETS, OURS, SIZES
from experiments.paper.statistics import Correlation
from expunge.markdown import markdown

PERCENT = {"test", "retain"}
"""Measures that are drawn in percent."""

SEEDS = 3
"""Runs of each method and size from which on an architecture is averaged with others."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What stands beside a figure.

    Attributes:
        title: what is seen, with numbers; also in the figure.
        alt: what a reader who does not see it should know.
        text: how it was made.
        correlations: {panel: coefficients}; empty where sizes are an axis.
    """

    title: str
    alt: str
    text: str
    correlations: dict[str, Correlations]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Measure `y` against `x` (None: sizes), one panel a dataset, or with `grid` one a dataset and architecture."""

    x: str | None
    y: str
    grid: bool


PLOTS = {
    1: Plot(x=None, y="l1", grid=False),
    2: Plot(x="l1", y="test", grid=False),
    3: Plot(x="l1_last_layer", y="l1", grid=False),
    4: Plot(x=None, y="l1_last_layer", grid=True),
    5: Plot(x=None, y="l1", grid=True),
    6: Plot(x="l1_last_layer", y="l1", grid=True),
    7: Plot(x="l1", y="retain", grid=True),
    8: Plot(x="l1_last_layer", y="retain", grid=True),
}


Panel = tuple[str, tuple[str, ...]]
"""A dataset and the architectures in it."""


def panels(measured: Measured, plot: Plot) -> list[list[Panel]]:
    """Rows of panels: datasets across; with `grid` architectures down, also where one of them was not measured.

    Lines without `grid` average over architectures: of those, the ones that are measured whole, where any is.
    """
    pairs = measured.pairs()
    datasets = [name for name in DATASETS if any(dataset == name for dataset, _ in pairs)]
    architectures = [name for name in ARCHITECTURES if any(architecture == name for _, architecture in pairs)]
    if plot.grid:
        return [[(dataset, (name,)) for dataset in datasets] for name in architectures]
    row = [(dataset, tuple(name for name in architectures if (dataset, name) in pairs)) for dataset in datasets]
    if plot.x is not None:
        return [row]
    return [[(dataset, tuple(n for n in names if _whole(measured, dataset, n)) or names) for dataset, names in row]]


def _whole(measured: Measured, dataset: str, architecture: str) -> bool:
    """Whether every method and size has `SEEDS` runs or more."""
    settings = ((row, size) for row in (*OURS, *BASELINES) for size in SIZES)
    return all(len(measured.values(dataset, architecture, row, size, "l1")) >= SEEDS for row, size in settings)


def logarithms(
    measured: Measured, dataset: str, architectures: Sequence[str], row: str, size: int, measure: str
) -> list[float]:
    """One number a seed: the mean over the architectures of the logarithm, for the seeds that all have."""
    found = [measured.values(dataset, name, row, size, measure) for name in architectures]
    seeds = set.intersection(*(set(values) for values in found))
    return [
        sum(log(values[seed]) for values in found) / len(found)
        for seed in sorted(seeds)
        if all(values[seed] > 0 for values in found)
    ]


def points(measured: Measured, dataset: str, architecture: str, x: str, y: str) -> list[tuple[str, int, float, float]]:
    """(row, size, x, y) of the paper's two rows; accuracies in percent."""
    return [
        (row, size, a, 100 * b if y in PERCENT else b)
        for row, size, result in measured.points(dataset, architecture)
        if (a := MEASURES[x](result)) is not None and (b := MEASURES[y](result)) is not None
    ]


def axis(measure: str) -> str:
    """What an axis is called."""
    if measure in PERCENT:
        return f"{AXES[measure]}, %"
    return f"{AXES[measure]} of {'all parameters' if measure == 'l1' else 'the last layer'}"


def short(found: Correlations) -> str:
    """Pearson's coefficients in a few words."""
    return f"r {_r(found.pearson)}, within size and λ {_r(found.pearson_within)}"


def _r(found: Correlation | None) -> str:
    return "–" if found is None else f"{found.r:+.2f}".replace("-", "−")


def caption(measured: Measured, plot: Plot) -> Caption:
    """What stands beside a figure."""
    pairs = measured.pairs()
    if plot.x is None:
        title = f"{axis(plot.y)} against the size of the forget set: {_least(measured, plot)}"
        text = (
            "Geometric means over seeds with 95% t-intervals of the logarithm; both axes logarithmic; methods of one "
            "size are drawn side by side. Hollow markers: uses retained examples."
        )
        if not plot.grid:
            text += (
                " Averaged over architectures (geometric mean; those measured whole, where there are any): "
                + "; ".join(
                    f"{DATASETS[dataset]}: {', '.join(ARCHITECTURES[name] for name in names)}"
                    for dataset, names in panels(measured, plot)[0]
                )
                + "."
            )
        return Caption(title=title, alt=f"Lines, one a method: {title}.", text=text, correlations={})
    found = {
        f"{DATASETS[dataset]}, {ARCHITECTURES[name]}": correlations(measured, dataset, name, plot.x, plot.y)
        for dataset, name in pairs
    }
    title = (
        f"{_capital(AXES[plot.y])} against {AXES[plot.x]}: r {_span(c.pearson for c in found.values())}, "
        f"within one size and λ {_span(c.pearson_within for c in found.values())}"
    )
    shown = "colour is the size, the line a regression over all points" if plot.grid else "architectures in colours"
    text = (
        f"One point a run of δ-Targeted¹ or δ-Targeted³, all sizes and seeds; {shown}. Size and λ drive both axes, "
        "so correlation within one size and λ is given too: after the mean of each is taken off (Pearson), or of ranks "
        "within each (Spearman). 95% intervals by Fisher's z, as if runs were independent."
    )
    return Caption(title=title, alt=f"Scatter plots: {title}.", text=text, correlations=found)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _least(measured: Measured, plot: Plot) -> str:
    """In how many panels and sizes the paper's method has the smallest mean of all methods measured."""
    ours, number = 0, 0
    for row in panels(measured, plot):
        for dataset, architectures in row:
            for size in SIZES:
                logs = {
                    name: logarithms(measured, dataset, architectures, name, size, plot.y)
                    for name in (*OURS, *BASELINES)
                }
                if all(logs.values()):
                    number += 1
                    ours += min(logs, key=lambda name: sum(logs[name]) / len(logs[name])) in OURS
    return f"δ-Targeted smallest at {ours} of {number} points" if number else "not all methods are measured"


def _span(found: Iterable[Correlation | None]) -> str:
    values = sorted(one.r for one in found if one is not None)
    if not values:
        return "–"
    ends = dict.fromkeys(f"{value:+.2f}".replace("-", "−") for value in (values[0], values[-1]))
    return " to ".join(ends)


def coefficients(found: dict[str, Correlations]) -> str:
    """The coefficients with their intervals as a Markdown table."""
    kinds: dict[str, Callable[[Correlations], Correlation | None]] = {
        "Pearson": lambda c: c.pearson,
        "Spearman": lambda c: c.spearman,
        "Pearson within one size and λ": lambda c: c.pearson_within,
        "Spearman within one size and λ": lambda c: c.spearman_within,
    }
    rows = []
    for panel, all_kinds in found.items():
        cells = []
        for kind in kinds.values():
            one = kind(all_kinds)
            cells.append("–" if one is None else f"{one.r:+.2f} [{one.low:+.2f}, {one.high:+.2f}]".replace("-", "−"))
        number = 0 if all_kinds.pearson is None else all_kinds.pearson.n
        rows.append((panel, f"{number or '–'}", *cells))
    return markdown(("", "n", *kinds), rows)
