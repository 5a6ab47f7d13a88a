"""Auxiliary heads: networks that return more in train mode than in eval mode."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from expunge.errors import InputError
from expunge.models.adapter import unwrapped
from expunge.models.copies import copied
from expunge.models.inference import device_and_dtype, refusing


def check_heads(model: nn.Module, inputs: Tensor, logits: Tensor) -> None:
    """Raises `InputError` where the first tensor in train mode is not the head whose logits count in eval mode.

    A copy is run on two of `inputs` (N, ...), whose `logits` (N, C) in eval mode are known. Only a network with two
    layers of C outputs can have two heads.
    """
    widths = (getattr(m, "out_features", getattr(m, "out_channels", None)) for m in model.modules())
    if sum(width == logits.shape[1] for width in widths) < 2:
        return
    probe, seen = copied(model).train(), list[Any]()
    for module in probe.modules():
        if isinstance(module, (_BatchNorm, _InstanceNorm, _DropoutNd)):
            module.eval()
    unwrapped(probe).register_forward_hook(lambda _, __, output: seen.append(output))
    device, _ = device_and_dtype(model)
    states = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with torch.no_grad(), states, refusing(inputs[:2], "the forget set, in train mode"):
        probe(inputs[:2].clone())
    output, wanted = seen[-1], logits[:2]
    if not isinstance(output, tuple | list | dict):
        return
    parts = output.items() if isinstance(output, dict) else enumerate(output)
    apart = {
        key: float((part - wanted).abs().max())
        for key, part in parts
        if isinstance(part, Tensor) and part.shape == wanted.shape
    }
    if not apart:
        return
    nearest = min(apart, key=lambda key: apart[key])
    taken = ("logits" if "logits" in output else None) if isinstance(output, dict) and len(output) > 1 else min(apart)
    if nearest != taken:
        raise InputError(
            "in train mode the model returns several tensors, and its own logits cannot be told from the others: give "
            f"expunge.WithOutput(model, lambda output: output[{nearest!r}] if isinstance(output, "
            f"{type(output).__mro__[-2].__name__}) else output)"
        )
