"""`expunge audit`: how well a model forgot, whoever made it forget and however."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.options import (
    AUDIT,
    READING,
    AllowPickle,
    AsStored,
    Device,
    IdColumn,
    Ids,
    InputColumns,
    Json,
    LabelColumn,
    MaxLoss,
    Precision,
    Reference,
    ReferenceMinutes,
    Resize,
    Retain,
    Seed,
    Weights,
    WeightsKey,
    WithImages,
)
from expunge.cli.printing import print_full_audit, print_plan, print_report
from expunge.errors import InputError, SettingError
from expunge.stopping import work

if TYPE_CHECKING:
    from expunge.cli.sources import Sources
    from expunge.report.record import Report

FULL = "Full audit: many retrained models (--full)"
OUTPUTS = "Audit of outputs (--logits)"
PLAN = "How many examples it takes (--plan)"

_SOURCES = {"before", "forget", "test", "out", "ids", "weights", "weights_key", "allow_pickle", "resize", "as_stored"}
_SOURCES |= {"label_column", "id_column", "input_columns"}
_COMMON = {"seed", "as_json"}
OPTIONS = {
    "": _SOURCES
    | _COMMON
    | {"after", "after_weights", "after_weights_key", "retain", "with_images", "difficulty_calibration", "device"}
    | {"max_loss", "reference_minutes", "precision", "reference"},
    "--full": _SOURCES | _COMMON | {"full", "train", "method", "num", "workers", "ray", "references", "device"},
    "--logits": _COMMON | {"logits", "out", "max_loss"},
    "--plan": {"plan", "forgotten", "held_out", "classes", "as_json"},
}
"""The options that each kind of audit uses, by what asks for it."""


def audit(
    context: typer.Context,
    before: Annotated[str | None, typer.Option(metavar="MODEL", help="The original model.")] = None,
    forget: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The examples that were to be forgotten."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Examples that neither model was trained on."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New directory for the report.")] = None,
    after: Annotated[str | None, typer.Option(metavar="MODEL", help="The model that was made to forget.")] = None,
    ids: Ids = None,
    retain: Retain = None,
    weights: Weights = None,
    weights_key: WeightsKey = None,
    after_weights: Annotated[
        Path | None,
        typer.Option(rich_help_panel=READING, help="Weights of --after, likewise."),
    ] = None,
    after_weights_key: Annotated[
        str | None,
        typer.Option(metavar="NAME", rich_help_panel=READING, help="Which weights of --after-weights, likewise."),
    ] = None,
    allow_pickle: AllowPickle = False,
    resize: Resize = False,
    as_stored: AsStored = False,
    label_column: LabelColumn = None,
    id_column: IdColumn = None,
    input_columns: InputColumns = None,
    reference: Reference = None,
    with_images: WithImages = False,
    difficulty_calibration: Annotated[
        bool,
        typer.Option(
            "--difficulty-calibration",
            rich_help_panel=AUDIT,
            help="For non-random forget sets: allow for how hard networks trained on --test find them.",
        ),
    ] = False,
    max_loss: MaxLoss = None,
    reference_minutes: ReferenceMinutes = None,
    precision: Precision = None,
    full: Annotated[
        bool,
        typer.Option("--full", rich_help_panel=FULL, help="Train many models and compare methods with retraining."),
    ] = False,
    train: Annotated[
        str | None,
        typer.Option(metavar="DATA", rich_help_panel=FULL, help="The model's training data."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,SETTING=VALUE…]", rich_help_panel=FULL, help="What to compare; repeat for more."),
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=FULL, help="Models of each kind; default: 64.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, rich_help_panel=FULL, help="Processes; default: 2.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", rich_help_panel=FULL, help="Train on a Ray cluster instead."),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(rich_help_panel=FULL, help="Directory of the models; a stopped audit goes on from it."),
    ] = None,
    logits: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUTS,
            help="In place of models and data: their outputs, as an .npz, .safetensors or .parquet file.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            rich_help_panel=PLAN,
            help="Only print how many examples an audit takes to say PASS; needs no model.",
        ),
    ] = False,
    forgotten: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=PLAN, help="How many examples are forgotten.")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=PLAN, help="How many held-out examples there are.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=PLAN, help="Of how many classes; default: 1.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Test whether an unlearned model still reveals the forgotten examples."""
    _check_options(context, "--plan" if plan else "--logits" if logits is not None else "--full" if full else "")
    if plan:
        print_plan(forgotten, held_out, classes or 1, as_json)
        return
    if logits is not None:
        with work():
            report = of_outputs(logits, out, max_loss=max_loss, seed=seed)
        raise typer.Exit(print_report(report, as_json))
    if before is None or forget is None or test is None or out is None:
        needed = {"--before MODEL": before, "--forget DATA": forget, "--test DATA": test, "--out DIR": out}
        missing = ", ".join(option for option, given in needed.items() if given is None)
        raise SettingError(f"an audit needs more: add {missing} (or --plan, to see how many examples it takes)")
    if not full and after is None:
        raise SettingError("an audit needs the model that was made to forget: add --after MODEL (or --full)")
    kept = str(references or f"{out}-references") if full else None
    with work(kept):
        from expunge.cli import full_audit
        from expunge.cli.sources import Sources

        sources = Sources.of(context, model=before)
        if after is None:
            found = full_audit.run(
                sources,
                train,
                references,
                out,
                methods=method or ["targeted"],
                num_models=num or 64,
                workers=workers or 2,
                ray=ray,
                seed=seed,
                device=device,
            )
        else:
            report = run(
                sources,
                after,
                out,
                after_weights=after_weights,
                after_weights_key=after_weights_key,
                seed=seed,
                device=device,
                with_images=with_images,
                difficulty_calibration=difficulty_calibration,
                max_loss=max_loss,
                reference_minutes=reference_minutes,
                precision=precision,
            )
    if full:
        print_full_audit(found, out, as_json)
        return
    raise typer.Exit(print_report(report, as_json))


