"""What the default audit's score test promises, checked on simulated scores: false alarms, power, coverage, PASS rates.

    python -m experiments audit-simulation [false_alarms] [verdicts] [coverage]

Writes results/audit/simulation.json; takes about ten minutes on one core. Parts that are not named keep their results.
`simulation_table` makes the table of docs/research/audit-measured.md from it.
"""

import json
import math
import platform
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import special

from experiments import places
from experiments.commit import commit
from expunge.errors import SettingError
from expunge.markdown import markdown
from expunge.metrics.membership import auc_interval
from expunge.metrics.planning import plan
from expunge.metrics.rank_test import percentile_ranks
from expunge.metrics.tail_counts import tails
from expunge.metrics.verdict import FAILING, alarms, all_p_values, score_test

TARGET = places.RESULTS / "audit" / "simulation.json"
SEED = 0
REPETITIONS = 2_000
VERDICT_REPETITIONS = 1_000
SIZES = (16, 64, 512)
HELDOUT = (1_000, 10_000)
NUM_CLASSES = 10
AUCS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SPREADS = (1 / 3, 1.0, 3.0, 30.0)
"""Standard deviations of forgotten scores, held-out ones having 1. At 30, percentile ranks are almost all 0 or 1."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Draw = tuple[Floats, Floats, Integers | None, Integers | None]


def normal(rng: np.random.Generator, n: int, m: int) -> Draw:
    """Standard normal scores, one class."""
    return rng.standard_normal(n), rng.standard_normal(m), None, None


def tied(rng: np.random.Generator, n: int, m: int) -> Draw:
    """Student's t with two degrees of freedom, rounded to halves: heavy tails and many ties."""
    return np.round(2 * rng.standard_t(2, n)) / 2, np.round(2 * rng.standard_t(2, m)) / 2, None, None


def by_class(rng: np.random.Generator, n: int, m: int) -> Draw:
    """Ten classes, as many held-out examples of each, whose scores differ by up to nine standard deviations."""
    own, others = rng.integers(NUM_CLASSES, size=n), np.arange(m) % NUM_CLASSES
    return rng.standard_normal(n) + own, rng.standard_normal(m) + others, own, others


def one_class(rng: np.random.Generator, n: int, m: int) -> Draw:
    """Ten classes as in `by_class`, of which the hardest one alone is forgotten."""
    _, t, _, others = by_class(rng, n, m)
    return rng.standard_normal(n), t, np.zeros(n, dtype=np.int64), others


def drawn_classes(rng: np.random.Generator, n: int, m: int) -> Draw:
    """Ten classes of other difficulty and other shares, of which those of the held-out set are drawn, too."""
    shares = np.arange(1, NUM_CLASSES + 1) / 55
    own, others = (rng.choice(NUM_CLASSES, size=size, p=shares) for size in (n, m))
    return rng.standard_normal(n) + own, rng.standard_normal(m) + others, own, others


def absent_class(rng: np.random.Generator, n: int, m: int) -> Draw:
    """Ten classes as in `by_class`, four of which have no held-out examples."""
    own, others = rng.integers(NUM_CLASSES, size=n), np.arange(m) % NUM_CLASSES
    others = others[others >= 4]
    return rng.standard_normal(n) + own, rng.standard_normal(len(others)) + others, own, others


def long_tail(rng: np.random.Generator, n: int, m: int) -> Draw:
    """A hundred classes, of which every third has twenty times the held-out examples of the others: one to three."""
    sizes = np.where(np.arange(100) % 3, m, 20 * m)
    own, others = rng.integers(100, size=n), np.repeat(np.arange(100), sizes)
    return rng.standard_normal(n) + own, rng.standard_normal(len(others)) + others, own, others


