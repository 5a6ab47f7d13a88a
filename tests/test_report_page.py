"""report.html: what it holds, that nothing of it reaches out or breaks out, and how a browser shows it."""

import json
import re
from dataclasses import fields, replace
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from expunge.auditing.attacks import Attack
from expunge.auditing.both_models import Comparison
from expunge.auditing.report import AuditReport, Histograms, Recognisable, Relearning, Roc, Unseen
from expunge.metrics import ParameterChange
from expunge.metrics.utility import AccuracyLoss
from expunge.records import Measurement, PseudoLabels, Trace
from expunge.report import figures, wording
from expunge.report.page import render, render_unaudited
from expunge.report.record import Report
from tests import browser
from tests.audit_reports import HOSTILE, SOURCES, sample, thumbnails_of, trace
from tests.report_pages import NAMES, Outline, page_of, plain, report_of

ROOT = Path(__file__).parents[1]


every_page = pytest.mark.parametrize("name", NAMES)


@every_page
def test_a_page_holds_all_it_needs_and_reaches_for_nothing(name: str) -> None:
    text = page_of(name)
    outline = Outline(text)
    assert len(text.encode()) < 1_000_000
    assert "http:" not in text.replace('http-equiv="Content', "")
    assert "https:" not in text
    assert "//" not in re.sub(r"<(?:td|th|code|pre)[^>]*>[^<]*", "", text)
    assert not outline.all("script")
    assert not outline.all("img")
    assert [link["href"] for link in outline.all("link")] == ["data:,"]
    assert not re.search(r"\bon[a-z]+=|javascript:|@import|url\((?!#)", text)


@every_page
def test_a_page_can_be_read_without_seeing_it(name: str) -> None:
    text = page_of(name)
    outline = Outline(text)
    levels = [int(tag[1]) for tag, _ in outline.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert outline.all("html") == [{"lang": "en"}]
    for table in outline.tables:
        tags = [tag for tag, _ in table]
        assert "caption" in tags
        assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in table if tag == "th")
    assert len(outline.drawings) == 6
    for drawing, attributes in zip(outline.drawings, outline.all("svg"), strict=True):
        assert drawing[1:3] == ["title", "desc"]
        assert attributes["role"] == "img"
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text)
    named = [name for attributes in outline.all("svg") for name in str(attributes["aria-labelledby"]).split()]
    assert {*wanted, *named} <= set(ids)


def test_a_correction_decides_and_says_what_to_expect() -> None:
    report, text = report_of("corrected"), page_of("corrected")
    assert report.correction is not None
    assert (report.scores_after.verdict, report.verdict) == ("FAIL", report.correction.after.verdict)
    assert report.verdict != "FAIL"
    for told in ("calibrated for difficulty", "12.5%", "79.8%"):
        assert told in plain(text)
        assert told not in plain(page_of("fail"))
    assert report.correction.after.reason in unescape(text)
    # Hard examples are no mark: a model that never saw them gets them wrong as well.
    mark = wording.mark_of_accuracy(report_of("fail"))
    assert mark is not None
    assert mark in unescape(page_of("fail"))
    assert wording.mark_of_accuracy(report) is None


def test_the_sections_come_in_the_order_of_a_reader() -> None:
    headings = [text for _, text in Outline(page_of("fail")).headings]
    words = (
        *("Audit", "FAIL", "stand", "right", "shows", "Left out", "not show", "Next", "engineers"),
        *("Before", "sure", "Picking", "recognisable", "both models", "signs", "network", "repeat"),
    )
    assert len(headings) == len(words), headings
    assert all(word in heading for word, heading in zip(words, headings, strict=True)), headings


def test_names_that_users_give_stay_text() -> None:
    report = report_of("fail")
    assert report.change is not None
    change = replace(
        report.change, by_layer={f"{HOSTILE}$x^2$": (2.0, 1.0), "\x00\ud800": (1.0, 1.0), "fc": (1.0, 1.0)}
    )
    text = render(
        replace(report, change=change, caveats=(HOSTILE,), device=HOSTILE),
        trace=replace(trace(report), settings={HOSTILE: HOSTILE}, warnings=(HOSTILE,)),
        sources={"model": f"{HOSTILE}\ud800"},
        notes=[HOSTILE],
        images=thumbnails_of(report),
    )
    outline = Outline(text)
    assert not outline.all("script")
    assert "<script" not in text
    assert "alert(&#39;a&amp;b&#39;)" in text
    text.encode("utf-8")


LONG = f"a{HOSTILE}" + "\x1b\u202e" + "x" * 1_000_000


