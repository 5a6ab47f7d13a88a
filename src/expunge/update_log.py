"""The update log: what each training step added to the parameters, and which examples its batch held."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from expunge.errors import ExpungeError, InputError
from expunge.files import is_regular, written_whole
from expunge.parsing import parse_json, read_text, record
from expunge.tensor_files import check_digest, write_tensors

FORMAT = "expunge-update/1"
WATCHED = "watched.json"
UPDATES = "updates"
"""The directory of the update log, inside a trained model's directory."""


@dataclass
class UpdateRecorder:
    """Writes the update of each training step whose batch holds an example of `watched`, for `amnesiac_undo`.

    One safetensors file a step, whose header names the step and the digests of the examples in its batch. The digests
    tell anyone who holds an image whether it was in the training set: keep the log as private as the data.
    `watched.json` lists the examples whose every step is there, and a digest of the parameters at the end.

    Attributes:
        directory: where the log goes; made when training begins.
        watched: digests of the examples that may have to be forgotten; None records every step.
    """

    directory: Path
    watched: frozenset[bytes] | None = None

    def begin(self, examples: Sequence[bytes]) -> None:
        """Writes which of the examples that are trained on are watched, before the first step."""
        if self.directory.is_dir() and any(self.directory.iterdir()):  # steps of another training would be undone too
            raise InputError(f"{self.directory} is not empty; record updates into a new directory")
        watched = sorted(digest.hex() for digest in set(examples) if self.wants([digest]))
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write({"watched": watched})

    def end(self, model: nn.Module) -> None:
        """Writes what the training ended with."""
        self._write({"watched": list(_read(self.directory).watched), "trained": _digest(model)})

    def _write(self, content: dict[str, Any]) -> None:
        content = {"format": FORMAT, **content}
        with written_whole(self.directory / WATCHED, private=True) as temporary:
            temporary.write_text(json.dumps({**content, "sha256": _signature(content)}), encoding="utf-8")

    def wants(self, batch: Sequence[bytes]) -> bool:
        """Whether a batch with these examples is recorded."""
        return self.watched is None or not self.watched.isdisjoint(batch)

    @contextmanager
    def recording(self, model: nn.Module, step: int, batch: Sequence[bytes]) -> Iterator[None]:
        """Writes what the step inside the block added to each parameter, where its batch is recorded."""
        if not self.wants(batch):
            yield
            return
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        yield
        updates = {name: (p.detach() - before[name]).cpu().contiguous() for name, p in model.named_parameters()}
        metadata = {"format": FORMAT, "step": str(step), "examples": json.dumps([d.hex() for d in batch])}
        with written_whole(self.directory / f"{step:08d}.safetensors", private=True) as temporary:
            write_tensors(updates, temporary, metadata)

    def expected_bytes(self, model: nn.Module, num_examples: int, batch_size: int, epochs: int) -> int:
        """The expected size of the log on disk.

        A batch of b out of N examples holds none of the w watched ones with probability (1 − b/N)^w.
        """
        batches = max(1, num_examples // batch_size) * epochs
        share = 1.0
        if self.watched is not None:
            share = 1 - max(0.0, 1 - batch_size / num_examples) ** len(self.watched)
        return round(batches * share * sum(p.numel() * p.element_size() for p in model.parameters()))

    def check_room(self, expected_bytes: int) -> None:
        """Raises `ExpungeError` when the disk has no room for a log of that size."""
        existing = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if expected_bytes > free:
            raise ExpungeError(
                f"the update log would take about {expected_bytes / 1e9:.1f} GB, and {existing} has "
                f"{free / 1e9:.1f} GB free; record fewer examples, or free some room"
            )


def watched_by(directory: Path) -> frozenset[bytes]:
    """The digests of the examples that an update log can undo. Raises `InputError` for none, or a damaged one."""
    return frozenset(bytes.fromhex(digest) for digest in _read(directory).watched)


def check_model(directory: Path, model: nn.Module) -> None:
    """Raises `InputError` unless the model's parameters are those that the log's training ended with, to the bit."""
    trained = _read(directory).trained
    if trained is None:
        raise InputError(f"the training that wrote the update log in {directory} did not end; train anew")
    if trained != _digest(model):
        raise InputError(
            f"the update log in {directory} is not of this model: its training ended with other parameters. Give the "
            "log of this model's own training, and the model as that left it"
        )


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """What `watched.json` says: SHA-256 is of the rest; logs from before there were digests have none."""

    format: str
    watched: tuple[str, ...]
    trained: str | None = None
    sha256: str | None = None


def _read(directory: Path) -> _Watched:
    """What `watched.json` says. Raises `InputError` where there is none, or a damaged one."""
    path = directory / WATCHED
    if not is_regular(path):
        raise InputError(f"there is no update log in {directory}; `expunge train --record-updates` writes one")
    try:
        content = parse_json(read_text(path))
        told = record(_Watched, content)
        signed = {key: value for key, value in content.items() if key != "sha256"}
        if told.format != FORMAT or told.sha256 not in {None, _signature(signed)}:
            raise InputError("its format or its digest is another")
        for digest in told.watched:
            bytes.fromhex(digest)
    except ValueError as error:
        raise InputError(f"{path} is not part of an update log ({error}); take another copy") from error
    return told


def _signature(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the header of one step's file says."""

    format: str
    step: str
    examples: tuple[str, ...]
    sha256: str | None = None


def _digest(model: nn.Module) -> str:
    """SHA-256 of the parameters' names and bits, hexadecimal; of floats of 16 bits as of 32: unlearning widens them."""
    found = sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda named: named[0]):
        flat = parameter.detach().cpu().flatten()
        flat = flat.float() if flat.is_floating_point() and flat.itemsize < 4 else flat.contiguous()
        found.update(f"{name} {flat.dtype} {tuple(parameter.shape)} ".encode())
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def matching_updates(directory: Path, forget: Sequence[bytes]) -> list[tuple[int, Path]]:
    """The (step, file) of each recorded batch that held one of the examples with the digests `forget`, in order.

    Raises `InputError` for no log, a damaged one, or an example that was not watched: some batches may be missing.
    """
    wanted = set(forget)
    if missing := wanted - watched_by(directory):
        raise InputError(
            f"the update log in {directory} was recorded for other examples than {len(missing)} of the {len(wanted)} "
            "to forget; it can undo only those that were watched while training"
        )
    held: list[tuple[int, Path]] = []
    for path in sorted(directory.glob("*.safetensors")):
        try:
            check_digest(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            told = record(_Step, {**metadata, "examples": parse_json(metadata.get("examples", ""))})
            batch, step = {bytes.fromhex(digest) for digest in told.examples}, int(told.step)
            if told.format != FORMAT or step < 0:
                raise InputError("its format or its step is another")
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path} is not part of an update log ({error}); take another copy") from error
        if not wanted.isdisjoint(batch):
            held.append((step, path))
    return held


def subtract(model: nn.Module, path: Path) -> None:
    """Takes the update in one file of a log back from the parameters. Raises `InputError` if it does not fit."""
    try:
        updates = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not part of an update log ({error}); take another copy") from error
    parameters = dict(model.named_parameters())
    if parameters.keys() != updates.keys() or any(
        parameters[k].shape != v.shape or parameters[k].is_floating_point() != v.is_floating_point()
        for k, v in updates.items()
    ):
        raise InputError(f"the update {path} does not fit the model; was it recorded for another one?")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.sub_(updates[name].to(parameter.device, parameter.dtype))
