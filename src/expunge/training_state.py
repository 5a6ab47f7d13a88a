"""What it takes to go on with a training that was cut off: one file, written anew after each epoch."""

import random
import re
import sys
from collections.abc import Mapping
from hashlib import blake2b, sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Examples, digests
from expunge.errors import InputError
from expunge.files import written_whole
from expunge.models import ModelSpec
from expunge.parsing import read_bytes

MARK = b"expunge-state/2\n"
"""What a state begins with; a digest of the rest follows, in a line of its own."""


def identity(model: nn.Module, examples: Examples, settings: Mapping[str, Any], seed: int) -> str:
    """A digest of what a training starts from: settings, seed, network and its tensors, examples in order, version."""
    spec = getattr(model, "spec", None)
    # Options need not show in tensors. Names of functions come with addresses, which change from run to run.
    network = repr(spec) if isinstance(spec, ModelSpec) else re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    start = repr((sorted(settings.items()), seed, examples.labels.tolist(), network, version("expunge")))
    seen = blake2b(start.encode(), digest_size=16)
    for digest in digests(examples.inputs):
        seen.update(digest)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):  # a module may keep more
            seen.update(name.encode() + digests(tensor[None])[0])
    return seen.hexdigest()


def keep(path: Path, of: str, parts: Mapping[str, Any], rng: torch.Generator, told: Mapping[str, Any]) -> None:
    """Writes the state of a training whole: of `parts` that have a `state_dict`, and JSON values that are `told`.

    The global generators are kept too, since dropout and a network's own code draw from them.
    """
    content = {
        "of": of,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "buffers": {name: dict(part.named_buffers()) for name, part in _modules(parts)},  # some are in no state dict
        "rng": rng.get_state(),
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state()),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "told": dict(told),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, private=True) as temporary:
        whole = BytesIO()  # to a file, it hides what the disk says
        torch.save(content, whole)
        with temporary.open("wb") as file:
            file.write(MARK + sha256(whole.getbuffer()).hexdigest().encode() + b"\n")
            file.write(whole.getbuffer())


class OtherTrainingError(InputError):
    """A state is of another training, or damaged: nothing can go on from it."""


def restore(path: Path, of: str, parts: Mapping[str, Any], rng: torch.Generator) -> dict[str, Any] | None:
    """Restores what `keep` wrote, and returns what it was told; None where there is no file.

    Raises `OtherTrainingError` where it is damaged, or of another training.
    """
    if not path.exists():
        return None
    damaged = f"{path} is no state of a training, or damaged; remove it to start anew"
    try:
        content = torch.load(BytesIO(_checked(path)), map_location="cpu", weights_only=True)
        known = content["of"]
    except Exception as error:  # a damaged pickle raises many types
        raise OtherTrainingError(damaged) from error
    if known != of:
        raise OtherTrainingError(
            f"{path} is of a training with other settings, data or seed, or by another version of expunge; remove it "
            "to start anew, or name another file"
        )
    try:
        _apply(content, parts, rng)
        told = content["told"]
        if not isinstance(told, dict):
            raise TypeError("it was told nothing")
    except OtherTrainingError:
        raise
    except RuntimeError as error:
        raise OtherTrainingError(
            f"{path} cannot be resumed: the network makes some of its tensors only when it runs, or the file is "
            "damaged; remove the file to start anew"
        ) from error
    except Exception as error:  # parts of other types: what takes them raises many
        raise OtherTrainingError(damaged) from error
    return told


def _checked(path: Path) -> bytes:
    """The content after the digest, which must fit it. Files from before there were digests are all content."""
    whole = read_bytes(path, limit=sys.maxsize)
    if not whole.startswith(MARK):
        return whole
    told, content = whole[len(MARK) : len(MARK) + 64], whole[len(MARK) + 65 :]
    if told != sha256(content).hexdigest().encode():
        raise InputError("its content does not match its digest")
    return content


def _apply(content: Mapping[str, Any], parts: Mapping[str, Any], rng: torch.Generator) -> None:
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    for name, module in _modules(parts):
        kept_buffers = content["buffers"][name]
        for key, buffer in module.named_buffers():
            if key in kept_buffers and kept_buffers[key].shape == buffer.shape:
                buffer.copy_(kept_buffers[key])
    rng.set_state(content["rng"])
    torch.set_rng_state(content["cpu"])
    random.setstate(content["python"])
    np.random.set_state(content["numpy"])
    if content["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["cuda"])


def _modules(parts: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in parts.items() if isinstance(part, nn.Module)]


def _plain(state: Any) -> tuple[Any, ...]:
    """NumPy's state in types that `torch.load` takes without unpickling classes."""
    kind, keys, *rest = state
    return (kind, keys.tolist(), *rest)
