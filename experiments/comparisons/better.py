"""Every method beside those that this package adds, from results/better, for docs/research/comparisons.md.

    python -m experiments run grids/better-sample.toml --out results/better --models results/better/originals
    python -m experiments run grids/better-fashion-mnist.toml --out results/better --models runs/originals
    python -m experiments better

draws the figure into docs/research/figures/; `python -m experiments docs` writes the tables into the pages.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from math import asinh, hypot
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from experiments import places
from experiments.audits.rejudged import judged
from experiments.grid import Result, current, load_grid, read_results
from experiments.grid.measuring import model_digest
from experiments.paper.statistics import Summary, summarize
from expunge.markdown import markdown
from expunge.methods import METHODS, Needs
from expunge.models.checkpoint import FILE_NAME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

RESULTS = places.ROOT / "results" / "better"
ORIGINALS = RESULTS / "originals"
"""Those that are small enough to come with the figures, so that any machine can add to them."""
GRIDS = {
    "sample": places.ROOT / "grids" / "better-sample.toml",
    "fashion-mnist": places.ROOT / "grids" / "better-fashion-mnist.toml",
    "cifar10": places.ROOT / "grids" / "better-cifar10.toml",
    "choices": places.ROOT / "grids" / "better-choices.toml",
}
SHOWN_GRIDS = ("sample", "fashion-mnist", "cifar10")
SHOWN = 64
"""Forgotten examples in the figure: the size at which most methods are measured."""
LINEAR = 2.0
"""Points lost up to which the figure's axis is about linear; beyond it is logarithmic."""
TICKS = (-1, 0, 1, 2, 5, 10, 20, 50, 100)

PLACES = ((6, 7), (6, -8), (-6, 7), (-6, -8), (6, 18), (6, -18), (-6, 18), (-6, -18))
"""Where a label may stand, in points from its own; the first that is free is taken."""

FIGURE = places.DOCS / "research" / "figures" / "comparisons.svg"
TITLES = {
    "sample": "embedded sample, small residual network",
    "fashion-mnist": "Fashion-MNIST, ResNet-18",
    "cifar10": "CIFAR-10, ResNet-18",
}


@cache
def results(grid_name: str) -> dict[tuple[str, int], dict[int, Result]]:
    """{(row, size): {seed: result}} of a grid, without those that failed."""
    if not RESULTS.exists():
        return {}
    grid = load_grid(GRIDS[grid_name])
    found: dict[tuple[str, int], dict[int, Result]] = {}
    known = current(grid.cells("cpu"), read_results(RESULTS))
    originals = Counter((result.dataset, result.architecture, result.model_digest) for result in known.values())
    # An original that was trained anew is another one: rows of the one that has most of them.
    shown = {key[:2]: key[2] for key, _ in reversed(originals.most_common())}
    for cell in grid.cells("cpu"):
        result = known.get(cell.id)
        if result is None or shown[result.dataset, result.architecture] != result.model_digest:
            continue
        if result.failed is None:
            found.setdefault((cell.row, cell.forget_size), {})[cell.seed] = result
    return found


def lost(dataset: str, row: str, size: int) -> list[float]:
    """Test accuracy lost, in points, a seed: that of the original less that of the unlearned model."""
    found = results(dataset)
    before, after = found.get(("before", size), {}), found.get((row, size), {})
    return [
        100 * ((before[seed].test_accuracy or 0) - (result.test_accuracy or 0))
        for seed, result in after.items()
        if seed in before
    ]


def distances(dataset: str, row: str, size: int) -> list[float]:
    """How far (A1, A2) is from that of the network retrained without the same images, a seed that has one.

    From (½, ½), what a perfect draw would give, where none was retrained.
    """
    found = results(dataset)
    retrained = found.get(("retrain", size), {})
    return [
        hypot(*(is_ - wanted for is_, wanted in zip(_a1_a2(result), _a1_a2(retrained.get(seed)), strict=True)))
        for seed, result in found.get((row, size), {}).items()
        if seed in retrained or not retrained
    ]


def _a1_a2(result: Result | None) -> tuple[float, float]:
    return (0.5, 0.5) if result is None else (result.audit_a1 or 0.0, result.audit_a2 or 0.0)


