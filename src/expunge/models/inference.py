"""Running a network: on a copy of its input, with logits in floats, and with a clear word where it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError, InputError


def as_float(logits: object) -> Tensor:
    """Logits in float32, or in float64 where the model computes in it. Raises `InputError` for anything else."""
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise InputError(f"the model must return a tensor of logits (N, C), not {kind}; wrap it in a module that does")
    return logits if logits.dtype == torch.float64 else logits.float()


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """What `as_float` makes of the model's output. It gets a copy of `inputs`: some models change theirs in place."""
    return as_float(model(inputs.clone()))


def logits_of(model: nn.Module, inputs: Tensor, batch_size: int = 500) -> Tensor:
    """Logits (N, C), float32 or float64, of `inputs` (N, ...), without gradients. Leaves `model` in eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([forward(model, batch) for batch in inputs.split(batch_size)])


@contextmanager
def refusing(inputs: Tensor, where: str) -> Iterator[None]:
    """Turns what a model raises inside the block, a forward pass over `inputs`, into an `InputError` of one line.

    Args:
        inputs: shape (N, ...).
        where: what the line begins with, such as the set's name.
    """
    try:
        yield
    except (ExpungeError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        shape = tuple(inputs.shape[1:])
        raise InputError(f"{where}: the model cannot take inputs of shape {shape}: {first_line}") from error


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Those of the first parameter. Raises `InputError` where the model has none."""
    reference = next(model.parameters(), None)
    if reference is None:
        raise InputError("the model has no parameters; there is nothing to change")
    return reference.device, reference.dtype
