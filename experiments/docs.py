"""Writes the measured tables into the docs, between `<!-- table NAME -->` and `<!-- end -->`.

    python -m experiments docs

Figures in the docs come from results/ by this command alone; `--check` fails where a page differs.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from typing import Any

from experiments import places, reference
from experiments.audits import attacks, cost, difficulty, full, nearer, rejudged, simulation
from experiments.comparisons import alone, better, chains, overview, ranking, rivals, unlabelled
from experiments.paper import page as paper
from experiments.paper import protocol, readings
from experiments.peers import table as peers
from experiments.speed import grid as grid_speed
from experiments.speed import memory
from experiments.theory import page as theory
from expunge.markdown import markdown

PAGES = (places.ROOT / "README.md", *sorted((places.ROOT / "docs").rglob("*.md")))
DATA = places.DOCS / "research" / "data"
BLOCK = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = dict[str, Any]


def load(name: str) -> list[Row]:
    """The lines of results/forgetting/NAME.jsonl, each with its cell."""
    path = places.ROOT / "results" / "forgetting" / f"{name}.jsonl"
    return [json.loads(line) for line in places.read(path).splitlines()] if path.exists() else []


def percent(values: list[float]) -> str:
    """Mean in percent, and ± the sample standard deviation where there is more than one value."""
    mean = 100 * statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"


def number(values: list[float]) -> str:
    """Mean with three significant figures."""
    mean = statistics.mean(values)
    return f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"


def label(row: Row) -> str:
    """How a run is called in the tables."""
    cell = json.loads(row["cell"])
    name = str(row["method"])
    if name == "targeted":
        name += f" λ={row['settings']['lam']:g}"
    return f"{name} ({cell['preset']} protocol)" if cell.get("preset") else name


def source(rows: list[Row], what: str) -> str:
    """The line under a table: command, machine, commit."""
    commits = sorted({row["commit"] for row in rows})
    devices = sorted({row["device"] for row in rows})
    return (
        f"`python -m experiments forgetting {what} --model runs/fm-r18` · {' or '.join(devices)} · "
        f"torch {rows[0]['versions']['torch']} · "
        f"commit {', '.join(commits)}"
    )


NEEDS_RETAIN = {"bad_teacher": "300", "amnesiac": "300", "finetune": "10,000", "retrain": "all"}


def methods_table(size: int) -> str:
    """All methods at one size."""
    rows = [row for row in load("methods") if row["forget_size"] == size]
    if not rows:
        return "not measured"
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row), []).append(row)
    before = {row["seed"]: row["forget_accuracy_before"] for row in rows}
    baseline = before_line()
    body = [["before", "", percent(list(before.values())), baseline[0], baseline[1], "", "", str(len(before))]]
    for name, group in groups.items():
        body.append(
            [
                name,
                NEEDS_RETAIN.get(group[0]["method"], "none"),
                percent([r["forget_accuracy"] for r in group]),
                percent([r["retain_accuracy"] for r in group]),
                percent([r["test_accuracy"] for r in group]),
                number([r["delta_l1"] for r in group]),
                number([r["steps"] for r in group]),
                str(len(group)),
            ]
        )
    head = ["method", "retained data used", "forget %", "retain %", "test %", "‖Δθ‖₁", "steps", "n"]
    return markdown(head, body) + "\n\n" + source(rows, "methods")


def before_line() -> tuple[str, str]:
    """Train and test accuracy of the original, from the training record kept beside the results."""
    path = places.ROOT / "results" / "forgetting" / "training.json"
    if not path.exists():
        return "", ""
    record = json.loads(path.read_text())
    return f"{100 * record['train_accuracy']:.1f}", f"{100 * record['test_accuracy']:.1f}"


def choices_table(size: int) -> str:
    """One factor at a time around the paper's setting, at one size."""
    rows = [row for row in load("choices") if row["forget_size"] == size]
    if not rows:
        return "not measured"
    body = []
    variants: dict[str, dict[float, Row]] = {}
    base = {"norm": "train", "stop": "budget", "epochs": 20, "batch_size": None, "lr": 1e-4}
    for row in rows:
        chosen = json.loads(row["cell"])["settings"]
        changed = {k: v for k, v in chosen.items() if k != "lam" and base.get(k, object()) != v}
        name = ", ".join(f"{k}={v}" for k, v in changed.items()) or "the paper's setting as read here"
        variants.setdefault(name, {})[float(chosen["lam"])] = row
    for name, by_lam in variants.items():
        line = [name]
        for lam in (1.0, 3.0):
            row = by_lam.get(lam, {})
            if "failed" in row:
                line += ["diverged", "", "", ""]
                continue
            line += (
                [
                    f"{100 * row['forget_accuracy']:.1f}",
                    f"{100 * row['retain_accuracy']:.1f}",
                    f"{100 * row['test_accuracy']:.1f}",
                    str(row["steps"]),
                ]
                if row
                else [""] * 4
            )
        body.append(line)
    head = ["changed"] + [f"λ={lam}: {what}" for lam in (1, 3) for what in ("forget %", "retain %", "test %", "steps")]
    return markdown(head, body) + "\n\n" + source(rows, "choices")


