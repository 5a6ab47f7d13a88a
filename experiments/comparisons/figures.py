"""Draws the figure of docs/research/forgetting.md: `python -m experiments forgetting-figure`."""

import statistics

import matplotlib as mpl

from experiments.docs import before_line, label, load
from experiments.places import DOCS, ROOT

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "expunge"  # the same file from the same figures
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

TARGET = DOCS / "research" / "figures" / "forgetting.svg"
SHOWN = {
    "targeted λ=1 (paper protocol)": ("targeted λ=1", "#9ecae1", "o"),
    "targeted λ=3 (paper protocol)": ("targeted λ=3", "#3182bd", "o"),
    "targeted λ=2": ("targeted, our defaults", "#08306b", "D"),
    "neg_grad (paper protocol)": ("neg_grad", "#de2d26", "s"),
    "random_label (paper protocol)": ("random_label", "#fc9272", "s"),
    "bad_teacher (paper protocol)": ("bad_teacher (300 retained)", "#74c476", "^"),
    "amnesiac (paper protocol)": ("amnesiac (300 retained)", "#238b45", "^"),
    "retrain": ("retrain (all retained)", "#000000", "x"),
}


def main() -> None:
    """Test accuracy after forgetting, against the number of forgotten examples."""
    rows = load("methods")
    sizes = sorted({row["forget_size"] for row in rows})
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    for key, (name, colour, marker) in SHOWN.items():
        groups = [[100 * r["test_accuracy"] for r in rows if label(r) == key and r["forget_size"] == n] for n in sizes]
        if not any(groups):
            continue
        present = [(n, group) for n, group in zip(sizes, groups, strict=True) if group]
        axes.errorbar(
            [n for n, _ in present],
            [statistics.mean(group) for _, group in present],
            [statistics.stdev(group) if len(group) > 1 else 0 for _, group in present],
            label=name,
            color=colour,
            marker=marker,
            capsize=3,
        )
    axes.axhline(float(before_line()[1]), color="grey", linestyle=":", label="before")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_xlabel("forgotten examples of 60,000")
    axes.set_ylabel("test accuracy after forgetting, %")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    figure.savefig(TARGET, metadata={"Date": None})
    print(f"wrote {TARGET.relative_to(ROOT)}")
