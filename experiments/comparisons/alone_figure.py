"""Draws the README's figure of what forgetting costs: `python -m experiments alone-figure`.

Fashion-MNIST with ResNet-18, and the embedded sample with its small residual network, from results/alone and, for
`calibrated` and retrained networks, results/better.
"""

from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes

from experiments.comparisons.alone import Found, of_grid
from experiments.comparisons.better import lost
from experiments.paper.statistics import summarize
from experiments.places import ROOT

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "expunge"  # the same file from the same figures
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

TARGET = ROOT / "docs" / "alone.svg"
SHOWN = {
    "held_boundary": ("held_boundary (forget set alone)", "#d62728", "D"),
    "targeted1": ("the paper's, λ = 1", "#9ecae1", "o"),
    "targeted3": ("the paper's, λ = 3", "#3182bd", "o"),
    "salsa": ("salsa", "#74c476", "s"),
    "delete": ("delete", "#8c6bb1", "s"),
}
ELSEWHERE = {
    "calibrated": ("calibrated (with a test set)", "#ff7f0e", "D"),
    "retrain": ("retrained without them", "#7f7f7f", "x"),
}
"""Rows of results/better, which need other data."""


PANELS = {
    "fashion-mnist": "ResNet-18, Fashion-MNIST: forgotten of 60,000",
    "sample": "small ResNet, embedded sample: of 2,000",
}


def main() -> None:
    """Points of test accuracy lost against the number forgotten; hollow where more than 5% are still right."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(9.6, 3.8), layout="constrained", sharey=True)
    for axes, (dataset, title) in zip(panels, PANELS.items(), strict=True):
        found, _ = of_grid(dataset)
        for row, (name, colour, marker) in SHOWN.items():
            _draw(axes, found, row, name, colour, marker)
        sizes = sorted({size for _, size in found})
        for row, (name, colour, marker) in ELSEWHERE.items():
            cells: Found = {(row, n): [(x, 0.0) for x in lost(dataset, row, n)] for n in (16, 64, 256, 512)}
            _draw(axes, {key: cell for key, cell in cells.items() if cell}, row, name, colour, marker)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.set_yscale("asinh", linear_width=3)
        axes.set_yticks([0, 1, 2, 5, 10, 20, 50], ["0", "1", "2", "5", "10", "20", "50"])
        axes.set_ylim(90, -3)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("forgotten images")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points of test accuracy lost")
    handles, names = panels[-1].get_legend_handles_labels()  # which has every row
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(TARGET, metadata={"Date": None})
    print(f"wrote {TARGET.relative_to(ROOT)}")


def _draw(axes: Axes, found: Found, row: str, name: str, colour: str, marker: str) -> None:
    """A line a method: means, with 95% intervals."""
    cells = [(size, found[row, size]) for _, size in sorted(found) if (row, size) in found]
    cells = list({size: (size, cell) for size, cell in cells}.values())
    if not cells:
        return
    sizes, means = [size for size, _ in cells], [summarize([x for x, _ in cell]) for _, cell in cells]
    bars = [0.0 if mean.high is None else mean.high - mean.mean for mean in means]
    axes.errorbar(sizes, [mean.mean for mean in means], bars, label=name, color=colour, capsize=3)
    for size, mean, (_, cell) in zip(sizes, means, cells, strict=True):
        hollow = fmean(right for _, right in cell) > 0.05
        axes.plot([size], [mean.mean], marker, color=colour, markerfacecolor="white" if hollow else colour)
