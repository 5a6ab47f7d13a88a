"""Tables for the docs."""

from collections.abc import Iterable, Mapping
from typing import Any


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column left, the others right."""
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def sourced(table: str, record: Mapping[str, Any], *parts: str) -> str:
    """A table and the line under it: `parts` say of what it is, and `record` its device, torch and commit."""
    told = [*parts, record["device"], f"torch {record['torch']}", f"commit {record['commit']}"]
    return f"{table}\n\n{' · '.join(told)}"
