"""What was done and measured, as one record: `report.json`, and `report.html` from it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.auditing.report import AuditReport
from expunge.data import ImageSet
from expunge.errors import SettingError
from expunge.files import written_whole
from expunge.records import Measurement, Trace


def today() -> str:
    """The date in UTC, such as 2030-01-31: the same wherever the machine stands."""
    return datetime.now(UTC).date().isoformat()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `forget` or `audit` did and measured; `report.json` in its directory.

    docs/reference/report-json.md has its schema.

    Attributes:
        directory: where it lies; "" for what was done in Python.
        sources: the specs and paths that were read; empty for what was done in Python.
        before, after: accuracies.
        trace: what `forget` did; None in the report of `audit`.
        audit: None where no test set was given.
        notes: one sentence each on what was read and written.
        date: of the day, in UTC, on which it was made.
    """

    directory: str = ""
    sources: Mapping[str, Any] = field(default_factory=dict)
    before: Measurement
    after: Measurement
    trace: Trace | None = None
    audit: AuditReport | None = None
    notes: tuple[str, ...] = field(default=())
    date: str = field(default_factory=today)

    def to_json(self) -> str:
        """JSON text."""
        content = {**asdict(self), "audit": self.audit.to_dict() if self.audit else None}
        return json.dumps({"format": "expunge-report/4", **content}, indent=2)

    def save(self, path: str | Path, images: ImageSet | None = None) -> None:
        """Writes the report to a new file: the page to NAME.html, and the record to NAME.json.

        Args:
            path: the file; one that is there is replaced.
            images: the forgotten images, to show those on the page that are still recognisable.

        Raises:
            SettingError: another suffix.
            MissingExtraError: the page needs the extra `report`.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = self.to_json()
        elif path.suffix == ".html":
            text = self.page(images)
        else:
            raise SettingError(f"a report is saved as .json or .html, not as {path.name!r}")
        with written_whole(path, private=True) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def page(self, images: ImageSet | None = None) -> str:
        """The page as HTML text; without an audit it says so. Raises `MissingExtraError` without the extra `report`."""
        from expunge.report.page import render, render_unaudited

        given: dict[str, Any] = {"sources": self.sources or None, "date": self.date, "directory": self.directory}
        if self.audit is None:
            return render_unaudited(self.before, self.after, trace=self.trace, notes=self.notes, **given)
        return render(self.audit, trace=self.trace, notes=self.notes, images=images, **given)

    def __repr__(self) -> str:
        lines = [f"Report({self.verdict or 'no audit'})"]
        if self.audit is not None:
            lines.append(self.audit.reason)
        return "\n".join([*lines, f"before {self.before}\nafter  {self.after}"])

    @property
    def verdict(self) -> str | None:
        """Of the audit; None where there was none."""
        return self.audit.verdict if self.audit else None