def better_table(dataset: str, size: int) -> str:
    """A row a method: what it costs, and what the audit says."""
    found = results(dataset)
    rows = []
    for name in dict.fromkeys(row for row, _ in found):
        here = list(found.get((name, size), {}).values())
        if not here:
            continue
        needs = METHODS[here[0].method].needs if here[0].method in METHODS else Needs.FORGET
        counts = Counter(verdicts(dataset, name, size))
        rows.append(
            [
                name,
                _retained(here[0], needs),
                "yes" if Needs.TEST in needs else "–",
                _told(here, lambda r: 100 * (r.forget_accuracy or 0)),
                _lost(dataset, name, size),
                "/".join(str(counts[v]) for v in ("PASS", "INCONCLUSIVE", "FAIL")),
                f"{mean(r.audit_a1 or 0 for r in here):.2f}",
                f"{mean(r.audit_a2 or 0 for r in here):.2f}",
                f"{mean(r.seconds or 0 for r in here):.1f}",
                str(len(here)),
            ]
        )
    head = [
        f"{size} forgotten",
        "retained",
        "held-out",
        "forget accuracy",
        "test points lost",
        "PASS / INC. / FAIL",
        "A1",
        "A2",
        "seconds",
        "n",
    ]
    return markdown(head, rows)


def verdicts(dataset: str, row: str, size: int) -> list[str]:
    """Verdicts by three questions, a seed whose original was audited too; see `experiments.audits.rejudged`."""
    found = results(dataset)
    before = found.get(("before", size), {})
    return [judged(before[seed], result) for seed, result in found.get((row, size), {}).items() if seed in before]


def choices_table() -> str:
    """A row a choice: what it costs, where margins end, how many runs reached their goal, and how long it takes."""
    found, size = results("choices"), SHOWN
    rows = [
        [
            f"`{name}`" if "=" in name else name,
            _told(here, lambda r: 100 * (r.forget_accuracy or 0)),
            _lost("choices", name, size),
            f"{mean(r.audit_a1 or 0 for r in here):.2f}",
            f"{mean(r.audit_a2 or 0 for r in here):.2f}",
            f"{sum(not any('budget ended' in w for w in r.warnings or ()) for r in here)} of {len(here)}"
            if name not in {"before", "retrain"}
            else "",
            f"{mean(r.steps or 0 for r in here):.0f}",
            f"{mean(r.seconds or 0 for r in here):.0f}",
            str(len(here)),
        ]
        for name in dict.fromkeys(row for row, _ in found)
        if (here := list(found.get((name, size), {}).values()))
    ]
    head = [f"{size} forgotten", "forget accuracy", "test points lost", "A1", "A2", "reached", "steps", "seconds", "n"]
    return markdown(head, rows) + "\n\n" + source("choices")


def source(grid_name: str) -> str:
    """The line under the tables of a grid: command, machine, commit."""
    all_of = [result for by_seed in results(grid_name).values() for result in by_seed.values()]
    if not all_of:
        return ""
    devices, commits = sorted({r.device for r in all_of}), sorted({r.commit for r in all_of})
    versions = sorted({r.versions["torch"] for r in all_of})
    checkpoint = ORIGINALS / f"{all_of[0].dataset}-{all_of[0].architecture}" / FILE_NAME
    committed = checkpoint.exists() and {model_digest(checkpoint)} == {r.model_digest for r in all_of}
    models = f" --models {ORIGINALS.relative_to(places.ROOT)}" if committed else ""
    on_gpu = any(not device.endswith("threads") for device in devices)
    profile = " --profile cpu" if on_gpu else ""  # what `results` reads; on GPUs it has to be named
    return (
        f"`python -m experiments run grids/{GRIDS[grid_name].name} --out results/better{models}{profile}` · "
        f"{' or '.join(devices)} · torch {', '.join(versions)} · commit {', '.join(commits)}"
    )


def tables(dataset: str) -> str:
    """All sizes of a dataset."""
    sizes = sorted({size for _, size in results(dataset)})
    return "\n\n".join([*(better_table(dataset, size) for size in sizes), source(dataset)])


def _retained(result: Result, needs: Needs) -> str:
    if Needs.RETAIN not in needs:
        return "–"
    size = result.settings.get("retain_size")
    return "all" if size is None else f"{size:,}"


def _told(here: list[Result], of: Callable[[Result], float]) -> str:
    return _shown(summarize([of(result) for result in here]))


