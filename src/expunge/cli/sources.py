"""From MODEL and DATA specs to what a command works on."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from expunge.auditing import AuditSettings
from expunge.auditing.difficulty import check_factory
from expunge.cli.options import columns_of
from expunge.data import Columns, ImageSet, RowSet, load_examples, load_unlabelled, read_ids
from expunge.errors import MOST_SHOWN, ExpungeWarning, InputError, MissingExtraError, SettingError, printable
from expunge.files import write_private
from expunge.methods import method_of
from expunge.models import Header, ModelSpec, build, load_model, own_fit, slow_in
from expunge.models.building import Classifier
from expunge.models.checkpoint import checkpoint_path
from expunge.models.texts import ARCHITECTURE as TEXTS
from expunge.models.texts import tokenizer_of
from expunge.report.record import Report
from expunge.stopping import is_first
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
    weights_key: str | None = None
    allow_pickle: bool = False
    updates: Path | None = None
    resize: bool = False
    as_stored: bool = False
    label_column: str | None = None
    id_column: str | None = None
    input_columns: str | None = None
    reference: str | None = None

    @property
    def columns(self) -> Columns:
        """Which columns of tables are meant."""
        return columns_of(self.label_column, self.id_column, self.input_columns)

    @classmethod
    def of(cls, context: typer.Context, **more: Any) -> "Sources":
        """Those among the options of a command, with `more` of other names."""
        return cls(**{f.name: context.params[f.name] for f in fields(cls) if f.name in context.params}, **more)


Given = ImageSet | RowSet
"""What DATA specs come to."""


def load_for(spec: str, header: Header, sources: Sources, *, labelled: bool = True) -> Given:
    """Loads data and checks that the model can take it; where it is not `labelled`, its classes do not count."""
    wanted, resize = header.spec, sources.resize
    if resize and not wanted.image_size:
        raise SettingError(
            f"--resize needs the model's image size, which {wanted.architecture} does not say: give "
            f"--model {wanted.architecture},image_size=224 (or what it takes)"
        )
    form: dict[str, Any] = {
        "size": (own_fit(header) or wanted.image_size) if resize else None,
        "channels": wanted.in_channels or None,
        "upright": not sources.as_stored,
    }
    images: Given
    if labelled:
        images = load_examples(spec, **form, class_names=header.class_names, columns=sources.columns)
    else:
        images = load_unlabelled(spec, **form, columns=sources.columns)
    rows = _rows(images, header, sources) if isinstance(images, RowSet) or wanted.architecture == TEXTS else None
    if labelled and wanted.num_classes and len(images) and int(images.labels.max()) >= wanted.num_classes:
        raise InputError(
            f"{spec} has label {int(images.labels.max())}, outside [0, {wanted.num_classes}), the model's classes"
        )
    if rows is not None:
        return rows
    assert isinstance(images, ImageSet)
    shape = tuple(images.images.shape[1:])
    channels, side = wanted.in_channels or shape[0], wanted.image_size
    if wanted.image_size and shape != (channels, side, side):
        expected = f"{channels} × {side} × {side}"
        raise InputError(
            f"{spec} holds images of {' × '.join(map(str, shape))} (channels × height × width), the model takes "
            f"{expected}; convert them as the training did, or add --resize for folder: and hf: data"
        )
    return images


def _rows(rows: Given, header: Header, sources: Sources) -> RowSet:
    """Rows as the model takes them. Raises `InputError` where it does not."""
    takes_texts = header.spec.architecture == TEXTS
    if not isinstance(rows, RowSet) or rows.holds_texts != takes_texts or header.spec.image_size:
        kind = "images" if not isinstance(rows, RowSet) else "numbers"
        if isinstance(rows, RowSet) and rows.holds_texts:
            kind = f"texts, in the column {rows.columns[0]!r}"
        takes = "texts" if takes_texts else "images" if header.spec.image_size else "numbers, as any py: model"
        raise InputError(f"{rows.name} holds {kind}, and the model takes {takes}: give such data")
    if not takes_texts:
        return rows
    place = Path(sources.model.removeprefix("hf:"))
    return rows.tokenised(*tokenizer_of(place if place.is_dir() else place.parent))


def images_for(spec: str, header: Header, sources: Sources) -> ImageSet:
    """`load_for` of images. Raises `InputError` where it is something else."""
    found = load_for(spec, header, sources)
    if not isinstance(found, ImageSet):
        raise InputError(f"{spec} holds no images, which a full audit takes alone")
    return found


def notes_on(sources: Sources, header: Header) -> tuple[str, ...]:
    """What is to be said of how the data was read."""
    if not sources.resize or own_fit(header) is not None:
        return ()
    side = header.spec.image_size
    return (
        f"--resize makes images {side} × {side} whatever their shape (bilinear), which may not be the model's own "
        "preprocessing: where the training did otherwise, prepare the images so, and leave --resize out",
    )


def notes_of(*sets: Given | None) -> list[str]:
    """What is to be said of how the rows of these sets were read, once each."""
    return list(dict.fromkeys(note for held in sets if isinstance(held, RowSet) for note in held.notes))


def forget_set(sources: Sources, header: Header) -> Given:
    """The examples to forget: those that `ids` picks, or all; at least one."""
    forgotten = load_for(sources.forget, header, sources)
    if sources.ids is not None:
        # `expunge data ids` prints ids as a terminal may show them: what is not so is written out.
        known = {printable(id_, lines=False): id_ for id_ in forgotten.ids}
        forgotten = forgotten.select([known.get(id_, id_) for id_ in read_ids(sources.ids)])
    if len(forgotten) == 0:
        raise InputError("the forget set is empty; give it at least one example")
    return forgotten


def given_set(spec: str | None, sources: Sources, header: Header, *, labelled: bool = True) -> Given | None:
    """The examples of a DATA spec, None where there is none."""
    if spec is None:
        return None
    return load_for(spec, header, sources, labelled=labelled)


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
    precision: str | None = None,
    non_random: bool = False,
) -> AuditSettings:
    """Settings of an audit of the model `network` of a MODEL spec: its reference models are trained as it was."""
    given: dict[str, Any] = {"max_loss": max_loss, "reference_minutes": reference_minutes, "precision": precision}
    if header.recipe:
        told = method_of("retrain", header.recipe)
        assert isinstance(told, Recipe)
        given["recipe"] = told.recipe
    settings = AuditSettings(
        non_random=non_random,
        factory=factory_of(network, spec) or partial(build, header.spec),
        **{name: value for name, value in given.items() if value is not None},
    )
    try:
        check_factory(settings, network)
    except InputError:  # a factory that was named for its network, and loads weights: its layers are initialised anew
        return replace(settings, factory=None)
    return settings


def is_same_network(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two descriptions are of the same network. A factory says all of it; sizes may be told or not."""
    return one == other or (one.architecture.startswith("py:") and one.architecture == other.architecture)


