"""report.html: one file that shows an audit and needs nothing else, no network and no script."""

import base64
from collections.abc import Mapping, Sequence
from datetime import date as day_of
from importlib.resources import files
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from expunge.auditing.report import AuditReport, Recognisable
from expunge.data import ImageSet
from expunge.errors import MissingExtraError, printable
from expunge.metrics import ParameterChange
from expunge.records import Measurement, Trace
from expunge.report import tables, wording
from expunge.report.figures import (
    MOST_DOTS,
    compact,
    confidence_figures,
    layer_figure,
    layer_rows,
    roc_figure,
    strip_figures,
    uses_log_scale,
)
from expunge.report.repeating import repetition

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SHOWN = 50
"""Recognisable examples in the table; the rest are a list of ids."""

MAX_LIST = 150_000
"""Characters of ids in that list: report.json holds them all."""

MAX_LAYERS = 500
"""Rows of the table of layers."""

THUMBNAIL = 64
"""The largest side of an image on the page, in pixels."""

MAX_TEXT = 1000
"""Characters of a name or a sentence."""

MAX_NAME = 100
"""Of a layer's name, of which there may be hundreds."""

MAX_COMMAND = 20_000
"""Of the command that repeats the run: it holds a dozen paths."""

MAX_IMAGES = 400_000
"""Characters of images in base64: the page stays below 1 MB."""

SAYS = {"good": "As it should be.", "bad": "Not as it should be.", "open": "This leaves the verdict open."}
"""What an answer means, for who sees no colours."""

SIGNS = {"good": "✓", "bad": "✗", "open": "?"}
"""What stands before an answer or a verdict, so that its colour is not the only sign."""

TONES = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "open"}
"""Of the verdicts."""

ANSWERS = ({"yes": "good"}, {"yes": "bad", "no": "good"}, {"yes": "good", "no": "bad"})
"""The tones of the answers to the three questions; any other answer is open."""

Fact = tuple[str, str, str]
"""What stands on top: its name, its value, and a fingerprint or \"\"."""


