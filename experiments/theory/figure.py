"""The figure of `python -m experiments theory`. Needs matplotlib, the extra `report`."""

from collections.abc import Sequence
from importlib import import_module
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.theory.tables import METHODS, SINGLE_STEPS
from expunge.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from experiments.theory.report import TheoryReport

# Okabe and Ito's colours, which the colour-blind can tell apart; line and marker tell them apart without colour.
STYLES = {
    "targeted": ("#0072B2", "-", "o"),
    "targeted_lam3": ("#56B4E9", "--", "D"),
    "gradient_ascent": ("#D55E00", "-.", "s"),
    "neg_grad": ("#D55E00", "-.", "s"),
    "random_label": ("#009E73", ":", "^"),
}
GREY = "#666666"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, which can be searched
    "svg.hashsalt": "expunge",  # the same ids each time
    "font.size": 9,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
}


def check_available() -> None:
    """Raises `MissingExtraError` where matplotlib is not installed."""
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise MissingExtraError("the figure needs matplotlib: pip install '.[report]' in expunge's sources") from error


def draw_theory(report: "TheoryReport", path: Path) -> None:
    """Draws the distributions of single steps above, the runs on a batch below.

    Args:
        report: what `python -m experiments theory` measured.
        path: an SVG file to write; the same report gives the same bytes. A path that ends in .png gives a bitmap.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_available()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # not what a user's matplotlibrc says
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(10, 7.4), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
        _single_steps(report, above.subplots(1, 3, sharey=True))
        _runs(report, below.subplots(1, 3))
        num, right = report.single.num_examples, report.single.num_predicted
        above.suptitle(
            "One SGD step on one example: covered by the theorem where the example is predicted right "
            f"({right:,} of {num:,})"
        )
        below.suptitle(f"Runs that forget a batch of {report.batch:,} at once: not covered")
        for part in (above, below):
            handles, labels = part.axes[0].get_legend_handles_labels()
            part.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, handlelength=3)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {}, dpi=100)


def _single_steps(report: "TheoryReport", axes: "Sequence[Axes]") -> None:
    for ax, (measure, label) in zip(
        axes,
        (
            ("pair_share", "share of the change in rows y and y′"),
            ("pr_rows", f"participation ratio over {report.num_classes:,} rows"),
            ("pr_entries", f"participation ratio over {report.num_entries:,} entries"),
        ),
        strict=True,
    ):
        for method, measures in report.single.percentiles.items():
            colour, line, _ = STYLES[method]
            ax.plot(measures[measure], range(101), color=colour, linestyle=line, label=SINGLE_STEPS[method])
        ax.set_xlabel(label)
        ax.set_ylim(0, 100)
    axes[0].set_ylabel("% of examples at or below")


def _runs(report: "TheoryReport", axes: "Sequence[Axes]") -> None:
    """Against steps of Adam on all parameters, with one SGD step to their left; and the two L1 of those steps."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    concentration, size, forgotten = axes
    counts = sorted({entry.steps for entry in report.trajectory if entry.optimizer == "adam"})
    for method in dict.fromkeys(entry.method for entry in report.trajectory):
        colour, line, marker = STYLES[method]
        look: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
        mine = [entry for entry in report.trajectory if (entry.method, entry.scope) == (method, "all")]
        sgd = [entry for entry in mine if entry.optimizer == "sgd"]
        adam = [entry for entry in mine if entry.optimizer == "adam"]
        for entries, places, label in ((sgd, [0], None), (adam, range(1, len(adam) + 1), METHODS[method])):
            rows = [nan if entry.pr_rows is None else entry.pr_rows for entry in entries]
            concentration.plot(places, rows, label=label, **look)
            forgotten.plot(places, [100 * entry.forget_accuracy for entry in entries], **look)
        size.plot([entry.l1 for entry in adam], [entry.l1_last_layer for entry in adam], **look)
    for ax in (concentration, forgotten):
        ax.set_xticks(range(len(counts) + 1), ["1\nSGD", *map(str, counts)])
        ax.set_xlabel("steps of Adam on all parameters")
        ax.axvline(0.5, color=GREY, linewidth=0.8)
    concentration.axhline(report.num_classes, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)))
    concentration.set_ylim(0, 1.08 * report.num_classes)
    concentration.set_ylabel(f"participation ratio over {report.num_classes:,} rows")
    forgotten.set_ylim(-4, 104)
    forgotten.set_ylabel("accuracy on the batch, %")
    size.set_xlim(left=0)
    size.set_ylim(bottom=0)
    size.xaxis.set_major_locator(MaxNLocator(4))
    size.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    size.set_xlabel("‖Δθ‖₁ of all parameters, steps of Adam")
    size.set_ylabel("‖Δφ‖₁ of the last layer")
