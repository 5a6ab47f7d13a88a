"""Running a network without gradients."""

import torch
from torch import Tensor, nn


def as_float(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where the model computes in it."""
    return logits if logits.dtype == torch.float64 else logits.float()


def logits_of(model: nn.Module, inputs: Tensor, batch_size: int = 500) -> Tensor:
    """Logits (N, C), float32 or float64, of `inputs` (N, ...), without gradients. Leaves `model` in eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([as_float(model(batch)) for batch in inputs.split(batch_size)])