def _lost(dataset: str, row: str, size: int) -> str:
    found = lost(dataset, row, size)
    return "0" if row == "before" else _shown(summarize(found)) if found else ""


def _shown(found: Summary) -> str:
    return f"{found.mean:.1f}" if found.sd is None else f"{found.mean:.1f} ± {found.sd:.1f}"


def draw(path: Path) -> None:
    """One panel a dataset: test points lost against `distances`, a point a method, with intervals."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    shown = [dataset for dataset in SHOWN_GRIDS if any(size == SHOWN for _, size in results(dataset))]
    figure, axes = plt.subplots(len(shown), figsize=(8, 5 * len(shown)), squeeze=False, layout="constrained")
    drawn: list[tuple[Axes, list[tuple[float, float, list[str]]]]] = []
    for axis, dataset in zip(axes[:, 0], shown, strict=True):
        found = results(dataset)
        labels: list[tuple[float, float, list[str]]] = []
        for name in dict.fromkeys(row for row, _ in found):
            here = found.get((name, SHOWN), {})
            apart = distances(dataset, name, SHOWN)
            method, _, variant = name.partition(" ")
            if not here or not apart or not lost(dataset, name, SHOWN) or (variant and (method, SHOWN) in found):
                continue
            x = summarize(apart, least=0)
            y = summarize([0.0] if name == "before" else lost(dataset, name, SHOWN))
            own = method in {"calibrated", "held_boundary", "masked_distillation", "targeted", "targeted3"}
            axis.errorbar(
                x.mean,
                y.mean,
                xerr=_bars(x),
                yerr=_bars(y),
                fmt="D" if own else "o",
                color="C3" if own else "0.35" if name in {"before", "retrain"} else "C0",
                markersize=6 if own else 5,
                elinewidth=0.8,
            )
            near = [names for at, height, names in labels if abs(at - x.mean) < 0.05 and _apart(height, y.mean) < 0.3]
            if near:  # labels would lie on each other: one for all
                near[0].append(name)
            else:
                labels.append((x.mean, y.mean, [name]))
        axis.set_yscale("asinh", linear_width=LINEAR)
        axis.yaxis.set_major_locator(FixedLocator(TICKS))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.32, y=0.12)
        axis.set(
            title=f"{TITLES[dataset]}, {SHOWN} forgotten",
            xlabel=f"distance of (A1, A2) to {'retrained models' if found.get(('retrain', SHOWN)) else '(½, ½)'}",
            ylabel="test accuracy lost, points",
        )
        low, high = axis.get_ylim()
        axis.set_ylim(min(max(high, LINEAR), TICKS[-1]), max(min(low, TICKS[0]), 2 * TICKS[0]))
        drawn.append((axis, labels))
    figure.draw_without_rendering()  # places are known from here on
    for axis, labels in drawn:
        _label(axis, labels)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _label(axis: "Axes", labels: list[tuple[float, float, list[str]]]) -> None:
    """Writes names beside their points (x, y), each at the first place of a few where no other text or point is."""
    points = [axis.transData.transform((at, height)) for at, height, _ in labels]
    taken: list[Bbox] = []
    for at, height, names in labels:
        text = "\n".join(", ".join(names[n : n + 3]) for n in range(0, len(names), 3)).replace(" mix", "\nmix")
        for place in PLACES:
            label = axis.annotate(text, (at, height), place, textcoords="offset points", fontsize=8, va="center")
            label.set_horizontalalignment("right" if place[0] < 0 else "left")
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken) and not any(box.contains(*point) for point in points):
                break
            label.remove()
        else:
            label = axis.annotate(text, (at, height), PLACES[0], textcoords="offset points", fontsize=8, va="center")
            box = label.get_window_extent()
        taken.append(box)


def _apart(one: float, other: float) -> float:
    """How far apart two losses lie on the axis, on which `LINEAR` points and less are about linear."""
    return abs(asinh(one / LINEAR) - asinh(other / LINEAR))


def _bars(found: Summary) -> list[list[float]] | None:
    if found.low is None or found.high is None:
        return None
    return [[found.mean - found.low], [found.high - found.mean]]


def main() -> None:
    """Draws the figure."""
    draw(FIGURE)
    print(f"wrote {FIGURE.relative_to(places.ROOT)}")