def tiny(num_classes: int) -> Callable[[np.random.Generator, int, int], Draw]:
    """Classes of one to three held-out examples each."""

    def draw(rng: np.random.Generator, n: int, m: int) -> Draw:
        own, others = rng.integers(num_classes, size=n), np.arange(m) % num_classes
        return rng.standard_normal(n) + own, rng.standard_normal(m) + others, own, others

    return draw


KINDS: dict[str, Callable[[np.random.Generator, int, int], Draw]] = {
    "normal": normal,
    "heavy-tailed, tied": tied,
    "ten classes": by_class,
    "ten classes of unequal size": drawn_classes,
    "one class of ten": one_class,
    "ten classes, four not held out": absent_class,
    "ten tiny classes": tiny(10),
    "a hundred tiny classes": tiny(100),
    "a hundred classes, most tiny": long_tail,
}
SMALL = 250
"""Held-out examples where classes are small: about 25 a class."""

HELD_OUT: dict[str, tuple[int, ...]] = {
    "normal": HELDOUT,
    "heavy-tailed, tied": HELDOUT,
    "ten tiny classes": (10, 20, 30),
    "a hundred tiny classes": (100, 200, 300),
    "a hundred classes, most tiny": (1, 2, 3),
}
"""For the others it is `SMALL` and the smaller of `HELDOUT`."""


def rate(hits: int, repetitions: int) -> dict[str, float]:
    """A share with its Monte-Carlo standard error."""
    share = hits / repetitions
    return {"rate": share, "error": math.sqrt(share * (1 - share) / repetitions), "repetitions": repetitions}


