"""What a reader of report.html meets first, above the fold; and the command that repeats the run."""

import re
import shlex
from dataclasses import fields, replace
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from expunge.methods import METHODS, default_method, method_of, settings_of
from expunge.records import Measurement
from expunge.report import figures, wording
from expunge.report.page import render
from expunge.report.record import Report
from expunge.report.repeating import repetition
from tests.audit_reports import HOSTILE, SOURCES, sample, thumbnails_of, trace
from tests.report_pages import Outline, page_of, plain, report_of, top_of

KINDS: dict[str, tuple[dict[str, Any], tuple[str, str, str], str]] = {
    "passed": ({"shift": 0.0, "num_forget": 300, "num_test": 4_000}, ("yes", "no", "yes"), "PASS"),
    "over-forgotten": ({}, ("yes", "yes", "yes"), "FAIL"),
    "memorised": ({"shift": 3.0}, ("yes", "yes", "yes"), "FAIL"),
    "few": ({"shift": 0.0, "num_forget": 16, "num_test": 400}, ("yes", "not clear", "yes"), "INCONCLUSIVE"),
    "broken": ({"shift": 0.0, "num_forget": 300, "num_test": 4_000, "lost": 0.4}, ("yes", "no", "no"), "FAIL"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_answers_are_those_of_the_record(kind: str) -> None:
    settings, answers, verdict = KINDS[kind]
    report = sample(**settings)
    text = render(report, trace=trace(report), sources=SOURCES)
    assert report.verdict == verdict
    assert (bool(report.found_before), report.loss.works) == (answers[0] == "yes", answers[2])
    found = re.findall(r'<div class="(\w+)"><dt>([^<]+)</dt><dd><strong>(.*?)</strong>', text, re.DOTALL)
    assert [question for _, question, _ in found] == [question for question, _, _ in wording.questions(report)]
    assert tuple(plain(answer).partition(".")[0].lower() for _, _, answer in found) == answers
    tones = [tone for tone, _, _ in found]
    assert ("bad" in tones) == (verdict == "FAIL")
    assert ("open" in tones) == (verdict == "INCONCLUSIVE")
    signs = {tone: plain(answer).partition(".")[2] for tone, _, answer in found}
    assert len(set(signs.values())) == len(signs), "a colour is never the only sign"
    assert wording.advice(report) in top_of(text)


def test_nothing_that_a_reader_must_know_is_folded_away() -> None:
    report = replace(report_of("fail"), left_out=("2 of 9 test examples were left out",))
    assert report.change is not None
    change = replace(report.change, l1=0.0)
    text = render(
        replace(report, change=change),
        trace=trace(report),
        sources={**SOURCES, "reference": "ticket 7"},
        notes=["the labels were matched by name"],
        date="2030-01-31",
        directory="where/it/lies",
    )
    top = top_of(text).casefold()
    for told in (
        *("ticket 7", "31 January 2030", "where/it/lies", "runs/original model", "targeted"),
        *report.fingerprints.values(),
        *report.left_out,
        *trace(report).warnings,
        *report.caveats,
        "the labels were matched by name",
        "The parameters did not change",
    ):
        assert told.casefold() in top, told


def test_how_many_are_still_right_stands_beside_what_to_expect() -> None:
    report = report_of("pass")
    assert report.unseen is not None
    right = round(report.after.forget_accuracy * report.num_forget)
    question, answer = wording.still_right(report)
    assert question in top_of(page_of("pass"))
    assert answer in top_of(page_of("pass"))
    assert f"{right:,} of {report.num_forget:,}" in question
    assert f"{100 * report.unseen.accuracy:.1f}%" in answer
    assert f"about {round(report.unseen.accuracy * report.num_forget):,}" in answer
    expected = report.unseen.accuracy
    report = replace(report, unseen=replace(report.unseen, p_value=1e-9))
    told = {
        share: wording.still_right(replace(report, after=Measurement(forget_accuracy=share, test_accuracy=0.86)))[1]
        for share in (0.0, expected, 1.0)
    }
    assert len(set(told.values())) == 3
    assert "no attack finds them" in told[1.0]
    assert "remembers" in wording.still_right(sample(3.0))[1]
    assert told[0.0] == wording.mark_of_accuracy(replace(report, after=Measurement(forget_accuracy=0.0)))
    assert "%" not in wording.still_right(replace(report, unseen=None))[1]


def test_a_strip_has_a_dot_for_each_forgotten_example() -> None:
    report = report_of("fail")
    drawn = figures.strip_figures(report.percentile_ranks)
    for when, test in (("before", report.scores_before), ("after", report.scores_after)):
        places = [float(place) / 100 for place in re.findall(r'<circle cx="([\d.]+)%', drawn[when])]
        assert places == pytest.approx(report.percentile_ranks[when], abs=1e-4)
        assert sum(places) / len(places) == pytest.approx(test.a1, abs=1e-3)
        counts = figures.quarters(report.percentile_ranks[when])
        assert sum(counts) == report.num_forget
        assert all(f">{count}</text>" in drawn[when] for count in counts)
    many = figures.strip_figures(report_of("many").percentile_ranks)["after"]
    assert many.count("<circle") == figures.MOST_DOTS
    assert "one of about 5" in " ".join(page_of("many").split())
    assert figures.strip_figures({}) == {}
    assert 'class="strips"' not in render(replace(report, percentile_ranks={}))


def test_a_page_says_which_way_examples_are_recognisable() -> None:
    for shift, told, other in ((-3.0, "too wrong", "too confident"), (3.0, "too confident", "too wrong")):
        report = sample(shift)
        text = render(report, trace=trace(report))
        assert told in top_of(text)
        assert other not in top_of(text)
        assert text.count("least sure first") == (2 if shift < 0 else 0)  # the key and the description
    rows = re.findall(r"<td>(Too \w+)</td></tr>", page_of("fail"))
    sides = {"memorised": "Too confident", "over-forgotten": "Too wrong"}
    assert rows == [sides[each.side] for each in report_of("fail").recognisable]
    assert "least sure first" not in render(replace(report_of("fail"), roc_after_reversed=None))


def test_after_a_pass_nobody_is_listed() -> None:
    report = report_of("pass")
    assert report.recognisable
    text = render(report, trace=trace(report), images=thumbnails_of(report))
    for page in (text, page_of("pass")):
        assert not any(each.id in unescape(page) for each in report.recognisable if each.id != HOSTILE)
        assert not Outline(page).all("img")


def test_a_run_without_test_examples_has_a_page_that_says_so(tmp_path: Path) -> None:
    report = report_of("fail")
    before, after = (replace(each, test_accuracy=None) for each in (report.before, report.after))
    done = Report(
        before=before,
        after=after,
        trace=trace(report),
        sources={**SOURCES, "test": None, "reference": HOSTILE},
        notes=(f"1 of 9 was left out {HOSTILE}",),
    )
    done.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    top = top_of(text)
    assert "NOT AUDITED" in top
    assert not any(verdict in top for verdict in ("PASS", "FAIL", "INCONCLUSIVE"))
    assert done.notes[0] in top
    assert all(warning.casefold() in top.casefold() for warning in trace(report).warnings)
    assert "<script" not in text
    levels = [int(tag[1]) for tag, _ in Outline(text).headings]
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_the_command_is_the_one_that_was_run() -> None:
    report = report_of("fail")
    given = {**SOURCES, "max_loss": 0.05, "precision": "fp32", "device": None}
    assert repetition(report, trace(report), given, with_images=True).split(" \\\n  ") == [
        "expunge forget",
        "--model 'runs/original model'",
        "--forget folder:photos",
        "--ids ids.txt",
        "--test fashion-mnist:test",
        "--resize",
        "--with-images",
        "--method targeted",
        "--set lam=3.0",
        "--set epsilon=none",
        "--set shuffle=true",
        "--seed 4",
        "--out NEW-DIRECTORY",
    ]
    told = repetition(report, None, {"model": "a", "after": "b", "max_loss": 0.1})
    assert told.split(" \\\n  ") == [
        *("expunge audit", "--before a", "--after b", "--max-loss 0.1", "--out NEW-DIRECTORY"),
    ]
    assert "method=expunge.Targeted(lam=3.0" in repetition(report, trace(report), None)
    assert repetition(report, None, None) == "expunge.audit(before, after, forget, test)"


CHANGED = {"epochs": 3, "lr": 0.125, "epsilon": 0.25, "batch_size": 7, "alpha": 3.0, "precision": "bf16"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("changed", [False, True])
def test_the_command_gives_the_same_settings_again(name: str, changed: bool) -> None:
    known = {field.name for field in fields(METHODS[name])}
    method = method_of(name, {key: value for key, value in CHANGED.items() if changed and key in known})
    done = replace(trace(report_of("fail")), method=name, settings=settings_of(method), seed=0)
    words = shlex.split(repetition(None, done, SOURCES).replace(" \\\n", " "))
    given: dict[str, Any] = dict(word.split("=", 1) for option, word in pairwise(words) if option == "--set")
    named = [word for option, word in pairwise(words) if option == "--method"]
    again = method_of((named or [default_method(True)])[0], given)
    assert (again.name, settings_of(again)) == (name, settings_of(method))
    assert "--seed" not in words
    if name != "retrain":  # whose defaults are the recipe of the model's file
        assert not any(value == str(getattr(METHODS[name](), key)) for key, value in given.items())