def retraining_table() -> str:
    """Examples that forgetting puts through the network, against retraining."""
    rows = load("methods")
    body = []
    for size in (16, 128, 512):
        ours = [r for r in rows if r["forget_size"] == size and label(r) == "targeted λ=2"]
        scratch = [r for r in rows if r["forget_size"] == size and r["method"] == "retrain"]
        if ours and scratch:
            seen = [statistics.mean(r["examples_seen"] for r in group) for group in (ours, scratch)]
            body.append([str(size), f"{seen[0]:,.0f}", f"{seen[1]:,.0f}", f"{100 * seen[0] / seen[1]:.1f}"])
    if not body:
        return "not measured"
    head = ["forgotten", "examples seen", "by retraining", "share, %"]
    return markdown(head, body) + "\n\n" + source(rows, "methods")


def speed_table() -> str:
    """The figures of experiments.speed.library."""
    path = places.ROOT / "results" / "speed.json"
    if not path.exists():
        return "not measured"
    report = json.loads(path.read_text())
    rows = [
        [
            f"`unlearn` against a bare loop, {row['forget_size']} examples, {row['steps']} steps: time",
            f"{row['ratio']:.3f} ({row['lowest']:.3f} to {row['highest']:.3f})",
            "≤ 1.03",
        ]
        for row in report["overhead"]
    ]
    memory, imports = report["memory"], report["imports"]
    rows += [
        ["the same: peak memory less one copy of the model", f"{memory['ratio']:.3f}", "≤ 1.05"],
        ["seconds against forget set × steps, 12 settings: R² of a line", f"{report['growth_r_squared']:.3f}", ""],
        ["`import expunge` added to `import torch`, seconds", f"{imports['added_seconds']:.2f}", "< 0.3"],
        ["`expunge --help`, seconds", f"{imports['help_seconds']:.2f}", "without torch"],
    ]
    sizes = report["training_set_sizes"]
    rows += [
        [
            f"training set of {row['training_set']:,}: `unlearn` of 32, seconds (one epoch of training)",
            f"{row['unlearn_seconds']:.2f} ({row['epoch_seconds']:.2f})",
            "no growth",
        ]
        for row in sizes
    ]
    told = f"torch {report['versions']['torch']} · commit {report['commit']}"
    note = f"`python -m experiments speed` · {report['machine']} · {told}"
    return markdown(["what", "measured", "aim"], rows) + "\n\n" + note


