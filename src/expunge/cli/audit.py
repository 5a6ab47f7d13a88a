"""`expunge audit`: how well a model forgot, whoever made it forget and however."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.options import (
    AllowPickle,
    Device,
    Ids,
    Json,
    MaxLoss,
    ReferenceMinutes,
    Resize,
    Retain,
    Seed,
    Weights,
    WithImages,
)
from expunge.cli.printing import print_full_audit, print_plan, print_report
from expunge.errors import InputError, SettingError
from expunge.stopping import work

if TYPE_CHECKING:
    from expunge.cli.sources import Sources
    from expunge.report.record import Report


def audit(
    context: typer.Context,
    before: Annotated[str | None, typer.Option(metavar="MODEL", help="The original model.")] = None,
    forget: Annotated[str | None, typer.Option(metavar="DATA", help="The examples that were to be forgotten.")] = None,
    test: Annotated[
        str | None, typer.Option(metavar="DATA", help="Examples that neither model was trained on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New directory for the report.")] = None,
    after: Annotated[str | None, typer.Option(metavar="MODEL", help="The model that was made to forget.")] = None,
    ids: Ids = None,
    retain: Retain = None,
    weights: Weights = None,
    after_weights: Annotated[Path | None, typer.Option(help="Weights of --after, likewise.")] = None,
    allow_pickle: AllowPickle = False,
    resize: Resize = False,
    with_images: WithImages = False,
    difficulty_calibration: Annotated[
        bool,
        typer.Option(
            "--difficulty-calibration",
            help="For non-random forget sets: allow for how hard networks trained on --test find them.",
        ),
    ] = False,
    max_loss: MaxLoss = None,
    reference_minutes: ReferenceMinutes = None,
    full: Annotated[
        bool, typer.Option("--full", help="Train many models and compare methods with retraining.")
    ] = False,
    train: Annotated[str | None, typer.Option(metavar="DATA", help="--full: the model's training data.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,SETTING=VALUE…]", help="--full: what to compare; repeat for more."),
    ] = None,
    num: Annotated[int | None, typer.Option(min=1, help="--full: models of each kind; default: 64.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="--full: processes; default: 2.")] = None,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="--full: train on a Ray cluster instead.")] = None,
    references: Annotated[
        Path | None, typer.Option(help="--full: directory of the models; a stopped audit goes on from it.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print how many examples an audit takes to say PASS; needs no model.")
    ] = False,
    forgotten: Annotated[int | None, typer.Option(min=1, help="--plan: how many examples are forgotten.")] = None,
    held_out: Annotated[int | None, typer.Option(min=1, help="--plan: how many held-out examples there are.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="--plan: of how many classes; default: 1.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Test whether an unlearned model still reveals the forgotten examples."""
    of_plan = {"--forgotten": forgotten, "--held-out": held_out, "--classes": classes}
    if plan:
        print_plan(forgotten, held_out, classes or 1, as_json)
        return
    for option, number in of_plan.items():
        if number is not None:
            raise SettingError(f"{option} is for --plan: add --plan, or leave {option} out")
    if before is None or forget is None or test is None or out is None:
        needed = {"--before MODEL": before, "--forget DATA": forget, "--test DATA": test, "--out DIR": out}
        missing = ", ".join(option for option, given in needed.items() if given is None)
        raise SettingError(f"an audit needs more: add {missing} (or --plan, to see how many examples it takes)")
    if not full and after is None:
        raise SettingError("an audit needs the model that was made to forget: add --after MODEL (or --full)")
    of_full: dict[str, object] = {"--train": train, "--method": method, "--references": references}
    of_full |= {"--num": num, "--workers": workers, "--ray": ray}
    of_default: dict[str, object] = {"--after": after, "--after-weights": after_weights, "--retain": retain}
    of_default |= {"--with-images": with_images, "--difficulty-calibration": difficulty_calibration}
    of_default |= {"--max-loss": max_loss}
    for option, given in (of_default if full else of_full).items():
        if given not in (None, False, [], ""):
            raise SettingError(f"{option} is for audits {'without' if full else 'with'} --full; leave one of them out")
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
                seed=seed,
                device=device,
                with_images=with_images,
                difficulty_calibration=difficulty_calibration,
                max_loss=max_loss,
                reference_minutes=reference_minutes,
            )
    if full:
        print_full_audit(found, out, as_json)
        return
    raise typer.Exit(print_report(report, as_json))


def run(
    sources: "Sources",
    after: str,
    out: Path,
    *,
    after_weights: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    with_images: bool = False,
    difficulty_calibration: bool = False,
    max_loss: float | None = None,
    reference_minutes: float | None = None,
) -> "Report":
    """Audits a model that was made to forget, and writes `report.json` and `report.html` to the new directory `out`."""
    from expunge.auditing.default_audit import evaluate, report_of
    from expunge.auditing.preparation import prepare
    from expunge.cli.sources import audit_settings, forget_set, given_set, is_same_network, told, write_report
    from expunge.files import check_unused, new_directory
    from expunge.models import load_model
    from expunge.report.record import Report
    from expunge.trainer import device_named

    check_unused(out)
    where = device_named(device)
    original, header = load_model(sources.model, weights=sources.weights, allow_pickle=sources.allow_pickle)
    unlearned, header_after = load_model(after, weights=after_weights, allow_pickle=sources.allow_pickle)
    if not is_same_network(header.spec, header_after.spec):
        raise InputError(f"{after} is another network than {sources.model}; an audit compares a model with itself")
    forgotten = forget_set(sources, header)
    test, retain = (given_set(spec, sources, header) for spec in (sources.test, sources.retain))
    sets = prepare(forgotten, test, retain).uncalibrated(unlearned)
    with new_directory(out) as temporary:
        evaluations = evaluate(original.to(where), sets, seed), evaluate(unlearned.to(where), sets, seed)
        audited = report_of(
            original,
            unlearned,
            sets,
            evaluations,
            class_names=header.class_names or forgotten.class_names,
            settings=audit_settings(
                sources.model,
                original,
                header,
                max_loss=max_loss,
                reference_minutes=reference_minutes,
                non_random=difficulty_calibration,
            ),
            seed=seed,
        )
        report = Report(
            directory=str(out),
            sources=told(
                sources,
                after=after,
                after_weights=after_weights,
                difficulty_calibration=difficulty_calibration,
                max_loss=max_loss,
                reference_minutes=reference_minutes,
                device=None if device == "auto" else device,
            ),
            before=audited.before,
            after=audited.after,
            audit=audited,
        )
        return write_report(temporary, report, forgotten if with_images else None)
