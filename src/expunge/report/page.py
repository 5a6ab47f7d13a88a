"""report.html: one file that shows an audit and needs nothing else, no network and no script."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from expunge.auditing.report import AuditReport, Recognisable
from expunge.data import ImageSet
from expunge.errors import MissingExtraError, printable
from expunge.metrics.verdict import ScoreTest
from expunge.records import Trace
from expunge.report import wording
from expunge.report.figures import compact, confidence_figures, layer_figure, layer_rows, roc_figure, uses_log_scale
from expunge.report.wording import counted, percent

if TYPE_CHECKING:
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

Row = tuple[str | tuple[str, str], ...]
"""Cells: text, or a value and what qualifies it."""


def render(
    report: AuditReport,
    *,
    trace: Trace | None = None,
    sources: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    images: ImageSet | None = None,
) -> str:
    """The whole page as HTML text, to be written as UTF-8: the same input gives the same text.

    Args:
        report: what the audit measured.
        trace: what `unlearn` did; None where only two models were compared.
        sources: the options of the command that was run, by name: what "how to repeat" is made from. None: the call
            in Python is shown.
        notes: one sentence each, shown with the settings.
        images: the forget set. Thumbnails of the recognisable examples in the table are then part of the page:
            only where the user asked for it, since the page shows what was to be deleted.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("report.html needs jinja2: pip install '.[report]' in expunge's sources") from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finished
    )
    template = environment.from_string(files("expunge.report").joinpath("page.html.jinja").read_text("utf-8"))
    by_layer = report.change.by_layer if report.change else {}
    layers = layer_rows({name: l1 for name, (l1, _) in by_layer.items()})
    figures = {**confidence_figures(report), "roc": roc_figure(report)}
    text: str = template.render(
        report=report,
        significant=report.decisive.significant,
        trace=trace,
        notes=[*notes, *(trace.warnings if trace else ())],
        about=_about(report, trace, sources),
        headline=wording.headline(report),
        questions=wording.questions(report),
        attacks=_attack_rows(report),
        compared=_comparison_rows(report),
        meaning=wording.meaning(report),
        advice=wording.advice(report),
        mark=wording.mark_of_accuracy(report),
        doubts=report.doubts,
        accuracy=_accuracy_rows(report),
        tests=_test_rows(report.scores_before, report.scores_after),
        corrected=_test_rows(fixed.before, fixed.after) if (fixed := report.correction) else [],
        expected=percent(fixed.expected_forget_accuracy if fixed else None),
        references=percent(fixed.reference_accuracy if fixed else None),
        figures=figures | ({"layers": layer_figure(report.change)} if report.change else {}),
        blocks=layers[1],
        log_scale=uses_log_scale(layers[0]),
        change=_change_rows(report),
        layers=[
            (shown(name or "(the model's own)", MAX_NAME), compact(l1), compact(l2))
            for name, (l1, l2) in islice(by_layer.items(), MAX_LAYERS)
        ],
        recognisable=_recognisable_rows(report.recognisable[:SHOWN]),
        thumbnails=_thumbnails(report.recognisable[:SHOWN], images) if images is not None else None,
        others=_others(report.recognisable[SHOWN:]),
        signs=_sign_rows(report),
        settings=[(name, str(value)) for name, value in trace.settings.items()] if trace else [],
        run=_run_rows(report, trace),
        sources=[(name.replace("_", "-"), str(value)) for name, value in (sources or {}).items() if value],
        repetition=shown(wording.repetition(report, trace, sources, with_images=images is not None), MAX_COMMAND),
    )
    return text


def shown(text: str, most: int = MAX_TEXT) -> "Markup":
    """Text for the page, which may come from a file: escaped, and shortened to `most` characters before.

    Names of files and classes may hold what is no text, or be of any length.
    """
    from markupsafe import Markup, escape

    return text if isinstance(text, Markup) else escape(printable(text, most=most))


def _finished(value: Any) -> Any:
    """What the template puts into the page: all text goes through `shown`."""
    return shown(value) if isinstance(value, str) else value


def _about(report: AuditReport, trace: Trace | None, sources: Mapping[str, Any] | None) -> str:
    parts = [str(reference)] if (reference := (sources or {}).get("reference")) else []
    parts.append(counted(report.num_forget, "forgotten example"))
    model = (sources or {}).get("model") or (sources or {}).get("after")
    if model:
        parts.append(f"model {model}")
    if trace is not None:
        parts.append(f"method {trace.method}")
    return " · ".join(parts)


def _accuracy_rows(report: AuditReport) -> list[Row]:
    rows: list[Row] = []
    for name, count, before, after in (
        ("Forgotten examples", report.num_forget, report.before.forget_accuracy, report.after.forget_accuracy),
        ("Test examples, never seen", report.num_test, report.before.test_accuracy, report.after.test_accuracy),
        ("Retained examples", report.num_retain, report.before.retain_accuracy, report.after.retain_accuracy),
    ):
        if before is None or after is None:
            rows.append((name, "–", "not given", "not given", "–"))
        else:
            points = f"{100 * (after - before):+.1f}".replace("-", "−")
            rows.append((name, f"{count:,}", percent(before), percent(after), points))
    return rows


