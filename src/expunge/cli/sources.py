"""From MODEL and DATA specs to what a command works on."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import typer
from torch import nn

from expunge.auditing import AuditSettings
from expunge.data import ImageSet, load_data, load_unlabelled, read_ids
from expunge.errors import InputError, MissingExtraError, SettingError
from expunge.methods import make_method
from expunge.models import Header, ModelSpec, build, device_and_dtype
from expunge.models.building import Classifier
from expunge.models.checkpoint import checkpoint_path
from expunge.report.record import Report
from expunge.training import Recipe
from expunge.update_log import UPDATES


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What `forget` and `audit` read, as MODEL and DATA specs and paths: their options of these names."""

    model: str
    forget: str
    ids: Path | None = None
    retain: str | None = None
    test: str | None = None
    unlabelled: str | None = None
    weights: Path | None = None
    allow_pickle: bool = False
    updates: Path | None = None
    resize: bool = False

    @classmethod
    def of(cls, context: typer.Context, **more: Any) -> "Sources":
        """Those among the options of a command, with `more` of other names."""
        return cls(**{f.name: context.params[f.name] for f in fields(cls) if f.name in context.params}, **more)


def load_for(spec: str, header: Header, resize: bool, *, labelled: bool = True) -> ImageSet:
    """Loads data and checks that the model can take it; where it is not `labelled`, its classes do not count."""
    wanted = header.spec
    if resize and not wanted.image_size:
        raise SettingError(
            f"--resize needs the model's image size, which {wanted.architecture} does not say: give "
            f"--model {wanted.architecture},image_size=224 (or what it takes)"
        )
    form: dict[str, Any] = {
        "size": wanted.image_size if resize and wanted.image_size else None,
        "channels": wanted.in_channels or None,
    }
    if labelled:
        images = load_data(spec, **form, class_names=header.class_names)
        if wanted.num_classes and len(images) and int(images.labels.max()) >= wanted.num_classes:
            raise InputError(
                f"{spec} has label {int(images.labels.max())}, outside [0, {wanted.num_classes}), the model's classes"
            )
    else:
        images = load_unlabelled(spec, **form)
    shape = tuple(images.images.shape[1:])
    channels, side = wanted.in_channels or shape[0], wanted.image_size
    if wanted.image_size and shape != (channels, side, side):
        expected = f"{channels} × {side} × {side}"
        raise InputError(
            f"{spec} holds images of {' × '.join(map(str, shape))} (channels × height × width), the model takes "
            f"{expected}; convert them, or add --resize for a folder"
        )
    return images


def forget_set(sources: Sources, header: Header) -> ImageSet:
    """The examples to forget: those that `ids` picks, or all; at least one."""
    forgotten = load_for(sources.forget, header, sources.resize)
    if sources.ids is not None:
        forgotten = forgotten.select(read_ids(sources.ids))
    if len(forgotten) == 0:
        raise InputError("the forget set is empty; give it at least one example")
    return forgotten


def given_set(spec: str | None, sources: Sources, header: Header, *, labelled: bool = True) -> ImageSet | None:
    """The images of a DATA spec, None where there is none."""
    return None if spec is None else load_for(spec, header, sources.resize, labelled=labelled)


def factory_of(network: nn.Module, spec: str) -> Callable[[], nn.Module] | None:
    """For `py:` models the factory that the user named; the rest build themselves from their spec."""
    if not spec.startswith("py:") or not isinstance(network, Classifier):
        return None
    from expunge.data.specs import import_factory

    make = import_factory(spec.removeprefix("py:").partition(",")[0])
    return lambda: Classifier(network.spec, make())


def audit_settings(
    spec: str,
    network: nn.Module,
    header: Header,
    *,
    max_loss: float | None,
    reference_minutes: float | None,
    non_random: bool = False,
) -> AuditSettings:
    """Settings of an audit of the model `network` of a MODEL spec: its reference models are trained as it was."""
    given: dict[str, Any] = {"max_loss": max_loss, "reference_minutes": reference_minutes}
    if header.recipe:
        told = make_method("retrain", **header.recipe)
        assert isinstance(told, Recipe)
        given["recipe"] = told.recipe
    place = device_and_dtype(network)[0]
    make = factory_of(network, spec) or (lambda: build(header.spec))
    return AuditSettings(
        non_random=non_random,
        factory=lambda: make().to(place),
        **{name: value for name, value in given.items() if value is not None},
    )


def is_same_network(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two descriptions are of the same network. A factory says all of it; sizes may be told or not."""
    return one == other or (one.architecture.startswith("py:") and one.architecture == other.architecture)


def updates_of(sources: Sources) -> Path:
    """The update log that was named, or the one beside the model."""
    return sources.updates or checkpoint_path(Path(sources.model)).parent / UPDATES


def told(sources: Sources, **more: Any) -> dict[str, Any]:
    """A record of specs and paths as JSON values."""
    content = {**asdict(sources), **more}
    return {key: str(value) if isinstance(value, Path) else value for key, value in content.items()}


def write_report(directory: Path, report: Report, images: ImageSet | None = None) -> Report:
    """Writes `report.json` and, where there was an audit, `report.html`; gives back the report as written.

    Without the extra `report` there is no page, and a note says how to get one. With `images`, the forgotten ones, it
    shows those that are still recognisable.
    """
    if report.audit is not None:
        try:
            page = report.page(images)
            (directory / "report.html").write_text(page, encoding="utf-8")
        except MissingExtraError as error:
            note = f"no report.html was written: {error}"
            report = replace(report, notes=tuple(dict.fromkeys((*report.notes, note))))
    (directory / "report.json").write_text(report.to_json(), encoding="utf-8")
    return report
