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
from expunge.models.inference import device_and_dtype, forward, refusing


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
        forward(probe, inputs[:2])
    if not isinstance(seen[-1], tuple | list):
        return
    wanted = logits[:2]
    apart = {
        n: float((part - wanted).abs().max())
        for n, part in enumerate(seen[-1])
        if isinstance(part, Tensor) and part.shape == wanted.shape
    }
    nearest = min(apart, key=lambda n: apart[n], default=0)
    if nearest != min(apart, default=0):
        raise InputError(
            "in train mode the model returns several tensors, and its own logits are not the first: give "
            f"expunge.WithOutput(model, lambda output: output[{nearest}] if isinstance(output, "
            f"{type(seen[-1]).__mro__[-2].__name__}) else output)"
        )
