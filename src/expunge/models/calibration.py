"""What a model remembers of the held-out examples that it was calibrated on.

Which they are, so that no audit uses them again; and what the model said of each before it first forgot anything, so
that a chain of requests holds it there, and does not drift a little with each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.data.examples import digests
from expunge.errors import InputError
from expunge.files import written_whole

FIRST_OUTPUTS_NAME = "heldout.safetensors"
"""Stands beside a checkpoint."""

_SEEDS = "calibration_seeds"
_FIRST = "calibration_outputs"


@dataclass(frozen=True)
class _FirstOutputs:
    """Digests of M held-out examples, their logits (M, C), and a digest of the weights that they belong to."""

    keys: tuple[bytes, ...]
    logits: Tensor
    weights: bytes


def calibration_seeds(model: nn.Module) -> tuple[int, ...]:
    """The seeds of the splits whose calibration sides the model has seen; () for any other model.

    `unlearn` leaves them on the model, and a checkpoint keeps them in its history.
    """
    return tuple(getattr(model, _SEEDS, ()))


def mark_calibrated(model: nn.Module, *seeds: int) -> None:
    """Adds splits to those that the model has seen."""
    setattr(model, _SEEDS, tuple(dict.fromkeys((*calibration_seeds(model), *seeds))))


def first_outputs(model: nn.Module) -> Mapping[bytes, Tensor]:
    """The logits (C,) of each held-out example, by its digest, from before the model first forgot anything.

    {} where nothing is known, and where the weights have changed since the last request: a model that was trained
    on must not be led back to what it said before.
    """
    kept = getattr(model, _FIRST, None)
    if not isinstance(kept, _FirstOutputs) or kept.weights != _weights(model):
        return {}
    return dict(zip(kept.keys, kept.logits, strict=True))


def keep_first_outputs(model: nn.Module, logits: Mapping[bytes, Tensor]) -> None:
    """Leaves them on the model, for its weights as they are."""
    rows = torch.stack([row.detach().cpu() for row in logits.values()])
    setattr(model, _FIRST, _FirstOutputs(tuple(logits), rows, _weights(model)))


def save_first_outputs(path: Path, model: nn.Module) -> None:
    """Writes what `first_outputs` gives, whole or not at all; where there is nothing, no file."""
    logits = first_outputs(model)
    if not logits:
        return
    keys = torch.frombuffer(bytearray(b"".join(logits)), dtype=torch.uint8).view(len(logits), -1)
    content = {"digests": keys, "logits": torch.stack(list(logits.values()))}
    with written_whole(path) as temporary:
        save_file(content, temporary, metadata={"weights": _weights(model).hex()})


def load_first_outputs(path: Path, model: nn.Module) -> None:
    """Leaves on the model what `save_first_outputs` wrote, if there is such a file and it belongs to these weights.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            weights = bytes.fromhex(file.metadata()["weights"])
            keys, logits = file.get_tensor("digests"), file.get_tensor("logits")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); take another copy, or remove it") from error
    setattr(model, _FIRST, _FirstOutputs(tuple(bytes(key.tolist()) for key in keys), logits, weights))


def _weights(model: nn.Module) -> bytes:
    seen = blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        seen.update(name.encode() + digests(tensor[None])[0])
    return seen.digest()
