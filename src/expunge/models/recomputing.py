"""Gradient checkpointing: values in between are computed again for the gradient, and not kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from expunge.errors import SettingError


@contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Checkpoints the blocks of models of transformers and timm inside the block, where it is `wanted`.

    timm has a switch, an attribute of its modules. That of transformers works in train mode alone, in which methods
    that match outputs do not run: the `forward` of its blocks is replaced.

    Raises:
        SettingError: the model has no such blocks, or updates statistics in its forward pass, which would come twice.
    """
    if not wanted:
        yield
        return
    places: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        if hasattr(module, "grad_checkpointing"):
            places.append((module, "grad_checkpointing", True))
        elif any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__):
            places.append((module, "forward", partial(_checkpointed, module.forward)))
    if not places:
        raise SettingError(
            "gradient_checkpointing: the model has none; models of transformers and most of timm do. "
            "micro_batch_size and precision=bf16 save memory too"
        )
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise SettingError("gradient_checkpointing would update batch normalisation twice a step: leave it out")
    before = [{key: vars(module)[key]} if key in vars(module) else {} for module, key, _ in places]
    for module, key, value in places:
        vars(module)[key] = value
    try:
        yield
    finally:
        for (module, key, _), values in zip(places, before, strict=True):
            del vars(module)[key]
            vars(module).update(values)


def _checkpointed(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a block computes, of which nothing is kept but what it was given."""
    return checkpoint(run, *args, use_reentrant=False, **kwargs) if torch.is_grad_enabled() else run(*args, **kwargs)
