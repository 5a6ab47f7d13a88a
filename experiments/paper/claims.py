"""Which of the paper's claims hold in our measurements.

Rules. A *setting* of a claim is judged where enough was measured, and then it holds, is contradicted, or stays open:

- Comparisons, at one dataset, architecture and size: it holds where the method is significantly better than every
  method it is compared with, and is contradicted where it is significantly worse than one of them (paired t-tests by
  seed, Holm over those methods, 5%). Judged with at least 3 seeds shared with each of them, all of them measured.
- Near zero, also of one method: it holds where the 95% interval of the mean lies at or below 5%, and is contradicted
  where it lies above. Judged with at least 3 seeds. Where all seeds agree, the interval is the exact binomial one of
  all their examples.
- Correlations, at one dataset and architecture, over all sizes and seeds of the paper's two rows: it holds where the
  95% interval of Pearson's coefficient (as if runs were independent) lies on the claimed side of zero, and is
  contradicted where it lies on the other. Judged with at least 3 seeds and 8 points.

The verdict over all settings is *no* where at least two settings, and more than a tenth of those judged, contradict it;
else *yes* where at least three quarters hold; else *undecided*, as always with fewer than 3 judged settings. Sizes of
one network are settings of their own: how many networks they are of is told beside them.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from statistics import fmean, median
from typing import Literal

from experiments.paper.measured import MEASURES, Measured
from experiments.paper.printed import ARCHITECTURES, BASELINES, DATASETS, MEAN, OURS, ROWS, SIZES, TABLES, printed
from experiments.paper.statistics import (
    LEAST_PAIRS,
    BySeed,
    Correlation,
    ahead,
    differences,
    enough_shared,
    pearson,
    pearson_within,
    share_interval,
    spearman,
    spearman_within,
    summarize,
)
from expunge.markdown import markdown

FORMAT = "expunge-bench-compare/1"
LEAST_CHANGE = 1e-12  # in place of a change of 0, which has no logarithm
NEAR_ZERO = 0.05
"""Accuracy on the forget set that still counts as near zero."""
SMALL, LARGE = (16, 32), (256, 512)
"""Sizes that count as small and as large where the paper speaks of them."""
LEAST_SETTINGS = 3
MOST_CONTRADICTED = 0.1
LEAST_HELD = 0.75

Outcome = Literal["holds", "contradicted", "open"]
Verdict = Literal["yes", "no", "undecided"]
SIGN = {"retain": "D_r", "test": "D_t"}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One setting of a claim.

    Attributes:
        network: dataset and architecture, in words.
        setting: the same and, where there is one, size or method.
        outcome: whether the claim holds there.
        estimate: what was measured: see `Claim.estimates`.
        low, high: its 95% interval.
        n: seeds, or points of a correlation.
    """

    network: str
    setting: str
    outcome: Outcome
    estimate: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, and what the measurements say.

    Attributes:
        name: short, unique.
        claim: in words.
        paper: the paper's own evidence.
        estimates: what `Judged.estimate` is.
        measured: our evidence, in a sentence.
        verdict: by the rules of `experiments.paper.claims`.
        settings: those that were judged.
    """

    name: str
    claim: str
    paper: str
    estimates: str
    measured: str
    verdict: Verdict
    settings: tuple[Judged, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All claims, the rules, and what is to be known of the measurements."""

    claims: tuple[Claim, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps({"format": FORMAT, "rules": rules(), **asdict(self)}, indent=2)

    def to_markdown(self) -> str:
        """The claims as a table, then the rules."""
        head = ("claim", "verdict", "what we measured", "what the paper gives")
        table = markdown(head, [(c.claim, c.verdict, c.measured, c.paper) for c in self.claims], left=4)
        parts = ["# The paper's claims in our measurements", table, "## Rules", rules(), *self.notes]
        return "\n\n".join(parts) + "\n"


def rules() -> str:
    """How verdicts come about."""
    return str(__doc__).partition("Rules. ")[2].strip()


def compare(measured: Measured) -> Comparison:
    """Judges every claim."""
    claims = [smallest_change(measured, row) for row in OURS]
    claims += [
        near_zero(measured, "near_zero", "all methods", tuple(row for row in ROWS if row != "before")),
        near_zero(measured, "near_zero_ours", "δ-Targeted¹ and δ-Targeted³", OURS),
    ]
    claims += [best_accuracy(measured, row, measure) for measure in SIGN for row in OURS]
    claims += [
        ahead_of_the_other(measured, row, measure, sizes)
        for row, sizes in (("targeted3", LARGE), ("targeted1", SMALL))
        for measure in SIGN
    ]
    for x, y, sign in (
        ("l1", "test", -1),
        ("l1", "retain", -1),
        ("l1_last_layer", "retain", -1),
        ("l1_last_layer", "l1", 1),
    ):
        claims += [correlated(measured, x, y, sign, within=within) for within in (False, True)]
    return Comparison(claims=tuple(claims), notes=measured.notes)


def verdict(settings: Sequence[Judged]) -> Verdict:
    """Over all judged settings, by the rules above."""
    held = sum(s.outcome == "holds" for s in settings)
    against = sum(s.outcome == "contradicted" for s in settings)
    if len(settings) < LEAST_SETTINGS:
        return "undecided"
    if against >= 2 and against > MOST_CONTRADICTED * len(settings):
        return "no"
    return "yes" if held >= LEAST_HELD * len(settings) else "undecided"


def smallest_change(measured: Measured, row: str) -> Claim:
    """‖Δθ‖₁ of a row is below that of every baseline."""

    def logarithms(values: BySeed) -> dict[int, float]:
        # A run that moved nothing has the smallest change there is, and must not be left out.
        return {seed: log(max(value, LEAST_CHANGE)) for seed, value in values.items()}

    settings = _against(measured, row, BASELINES, "l1", SIZES, lambda values: _negative(logarithms(values)))
    ratios = [
        replace(
            s,
            estimate=exp(-s.estimate),
            low=None if s.high is None else exp(-s.high),
            high=None if s.low is None else exp(-s.low),
        )
        for s in settings
    ]
    return _claim(
        f"smallest_change_{row}",
        f"{ROWS[row]} changes the parameters least (‖Δθ‖₁)",
        "Figures 1 and 5: no numbers",
        "‖Δθ‖₁ over that of the other method with the smallest",
        ratios,
        lambda: f"median ratio to the best other {median(s.estimate for s in ratios):.2f}",
    )


def near_zero(measured: Measured, name: str, who: str, rows: Sequence[str]) -> Claim:
    """Accuracy on the forget set is at most `NEAR_ZERO`."""
    settings = []
    for dataset, architecture in measured.pairs():
        for row in rows:
            for size in SIZES:
                values = list(measured.values(dataset, architecture, row, size, "forget").values())
                if len(values) < LEAST_PAIRS:
                    continue
                low, high = share_interval(values, size)
                outcome: Outcome = "holds" if high <= NEAR_ZERO else "contradicted" if low > NEAR_ZERO else "open"
                found = fmean(values), low, high, len(values)
                settings.append(_judged(dataset, architecture, f", {ROWS[row]}, {size}", outcome, *found))
    numbers = [
        value
        for (table, split, row, _), cell in printed().items()
        if TABLES[table][1] != MEAN and split == "forget" and row in rows and (value := cell.mean) is not None
    ]
    near = sum(value <= 100 * NEAR_ZERO for value in numbers)
    return _claim(
        name,
        f"{who} bring accuracy on D_f near zero",
        f"Tables 5 to 16: {near} of {len(numbers)} means at most {NEAR_ZERO:.0%}; highest {max(numbers):.1f}%",
        "accuracy on the forget set",
        settings,
        lambda: f"highest mean {max(s.estimate for s in settings):.1%}",
    )


def best_accuracy(measured: Measured, row: str, measure: str) -> Claim:
    """Retained or test accuracy of a row is above that of every baseline."""
    return _more_accurate(
        f"best_{measure}_{row}",
        f"{ROWS[row]} keeps more accuracy on {SIGN[measure]} than every other method",
        ("above all others", "of the best other method", " over the best other"),
        _against(measured, row, BASELINES, measure, SIZES, dict),
        paper_wins(row, BASELINES, measure, SIZES),
    )


def ahead_of_the_other(measured: Measured, row: str, measure: str, sizes: tuple[int, ...]) -> Claim:
    """One λ is ahead of the other at some sizes."""
    (other,) = (name for name in OURS if name != row)
    kind = "large" if sizes == LARGE else "small"
    return _more_accurate(
        f"{kind}_{measure}_{row}",
        f"λ = {row[-1]} keeps more accuracy on {SIGN[measure]} at {kind} sizes ({' and '.join(map(str, sizes))})",
        ("ahead", "with the other λ", ""),
        _against(measured, row, (other,), measure, sizes, dict),
        paper_wins(row, (other,), measure, sizes),
    )


def _more_accurate(
    name: str, claim: str, words: tuple[str, str, str], settings: Sequence[Judged], paper: tuple[int, int]
) -> Claim:
    ahead_in, other, lead = words
    return _claim(
        name,
        claim,
        f"Tables 5 to 16: {ahead_in} in {paper[0]} of {paper[1]} cells",
        f"accuracy less that {other}",
        settings,
        lambda: f"median lead{lead} {100 * median(s.estimate for s in settings):+.1f} points",
    )


AXES = {"l1": "‖Δθ‖₁", "l1_last_layer": "‖Δφ‖₁", "test": "test accuracy", "retain": "retain accuracy"}
_FIGURES = {
    ("l1", "test"): "Figures 2 and 7",
    ("l1", "retain"): "Figure 7",
    ("l1_last_layer", "retain"): "Figure 8",
    ("l1_last_layer", "l1"): "Figures 3 and 6",
}


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Of two measures over the paper's two rows at one dataset and architecture; None with too few points."""

    pearson: Correlation | None
    spearman: Correlation | None
    pearson_within: Correlation | None
    spearman_within: Correlation | None


def correlations(measured: Measured, dataset: str, architecture: str, x: str, y: str) -> Correlations:
    """Over all sizes and seeds, and within one size of one λ: after the mean of each is taken off."""
    points = [
        (a, b, (row, size))
        for row, size, result in measured.points(dataset, architecture)
        if (a := MEASURES[x](result)) is not None and (b := MEASURES[y](result)) is not None
    ]
    xs, ys, groups = [p[0] for p in points], [p[1] for p in points], [p[2] for p in points]
    return Correlations(
        pearson=pearson(xs, ys),
        spearman=spearman(xs, ys),
        pearson_within=pearson_within(xs, ys, groups),
        spearman_within=spearman_within(xs, ys, groups),
    )


def correlated(measured: Measured, x: str, y: str, sign: int, *, within: bool) -> Claim:
    """Two measures go together over the paper's own method."""
    settings = []
    for dataset, architecture in measured.pairs():
        every = correlations(measured, dataset, architecture, x, y)
        found = every.pearson_within if within else every.pearson
        seeds = {result.seed for _, _, result in measured.points(dataset, architecture)}
        if found is None or len(seeds) < LEAST_PAIRS:
            continue
        low, high = sorted((sign * found.low, sign * found.high))
        outcome: Outcome = "holds" if low > 0 else "contradicted" if high < 0 else "open"
        settings.append(_judged(dataset, architecture, "", outcome, found.r, found.low, found.high, found.n))
    kind = "Positive" if sign > 0 else "Negative"
    seen = f"{_FIGURES[x, y]}: no coefficient"
    return _claim(
        f"{kind.lower()}_{x}_{y}{'_within_size_and_lam' if within else ''}",
        f"{kind} correlation of {AXES[x]} and {AXES[y]}{' within one size and λ' if within else ''}",
        f"{seen}, and sizes and λ not told apart" if within else seen,
        "Pearson's coefficient" + (" after the mean of each size of each λ is taken off" if within else ""),
        settings,
        lambda: f"median r {median(s.estimate for s in settings):+.2f}".replace("-", "−"),
    )


def paper_wins(
    row: str, others: Iterable[str], measure: str, sizes: Iterable[int], tables: Iterable[int] | None = None
) -> tuple[int, int]:
    """In how many cells the paper's mean of a row is above all others', and of how many that have all these means.

    Args:
        tables: None: 5 to 16.
    """
    others, won, number = tuple(others), 0, 0
    for table in tables or [table for table, (_, architecture) in TABLES.items() if architecture != MEAN]:
        for size in sizes:
            means = [printed()[table, measure, name, size].mean for name in (row, *others)]
            present = [mean for mean in means if mean is not None]
            if len(present) == len(means):
                number += 1
                won += present[0] > max(present[1:])
    return won, number


def _against(
    measured: Measured,
    row: str,
    others: Sequence[str],
    measure: str,
    sizes: Iterable[int],
    transform: Callable[[BySeed], dict[int, float]],
) -> list[Judged]:
    """A row against others in every setting where all are measured; larger is better once transformed."""
    settings = []
    for dataset, architecture in measured.pairs():
        for size in sizes:
            ours, *theirs = (
                transform(measured.values(dataset, architecture, name, size, measure)) for name in (row, *others)
            )
            if not enough_shared(ours, theirs):
                continue
            found = ahead(ours, theirs)
            outcome: Outcome = "open" if found is None else "holds" if found else "contradicted"
            gaps = [summarize(differences(ours, other)) for other in theirs]
            best = min(gaps, key=lambda gap: gap.mean)
            shown = best.mean, best.low, best.high, best.n
            settings.append(_judged(dataset, architecture, f", {size}", outcome, *shown))
    return settings


def _negative(values: BySeed) -> dict[int, float]:
    return {seed: -value for seed, value in values.items()}


def _judged(
    dataset: str,
    architecture: str,
    more: str,
    outcome: Outcome,
    estimate: float,
    low: float | None,
    high: float | None,
    n: int,
) -> Judged:
    network = f"{DATASETS[dataset]}, {ARCHITECTURES[architecture]}"
    return Judged(network=network, setting=network + more, outcome=outcome, estimate=estimate, low=low, high=high, n=n)


def _claim(
    name: str, claim: str, paper: str, estimates: str, settings: Sequence[Judged], size: Callable[[], str]
) -> Claim:
    counts = [sum(s.outcome == outcome for s in settings) for outcome in ("holds", "contradicted", "open")]
    told = "nothing to judge by"
    if settings:
        held, against, still = counts
        networks = len({s.network for s in settings})
        of = f"of {networks} network{'s' if networks > 1 else ''}"
        told = f"{held} of {len(settings)} settings ({of}) hold, {against} contradict, {still} open; {size()}"
    return Claim(
        name=name,
        claim=claim,
        paper=paper,
        estimates=estimates,
        measured=told,
        verdict=verdict(settings),
        settings=tuple(settings),
    )
