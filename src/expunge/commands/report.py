"""What a command measured, as `report.json` and `report.html`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.auditing.report import AuditReport
from expunge.data import ImageSet
from expunge.errors import MissingExtraError
from expunge.records import Measurement, Trace


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `forget` or `audit` did and measured; `report.json` in its directory. docs/report.md has its schema.

    Attributes:
        directory: where it lies.
        sources: the specs and paths that were read.
        before, after: accuracies.
        trace: what `forget` did; None in the report of `audit`.
        audit: None where no test set was given.
        notes: one sentence each on what was read and written.
    """

    directory: str
    sources: Mapping[str, Any]
    before: Measurement
    after: Measurement
    trace: Trace | None = None
    audit: AuditReport | None = None
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """JSON text."""
        content = {**asdict(self), "audit": self.audit.to_dict() if self.audit else None}
        return json.dumps({"format": "expunge-report/2", **content}, indent=2)

    @property
    def verdict(self) -> str | None:
        """Of the audit; None where there was none."""
        return self.audit.verdict if self.audit else None


def told(sources: Any, **more: Any) -> dict[str, Any]:
    """A record of specs and paths as JSON values."""
    content = {**asdict(sources), **more}
    return {key: str(value) if isinstance(value, Path) else value for key, value in content.items()}


def write_report(directory: Path, report: Report, images: ImageSet | None = None) -> Report:
    """Writes `report.json` and, where there was an audit, `report.html`; gives back the report as written.

    Without the extra `report` there is no page, and a note says how to get one.

    Args:
        directory: where to.
        report: what to write.
        images: the forgotten images, to show those that are still recognisable; None shows none.
    """
    if report.audit is not None:
        from expunge.report.page import render

        try:
            page = render(report.audit, trace=report.trace, sources=report.sources, notes=report.notes, images=images)
            (directory / "report.html").write_text(page, encoding="utf-8")
        except MissingExtraError as error:
            note = f"no report.html was written: {error}"
            report = replace(report, notes=tuple(dict.fromkeys((*report.notes, note))))
    (directory / "report.json").write_text(report.to_json(), encoding="utf-8")
    return report
