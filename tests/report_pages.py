"""Pages to read: reports as pages, and what they are made of."""

import re
from functools import cache
from html import unescape
from html.parser import HTMLParser
from typing import Any

from expunge.auditing.report import AuditReport
from expunge.report.page import render
from tests.audit_reports import SOURCES, sample, trace

HEADINGS = ("h1", "h2", "h3", "h4")


class Outline(HTMLParser):
    """What a page is made of: elements with their attributes, and the text of some."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.tables: list[list[tuple[str, dict[str, str | None]]]] = []
        self.drawings: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag in HEADINGS:
            self.headings.append((tag, ""))
        if tag == "table":
            self.tables.append([])
        if tag == "svg":
            self.drawings.append([])
        if "table" in self._open:
            self.tables[-1].append((tag, dict(attrs)))
        if "svg" in self._open:
            self.drawings[-1].append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:  # elements without an end, such as meta
            pass

    def handle_data(self, data: str) -> None:
        if any(tag in self._open for tag in HEADINGS):
            tag, text = self.headings[-1]
            self.headings[-1] = (tag, " ".join(f"{text} {data}".split()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


NAMES = ("fail", "pass", "bare", "many", "corrected")


@cache
def report_of(name: str) -> AuditReport:
    settings: dict[str, dict[str, Any]] = {
        "fail": {},
        "pass": {"shift": 0.0, "num_forget": 300, "num_test": 4_000},
        "bare": {"shift": 0.0, "num_forget": 16, "num_test": 400, "retain": False, "layers": 60, "listed": 0},
        "many": {"num_forget": 2_000, "listed": 1_900, "layers": 700},
        "corrected": {"corrected": True},
    }
    return sample(**settings[name], relearning=name != "bare")


@cache
def page_of(name: str) -> str:
    report = report_of(name)
    if name == "bare":
        return render(report, sources={**SOURCES, "after": "runs/forgot"})
    return render(report, trace=trace(report), sources=None if name == "pass" else SOURCES, notes=["a note"])


def top_of(text: str) -> str:
    """What stands above the fold, as plain text."""
    return plain(text.partition('<details class="engineers">')[0])


def plain(text: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())
