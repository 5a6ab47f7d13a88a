"""The figures of report.html: matplotlib drawings as SVG text that takes its colours from the page around it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from expunge.auditing.report import AuditReport, Histograms, Roc
from expunge.errors import MissingExtraError
from expunge.metrics.distances import ParameterChange

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 352
"""Of a figure, in CSS pixels: two fit side by side into the page, one into a telephone, at the same size of type."""

MAX_LAYERS = 25
"""Rows of the figure of layers; a network with more is shown by block."""

MOST_DOTS = 400
"""Dots in a strip: more would lie on one another."""

STRIP_HEIGHT, DOTS_TOP, DOTS_HEIGHT = 74, 27, 40
"""Of a strip, and of the part of it where dots lie, in CSS pixels."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, less their whole part, fill [0, 1) evenly: neighbours in rank lie apart in height."""

# Colours that stand for the page's custom properties, which differ between light, dark and print.
_INK, _MUTED, _RULE = "#010101", "#020202", "#030303"
_FORGET, _TEST, _RETAIN, _BEFORE = "#040404", "#050505", "#060606", "#070707"
_PROPERTIES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _FORGET: "var(--forget)",
    _TEST: "var(--test)",
    _RETAIN: "var(--retain)",
    _BEFORE: "var(--before)",
}
_SENTINEL = re.compile("|".join(_PROPERTIES))
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expunge",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.solid_capstyle": "butt",
}

Floats = NDArray[np.float64]


def confidence_figures(report: AuditReport) -> dict[str, str]:
    """The distributions of the logit-scaled confidences as two SVGs with the same axes: {"before": …, "after": …}."""
    confidences = report.confidences
    top = max(
        float(_densities(confidences, kind, when).max()) for kind in confidences.counts for when in ("before", "after")
    )
    return {when: _confidence_panel(confidences, when, 1.08 * top or 1.0) for when in ("before", "after")}


