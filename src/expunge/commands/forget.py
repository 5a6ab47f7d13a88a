"""`expunge forget`: the main job, from specs to an unlearned model and a report on disk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge import forgetting
from expunge.commands.sources import (
    Sources,
    device_named,
    factory_of,
    forget_set,
    given_set,
    updates_of,
)
from expunge.errors import SettingError
from expunge.files import check_unused, new_directory
from expunge.methods import METHODS, Method, Needs, default_method, make_method
from expunge.models import load_model, save_checkpoint, undone_steps
from expunge.models.checkpoint import FILE_NAME
from expunge.report.record import Report, told, write_report


def forget(
    sources: Sources,
    out: str | Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    with_images: bool = False,
) -> Report:
    """Makes a model forget and measures it before and after; audits it where there is a test set.

    Writes `model.safetensors`, `report.json` and, with an audit, `report.html`.

    Args:
        sources: what to read.
        out: the new directory; must not exist.
        method: a key of `METHODS`; None: `calibrated` where there is a test set, else `targeted`. `retrain` takes the
            original's recipe where the checkpoint tells it.
        preset: a preset of that method, such as `paper`.
        settings: fields of the method.
        seed: of everything random.
        device: `cpu`, `cuda`, or `auto`.
        with_images: show the forgotten images that are still recognisable in the report, which then holds them.
    """
    out = Path(out)
    check_unused(out)
    where = device_named(device)
    if method is None:
        if preset is not None:
            raise SettingError(f"--preset {preset} is of a method: name it too, such as --method targeted")
        method = default_method(sources.test is not None)
    _check_method(method)
    needs: Needs = METHODS[method].needs
    if Needs.RETAIN in needs and sources.retain is None:
        raise SettingError(f"{method} needs retained training examples: add --retain DATA")
    make_method(method, preset=preset, **(settings or {}))  # wrong settings, before anything is read
    network, header = load_model(sources.model, weights=sources.weights, allow_pickle=sources.allow_pickle)
    recipe = dict(header.recipe) if method == "retrain" else {}
    chosen: Method = make_method(method, preset=preset, **{**recipe, **(settings or {})})
    forgotten = forget_set(sources, header)
    retain, test = (given_set(spec, sources, header) for spec in (sources.retain, sources.test))
    notes = []
    if method == "retrain" and not recipe:
        notes.append("the model's file tells no recipe: it is retrained by the package's own; --set gives yours")
    more: dict[str, Any] = {"factory": factory_of(network, sources.model)} if Needs.FACTORY in needs else {}
    more |= {"updates": updates_of(sources)} if Needs.UPDATES in needs else {}
    with new_directory(out) as temporary:  # before the work: a place that cannot be written says so at once
        network.to(where)
        names = header.class_names or forgotten.class_names
        done = forgetting.forget(
            network, forgotten, test=test, retain=retain, method=chosen, class_names=names, seed=seed, **more
        )
        trace = done.trace
        report = Report(
            directory=str(out),
            sources=told(sources, device=None if device == "auto" else device),
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
            "calibration_seeds": [seed] if trace.num_calibration else [],
            "undone_steps": sorted({*undone_steps(done.model)} - {*undone_steps(network)}),
        }
        header = replace(header, history=(*header.history, entry))
        save_checkpoint(temporary / FILE_NAME, done.model.cpu(), header)
        return write_report(temporary, report, forgotten if with_images else None)


def _check_method(name: str) -> None:
    if name not in METHODS:
        make_method(name)