def render(
    report: AuditReport,
    *,
    trace: Trace | None = None,
    sources: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    images: ImageSet | None = None,
    date: str = "",
    directory: str = "",
) -> str:
    """The whole page as HTML text, to be written as UTF-8: the same input gives the same text.

    Args:
        report: what the audit measured.
        trace: what `unlearn` did; None where only two models were compared.
        sources: the options of the command that was run, by name: what "how to repeat" is made from. None: the call
            in Python is shown.
        notes: one sentence each: what a reader must know of this run.
        images: the forget set. Thumbnails of the recognisable examples in the table are then part of the page:
            only where the user asked for it, since the page shows what was to be deleted.
        date: such as 2030-01-31; "": none is shown.
        directory: where the unlearned model lies; "": that is not told.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    environment = _environment()
    listed = _listed(report)
    pictures = images if listed else None
    relative = None
    if report.relative_l1 is not None and report.relative_l2 is not None:
        relative = report.relative_l1, report.relative_l2
    counts = {"forget": report.num_forget, "test": report.num_test, "retain": report.num_retain}
    drawn = max(map(len, report.percentile_ranks.values()), default=0)
    text: str = environment.get_template("page.html.jinja").render(
        report=report,
        title=report.verdict,
        tone=TONES[report.verdict],
        significant=report.decisive.significant,
        facts=_facts(report, trace, sources, date, directory),
        headline=wording.headline(report),
        meaning=wording.meaning(report),
        answers=[
            (question, answer, why, tones.get(answer, "open"))
            for (question, answer, why), tones in zip(wording.questions(report), ANSWERS, strict=True)
        ],
        says=SAYS,
        doubts=report.doubts,
        strips=strip_figures(report.percentile_ranks),
        drawn=drawn,
        each_dot=max(1.0, drawn / MOST_DOTS),
        still_right=wording.still_right(report),
        shows=wording.shows(report),
        shows_not=wording.shows_not(report, trace.method if trace else None),
        advice=wording.advice(report),
        known=_sentences([*report.left_out, *notes, *(trace.warnings if trace else ())]),
        accuracy=tables.accuracy_rows(report.before, report.after, counts),
        attacks=tables.attack_rows(report),
        tests=tables.test_rows(report.scores_before, report.scores_after),
        corrected=tables.test_rows(fixed.before, fixed.after) if (fixed := report.correction) else [],
        expected=wording.percent(fixed.expected_forget_accuracy if fixed else None),
        references=wording.percent(fixed.reference_accuracy if fixed else None),
        figures={**confidence_figures(report), "roc": roc_figure(report, both=wording.over_forgotten(report))},
        both_ways=wording.over_forgotten(report) and report.roc_after_reversed is not None,
        compared=tables.comparison_rows(report),
        both_models=wording.with_both_models(report),
        ways={name: sum(each.side == side for each in listed) for side, name in wording.WAYS.items()},
        num_listed=len(listed),
        ways_of=wording.WAYS,
        recognisable=tables.recognisable_rows(listed[:SHOWN]),
        thumbnails=_thumbnails(listed[:SHOWN], pictures) if pictures is not None else None,
        others=_others(listed[SHOWN:]),
        signs=tables.sign_rows(report),
        **_common(report, trace, sources, images, relative),
    )
    return text


def render_unaudited(
    before: Measurement,
    after: Measurement,
    *,
    trace: Trace | None = None,
    sources: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    date: str = "",
    directory: str = "",
) -> str:
    """The page of a run without test examples, which says that nothing was tested. Arguments and errors as `render`."""
    environment = _environment()
    counts = {"forget": trace.num_forget, "retain": trace.num_retain} if trace else {}
    text: str = environment.get_template("unaudited.html.jinja").render(
        title="NOT AUDITED",
        tone="open",
        facts=_facts(None, trace, sources, date, directory),
        right=[wording.percent(each.forget_accuracy) for each in (before, after)],
        known=_sentences([*notes, *(trace.warnings if trace else ())]),
        accuracy=tables.accuracy_rows(before, after, {name: count for name, count in counts.items() if count}),
        **_common(None, trace, sources, None, None),
    )
    return text


def _environment() -> "Environment":
    """What fills the templates. Raises `MissingExtraError`."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("report.html needs jinja2: pip install '.[report]' in expunge's sources") from error
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finished,
        loader=FunctionLoader(lambda part: files("expunge.report").joinpath(part).read_text("utf-8")),
    )
    environment.globals["signs_of"] = SIGNS
    return environment


def _listed(report: AuditReport | None) -> Sequence[Recognisable]:
    """The examples that the page names: after PASS none, since chance explains whoever lies at the ends."""
    return report.recognisable if report and report.verdict != "PASS" else ()


def _common(
    report: AuditReport | None,
    trace: Trace | None,
    sources: Mapping[str, Any] | None,
    images: ImageSet | None,
    relative: tuple[float, float] | None,
) -> dict[str, Any]:
    """What every page holds: the change of the network, how to repeat the run, and what ran."""
    change: ParameterChange | None = report.change if report else trace.change if trace else None
    by_layer = change.by_layer if change else {}
    summed, blocks = layer_rows({name: l1 for name, (l1, _) in by_layer.items()})
    return {
        "change": tables.change_rows(change, relative) if change else [],
        "layer_figure": layer_figure(change) if change else "",
        "blocks": blocks,
        "log_scale": uses_log_scale(summed),
        "num_layers": len(by_layer),
        "layers": [
            (shown(name or "(the model's own)", MAX_NAME), compact(l1), compact(l2))
            for name, (l1, l2) in islice(by_layer.items(), MAX_LAYERS)
        ],
        "settings": [(name, str(value)) for name, value in trace.settings.items()] if trace else [],
        "run": tables.run_rows(report, trace),
        "sources": [(name.replace("_", "-"), str(value)) for name, value in (sources or {}).items() if value],
        "repetition": shown(repetition(report, trace, sources, with_images=images is not None), MAX_COMMAND),
        "has_digest": trace is not None,
        "names_examples": bool(_listed(report)),
        "version": ran.versions.get("expunge", "") if (ran := trace or report) else "",
    }


