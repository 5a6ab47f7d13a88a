"""The line under a table of the docs."""

from collections.abc import Mapping, Sequence
from typing import Any


def sourced(table: str, records: Mapping[str, Any] | Sequence[Mapping[str, Any]], *parts: str) -> str:
    """A table and the line under it: `parts` say of what it is, the records each device, torch and commit of theirs."""
    lines = [records] if isinstance(records, Mapping) else records
    of = {key: ", ".join(sorted({line[key] for line in lines})) for key in ("device", "torch", "commit")}
    told = [*parts, of["device"], f"torch {of['torch']}", f"commit {of['commit']}"]
    return f"{table}\n\n{' · '.join(told)}"