def loaded(sources: Sources) -> tuple[nn.Module, Header]:
    """The model that the sources name, with its weights. What was left out of their file is told on standard error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ExpungeWarning)
        found = load_model(
            sources.model,
            weights=sources.weights,
            allow_pickle=sources.allow_pickle,
            weights_key=sources.weights_key,
        )
    for each in (one for one in said if issubclass(one.category, ExpungeWarning) and is_first()):
        typer.echo(f"expunge: note: {printable(str(each.message), lines=False, most=MOST_SHOWN)}", err=True)
    return found


def tell_of_bf16(where: torch.device, *precisions: str | None) -> None:
    """Says on standard error that one of the precisions is slow there, where it is."""
    for sentence in {sentence for precision in precisions for sentence in slow_in(precision or "fp32", where)}:
        if is_first():
            typer.echo(f"expunge: note: {sentence}", err=True)


def directory_of(model: str) -> Path:
    """Where the files of a MODEL spec lie, where they do: of `hf:DIR`, a directory, or a file in one."""
    return checkpoint_path(Path(model.removeprefix("hf:"))).parent


def updates_of(sources: Sources) -> Path:
    """The update log that was named, or the one beside the model."""
    return sources.updates or directory_of(sources.model) / UPDATES


def told(sources: Sources, **more: Any) -> dict[str, Any]:
    """A record of specs and paths as JSON values."""
    content = {**asdict(sources), **more}
    return {key: str(value) if isinstance(value, Path) else value for key, value in content.items()}


def shown(examples: Given, with_images: bool) -> ImageSet | None:
    """The examples that a page is to show. Raises `SettingError` where they are no images."""
    if with_images and not isinstance(examples, ImageSet):
        raise SettingError("--with-images: there are none; leave it out")
    return examples if with_images and isinstance(examples, ImageSet) else None


def write_report(directory: Path, report: Report, images: ImageSet | None = None) -> Report:
    """Writes `report.json` and `report.html`; gives back the report as written.

    Without the extra `report` there is no page, and a note says how to get one. With `images`, the forgotten ones, it
    shows those that are still recognisable.
    """
    try:
        page = report.page(images)
        write_private(directory / "report.html", page)
    except MissingExtraError as error:
        note = f"no report.html was written: {error}"
        report = replace(report, notes=tuple(dict.fromkeys((*report.notes, note))))
    write_private(directory / "report.json", report.to_json())
    return report
