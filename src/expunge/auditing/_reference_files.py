"""The files of reference models: names, manifest, and tags that keep results of other settings apart."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from expunge.data import ImageSet, digests
from expunge.errors import InputError
from expunge.files import written_whole

FORMAT = "expunge-references/1"


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
    return load_file(path)


def read_tag(path: Path, tag: str) -> None:
    """Raises `InputError` unless the file at `path` is whole and carries `tag`."""
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("digest")
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and it will be made again") from error
    if found != tag:
        raise InputError(f"{path} comes from other settings than the manifest beside it; remove it")


def tag_of(settings: Mapping[str, Any], method: Mapping[str, Any] | None) -> str:
    """What the files of a row carry: it changes with anything that their content depends on."""
    return sha256(json.dumps([settings, method], sort_keys=True).encode()).hexdigest()


def digest_of(images: ImageSet) -> str:
    """SHA-256 of images and labels, in order."""
    labels = images.labels.numpy().astype("<i8").tobytes()
    return sha256(b"".join(digests(images.images)) + labels).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, None where there is none. Raises `InputError` where it cannot be read."""
    path = directory / "manifest.json"
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not {"settings", "methods"} <= content.keys():
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no manifest of reference models ({error})") from error
    return content


def update_manifest(directory: Path, settings: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """Adds new methods to the manifest. Raises `InputError` where the directory holds results of other settings."""
    settings, methods = json.loads(json.dumps([settings, methods]))
    found = read_manifest(directory)
    old = found or {"settings": settings, "methods": {}}
    changed = [key for key in {**old["settings"], **settings} if old["settings"].get(key) != settings.get(key)]
    changed += [f"method {name}" for name, told in methods.items() if old["methods"].get(name, told) != told]
    if changed:
        raise InputError(
            f"{directory} holds reference models of another {', '.join(changed)}; choose another directory"
        )
    known = {**old["methods"], **methods}
    if found is None or known != old["methods"]:
        with written_whole(directory / "manifest.json") as temporary:
            content = {"format": FORMAT, "settings": settings, "methods": known}
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
    return known
