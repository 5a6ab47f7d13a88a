"""`expunge forget`: the main job, from specs to an unlearned model and a report on disk."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.options import (
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
    ToSet,
    Unlabelled,
    Weights,
    WeightsKey,
    WithImages,
    settings_of,
)
from expunge.cli.printing import announce, print_report
from expunge.errors import SettingError
from expunge.stopping import is_first, launched, let_speak, work

if TYPE_CHECKING:
    from expunge.cli.sources import Sources
    from expunge.methods import Method
    from expunge.report.record import Report


def forget(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="What expunge wrote, hf:DIR, timm:NAME, torchvision:NAME, py:MOD:FN.")],
    forget: Annotated[str, typer.Option(metavar="DATA", help="The examples to forget, such as folder:DIR.")],
    out: Annotated[Path, typer.Option(help="New directory for the model and the report.")],
    ids: Ids = None,
    retain: Retain = None,
    test: Annotated[
        str | None, typer.Option(metavar="DATA", help="Unseen examples: half for the method, half for the audit.")
    ] = None,
    unlabelled: Unlabelled = None,
    method: Annotated[
        str | None, typer.Option(help="See `expunge methods`. Default: calibrated with --test, held_boundary without.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A preset of the method, such as paper.")] = None,
    settings: ToSet = [],  # noqa: B006
    weights: Weights = None,
    weights_key: WeightsKey = None,
    allow_pickle: AllowPickle = False,
    updates: Annotated[Path | None, typer.Option(help="Update log; default: the one beside the model.")] = None,
    resize: Resize = False,
    as_stored: AsStored = False,
    label_column: LabelColumn = None,
    id_column: IdColumn = None,
    input_columns: InputColumns = None,
    reference: Reference = None,
    with_images: WithImages = False,
    max_loss: MaxLoss = None,
    reference_minutes: ReferenceMinutes = None,
    precision: Precision = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make a model forget examples, measure it before and after, and audit it where there is a test set."""
    with work(), joined(device):
        from expunge.cli.sources import Sources

        report = run(
            Sources.of(context),
            out,
            method=method,
            preset=preset,
            settings=settings_of(settings),
            seed=seed,
            device=device,
            with_images=with_images,
            max_loss=max_loss,
            reference_minutes=reference_minutes,
            precision=precision,
        )
    # A launcher stops all processes as soon as one ends with another code than 0.
    raise typer.Exit(print_report(report, as_json) if is_first() else 0)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Makes the processes that a launcher started work together inside the block; nothing, where this is the only one.

    A process that dies or fails ends all the others, and one of them says why.
    """
    if not launched():
        if is_alone():
            announce("expunge: note: accelerate launch --cpu starts one process: torchrun starts several")
        yield
        return
    from expunge.distributed import join, leave

    let_speak(join(device))
    yield
    leave()


def is_alone() -> bool:
    """Whether this is the one process that `accelerate launch --cpu` starts, however many it was told to."""
    return "WORLD_SIZE" not in os.environ and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys()


def run(
    sources: "Sources",
    out: Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    with_images: bool = False,
    max_loss: float | None = None,
    reference_minutes: float | None = None,
    precision: str | None = None,
) -> "Report":
    """Writes the model, `report.json` and, with an audit, `report.html` to the new directory `out`.

    The model is written as it came: of `hf:` as a Hugging Face directory, of any other as `model.safetensors`.

    `retrain` takes the original's recipe where the checkpoint tells it.
    """
    from expunge import forgetting
    from expunge.cli.sources import (
        audit_settings,
        directory_of,
        factory_of,
        forget_set,
        given_set,
        loaded,
        notes_of,
        notes_on,
        shown,
        tell_of_bf16,
        told,
        updates_of,
        write_report,
    )
    from expunge.distributed import barrier
    from expunge.files import check_unused, new_directory
    from expunge.methods import Needs, default_method, method_of
    from expunge.models import save_model, undone_steps
    from expunge.report.record import Report
    from expunge.trainer import device_named

    check_unused(out)
    where = device_named(device)
    if method is None:
        if preset is not None:
            raise SettingError(f"--preset {preset} is of a method: name it too, such as --method targeted")
        method = default_method(sources.test is not None)
    chosen: Method = method_of(method, settings or {}, preset=preset)  # wrong settings, before anything is read
    if Needs.RETAIN in chosen.needs and sources.retain is None:
        raise SettingError(f"{method} needs retained training examples: add --retain DATA")
    network, header = loaded(sources)
    notes = list(notes_on(sources, header))
    if method == "retrain":
        chosen = method_of(method, {**header.recipe, **(settings or {})}, preset=preset)
        if not header.recipe:
            notes.append("the model's file tells no recipe: it is retrained by the package's own; --set gives yours")
    forgotten = forget_set(sources, header)
    images = shown(forgotten, with_images)
    tell_of_bf16(where, getattr(chosen, "precision", None), precision)
    retain, test = (given_set(spec, sources, header) for spec in (sources.retain, sources.test))
    unlabelled = given_set(sources.unlabelled, sources, header, labelled=False)
    notes += notes_of(forgotten, retain, test, unlabelled)
    if Needs.UPDATES in chosen.needs and (sources.updates or "updates" not in (settings or {})):
        chosen = replace(chosen, updates=updates_of(sources))  # type: ignore[type-var]
    factory = factory_of(network, sources.model) if Needs.FACTORY in chosen.needs else None
    forgotten = replace(forgotten, class_names=header.class_names or forgotten.class_names)
    # Before the work: a place that cannot be written says so at once.
    with new_directory(out) if is_first() else nullcontext() as temporary:
        network.to(where)
        done = forgetting.forget(
            network,
            forgotten,
            test=test,
            retain=retain,
            unlabelled=unlabelled,
            method=chosen,
            factory=factory,
            settings=audit_settings(
                sources.model,
                network,
                header,
                max_loss=max_loss,
                reference_minutes=reference_minutes,
                precision=precision,
            ),
            seed=seed,
        )
        trace = done.trace
        report = Report(
            directory=str(out),
            sources=told(
                sources,
                max_loss=max_loss,
                reference_minutes=reference_minutes,
                precision=precision,
                device=None if device == "auto" else device,
            ),
            before=done.before,
            after=done.after,
            trace=trace,
            audit=done.report.audit if done.report else None,
            notes=tuple(notes) if done.report else (*notes, *done.left_out),
        )
        entry = {
            "did": "forget",
            "method": method,
            "settings": dict(trace.settings),
            "num_forget": trace.num_forget,
            "verdict": report.verdict,
            "test_accuracy": [done.before.test_accuracy, done.after.test_accuracy],
            "calibration_seeds": [seed] if trace.num_calibration else [],
            "undone_steps": sorted({*undone_steps(done.model)} - {*undone_steps(network)}),
        }
        header = replace(header, history=(*header.history, entry))
        barrier()  # nothing is written where a process has died
        if temporary is None:
            return report
        save_model(temporary, done.model.cpu(), header, directory_of(sources.model))
        return write_report(temporary, report, images)
