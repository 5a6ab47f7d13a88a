"""Whether weights are numbers that a model can work with."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn


def mask_names(model: nn.Module) -> set[str]:
    """The buffers in which −inf may stand, as it says what may not be attended to: all but running statistics."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }


def not_finite(tensors: Iterable[tuple[str, Tensor]], masks: Collection[str] = ()) -> str | None:
    """The name of the first tensor that holds NaN or infinity, None where there is none.

    Args:
        tensors: names and tensors of any dtype.
        masks: names of tensors in which −inf may stand.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            tensor = tensor.float()  # of which torch computes no sums
        if not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor.sum())):
            continue  # a sum is finite only where every term is, and much quicker than looking at each
        bad = ~torch.isfinite(tensor)
        if name in masks and tensor.is_floating_point():
            bad &= ~torch.isneginf(tensor)
        if bool(bad.any()):
            return name
    return None