TABLES: dict[str, Callable[[], str]] = {
    "cli": reference.cli_reference,
    "methods": reference.methods_matrix,
    "methods-in-short": reference.methods_in_short,
    "methods-16": lambda: methods_table(16),
    "methods-128": lambda: methods_table(128),
    "methods-512": lambda: methods_table(512),
    "choices-16": lambda: choices_table(16),
    "choices-128": lambda: choices_table(128),
    "retraining": retraining_table,
    "speed": speed_table,
    "audit-simulation": simulation.simulation_table,
    "audit-plan": simulation.plan_table,
    "audit-cost": cost.cost_table,
    "audit-attacks": attacks.attacks_table,
    "audit-nearer": nearer.nearer_table,
    "audit-rejudged": rejudged.rejudged_table,
    "audit-difficulty": difficulty.difficulty_table,
    "full-audit": lambda: full.full_audit_table("paper"),
    "full-audit-better": lambda: full.full_audit_table("better"),
    "memory": memory.table,
    "bench-speed": grid_speed.bench_speed_table,
    "protocol-16": lambda: protocol.protocol_table(16),
    "protocol-128": lambda: protocol.protocol_table(128),
    "readings-standard": lambda: readings.readings_table("standard"),
    "readings-small-stem": lambda: readings.readings_table("small-stem"),
    "paper-coverage": paper.coverage_table,
    "paper-tables": paper.tables,
    "paper-claims": paper.claims_in_short,
    "paper-claims-settings": paper.claims,
    "paper-audits": paper.audit_table,
    "paper-retrain": lambda: paper.single_table(paper.RETRAIN),
    "paper-undo": lambda: paper.single_table(paper.UNDO),
    "alone-digits": lambda: alone.alone_table("digits"),
    "alone-one-class": lambda: alone.alone_table("one-class"),
    "alone-vit": lambda: alone.alone_table("vit"),
    "alone-text": lambda: alone.alone_table("text"),
    "alone-fashion-mnist": lambda: alone.alone_table("fashion-mnist"),
    "alone-cifar10": lambda: alone.alone_table("cifar10"),
    "alone-auditor": lambda: alone.auditor_table("sample"),
    "alone-rivals": rivals.rivals_table,
    "alone-unlabelled": unlabelled.unlabelled_table,
    "alone-sample": lambda: alone.alone_table("sample"),
    "chains": chains.chains_table,
    "peers": peers.peers_table,
    "peers-failures": peers.failures_table,
    "peers-steps": peers.steps_table,
    "ranking": ranking.ranking_table,
    "comparisons": overview.main_table,
    "better-choices": better.choices_table,
    "better-cifar10": lambda: better.tables("cifar10"),
    "better-sample": lambda: better.tables("sample"),
    "better-fashion-mnist": lambda: better.tables("fashion-mnist"),
    "theory-where": theory.TABLES["where"],
    "theory-single": theory.TABLES["single"],
    "theory-runs": theory.TABLES["runs"],
}


FILES: dict[str, Callable[[], str]] = {
    "comparisons.csv": overview.comparisons_csv,
    "paper-tables.csv": paper.tables_csv,
    "paper-claims.csv": paper.claims_csv,
}
"""What stands in docs/research/data."""


def filled(text: str) -> str:
    """`text` with every table written anew."""
    return BLOCK.sub(lambda m: f"{m.group(1)}{TABLES[m.group('name')]()}\n{m.group(3)}", text)


def main() -> None:
    """Fills the pages and writes the files of data, or with --check fails where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a file is out of date")
    check = parser.parse_args().check
    wanted = {page: filled(page.read_text()) for page in PAGES}
    wanted |= {DATA / name: make() for name, make in FILES.items()}
    stale = {path: new for path, new in wanted.items() if not path.exists() or path.read_text() != new}
    if check:
        for path in stale:
            print(f"{path.relative_to(places.ROOT)} is out of date: run python -m experiments docs", file=sys.stderr)
        print(f"{len(wanted) - len(stale)} of {len(wanted)} files are what results/ gives")
        sys.exit(bool(stale))
    for path, new in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new)
        print(f"wrote {path.relative_to(places.ROOT)}")
