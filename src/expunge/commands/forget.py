"""`expunge forget`: the main job, from specs to an unlearned model and a report on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.commands.sources import Sources, device_named, factory_of, load_for, measure, updates_of
from expunge.data import check_disjoint, read_ids
from expunge.errors import InputError, SettingError
from expunge.files import check_unused, new_directory
from expunge.methods import METHODS, Method, Needs, make_method
from expunge.models import load_model, save_checkpoint
from expunge.models.checkpoint import FILE_NAME
from expunge.records import Measurement, Trace
from expunge.unlearning import unlearn


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `forget` did and measured; `report.json` in its directory."""

    directory: str
    sources: Mapping[str, Any]
    before: Measurement
    after: Measurement
    trace: Trace
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps({"format": "expunge-report/1", **asdict(self)}, indent=2)


def forget(
    sources: Sources,
    out: Path,
    *,
    method: str = "targeted",
    protocol: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Report:
    """Makes a model forget, measures it before and after, and writes `model.safetensors` and `report.json`.

    Args:
        sources: what to read.
        out: the new directory; must not exist.
        method: a key of `METHODS`. `retrain` takes the original's recipe where the checkpoint tells it.
        protocol: a preset of that method, such as `paper`.
        settings: fields of the method.
        seed: of everything random.
        device: `cpu`, `cuda`, or `auto`.
    """
    check_unused(out)
    where = device_named(device)
    _check_method(method)
    needs: Needs = METHODS[method].needs
    if Needs.RETAIN in needs and sources.retain is None:
        raise SettingError(f"{method} needs retained training examples: add --retain DATA")
    make_method(method, protocol=protocol, **(settings or {}))  # wrong settings, before anything is read
    network, header = load_model(sources.model, weights=sources.weights, allow_pickle=sources.allow_pickle)
    recipe = dict(header.recipe) if method == "retrain" and protocol is None else {}
    chosen: Method = make_method(method, protocol=protocol, **{**recipe, **(settings or {})})
    forgotten = load_for(sources.forget, header, sources.resize)
    if sources.ids is not None:
        forgotten = forgotten.select(read_ids(sources.ids))
    if len(forgotten) == 0:
        raise InputError("the forget set is empty; give it at least one example")
    notes = []
    test = retain = None
    if sources.test is not None:
        test = load_for(sources.test, header, sources.resize)
        check_disjoint(forgotten.images, test.images, "forget", "test")
    if sources.retain is not None:
        whole = load_for(sources.retain, header, sources.resize)
        retain = whole.without(forgotten)
        if len(retain) == 0:
            raise InputError("every retained example is in the forget set too; give others with --retain")
        if len(retain) < len(whole):
            notes.append(f"left {len(whole) - len(retain):,} examples that are to be forgotten out of the retain set")
    with new_directory(out) as temporary:  # before the work: a place that cannot be written says so at once
        network.to(where)
        before = measure(network, retain, test)
        result = unlearn(
            network,
            forgotten,
            method=chosen,
            retain=retain if Needs.RETAIN in needs else None,
            factory=factory_of(network, sources.model),
            updates=updates_of(sources) if Needs.UPDATES in needs else None,
            seed=seed,
        )
        after = measure(result.model, retain, test)
        trace = result.trace
        report = Report(
            directory=str(out),
            sources={key: str(value) if isinstance(value, Path) else value for key, value in asdict(sources).items()},
            before=replace(before, forget_accuracy=trace.forget_accuracy_before),
            after=replace(after, forget_accuracy=trace.forget_accuracy_after),
            trace=trace,
            notes=tuple(notes),
        )
        entry = {"did": "forget", "method": method, "settings": dict(trace.settings), "num_forget": trace.num_forget}
        class_names = header.class_names or forgotten.class_names
        header = replace(header, class_names=class_names, history=(*header.history, entry))
        save_checkpoint(temporary / FILE_NAME, result.model.cpu(), header)
        (temporary / "report.json").write_text(report.to_json())
    return report


def _check_method(name: str) -> None:
    if name not in METHODS:
        make_method(name)
