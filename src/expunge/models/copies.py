"""Copies of models, and wrappers whose copies would not work: with the way to what is in them."""

import copy

import torch
from torch import nn

from expunge.errors import InputError, one_line

WAYS = {
    "AbstractGradSampleModule": "model.to_standard_module()",
    "GradSampleModule": "model.to_standard_module()",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "the whole model, gathered in every process",
    "FSDPModule": "the whole model, gathered in every process",
}
"""What to hand in instead, by the name of a class: Opacus's collects gradients, the others wait for other processes."""


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where layers keep what they computed, as `weight_norm` and pruning do.

    Raises whatever the model's own code raises.
    """
    kept = [value for module in model.modules() for value in (*vars(module).values(), *module._buffers.values())]
    computed = [value for value in kept if isinstance(value, torch.Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def check_module(model: object) -> None:
    """Raises `InputError` for what is no module, and for a program of torch.export, which has no modes."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    kinds = (kind for module in model.modules() for kind in type(module).__mro__)
    if any(kind.__module__.startswith("torch.export.") for kind in kinds):
        raise InputError("the model is a program of torch.export; give the nn.Module that it was made of")


def check_changeable(model: nn.Module) -> None:
    """Raises `InputError` for what `check_module` refuses, and where a copy would not change, or not work alone."""
    check_module(model)
    for module in model.modules():
        way = next((WAYS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in WAYS), None)
        if way is not None:
            raise InputError(f"the model is wrapped in a {type(module).__name__}: give {way}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError("the model is in TorchScript, which fixes how it runs; give the nn.Module that it was made of")
    if getattr(model.forward, "__func__", None) is nn.Module.forward:  # torch's own, which only raises
        inner = " or ".join(f"model.{name}" for name, _ in model.named_children())
        raise InputError(f"a {type(model).__name__} has no forward: give the network in it{', ' * bool(inner)}{inner}")


def own_copy(model: nn.Module) -> nn.Module:
    """A deep copy to work on; half-precision weights are widened, since small steps would be rounded away.

    Raises `InputError` for a model that cannot be copied. `check_changeable` tells before what cannot be worked on.
    """
    try:
        own = copied(model)
    except Exception as error:  # the model's own code may run here, and raise anything
        raise InputError(f"the model cannot be copied ({one_line(error)}); give a plain nn.Module") from error
    return widened(own)


def widened(model: nn.Module) -> nn.Module:
    """The model itself, with its half-precision weights in float32, where small steps are not rounded away."""
    halves = {torch.bfloat16, torch.float16}
    if any(parameter.dtype in halves for parameter in model.parameters()):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.float() if tensor.dtype in halves else tensor.data
    return model
