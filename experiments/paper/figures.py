"""The paper's Figures 1 to 8 from our measurements, as SVG, and a page with their captions. Needs matplotlib.

Figures 1, 4 and 5 show parameter changes against the size of the forget set; 2, 7 and 8 accuracy against parameter
change, and 3 and 6 the last layer against all layers, of the paper's two rows. Where the paper shows one panel a
dataset, as in 1, 2 and 3, architectures are told apart there.
"""

from collections.abc import Sequence
from math import exp
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.paper.claims import correlations
from experiments.paper.measured import Measured
from experiments.paper.plots import (
    PERCENT,
    PLOTS,
    Panel,
    Plot,
    axis,
    caption,
    coefficients,
    logarithms,
    panels,
    points,
    short,
)
from experiments.paper.printed import ARCHITECTURES, DATASETS, OURS, ROWS, SIZES, USES_RETAIN
from experiments.paper.statistics import summarize
from experiments.theory.figure import GREY, STYLE, check_available
from expunge.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, as in the figure of the theory; markers are hollow where retained examples are used.
STYLES = {
    "targeted1": ("#0072B2", "-", "o"),
    "targeted3": ("#56B4E9", "--", "D"),
    "neg_grad": ("#D55E00", "-.", "s"),
    "random_label": ("#009E73", ":", "^"),
    "bad_teacher": ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "v"),
    "amnesiac": ("#B07800", (0, (6, 3)), "p"),
}
ARCHITECTURE_STYLES = {"resnet18": ("#0072B2", "o"), "resnet50": ("#D55E00", "s"), "vit": ("#009E73", "^")}
MARKERS = {"targeted1": "o", "targeted3": "D"}
SIZE_COLOURS = dict(zip(SIZES, ("#440154", "#414487", "#2A788E", "#22A884", "#7AD151", "#C9B800"), strict=True))
"""Viridis, its yellow darkened to be seen on white."""