def _test_rows(before: ScoreTest, after: ScoreTest) -> list[Row]:
    tests, n, p = (before, after), after.num_forget, after.p_values
    rows: list[Row] = [
        ("Mean percentile rank, A1", *((f"{t.a1:.3f}", _span(t.a1_interval)) for t in tests), "0.5", _p_value(p["a1"])),
        (
            "Distance from the middle, A2",
            *((f"{t.a2:.3f}", f"up to {t.a2_upper:.3f}") for t in tests),
            "0.5",
            _p_value(p["a2"]),
        ),
        (
            "Above 99% of unseen, k⁺",
            *(f"{t.k_plus:,} of {n:,}" for t in tests),
            f"{n / 100:.2g}",
            _p_value(p["k_plus"]),
        ),
        (
            "Below 99% of unseen, k⁻",
            *(f"{t.k_minus:,} of {n:,}" for t in tests),
            f"{n / 100:.2g}",
            _p_value(p["k_minus"]),
        ),
        *(
            (name, *(("–", "–")), "–", _p_value(p[key]))
            for name, key in (
                ("Above all of unseen", "highest"),
                ("Below all of unseen", "lowest"),
                ("The class that stands out most, A1", "one_class"),
            )
        ),
        ("Area under the ROC curve", *((f"{t.auc:.3f}", _span(t.auc_interval)) for t in tests), "0.5", "–"),
    ]
    for rate in (0.01, 0.001):
        name = f"Found at {100 * rate:g}% false positives"
        rows.append((name, *(_rate(t.tpr_at_fpr.get(rate)) for t in tests), f"{100 * rate:g}%", "–"))
    return rows


def _rate(rate: Any) -> str | tuple[str, str]:
    """A `Rate` in percent; where there is no threshold, n/a."""
    return "n/a" if rate is None else (percent(rate.value), f"{percent(rate.low)} to {percent(rate.high)}")


def _span(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _attack_rows(report: AuditReport) -> list[Row]:
    """A row an attack: on the model before, and after."""
    rows: list[Row] = []
    for before, after in zip(report.attacks_before, report.attacks_after, strict=True):
        cells = ((f"{a.auc:.3f}", _span(a.auc_interval)) for a in (before, after))
        chances = (_p_value(a.p_value) for a in (before, after))
        rows.append((_capital(wording.NAMES[before.name]), *cells, *chances, f"{before.level:g}"))
    return rows


def _comparison_rows(report: AuditReport) -> list[Row]:
    """A row a way to compare both models, the most telling first."""
    return [
        (_capital(wording.COMPARISONS[each.name]), (f"{each.auc:.3f}", _span(each.interval)), "0.5")
        for each in report.comparisons
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _change_rows(report: AuditReport) -> list[Row]:
    if (change := report.change) is None:
        return []
    return [
        ("All parameters", compact(change.l1), compact(change.l2)),
        ("relative to the original", percent(report.relative_l1, 2), percent(report.relative_l2, 2)),
        ("Last layer alone", compact(change.l1_last_layer), compact(change.l2_last_layer)),
    ]


def _recognisable_rows(found: Sequence[Recognisable]) -> list[Row]:
    return [(each.id, each.label, each.predicted, percent(each.percentile_rank, 2), each.side) for each in found]


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


def _sign_rows(report: AuditReport) -> list[Row]:
    """Of relearning and of the update."""
    rows: list[Row] = []
    if (relearning := report.relearning) is not None:
        controls = sorted(relearning.control_steps)
        span = f"{compact(controls[0])} to {compact(controls[-1])}" if controls else "–"
        rows += [
            ("Steps to relearn the forgotten examples", compact(relearning.steps), (span, f"{len(controls)} draws")),
            ("Steps relative to unseen examples, ρ", f"{relearning.ratio:.2f}", "1"),
            (
                "p-value of relearning so fast",
                "n/a" if relearning.p_value is None else _p_value(relearning.p_value),
                "above 0.05",
            ),
        ]
    return rows


def _run_rows(report: AuditReport, trace: Trace | None) -> list[Row]:
    rows: list[Row] = []
    if trace is not None:
        labels = asdict(trace.pseudo_labels) if trace.pseudo_labels else {}
        rows += [
            ("method", trace.method),
            ("seed", str(trace.seed)),
            ("steps", f"{trace.steps:,}"),
            ("examples seen in them", f"{trace.examples_seen:,}"),
            *((f"pseudo-labels: {kind.replace('_', ' ')}", f"{count:,}") for kind, count in labels.items()),
            ("retained examples used", f"{trace.num_retain:,}"),
            ("seconds to forget", f"{trace.seconds:.1f}"),
            ("peak memory", "n/a" if trace.peak_bytes is None else f"{trace.peak_bytes / 2**20:,.0f} MiB"),
            ("ran on", trace.device),
            ("digest of the forget set", trace.forget_digest),
        ]
    rows += [
        ("classes", f"{report.num_classes:,}"),
        *([("parameters", f"{report.change.num_parameters:,}")] if report.change else []),
        ("seed of the audit", str(report.seed)),
        *([("audited on", report.device)] if report.device else []),
        *((f"seconds of the audit: {part}", f"{seconds:.1f}") for part, seconds in report.seconds.items()),
        *(sorted({**report.versions, **(trace.versions if trace else {})}.items())),
    ]
    return rows
