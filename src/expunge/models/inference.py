"""Running a network without gradients."""

import torch
from torch import Tensor, nn

from expunge.errors import InputError


def as_float(logits: object) -> Tensor:
    """Logits in float32, or in float64 where the model computes in it. Raises `InputError` for anything else."""
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise InputError(f"the model must return a tensor of logits (N, C), not {kind}; wrap it in a module that does")
    return logits if logits.dtype == torch.float64 else logits.float()


def logits_of(model: nn.Module, inputs: Tensor, batch_size: int = 500) -> Tensor:
    """Logits (N, C), float32 or float64, of `inputs` (N, ...), without gradients. Leaves `model` in eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([as_float(model(batch)) for batch in inputs.split(batch_size)])
