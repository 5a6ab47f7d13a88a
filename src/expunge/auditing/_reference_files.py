"""The files of reference models: names, manifest, and tags that keep results of other settings apart."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from expunge.data import ImageSet, digests
from expunge.errors import InputError, SettingError
from expunge.files import written_whole
from expunge.parsing import parse_json, read_text, record
from expunge.tensor_files import check_digest

FORMAT = "expunge-references/1"
SETS = ("forget", "heldout", "retained")
AUDITED = "audited"
"""Which held-out examples methods that calibrate on the others are measured on, in labels.safetensors."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What reference models in a directory were made of; `settings` and `methods` as in `References`."""

    format: str
    settings: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Method:
    method: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Relearn:
    max_steps: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class _Settings:
    spec: Mapping[str, Any]
    recipe: Mapping[str, Any]
    data: str
    forget: str
    heldout: str
    retained: str
    seed: int
    relearn: _Relearn
    subject: str
    device: str = "cpu"


def check_row(name: str) -> None:
    """Raises `SettingError` for a method's name that cannot stand in a file's name."""
    if name in {"original", "retrained"} or not re.fullmatch(r"[\w.=+-]+", name, re.ASCII):
        raise SettingError(f"a method cannot be called {name[:80]!r} here; use letters, digits and ._=+-")


def file_of(directory: Path, row: str, j: int) -> Path:
    """Where the j-th model of a row has its outputs."""
    name = row if row in {"original", "retrained"} else f"unlearned-{row}"
    return directory / f"{name}-{j:04d}.safetensors"


def read(directory: Path, row: str, j: int, tag: str) -> dict[str, torch.Tensor]:
    """The outputs of one model. Raises `InputError` where they are missing, damaged or of other settings."""
    path = file_of(directory, row, j)
    if not path.exists():
        raise InputError(f"{path} is missing; run train_references again, which makes only what is not there")
    read_tag(path, tag)
    found = read_tensors(path)
    if {*found} != {*SETS, "relearn_steps"} or found["relearn_steps"].ndim != 0:
        raise InputError(f"{path} does not hold what a reference model says; remove it, and it will be made again")
    if any(found[name].dtype != torch.float32 or found[name].ndim != 2 for name in SETS):
        raise InputError(f"{path} does not hold logits (float32, a row an example); remove it, it will be made again")
    return found


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file. Raises `InputError` where it is not as it was written."""
    try:
        check_digest(path)
        return load_file(path)
    except (SafetensorError, OSError, InputError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and it will be made again") from error


def read_tag(path: Path, tag: str) -> None:
    """Raises `InputError` unless the file at `path` is whole and carries `tag`."""
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("digest")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and it will be made again") from error
    if found != tag:
        raise InputError(f"{path} comes from other settings than the manifest beside it; remove it")


def read_labels(directory: Path) -> dict[str, torch.Tensor]:
    """The labels of each set, int64, and which held-out examples count (`AUDITED`). Raises `InputError` for others."""
    path = directory / "labels.safetensors"
    found = read_tensors(path)
    kinds = dict.fromkeys(SETS, torch.int64) | {AUDITED: torch.bool}
    if {name: each.dtype for name, each in found.items()} != kinds or any(each.ndim != 1 for each in found.values()):
        raise InputError(f"{path} does not hold the labels of {', '.join(SETS)}; run train_references again")
    if len(found[AUDITED]) != len(found["heldout"]) or not all(len(found[name]) for name in SETS):
        raise InputError(f"{path}: a set is empty, or {AUDITED!r} is not of the held-out examples")
    return found


def check_shapes(outputs: Iterable[Mapping[str, torch.Tensor]], labels: Mapping[str, torch.Tensor]) -> None:
    """Raises `InputError` unless all models were measured on the labelled examples, in as many classes each."""
    shapes = {(name, tuple(each[name].shape)) for each in outputs for name in SETS}
    classes = {shape[1] for _, shape in shapes}
    least = 1 + max(int(labels[name].max()) for name in SETS)
    if (
        any(shape[0] != len(labels[name]) for name, shape in shapes)
        or len(classes) != 1
        or min(classes) < least
        or any(int(labels[name].min()) < 0 for name in SETS)
    ):
        raise InputError("the reference models' files do not fit the labels beside them; choose another directory")


def tag_of(settings: Mapping[str, Any], method: Mapping[str, Any] | None) -> str:
    """What the files of a row carry: it changes with anything that their content depends on."""
    return sha256(json.dumps([settings, method], sort_keys=True).encode()).hexdigest()


def digest_of(images: ImageSet) -> str:
    """SHA-256 of images and labels, in order."""
    labels = images.labels.numpy().astype("<i8").tobytes()
    return sha256(b"".join(digests(images.images)) + labels).hexdigest()


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest, None where there is none. Raises `InputError` where it cannot be read."""
    path = directory / "manifest.json"
    if not path.exists():
        return None
    try:
        found = record(Manifest, parse_json(read_text(path)))
        if found.format != FORMAT:
            raise InputError(f"its format is not {FORMAT}")
        record(_Settings, found.settings, "settings")
        for row, told in found.methods.items():
            check_row(row)
            record(_Method, told, row)
    except ValueError as error:
        raise InputError(f"{path} is no manifest of reference models ({error}); choose another directory") from error
    return found


def update_manifest(directory: Path, settings: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """Adds new methods to the manifest. Raises `InputError` where the directory holds results of other settings."""
    settings, methods = json.loads(json.dumps([settings, methods]))
    found = read_manifest(directory)
    old = found or Manifest(format=FORMAT, settings=settings, methods={})
    changed = [key for key in {**old.settings, **settings} if old.settings.get(key) != settings.get(key)]
    changed += [f"method {name}" for name, told in methods.items() if old.methods.get(name, told) != told]
    if changed:
        raise InputError(
            f"{directory} holds reference models of another {', '.join(changed)}; choose another directory"
        )
    known = {**old.methods, **methods}
    if found is None or known != old.methods:
        with written_whole(directory / "manifest.json") as temporary:
            content = {"format": FORMAT, "settings": settings, "methods": known}
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
    return known
