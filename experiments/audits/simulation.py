"""What the default audit's score test promises, checked on simulated scores: false alarms, power, coverage, PASS rates.

    python -m experiments audit-simulation

Writes results/audit/simulation.json; takes several minutes on one core. `simulation_table` makes the table of
docs/audit.md from it.
"""

import json
import math
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import special

from experiments import places
from experiments.commit import commit
from expunge.markdown import markdown
from expunge.metrics.membership import auc_interval
from expunge.metrics.verdict import alarms, score_test

TARGET = places.RESULTS / "audit" / "simulation.json"
SEED = 0
FALSE_ALARM_REPETITIONS = 4_000
REPETITIONS = 2_000
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


KINDS: dict[str, Callable[[np.random.Generator, int, int], Draw]] = {
    "normal": normal,
    "heavy-tailed, tied": tied,
    "ten classes": by_class,
    "ten classes of unequal size": drawn_classes,
    "one class of ten": one_class,
}
SMALL = 250
"""Held-out examples where classes are small: about 25 a class."""


def rate(hits: int, repetitions: int) -> dict[str, float]:
    """A share with its Monte-Carlo standard error."""
    share = hits / repetitions
    return {"rate": share, "error": math.sqrt(share * (1 - share) / repetitions), "repetitions": repetitions}


def false_alarms(rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often FAIL is returned, and each p-value below its share of the level, when nothing is recognisable."""
    rows = []
    for kind, draw in KINDS.items():
        for m in HELDOUT if draw in (normal, tied) else (SMALL, HELDOUT[0]):
            for n in SIZES:
                hits = {"any": 0, "a1": 0, "a2": 0, "k_plus": 0}
                for _ in range(FALSE_ALARM_REPETITIONS):
                    s, t, own, others = draw(rng, n, m)
                    failed = alarms(score_test(s, t, forget_labels=own, test_labels=others).p_values)
                    for name in failed | ({"any"} if failed else set()):
                        hits[name] += 1
                rows.append(
                    {
                        "scores": kind,
                        "forgotten": n,
                        "heldout": m,
                        **rate(hits["any"], FALSE_ALARM_REPETITIONS),
                        "by_test": {name: hits[name] / FALSE_ALARM_REPETITIONS for name in ("a1", "a2", "k_plus")},
                    }
                )
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

Setting = tuple[str, int, str, Callable[[np.random.Generator, int], Floats]]


def settings() -> list[Setting]:
    """What is drawn, how many forgotten examples, the verdict that is counted, and the draw."""
    found: list[Setting] = [
        ("memorised: AUC 0.80", 16, "FAIL", normals(shift(0.8))),
        ("half memorised, half over-forgotten: ±2σ", 16, "FAIL", both_tails),
        ("over-forgotten: −3σ", 16, "FAIL", normals(-3.0)),
        ("a tenth memorised: +5σ", 64, "FAIL", lambda rng, n: rng.standard_normal(n) + 5 * (np.arange(n) < n // 10)),
    ]
    for n in (16, 22, 23, 72, 96, 128, 512):
        found.append(("forgotten", n, "PASS", normals(0.0)))
    for n in (32, 72, 128, 512):
        for spread in (1 / 3, 1.0):
            for area in (0.4, 0.6):
                name = f"AUC {area:g}, σ = {spread:.2g}"
                found.append((name, n, "PASS", normals(shift(area, spread), spread)))
        found.append(("A2 = 0.6", n, "PASS", normals(0.0, EDGE)))
    found.append(("4% over-forgotten: −8σ", 512, "PASS", pushed))
    found.append(("all alike, σ = 0.1", 128, "PASS", normals(0.0, 0.1)))
    return found


def verdicts(rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often a verdict is returned: where forgetting failed, where it did not, and at the margins of PASS."""
    rows = []
    for name, n, verdict, draw in settings():
        repetitions = FALSE_ALARM_REPETITIONS if (name, n) == ("forgotten", 16) else REPETITIONS
        hits = sum(score_test(draw(rng, n), rng.standard_normal(1_000)).verdict == verdict for _ in range(repetitions))
        rows.append({"setting": name, "forgotten": n, "heldout": 1_000, "verdict": verdict, **rate(hits, repetitions)})
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
    """The table of docs/audit.md."""
    report = json.loads(TARGET.read_text())

    def shown(row: dict[str, Any]) -> str:
        return f"{100 * row['rate']:.2f} ± {100 * row['error']:.2f}"

    body = [
        [f"false alarms: {row['scores']}", str(row["forgotten"]), f"{row['heldout']:,}", shown(row), "≤ 5"]
        for row in report["false_alarms"]
    ]
    aims = {"memorised: AUC 0.80": "≥ 95", "half memorised, half over-forgotten: ±2σ": "≥ 99"}
    for row in report["verdicts"]:
        setting, n = row["setting"], row["forgotten"]
        aim = aims.get(setting, "≤ 5" if setting.startswith(("AUC", "A2", "4%", "all")) else "0" if n == 16 else "")
        if row["verdict"] == "FAIL":
            aim = aims.get(setting, "")
        body.append([f"{row['verdict']}: {setting}", str(n), f"{row['heldout']:,}", shown(row), aim])
    for n in SIZES:
        rows = [row for row in report["coverage"] if row["forgotten"] == n]
        worst = min(rows, key=lambda row: float(row["rate"]))
        case = f"AUC {worst['auc']:g}, σ = {worst['spread']:.2g}"
        name = f"coverage of the AUC's interval: lowest of {len(rows)} cases ({case})"
        body.append([name, str(n), f"{worst['heldout']:,}", shown(worst), "≥ 94"])
    note = (
        f"± one standard error; {FALSE_ALARM_REPETITIONS:,} repetitions for false alarms and PASS with 16 forgotten, "
        f"{REPETITIONS:,} for the rest"
        f" · `{report['command']}` · {report['machine']} · numpy {report['versions']['numpy']}, scipy "
        f"{report['versions']['scipy']} · seed {report['seed']} · commit {report['commit']}"
    )
    return markdown(["what", "forgotten", "held out", "measured, %", "aim, %"], body) + "\n\n" + note


def main() -> None:
    """Simulates everything and writes it down."""
    report: dict[str, Any] = {
        "command": "python -m experiments audit-simulation",
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 thread",
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "python": platform.python_version()},
        "seed": SEED,
    }
    parts = (("false_alarms", false_alarms), ("verdicts", verdicts), ("coverage", coverage))
    for (name, simulate), rng in zip(parts, np.random.default_rng(SEED).spawn(len(parts)), strict=True):
        report[name] = simulate(rng)
    TARGET.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
