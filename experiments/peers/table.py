"""The tables of docs/compare/libraries.md, from results/peers.jsonl."""

import json
from collections.abc import Iterable, Sequence
from math import isnan
from statistics import fmean
from typing import Any

from experiments import places
from experiments.peers.candidates import NAMES
from expunge.markdown import markdown

TARGET = places.RESULTS / "peers.jsonl"
NOT_MEASURED = "Not measured yet."

Row = dict[str, Any]


def read() -> list[Row]:
    """What is measured. A line that a kill cut short does not count."""
    rows = []
    for line in TARGET.read_text().splitlines() if TARGET.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def peers_table() -> str:
    """A row a method: means over the draws."""
    rows = [row for row in read() if "seed" in row]
    if not rows:
        return NOT_MEASURED
    body = []
    for name in NAMES:
        group = [row for row in rows if row["name"] == name]
        done = [row for row in group if "failed" not in row]
        if group:
            body.append(_done(name, done) if done else _failed(name, group[0]))
    head = [
        "library and method", "reads beside the forgotten", "CPU s", "s", "MB", "forget %", "retain %", "test %",
        "distance", "JS", "PASS / INC. / FAIL", "lines", "n",
    ]  # fmt: skip
    return markdown(head, body, left=2) + "\n\n" + _source(rows, "Means of n draws")


def _done(name: str, group: Sequence[Row]) -> list[str]:
    def mean(key: str, form: str, times: float = 1) -> str:
        values = [row[key] for row in group if row.get(key) is not None]
        if any(isnan(value) for value in values):
            return "NaN"
        return format(times * fmean(values), form) if values else ""

    verdicts = [row["verdict"] for row in group]
    return [
        name,
        group[0].get("data", ""),
        mean("cpu_seconds", ".2f"),
        mean("seconds", ".2f"),
        mean("peak_bytes", ".0f", 1e-6),
        mean("forget_accuracy", ".1f", 100),
        mean("retain_accuracy", ".1f", 100),
        mean("test_accuracy", ".1f", 100),
        mean("distance", ".1f", 100),
        mean("divergence", ".3f"),
        _told(verdicts),
        str(group[0].get("lines", "")),
        str(len(group)),
    ]


def _told(verdicts: Sequence[str]) -> str:
    """How often each; a network that answers NaN is not audited."""
    counts = [verdicts.count(each) for each in ("PASS", "INCONCLUSIVE", "FAIL")]
    return "/".join(map(str, counts)) if any(counts) else "no outputs"


def _failed(name: str, row: Row) -> list[str]:
    return [name, row.get("data", ""), "fails", *[""] * 8, str(row.get("lines", "")), ""]


def failures_table() -> str:
    """What does not run as installed, or not at all, and why."""
    rows = [row for row in read() if "seed" in row and ("failed" in row or _mended(row))]
    if not rows:
        return NOT_MEASURED
    body = []
    for name in (name for name in NAMES if any(row["name"] == name for row in rows)):
        row = next(row for row in rows if row["name"] == name)
        ends = row.get("failed", "runs")
        body.append([name, _cell(str(row.get("as_installed", ends))), row.get("mended", "–"), _cell(str(ends))])
    return markdown(["library and method", "as installed", "mended", "then"], body, left=4) + "\n\n" + _source(rows)


def _mended(row: Row) -> bool:
    return bool(row.get("as_installed", "runs") != "runs")


def _cell(text: str, most: int = 90) -> str:
    """Text that fits a cell."""
    text = text.replace("|", "\\|")
    return text if len(text) <= most else text[: most - 1] + "…"


def steps_table() -> str:
    """A row a pair: CPU seconds at an equal number of steps."""
    rows = [row for row in read() if "epochs" in row and "failed" not in row]
    if not rows:
        return NOT_MEASURED
    body = [
        [
            row["name"],
            f"`{row['ours']}`",
            str(row["steps"]),
            f"{row['their_cpu_seconds']:.2f}",
            f"{row['our_cpu_seconds']:.2f}",
            f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
        ]
        for row in rows
    ]
    head = ["theirs", "ours", "steps", "CPU s, theirs", "CPU s, ours", "ours / theirs"]
    return markdown(head, body, left=2) + "\n\n" + _source(rows)


def _source(rows: Iterable[Row], *parts: str) -> str:
    rows = list(rows)
    told = [", ".join(sorted({row[key] for row in rows})) for key in ("device", "torch", "commit")]
    said = [*parts, "`python -m experiments peers`", told[0], f"torch {told[1]}", f"commit {told[2]}"]
    return " · ".join(said)
