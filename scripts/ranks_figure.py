"""Draws docs/concepts/ranks.svg: percentile ranks of 60 made-up forgotten examples in four cases.

python scripts/ranks_figure.py
"""

from pathlib import Path

import numpy as np

from expunge.metrics import percentile_ranks

PLACE = Path(__file__).parents[1] / "docs" / "concepts" / "ranks.svg"
NUM, LEFT, WIDTH, ROW = 60, 190, 360, 44
CASES = {
    "like unseen": (0.0,),
    "remembered": (1.2,),
    "pushed too far": (-2.0,),
    "half and half": (2.0, -2.0),
}
"""By name, how far the scores of equal parts of the forgotten examples are moved, in standard deviations."""


def main() -> None:
    rng = np.random.default_rng(0)
    unseen = rng.normal(size=1000)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {ROW * len(CASES) + 40}" font-family="sans-serif" '
        'font-size="15" fill="#767676">'
    ]
    for row, (name, moved) in enumerate(CASES.items()):
        ranks = percentile_ranks(rng.normal(size=NUM) + np.resize(moved, NUM), unseen)
        y = ROW * row + 12
        lines.append(f'<text x="0" y="{y + 18}">{name}</text>')
        lines.append(f'<path d="M{LEFT} {y + 24}h{WIDTH}" stroke="#767676"/>')
        lines += [f'<path d="M{LEFT + WIDTH * u:.1f} {y}v24" stroke="#00897b" stroke-width="2"/>' for u in ranks.u]
        lines.append(f'<text x="{LEFT + WIDTH + 20}" y="{y + 18}">A1 {ranks.a1:.2f}, A2 {ranks.a2:.2f}</text>')
    y = ROW * len(CASES) + 28
    for u, what, anchor in ((0, "rank 0: unsure", "start"), (1, "rank 1: sure", "end")):
        lines.append(f'<text x="{LEFT + WIDTH * u}" y="{y}" text-anchor="{anchor}">{what}</text>')
    PLACE.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