def shown(text: str, most: int = MAX_TEXT) -> "Markup":
    """Text for the page, which may come from a file: escaped, and shortened to `most` characters before.

    Names of files and classes may hold what is no text, or be of any length.
    """
    from markupsafe import Markup, escape

    return text if isinstance(text, Markup) else escape(printable(text, most=most))


def _finished(value: Any) -> Any:
    """What the template puts into the page: all text goes through `shown`."""
    return shown(value) if isinstance(value, str) else value


def _sentences(lines: Sequence[str]) -> list[str]:
    """Each once, with a capital and a full stop: notes and warnings are clauses that follow a word in the terminal."""
    whole = [line[:1].upper() + line[1:] for line in lines]
    return list(dict.fromkeys(line if line.endswith((".", "!", "?")) else f"{line}." for line in whole))


def _facts(
    report: AuditReport | None, trace: Trace | None, sources: Mapping[str, Any] | None, date: str, directory: str
) -> list[Fact]:
    """What this report is about, at a glance."""
    given = sources or {}
    facts: list[Fact] = []
    if date:
        day = day_of.fromisoformat(date)
        facts.append(("Date", f"{day.day} {MONTHS[day.month - 1]} {day.year}", ""))
    if given:
        facts.append(("Reference", str(given.get("reference") or "none given"), ""))
    if trace is not None:
        facts.append(("Method", trace.method, ""))
    num = report.num_forget if report else trace.num_forget if trace else 0
    facts.append(("Examples", f"{num:,} forgotten" + (f", {report.num_test:,} unseen" if report else ""), ""))
    if given.get("logits"):
        return [*facts, ("Models", f"not seen: only their outputs, in {given['logits']}", "")]
    prints = report.fingerprints if report else {}
    for name, key, where in (
        ("Original model", "before", given.get("model")),
        ("Model now", "after", given.get("after") or directory),
    ):
        if where or key in prints:
            facts.append((name, str(where or ""), prints.get(key, "")))
    return facts


MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
"""Names of the months, whatever the locale."""


def _others(found: Sequence[Recognisable]) -> dict[str, Any]:
    """Ids by side, as many as `MAX_LIST` allows, and how many are left out."""
    ids: dict[str, list[str]] = {}
    room, listed = MAX_LIST, 0
    for each in found:
        name = shown(each.id)
        room -= len(name) + 23  # and its markup
        if room < 0:
            break
        ids.setdefault(each.side, []).append(name)
        listed += 1
    return {"ids": ids, "num": len(found), "left_out": len(found) - listed}


def _thumbnails(found: Sequence[Recognisable], images: ImageSet) -> dict[str, str]:
    """PNG images as `data:` URIs by id, none larger than `THUMBNAIL`."""
    from markupsafe import Markup
    from PIL import Image  # matplotlib brings it

    position = {name: n for n, name in enumerate(images.ids)}
    thumbnails: dict[str, str] = {}
    room = MAX_IMAGES
    for each in found:
        if each.id not in position:
            continue
        pixels = images.images[position[each.id]]
        pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
        largest = max(pixels.shape[1:])
        if largest > THUMBNAIL:
            size = [max(1, round(side * THUMBNAIL / largest)) for side in pixels.shape[1:]]
            shrunk = F.interpolate(pixels[None].float(), size=size, mode="bilinear", antialias=True)[0]
            pixels = shrunk.round().clamp(0, 255).to(torch.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        room -= len(uri)
        if room < 0:
            break
        thumbnails[each.id] = Markup(uri)  # noqa: S704  (letters of base64)
    return thumbnails