def test_long_names_make_no_long_page() -> None:
    report = report_of("fail")
    assert report.change is not None
    change = replace(report.change, by_layer={f"{LONG}{n}": (float(n + 1), 1.0) for n in range(30)})
    found = tuple(
        replace(each, id=f"{LONG}{n}", label=LONG, predicted=LONG) for n, each in enumerate(report.recognisable)
    )
    lost = {f"{LONG}{n}": report.loss for n in range(9)}
    changed = replace(
        report, change=change, caveats=(LONG,) * 4, device=LONG, recognisable=found * 3, class_losses=lost,
        versions={LONG: LONG}, left_out=(LONG,),
    )  # fmt: skip
    text = render(
        changed,
        trace=replace(trace(report), settings={LONG: LONG}, warnings=(LONG,), device=LONG, method=LONG),
        sources={"model": LONG, "forget": LONG, LONG: LONG},
        notes=[LONG],
        images=thumbnails_of(report),
    )
    assert len(text.encode()) < 1_000_000
    assert "xxx …" in text
    assert "<script" not in text
    assert not {"\x1b", "\u202e"} & set(text)


def test_the_command_is_not_shortened() -> None:
    path = "/".join(["directory-of-some-length"] * 40)
    text = render(report_of("fail"), sources={**SOURCES, "model": path, "forget": f"folder:{path}"})
    assert f"--model {path}" in text or f"--before {path}" in text
    assert f"--forget folder:{path}" in text


def test_the_verdict_is_in_plain_words() -> None:
    for name, word in (("fail", "FAIL"), ("pass", "PASS"), ("bare", "INCONCLUSIVE")):
        report, text = report_of(name), page_of(name)
        assert report.verdict == word
        assert wording.headline(report) in text
        assert report.scores_after.reason in unescape(text)
    low, high = report_of("fail"), sample(3.0)
    assert "less sure" in wording.meaning(low)
    assert "surer" in wording.meaning(high)
    assert "calibrated" in wording.advice(low)
    assert "stronger" in wording.advice(high)


def test_an_accuracy_far_below_that_of_unseen_examples_is_called_a_mark() -> None:
    report = report_of("fail")
    wrong = Measurement(forget_accuracy=0.0, test_accuracy=0.95)
    told = replace(report, after=wrong, unseen=Unseen(accuracy=0.9, p_value=1e-9))  # of their classes, not of all
    mark = wording.mark_of_accuracy(told)
    assert mark is not None
    assert "0.0%" in mark
    assert "90.0%" in mark
    assert mark in unescape(render(told))
    assert wording.mark_of_accuracy(report_of("pass")) is None
    for unseen in (None, Unseen(accuracy=0.9, p_value=0.02), Unseen(accuracy=0.05, p_value=1e-9)):
        assert wording.mark_of_accuracy(replace(report, after=wrong, unseen=unseen)) is None


def test_what_was_not_measured_is_said() -> None:
    text = page_of("bare")
    assert text.count("<td>n/a</td>") == 2  # 0.1% false positives, before and after
    assert "0.1% false positives" in text
    assert "999" in text
    assert "not measured" in text
    assert "not measured" not in page_of("fail")
    assert "<td>not given</td>" in text
    assert "None of the 16" in text
    assert "digest" not in text.partition("<footer>")[0]


def test_images_are_there_only_when_asked_for() -> None:
    report = report_of("fail")
    text = render(report, images=thumbnails_of(report))
    images = Outline(text).all("img")
    assert len(images) == len(report.recognisable)
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert "holds images" in text
    assert "holds no image" in page_of("fail")
    large = thumbnails_of(report, channels=3, side=300)
    assert len(render(report, images=large)) < 1_000_000
    assert len(render(sample(num_forget=200, listed=60), images=large)) < 1_000_000


def test_many_examples_and_layers_become_lists_and_blocks() -> None:
    report, text = report_of("many"), page_of("many")
    assert "1,850" in text
    assert report.recognisable[-1].id in text
    assert "by block" in text
    assert "500 of 700" in text
    long = tuple(replace(each, id=f"{'x' * 200}{n}") for n, each in enumerate(report.recognisable * 5))
    text = render(replace(report, recognisable=long))
    assert re.search(r"[\d,]+ that report.json", text)
    assert len(text.encode()) < 1_000_000


def test_layers_are_summed_by_the_deepest_blocks_that_fit() -> None:
    names = {f"net.stage{n // 20}.{n % 20}.{part}": 1.0 for n in range(40) for part in ("conv", "norm")}
    rows, blocks = figures.layer_rows(names)
    assert blocks
    assert rows == [("net.stage0", 40.0), ("net.stage1", 40.0)]
    flat, _ = figures.layer_rows({f"layer{n}": float(n) for n in range(100)})
    assert len(flat) == figures.MAX_LAYERS
    assert flat[-1] == ("76 others", float(sum(range(76))))
    assert figures.layer_rows({"": 1.0}) == ([("(the model's own)", 1.0)], False)


