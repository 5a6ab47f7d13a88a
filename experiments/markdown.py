"""The line under a table of the docs."""

from collections.abc import Mapping
from typing import Any


def sourced(table: str, record: Mapping[str, Any], *parts: str) -> str:
    """A table and the line under it: `parts` say of what it is, and `record` its device, torch and commit."""
    told = [*parts, record["device"], f"torch {record['torch']}", f"commit {record['commit']}"]
    return f"{table}\n\n{' · '.join(told)}"
