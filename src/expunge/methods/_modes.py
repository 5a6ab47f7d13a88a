"""The modes of layers while a method descends: which normalise by the batch at hand, and which drop out."""

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

NORMALISATION = (_BatchNorm, _InstanceNorm)
"""Layers that behave differently in train and eval mode: they keep running statistics."""


def set_mode(model: nn.Module, kept: Collection[nn.Module], *, dropout: bool) -> None:
    """Train mode, but for the normalisation layers in `kept`.

    Without dropout all the rest is in eval mode, wherever its dropout may be, but for recurrent layers, through which
    cuDNN has gradients in train mode alone.
    """
    model.train()
    for module in model.modules():
        if not dropout and not isinstance(module, (*NORMALISATION, nn.RNNBase)):
            module.training = False
    for module in kept:
        module.eval()


def kept_statistics(model: nn.Module, norm: str) -> list[nn.Module]:
    """The normalisation layers that keep their statistics where the setting is `norm`."""
    layers = [module for module in model.modules() if isinstance(module, NORMALISATION)]
    return [layer for layer in layers if norm == "eval" or is_frozen(layer, model)]


def is_frozen(layer: nn.Module, model: nn.Module) -> bool:
    """Whether all parameters of a layer are frozen or, where it has none, those of its neighbour.

    `requires_grad_(False)` leaves no trace on a layer without parameters. Its neighbour is the last layer with
    parameters before it in the innermost module that holds it and has any, or the next one if none comes before it.
    """
    parameters = list(layer.parameters())
    if not parameters:
        holders = [module for module in model.modules() if layer in module.modules() and [*module.parameters()]]
        inside = list(holders[-1].modules())
        place = inside.index(layer)
        neighbours = [list(module.parameters(recurse=False)) for module in (*inside[:place][::-1], *inside[place:])]
        parameters = next(filter(None, neighbours))
    return not any(parameter.requires_grad for parameter in parameters)