def test_odd_figures_are_drawn_without_a_word() -> None:
    """Nothing changed; margins of one value; layers that differ by orders of magnitude."""
    report = report_of("bare")
    assert report.change is not None
    still = replace(report.change, l1=0.0, l2=0.0, by_layer={"fc": (0.0, 0.0)})
    flat = Roc(fpr=(0.0, 1.0), tpr=(0.0, 1.0), low=(0.0, 1.0), high=(0.2, 1.0))
    one = Histograms(edges=(2.0, 3.0), counts={kind: {"before": (4,), "after": (0,)} for kind in ("forget", "test")})
    assert "<svg" in render(replace(report, change=still, roc_before=flat, roc_after=flat, confidences=one))
    wide = replace(report.change, by_layer={"a": (1e-3, 1.0), "b": (0.0, 0.0), "c": (1e4, 1.0)})
    assert "scale is logarithmic" in render(replace(report, change=wide))
    assert "scale is logarithmic" not in render(replace(report, change=still))
    assert figures.median_confidence(one, "forget", "before") == 2.5
    assert [figures.compact(value) for value in (0.0, 0.012345, 18_350.4, 3e-9)] == [
        "0",
        "0.0123",
        "18,350",
        "3.00e-09",
    ]


def test_a_page_is_the_same_each_time_and_leaves_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    assert render(report_of("bare"), sources={**SOURCES, "after": "runs/forgot"}) == page_of("bare")
    assert dict(mpl.rcParams) == before


def test_the_docs_name_every_field_of_the_json() -> None:
    from expunge.metrics.verdict import ScoreTest

    text = (ROOT / "docs" / "reference" / "report-json.md").read_text()
    records = (
        Report,
        AuditReport,
        ScoreTest,
        Histograms,
        Roc,
        Attack,
        Comparison,
        AccuracyLoss,
        Relearning,
        Recognisable,
        Trace,
        ParameterChange,
    )
    for record in (*records, Measurement, PseudoLabels, Unseen):
        for field in fields(record):
            assert f"`{field.name}`" in text, f"{record.__name__}.{field.name}"
    assert '"expunge-report/4"' in text
    assert json.loads(json.dumps(report_of("many").to_dict()))["verdict"] == "FAIL"


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine; apt-get install chromium")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    """Pages at two widths, in light and dark: nothing asked for, nothing to complain about, nothing cut off."""
    report = report_of("fail")
    pages = {name: page_of(name) for name in NAMES}
    pages["unaudited"] = render_unaudited(report.before, report.after, trace=trace(report), sources=SOURCES)
    with browser.chromium(tmp_path / "profile") as tab:
        for name, text in pages.items():
            file = tmp_path / f"{name}.html"
            file.write_text(text, encoding="utf-8")
            for width, dark in ((375, False), (375, True), (1280, False), (1280, True)):
                tab.open(file, width=width, dark=dark)
                assert tab.requests() == [file.as_uri()]
                assert tab.complaints() == []
                for _ in range(2):  # folded, and then opened
                    assert tab.value("document.documentElement.scrollWidth") <= width
                    assert tab.value(CLIPPED) == []
                    tab.value("document.querySelectorAll('details').forEach(e => e.open = true)")
                boxes = tab.value(
                    "[...document.querySelectorAll('.engineers svg')].map(e => [e.clientWidth, e.getBBox().height, "
                    "e.querySelectorAll('path').length])"
                )
                assert len(boxes) == (4 if name in NAMES else 1)
                assert all(wide > 250 and high > 100 and paths > 1 for wide, high, paths in boxes[:3])
                strips = tab.value("[...document.querySelectorAll('.strips svg')].map(e => e.clientWidth)")
                assert len(strips) == (2 if name in NAMES else 0)
                assert all(wide > 300 for wide in strips)
                for colors in tab.value(CONTRASTS):
                    assert contrast(*colors) >= 4.5, (name, width, dark, colors)
            tab.open(file)
            assert 1 <= sheets(tab.pdf()) <= 2, name


def sheets(pdf: bytes) -> int:
    """How many pages a PDF has."""
    assert pdf.startswith(b"%PDF")
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


CLIPPED = """[...document.querySelectorAll('body *')].filter(e =>
  !e.closest('.scroll, pre, svg') && e.checkVisibility() &&
  e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline').map(e => e.outerHTML.slice(0, 80))"""
"""Elements that are wider than what is around them, but for boxes that scroll by themselves."""

CONTRASTS = """[...document.querySelectorAll(
  'p, td, th, li, h2, h3, dt, dd, dd strong, .word, figcaption, summary, svg text')].map(e => {
  const clear = 'rgba(0, 0, 0, 0)', color = getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'];
  if (e.closest('.strips svg')) return [color, getComputedStyle(document.querySelector('.band')).fill];
  let behind = e;
  while (behind != document.body && getComputedStyle(behind).backgroundColor == clear) behind = behind.parentElement;
  return [color, getComputedStyle(behind).backgroundColor];
})"""
"""Colours of text and of what is behind it."""


def contrast(text: str, behind: str) -> float:
    """WCAG's ratio of two colours as browsers write them."""
    light = []
    for color in (text, behind):
        shares = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_memory_that_was_not_measured_is_said_so() -> None:
    report = report_of("bare")
    page = render(report, trace=replace(trace(report), peak_bytes=None), sources=SOURCES)
    assert "peak memory n/a" in " ".join(re.sub(r"<[^>]+>", " ", page).split())
