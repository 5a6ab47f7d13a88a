"""What it takes to go on with a training that was cut off: one file, written anew after each epoch."""

import pickle
import random
import re
from collections.abc import Mapping
from hashlib import blake2b
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
    with written_whole(path) as temporary:
        whole = BytesIO()  # to a file, it hides what the disk says
        torch.save(content, whole)
        temporary.write_bytes(whole.getbuffer())


class OtherTrainingError(InputError):
    """A state is of another training, or damaged: nothing can go on from it."""


def restore(path: Path, of: str, parts: Mapping[str, Any], rng: torch.Generator) -> dict[str, Any] | None:
    """Restores what `keep` wrote, and returns what it was told; None where there is no file.

    Raises `OtherTrainingError` where it is damaged, or of another training.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known = content["of"]
    except (RuntimeError, EOFError, KeyError, IndexError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise OtherTrainingError(f"{path} is no state of a training, or damaged; remove it to start anew") from error
    if known != of:
        raise OtherTrainingError(
            f"{path} is of a training with other settings, data or seed, or by another version of expunge; remove it "
            "to start anew, or name another file"
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(content["parts"][name])
        except RuntimeError as error:
            raise OtherTrainingError(
                f"{path} cannot be resumed: the network makes some of its tensors only when it runs; remove the file "
                "to start anew"
            ) from error
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
    told: dict[str, Any] = content["told"]
    return told


def _modules(parts: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in parts.items() if isinstance(part, nn.Module)]


def _plain(state: Any) -> tuple[Any, ...]:
    """NumPy's state in types that `torch.load` takes without unpickling classes."""
    kind, keys, *rest = state
    return (kind, keys.tolist(), *rest)