def draw_figures(measured: Measured, directory: Path, suffix: str = ".svg") -> str:
    """Draws figure-1.svg to figure-8.svg into a directory and gives back the page of captions.

    The same measurements give the same bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_available()
    if not measured.pairs():
        raise InputError("there is no measurement of the paper's datasets, architectures and rows to draw")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    parts = ["# Figures"]
    with mpl.rc_context():
        mpl.rcdefaults()  # not what a user's matplotlibrc says
        mpl.rcParams.update(STYLE)
        mpl.rcParams["axes.titlesize"] = 9
        mpl.rcParams["axes.titlelocation"] = "left"
        for number, plot in PLOTS.items():
            rows = panels(measured, plot)
            told = caption(measured, plot)
            width, height = max(6.4, 0.4 + 2.8 * len(rows[0])), 1.6 + 2.4 * len(rows)
            figure = Figure(figsize=(width, height), layout="constrained")
            _draw(figure, measured, plot, rows)
            figure.suptitle(fill(f"Figure {number}. {told.title}", int(width * 11)), x=0.01, ha="left")
            name = f"figure-{number}{suffix}"
            figure.savefig(directory / name, metadata={"Date": None} if suffix == ".svg" else {}, dpi=100)
            parts += [f"## Figure {number}. {told.title}", f"![{told.alt}]({name})", told.text]
            if told.correlations:
                parts.append(coefficients(told.correlations))
    return "\n\n".join([*parts, *measured.notes]) + "\n"


def _draw(figure: "Figure", measured: Measured, plot: Plot, rows: Sequence[Sequence[Panel]]) -> None:
    shared = plot.y in PERCENT
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey=shared)
    handles: dict[str, Any] = {}
    for line, row in zip(axes, rows, strict=True):
        for ax, (dataset, architectures) in zip(line, row, strict=True):
            name = f"{DATASETS[dataset]}, {ARCHITECTURES[architectures[0]]}" if plot.grid else DATASETS[dataset]
            if not _is_drawn(measured, dataset, architectures, plot):
                ax.set_title(name, fontsize=9 if plot.x is None else 8)
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color=GREY)
                ax.set_xticks([])
                if not shared:
                    ax.set_yticks([])
                continue
            if plot.x is None:
                _against_size(ax, measured, dataset, architectures, plot.y)
            elif plot.grid:
                name += "\n" + _scatter_by_size(ax, measured, dataset, architectures[0], plot.x, plot.y)
            else:
                name += "\n" + _scatter_by_architecture(ax, measured, dataset, architectures, plot.x, plot.y)
            ax.set_title(name, fontsize=9 if plot.x is None else 8)
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
    for ax in axes[-1]:
        ax.set_xlabel("examples to forget" if plot.x is None else axis(plot.x))
    for ax in axes[:, 0]:
        ax.set_ylabel(axis(plot.y))
    order = _legend_order(list(handles))
    if order:
        figure.legend(
            [handles[label] for label in order],
            order,
            loc="outside lower center",
            ncols=max(1, int(figure.get_figwidth() / (0.6 + 0.085 * max(map(len, order))))),
            frameon=False,
            handlelength=3 if plot.x is None else 1,
        )


def _is_drawn(measured: Measured, dataset: str, architectures: Sequence[str], plot: Plot) -> bool:
    """Whether a panel has anything to show: the model before alone is none."""
    if plot.x is not None:
        return any(measured.points(dataset, architecture) for architecture in architectures)
    return any(logarithms(measured, dataset, architectures, row, size, plot.y) for row in STYLES for size in SIZES)


def _legend_order(labels: list[str]) -> list[str]:
    names = [*(_label(row) for row in STYLES), *ARCHITECTURES.values(), *(f"{size} to forget" for size in SIZES)]
    known = [name for name in names if name in labels]
    return [*known, *(label for label in labels if label not in known)]


def _label(row: str) -> str:
    return ROWS[row] + (" (uses retained)" if row in USES_RETAIN else "")


def _against_size(ax: "Axes", measured: Measured, dataset: str, architectures: Sequence[str], measure: str) -> None:
    from matplotlib.ticker import NullLocator

    for n, (row, (colour, line, marker)) in enumerate(STYLES.items()):
        places, middles, below, above = [], [], [], []
        for size in SIZES:
            logs = logarithms(measured, dataset, architectures, row, size, measure)
            if not logs:
                continue
            found = summarize(logs)
            places.append(size * 2 ** (0.07 * (n - 2.5)))  # side by side, not over each other
            middles.append(exp(found.mean))
            below.append(0.0 if found.low is None else exp(found.mean) - exp(found.low))
            above.append(0.0 if found.high is None else exp(found.high) - exp(found.mean))
        if places:
            ax.errorbar(
                places,
                middles,
                yerr=(below, above),
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=4,
                markerfacecolor="white" if row in USES_RETAIN else colour,
                linewidth=1.2,
                elinewidth=0.8,
                label=_label(row),
            )
    ax.set_xlim(SIZES[0] / 1.4, 1.4 * SIZES[-1])
    ax.set_xscale("log", base=2)
    ax.set_xticks(SIZES, [str(size) for size in SIZES])
    ax.xaxis.set_minor_locator(NullLocator())
    if ax.dataLim.height > 0:  # matplotlib warns of a logarithmic axis with one value
        ax.set_yscale("log")
        _plain_log(ax.yaxis)


def _scatter_by_architecture(
    ax: "Axes", measured: Measured, dataset: str, architectures: Sequence[str], x: str, y: str
) -> str:
    """Gives back a line of coefficients for each architecture."""
    told = []
    for name in architectures:
        colour, marker = ARCHITECTURE_STYLES[name]
        found = points(measured, dataset, name, x, y)
        ax.plot(
            [a for _, _, a, _ in found],
            [b for _, _, _, b in found],
            linestyle="",
            marker=marker,
            markersize=3.5,
            color=colour,
            alpha=0.7,
            markeredgewidth=0,
            label=ARCHITECTURES[name],
        )
        told.append(f"{ARCHITECTURES[name]}: {short(correlations(measured, dataset, name, x, y))}")
    if ax.dataLim.width > 0:
        ax.set_xscale("log")
        _plain_log(ax.xaxis)
    _finish(ax, y, logarithmic=True)
    return "\n".join(told)


def _scatter_by_size(ax: "Axes", measured: Measured, dataset: str, architecture: str, x: str, y: str) -> str:
    """Gives back the coefficients."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    found = points(measured, dataset, architecture, x, y)
    for row in OURS:
        for size in SIZES:
            mine = [(a, b) for name, own, a, b in found if (name, own) == (row, size)]
            if mine:
                style: Any = {"linestyle": "", "marker": MARKERS[row], "alpha": 0.8, "markeredgewidth": 0}
                ax.plot(*zip(*mine, strict=True), color=SIZE_COLOURS[size], markersize=4.5, **style)
                ax.plot([], [], color=SIZE_COLOURS[size], marker="s", linestyle="", label=f"{size} to forget")
                ax.plot([], [], color=GREY, marker=MARKERS[row], linestyle="", label=f"λ = {row[-1]}")
    a, b = np.array([p[2] for p in found]), np.array([p[3] for p in found])
    if len(found) > 2 and np.ptp(a) > 0:
        slope, start = np.polyfit(a - a.mean(), b, 1)
        ends = np.array([a.min(), a.max()])
        ax.plot(ends, start + slope * (ends - a.mean()), color=GREY, linewidth=1, linestyle="--", label="regression")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(FuncFormatter(_number))
    _finish(ax, y, logarithmic=False)
    return short(correlations(measured, dataset, architecture, x, y))


def _finish(ax: "Axes", y: str, *, logarithmic: bool) -> None:
    from matplotlib.ticker import FuncFormatter

    if y in PERCENT:
        ax.set_ylim(-3, 103)
    elif logarithmic:
        if ax.dataLim.height > 0:
            ax.set_yscale("log")
            _plain_log(ax.yaxis)
    else:
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(FuncFormatter(_number))


def _plain_log(axis: Any) -> None:
    """A logarithmic axis with a few plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    steps = (1.0,) if high / low > 30 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps) if high / low > 5 else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(_number))
    axis.set_minor_formatter(NullFormatter())


def _number(value: float, _: Any = None) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"