def strip_figures(ranks: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """{"before" | "after": a dot a forgotten example at its percentile rank, over the band of unseen ones, as SVG}.

    Of more than `MOST_DOTS` ranks so many are drawn, spread over their order. Places are percentages of the width, so
    that dots and type keep their size on any screen. Heights are of no meaning: they keep dots apart.
    """
    return {when: _strip(sorted(values), when) for when, values in ranks.items() if values}


def quarters(ranks: Sequence[float]) -> list[int]:
    """How many percentile ranks lie in each quarter of [0, 1]."""
    return [int(count) for count in np.histogram(ranks, (0, 0.25, 0.5, 0.75, 1))[0]]


def _strip(ranks: Sequence[float], when: str) -> str:
    kept = np.unique(np.linspace(0, len(ranks) - 1, min(len(ranks), MOST_DOTS)).round().astype(int))
    mean, counts = float(np.mean(ranks)), quarters(ranks)
    radius = 3.5 if len(kept) <= 200 else 2.5
    dots = "".join(
        f'<circle cx="{100 * ranks[n]:.2f}%" cy="{DOTS_TOP + DOTS_HEIGHT * (place * GOLDEN % 1):.1f}" r="{radius}"/>'
        for place, n in enumerate(kept.tolist())
    )
    lines = "".join(f'<line x1="{x}%" x2="{x}%" y1="0" y2="{STRIP_HEIGHT}"/>' for x in (25, 50, 75))
    told = "".join(f'<text x="{12.5 + 25 * n}%" y="15">{count:,}</text>' for n, count in enumerate(counts))
    title = "Where the forgotten examples stand among unseen ones, " + ("before" if when == "before" else "now")
    description = (
        f"On average above {mean:.0%} of the unseen examples. From the lowest quarter to the highest: "
        f"{', '.join(f'{count:,}' for count in counts)} of {len(ranks):,}."
    )
    return (
        f'<svg width="100%" height="{STRIP_HEIGHT}" role="img" aria-labelledby="strip-{when}-title '
        f'strip-{when}-description"><title id="strip-{when}-title">{title}</title>'
        f'<desc id="strip-{when}-description">{description}</desc>'
        f'<rect class="band" width="100%" height="{STRIP_HEIGHT}" rx="3"/><g class="quarters">{lines}</g>'
        f'<g class="dots">{dots}</g><line class="mean" x1="{100 * mean:.2f}%" x2="{100 * mean:.2f}%" '
        f'y1="{DOTS_TOP - 6}" y2="{STRIP_HEIGHT}"/><g class="counts">{told}</g></svg>'
    )


def roc_figure(report: AuditReport, *, both: bool = False) -> str:
    """Membership attacks on log axes from FPR 1/(m + 1), with their intervals, as SVG.

    With `both` there is also the attack on the model after that takes the lowest scores, where the report holds it.
    """
    reverse = report.roc_after_reversed if both else None
    floor = 1 / (report.num_test + 1)
    with _figure(WIDTH, 330) as figure:
        axes = figure.add_axes((0.155, 0.14, 0.825, 0.78))
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1))
        axes.plot([floor, 1], [floor, 1], color=_MUTED, linewidth=0.8)
        for rate in (0.01, 0.001):
            if rate > floor:
                axes.axvline(rate, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
        _draw_roc(axes, report.roc_before, floor, _BEFORE, (0, (4, 2)))
        _draw_roc(axes, report.roc_after, floor, _FORGET, "solid")
        if reverse is not None:
            _draw_roc(axes, reverse, floor, _TEST, (0, (1, 1)))
        ticks = [rate for rate in (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0) if rate >= floor]
        axes.set_xticks(ticks, [_percent(rate) for rate in ticks], minor=False)
        axes.set_yticks(ticks, [_percent(rate) for rate in ticks], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("unseen examples wrongly picked out (FPR)")
        axes.set_title("forgotten examples picked out (TPR)", color=_MUTED)
        before, after = report.scores_before, report.scores_after
        told = [
            f"{when}: AUC {test.auc:.3f} (95% interval {test.auc_interval[0]:.3f} to {test.auc_interval[1]:.3f})"
            for when, test in (("before", before), ("after", after))
        ]
        if reverse is not None:
            told.append(f"after, the least sure first: AUC {1 - after.auc:.3f}")
        one = after.tpr_at_fpr.get(0.01)
        if one is not None:
            told.append(
                f"after, at 1% false positives {one.value:.1%} of the forgotten examples are picked out "
                f"(95% interval {one.low:.1%} to {one.high:.1%})"
            )
        return _inline(figure, "roc", "ROC curves of the membership attack, before and after", "; ".join(told) + ".")


def layer_figure(change: ParameterChange) -> str:
    """The parameter change by layer or block as SVG: bars, or dots on a log scale where values differ too much."""
    rows, _ = layer_rows({name: l1 for name, (l1, _) in change.by_layer.items()})
    values = np.array([value for _, value in rows])
    logarithmic = uses_log_scale(rows)
    height = 17.0 * len(rows) + 10
    with _figure(WIDTH, height) as figure:
        left = 7 * max(len(_shortened(name)) for name, _ in rows) / WIDTH + 0.02
        axes = figure.add_axes((left, 5 / height, 0.84 - left, 1 - 10 / height))
        axes.set_axis_off()
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if logarithmic:
            positive = values[values > 0]
            low = float(np.log10(positive.min())) - 0.15
            lengths = np.where(values > 0, np.log10(np.maximum(values, positive.min())) - low, 0.0)
        else:
            lengths = values
        full = float(lengths.max()) or 1.0
        axes.set_xlim(0, full)
        for row, ((name, value), length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
            if logarithmic:
                axes.plot([0, full], [row, row], color=_RULE, linewidth=0.8)
                if value > 0:
                    axes.plot([length], [row], "o", color=_TEST, markersize=6, clip_on=False)
            else:
                axes.barh(row, length, height=0.62, color=_TEST)
            axes.text(-left / (0.84 - left) * full, row, _shortened(name), va="center", clip_on=False)
            axes.text((1 - left) / (0.84 - left) * full, row, compact(value), ha="right", va="center", color=_MUTED)
        most, value = max(rows, key=lambda row: row[1])
        share = value / change.l1 if change.l1 else 0.0
        description = (
            f"{_shortened(most, 100)} changed most: {compact(value)}, {share:.0%} of the sum over all parameters."
        )
        return _inline(figure, "layers", "L1 norm of the parameter change by layer", description)


def layer_rows(by_layer: Mapping[str, float]) -> tuple[list[tuple[str, float]], bool]:
    """Rows of (name, L1) in the model's order, at most `MAX_LAYERS`; and whether they are sums over blocks.

    A block is what shares the first so many parts of its dotted name: as many as still give few enough rows.
    """
    named = {name or "(the model's own)": value for name, value in by_layer.items()}
    if len(named) <= MAX_LAYERS:
        return list(named.items()), False
    depth = max(1, *(name.count(".") for name in named))
    while depth > 1 and len(_blocks(named, depth)) > MAX_LAYERS:
        depth -= 1
    rows = list(_blocks(named, depth).items())
    if len(rows) > MAX_LAYERS:
        largest = sorted(rows, key=lambda row: -row[1])[: MAX_LAYERS - 1]
        rest = [row for row in rows if row not in largest]
        rows = [row for row in rows if row in largest]
        rows.append((f"{len(rest)} others", sum(value for _, value in rest)))
    return rows, True


def uses_log_scale(rows: Sequence[tuple[str, float]]) -> bool:
    """Whether the rows of `layer_rows` differ by more than a factor of 200, so that bars would not show the small."""
    positive = [value for _, value in rows if value > 0]
    return bool(positive) and max(positive) > 200 * min(positive)


def median_confidence(confidences: Histograms, kind: str, when: str) -> float | None:
    """The median confidence as far as the histogram tells it; None for an empty histogram."""
    counts = np.asarray(confidences.counts[kind][when], dtype=np.float64)
    if counts.sum() == 0:
        return None
    reached = np.concatenate([[0.0], counts.cumsum()]) / counts.sum()
    last = int(np.searchsorted(reached, 0.5, side="left"))
    share = (0.5 - reached[last - 1]) / (reached[last] - reached[last - 1])
    return float(confidences.edges[last - 1] + share * (confidences.edges[last] - confidences.edges[last - 1]))


def compact(value: float) -> str:
    """Three digits that count, with thousands separated: 0.0123, 4.56, 18,300."""
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    return f"{float(f'{value:.3g}'):,.10g}" if abs(value) < 1000 else f"{value:,.0f}"


def _blocks(named: Mapping[str, float], depth: int) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in named.items():
        block = ".".join(name.split(".")[:depth])
        sums[block] = sums.get(block, 0.0) + value
    return sums


def _confidence_panel(confidences: Histograms, when: str, top: float) -> str:
    from matplotlib.ticker import MaxNLocator

    edges = np.asarray(confidences.edges)
    with _figure(WIDTH, 200) as figure:
        axes = figure.add_axes((0.02, 0.2, 0.96, 0.67))
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, top), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=_RULE, linewidth=0.8)
        test, forget = (_densities(confidences, kind, when) for kind in ("test", "forget"))
        axes.stairs(test, edges, fill=True, color=_TEST, alpha=0.22, linewidth=0)
        axes.stairs(forget, edges, fill=True, color=_FORGET, alpha=0.16, linewidth=0)
        axes.stairs(test, edges, color=_TEST, linewidth=1.4)
        if "retain" in confidences.counts:
            axes.stairs(
                _densities(confidences, "retain", when), edges, color=_RETAIN, linewidth=1.4, linestyle=(0, (2, 2))
            )
        axes.stairs(forget, edges, color=_FORGET, linewidth=2)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.set_title(when, weight="bold")
        axes.set_xlabel("logit-scaled confidence φ: surer of the true class to the right")
        told = [
            f"{name} {middle:.1f}"
            for kind, name in (("forget", "forgotten"), ("test", "test"), ("retain", "retained"))
            if kind in confidences.counts and (middle := median_confidence(confidences, kind, when)) is not None
        ]
        title = f"Distribution of the logit-scaled confidences {when} forgetting"
        return _inline(figure, f"confidences-{when}", title, f"Median logit-scaled confidences: {', '.join(told)}.")


def _densities(confidences: Histograms, kind: str, when: str) -> Floats:
    counts = np.asarray(confidences.counts[kind][when], dtype=np.float64)
    return np.asarray(counts / (max(1.0, float(counts.sum())) * np.diff(confidences.edges)))


def _draw_roc(axes: "Axes", roc: Roc, floor: float, color: str, line: str | tuple[int, tuple[int, int]]) -> None:
    """Steps: between two thresholds that exist, an attack does no better than the stricter one."""
    fpr, tpr, low, high = (np.clip(values, floor, 1) for values in (roc.fpr, roc.tpr, roc.low, roc.high))
    axes.fill_between(fpr, low, high, step="post", color=color, alpha=0.16, linewidth=0)
    axes.plot(fpr, tpr, drawstyle="steps-post", color=color, linewidth=2, linestyle=line)


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def _shortened(name: str, length: int = 22) -> str:
    """A name without what cannot be printed, and without its middle where it is long."""
    printable = "".join(letter if letter.isprintable() else "�" for letter in name)
    if len(printable) <= length:
        return printable
    return f"{printable[: length // 2 - 3]}…{printable[-(length // 2 + 2) :]}"


@contextmanager
def _figure(width: float, height: float) -> Iterator["Figure"]:
    """An empty figure, in CSS pixels, under our style; the caller's style is what it was before."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("report.html needs matplotlib: pip install '.[report]' in expunge's sources") from error
    with mpl.rc_context():
        mpl.rcdefaults()  # not what a user's matplotlibrc says
        mpl.rcParams.update(_STYLE)
        yield Figure(figsize=(width / 72, height / 72))


def _inline(figure: "Figure", prefix: str, title: str, description: str) -> str:
    """The figure as an `svg` element to put into HTML: no header, metadata or namespace, its ids prefixed."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314  (what matplotlib just wrote)
    used = set(
        re.findall(r"#([\w-]+)", " ".join(value for element in root.iter() for value in element.attrib.values()))
    )
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value not in used:
                    continue
                value = f"{prefix}-{value}"
            elif name == "href":
                value = f"#{prefix}-{value.removeprefix('#')}"
            value = value.replace("url(#", f"url(#{prefix}-")
            if name == "style":
                value = _SENTINEL.sub(lambda found: _PROPERTIES[found.group()], value)
                value = re.sub(r"font-(size|family): [^;]*;? ?", "", value)  # the page's
            if not value.startswith("rotate(-0 "):
                element.set(name, value)
    for child in [child for child in root if child.tag == "metadata"]:
        root.remove(child)
    for style in [(parent, child) for parent in root.iter() for child in parent if child.tag == "style"]:
        style[0].remove(style[1])  # `* {stroke-linejoin: round}` would reach the whole page; the template has it
    width, height = (str(length) for length in (figure.get_figwidth() * 72, figure.get_figheight() * 72))
    root.attrib.clear()
    box = f"0 0 {float(width):g} {float(height):g}"
    names = f"{prefix}-title {prefix}-description"
    for name, value in {"viewBox": box, "role": "img", "aria-labelledby": names}.items():
        root.set(name, value)
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{prefix}-{'title' if tag == 'title' else 'description'}"})
        element.text = text
        root.insert(position, element)
    return ElementTree.tostring(root, encoding="unicode")