def _check_options(context: typer.Context, kind: str) -> None:
    """Raises `SettingError` for an option that the kind of audit does not use."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in OPTIONS[kind]:
            option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
            others = [other for other, names in OPTIONS.items() if other and name in names]
            way = f"add {others[0]}" if not kind and others else f"leave {kind or option} out"
            raise SettingError(f"{option} is not used {f'with {kind}' if kind else 'without ' + others[0]}: {way}")


def run(
    sources: "Sources",
    after: str,
    out: Path,
    *,
    after_weights: Path | None = None,
    after_weights_key: str | None = None,
    seed: int = 0,
    device: str = "auto",
    with_images: bool = False,
    difficulty_calibration: bool = False,
    max_loss: float | None = None,
    reference_minutes: float | None = None,
    precision: str | None = None,
) -> "Report":
    """Audits a model that was made to forget, and writes `report.json` and `report.html` to the new directory `out`."""
    from expunge.auditing.default_audit import doubts_of, evaluate, report_of
    from expunge.auditing.preparation import prepare
    from expunge.cli.sources import (
        audit_settings,
        forget_set,
        given_set,
        is_same_network,
        loaded,
        notes_of,
        notes_on,
        shown,
        tell_of_bf16,
        told,
        write_report,
    )
    from expunge.files import check_unused, new_directory
    from expunge.inputs import fitted
    from expunge.report.record import Report
    from expunge.trainer import device_named

    check_unused(out)
    where = device_named(device)
    original, header = loaded(sources)
    unlearned, header_after = loaded(
        replace(sources, model=after, weights=after_weights, weights_key=after_weights_key)
    )
    if not is_same_network(header.spec, header_after.spec):
        raise InputError(f"{after} is another network than {sources.model}; an audit compares a model with itself")
    forgotten = forget_set(sources, header)
    images = shown(forgotten, with_images)
    tell_of_bf16(where, precision)
    test, retain = (given_set(spec, sources, header) for spec in (sources.test, sources.retain))
    fit = fitted(original, {"forget": forgotten, "test": test, "retain": retain})
    sets = prepare(fit.sets["forget"], fit.sets["test"], fit.sets.get("retain")).uncalibrated(unlearned)
    original, unlearned = fit.around(original), fit.around(unlearned)
    settings = audit_settings(
        sources.model,
        original,
        header,
        max_loss=max_loss,
        reference_minutes=reference_minutes,
        precision=precision,
        non_random=difficulty_calibration,
    )
    with new_directory(out) as temporary:
        evaluations = tuple(
            evaluate(model.to(where), sets, seed, settings.precision) for model in (original, unlearned)
        )
        audited = report_of(
            original,
            unlearned,
            sets,
            evaluations,
            class_names=header.class_names or forgotten.class_names,
            settings=settings,
            seed=seed,
        )
        report = Report(
            directory=str(out),
            sources=told(
                sources,
                after=after,
                after_weights=after_weights,
                after_weights_key=after_weights_key,
                difficulty_calibration=difficulty_calibration,
                max_loss=max_loss,
                reference_minutes=reference_minutes,
                precision=precision,
                device=None if device == "auto" else device,
            ),
            before=audited.before,
            after=audited.after,
            audit=audited,
            notes=(
                *notes_on(sources, header),
                *notes_of(forgotten, test, retain),
                *fit.said,
                *doubts_of(sets, *evaluations),
            ),
        )
        return write_report(temporary, report, images)


def of_outputs(logits: Path, out: Path | None, *, max_loss: float | None, seed: int) -> "Report":
    """Audits outputs, and writes `report.json` and `report.html` to the new directory `out`."""
    from expunge.auditing import AuditSettings, audit_outputs
    from expunge.cli.sources import write_report
    from expunge.data.outputs import load_outputs
    from expunge.files import check_unused, new_directory
    from expunge.report.record import Report

    if out is None:
        raise SettingError("an audit needs more: add --out DIR")
    check_unused(out)
    before, after, labels, ids = load_outputs(logits)
    settings = AuditSettings() if max_loss is None else AuditSettings(max_loss=max_loss)
    audited = audit_outputs(before, after, labels, ids=ids, settings=settings, seed=seed)
    with new_directory(out) as temporary:
        report = Report(
            directory=str(out),
            sources={"logits": str(logits), "max_loss": max_loss},
            before=audited.before,
            after=audited.after,
            audit=audited,
        )
        return write_report(temporary, report)
