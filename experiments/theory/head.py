"""The last linear layer of a model by itself: what goes into it, and its parameters as one matrix."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from expunge.auditing.forward import outputs_of
from expunge.data import Examples
from expunge.errors import InputError
from expunge.models import last_layer


def features_and_head(model: nn.Module, examples: Examples, *, batch_size: int = 500) -> tuple[Tensor, nn.Linear]:
    """The inputs o of the last linear layer in eval mode, and a copy of that layer.

    Args:
        model: maps a batch to logits (B, C), which its last linear layer puts out as they are; its mode is put back.
        examples: N ≥ 1 of them.
        batch_size: examples a forward pass.

    Returns:
        Features, shape (N, M), and the layer (C, M): float64, on the CPU.

    Raises:
        InputError: the last layer is not a plain linear one, or the logits are not its output on features (B, M).
    """
    name = last_layer(model)
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear) or set(dict(layer.named_parameters())) - {"weight", "bias"}:
        raise InputError(f"the model's last layer {name!r} is not a plain linear layer, which the theorem is about")
    features = outputs_of(model, examples, features=True, batch_size=batch_size, label="features").features
    if features is None:
        raise InputError(f"the logits are not what the last linear layer {name!r} puts out for each example")
    return features.double(), copy.deepcopy(layer).double().cpu()


def with_bias(parameters: Mapping[str, Tensor]) -> Tensor:
    """A weight (..., C, M) with the bias (..., C), where there is one, as its last column."""
    parts = [parameters["weight"]]
    if "bias" in parameters:
        parts.append(parameters["bias"][..., None])
    return torch.cat(parts, -1)