def false_alarms(rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often FAIL is returned, and each p-value below its share of the level, when nothing is recognisable."""
    rows = []
    for kind, draw in KINDS.items():
        for m in HELD_OUT.get(kind, (SMALL, HELDOUT[0])):
            for n in SIZES:
                hits: Counter[str] = Counter()
                for _ in range(REPETITIONS):
                    s, t, own, others = draw(rng, n, m)
                    ranked = percentile_ranks(s, t, forget_labels=own, test_labels=others)
                    if 2 * ranked.unmatched > n:
                        continue
                    failed = alarms(all_p_values(ranked, tails(s, t, own, others)))
                    hits.update(failed | ({"any"} if failed else set()))
                row = {"scores": kind, "forgotten": n, "heldout": len(t), **rate(hits["any"], REPETITIONS)}
                rows.append({**row, "by_test": {name: hits[name] / REPETITIONS for name in FAILING}})
                print(rows[-1], flush=True)
    return rows


def shift(area: float, spread: float = 1.0) -> float:
    """The mean of normal scores with that AUC against standard normal ones."""
    return float(special.ndtri(area)) * math.sqrt(1 + spread**2)


def normals(mean: float, spread: float = 1.0) -> Callable[[np.random.Generator, int], Floats]:
    """Draws n normal scores."""
    return lambda rng, n: mean + spread * rng.standard_normal(n)


def both_tails(rng: np.random.Generator, n: int) -> Floats:
    """Half memorised, half over-forgotten: two standard deviations up or down."""
    return rng.standard_normal(n) + 2.0 * np.where(np.arange(n) < n // 2, 1, -1)


def pushed(rng: np.random.Generator, n: int) -> Floats:
    """Four in a hundred pushed down by eight standard deviations."""
    return rng.standard_normal(n) - 8 * (np.arange(n) < n // 25)


EDGE = math.tan(0.3 * math.pi)
"""Normal scores with this spread have mean |2u − 1| = (2/π) arctan(spread) = 0.6."""

Setting = tuple[str, int, int, int, str, Callable[[np.random.Generator, int], Floats]]


def few(size: float) -> Callable[[np.random.Generator, int], Floats]:
    """Five in a hundred moved by so many standard deviations."""
    return lambda rng, n: rng.standard_normal(n) + size * (np.arange(n) < n // 20)


def tenth(size: float) -> Callable[[np.random.Generator, int], Floats]:
    """Every tenth moved by so many standard deviations: one class of ten."""
    return lambda rng, n: rng.standard_normal(n) + size * (np.arange(n) % 10 == 0)


def settings() -> list[Setting]:
    """Name, how many are forgotten and held out, of how many classes, the verdict that is counted, and the draw."""
    found: list[Setting] = [
        ("memorised: AUC 0.80", 16, 1_000, 1, "FAIL", normals(shift(0.8))),
        ("half memorised, half over-forgotten: ±2σ", 16, 1_000, 1, "FAIL", both_tails),
        ("over-forgotten: −3σ", 16, 1_000, 1, "FAIL", normals(-3.0)),
        (
            "a tenth memorised: +5σ",
            64,
            1_000,
            1,
            "FAIL",
            lambda rng, n: rng.standard_normal(n) + 5 * (np.arange(n) < n // 10),
        ),
        *(
            (f"AUC {area:g}, σ = 1", n, 1_000, 1, "FAIL", normals(shift(area)))
            for area in (0.6, 0.7)
            for n in (16, 100)
        ),
        *(("forgotten", n, 1_000, 1, "PASS", normals(0.0)) for n in (16, 22, 23, 72, 96, 128, 512)),
        *(("forgotten", 100, m, 10, "PASS", normals(0.0)) for m in (100, 150, 250, 500, 1_000)),
        *(("forgotten", n, m, 100, "PASS", normals(0.0)) for n, m in ((100, 500), (500, 500), (500, 1_000))),
    ]
    places = [(n, 1_000, 1) for n in (32, 72, 128, 512)] + [(200, 100, 10), (200, 250, 10), (500, 500, 100)]
    for n, m, num_classes in places:
        for spread in (1 / 3, 1.0):
            for area in (0.4, 0.6):
                name = f"AUC {area:g}, σ = {spread:.2g}"
                found.append((name, n, m, num_classes, "PASS", normals(shift(area, spread), spread)))
        found.append(("A2 = 0.6", n, m, num_classes, "PASS", normals(0.0, EDGE)))
    for m, num_classes in ((100, 1), (100, 10), (250, 1), (250, 10), (500, 10), (1_000, 1), (1_000, 10)):
        for sign in (1, -1):
            found.append((f"5% at {sign * 6:+}σ".replace("-", "−"), 100, m, num_classes, "PASS", few(6.0 * sign)))
            if num_classes == 10:
                name = f"one class of ten at {sign * 3:+}σ".replace("-", "−")
                found.append((name, 100, m, num_classes, "PASS", tenth(3.0 * sign)))
    found.append(("4% over-forgotten: −8σ", 512, 1_000, 1, "PASS", pushed))
    found.append(("all alike, σ = 0.1", 128, 1_000, 1, "PASS", normals(0.0, 0.1)))
    return found


def verdicts(rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often a verdict is returned: where forgetting failed, where it did not, and at the margins of PASS."""
    rows = []
    for name, n, m, num_classes, verdict, draw in settings():
        own, others = np.arange(n) % num_classes, np.arange(m) % num_classes
        hits = 0
        for _ in range(VERDICT_REPETITIONS):
            s, t = draw(rng, n) + own, rng.standard_normal(m) + others
            hits += score_test(s, t, forget_labels=own, test_labels=others).verdict == verdict
        what = {"setting": name, "forgotten": n, "heldout": m, "classes": num_classes, "verdict": verdict}
        rows.append({**what, **rate(hits, VERDICT_REPETITIONS)})
        print(rows[-1], flush=True)
    return rows


def coverage(rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often the 95% interval of the AUC holds the true one, and how wide it is."""
    rows = []
    for n in SIZES:
        for spread in SPREADS:
            for area in AUCS:
                hits, width, mean = 0, 0.0, shift(area, spread)
                for _ in range(REPETITIONS):
                    scores = mean + spread * rng.standard_normal(n)
                    low, high = auc_interval(scores, rng.standard_normal(1_000))
                    hits += low <= area <= high
                    width += (high - low) / REPETITIONS
                what = {"auc": area, "spread": spread, "forgotten": n, "heldout": 1_000}
                rows.append({**what, **rate(hits, REPETITIONS), "mean_width": width})
            print(rows[-1], flush=True)
    return rows


def simulation_table() -> str:
    """The table of docs/research/audit-measured.md."""
    report = json.loads(TARGET.read_text())

    def shown(row: dict[str, Any]) -> str:
        return f"{100 * row['rate']:.2f} ± {100 * row['error']:.2f}"

    body = [
        [f"false alarms: {row['scores']}", str(row["forgotten"]), f"{row['heldout']:,}", shown(row), "≤ 5"]
        for row in report["false_alarms"]["rows"]
    ]
    aims = {"memorised: AUC 0.80": "≥ 95", "half memorised, half over-forgotten: ±2σ": "≥ 99"}
    for row in report["verdicts"]["rows"]:
        setting, n = row["setting"], row["forgotten"]
        aim = "" if setting == "forgotten" else "≤ 5"
        if row["verdict"] == "FAIL":
            aim = aims.get(setting, "")
        classes = f", {row['classes']} classes" if row["classes"] > 1 else ""
        body.append([f"{row['verdict']}: {setting}{classes}", str(n), f"{row['heldout']:,}", shown(row), aim])
    for n in SIZES:
        rows = [row for row in report["coverage"]["rows"] if row["forgotten"] == n]
        worst = min(rows, key=lambda row: float(row["rate"]))
        case = f"AUC {worst['auc']:g}, σ = {worst['spread']:.2g}"
        name = f"coverage of the AUC's interval: lowest of {len(rows)} cases ({case})"
        body.append([name, str(n), f"{worst['heldout']:,}", shown(worst), "≥ 94"])
    notes = []
    for part, name in (("false_alarms", "false alarms"), ("verdicts", "FAIL and PASS"), ("coverage", "coverage")):
        found = report[part]
        notes.append(
            f"{name}: {found['rows'][0]['repetitions']:,} repetitions · `{found['command']}` · {found['machine']} · "
            f"numpy {found['versions']['numpy']}, scipy {found['versions']['scipy']} · seed {found['seed']} · commit "
            f"{found['commit']}"
        )
    table = markdown(["what", "forgotten", "held out", "measured, %", "aim, %"], body)
    return f"{table}\n\n± one standard error; " + "; ".join(notes)


def plan_table() -> str:
    """Of docs/concepts/audits.md: the held-out examples that PASS takes, by `expunge.metrics.plan`."""
    sizes, body = (80, 100, 150, 200, 500, 1_000), []
    for num_classes in (1, 10, 100):
        fits = [size for size in sizes if size >= num_classes]
        needed = {size: plan(num_forget=size, num_classes=num_classes).test_needed for size in fits}
        body.append([str(num_classes), *(f"{number:,}" if (number := needed.get(size)) else "–" for size in sizes)])
    table = markdown(["classes", *(f"{size:,} forgotten" for size in sizes)], body)
    return f"{table}\n\n–: no number is enough · `expunge audit --plan --forgotten N --classes C`"


def main() -> None:
    """Simulates everything, or the named parts, and writes it down."""
    parts = {"false_alarms": false_alarms, "verdicts": verdicts, "coverage": coverage}
    wanted = sys.argv[1:] or list(parts)
    if unknown := set(wanted) - set(parts):
        raise SettingError(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    report = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    streams = dict(zip(parts, np.random.default_rng(SEED).spawn(len(parts)), strict=True))
    made = commit()
    for name in wanted:
        report[name] = {
            "command": "python -m experiments audit-simulation",
            "commit": made,
            "machine": f"{platform.machine()}, 1 thread",
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()},
            "seed": SEED,
            "rows": parts[name](streams[name]),
        }
        TARGET.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
