"""torchvision's image classifiers (extra: vision)."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from expunge.errors import SettingError, one_line, optional

TRANSFORMING = frozenset({"googlenet", "inception_v3"})
"""Networks that scale their inputs otherwise where they began with torchvision's weights: a file does not say so."""


class _WithValues(TorchFunctionMode):
    """Keeps the widths that a constructor computes on the CPU, where it is run on the meta device, without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = {"device": "cpu"} if func in {torch.arange, torch.tensor} else {}
        return func(*args, **{**told, **(kwargs or {})})


def torchvision_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    """The network that `torchvision:NAME` names, with random weights (nothing is downloaded).

    Raises `SettingError` where torchvision does not know it, or cannot build it so.
    """
    library = _known(name)
    options = {"image_size": image_size} if name.startswith("vit_") else {}  # others take any size
    try:
        with _WithValues() if name.startswith("regnet") else nullcontext():
            network: nn.Module = library.get_model(name, weights=None, num_classes=num_classes, **options)
    except MemoryError:
        raise
    except Exception as error:  # of odd sizes, networks raise many types
        raise SettingError(f"torchvision cannot build {name!r}: {one_line(error)}") from error
    return network


def torchvision_weights(name: str) -> Any:
    """torchvision's description of its best weights of a network: `.meta["categories"]` and `.transforms()`."""
    return _known(name).get_model_weights(name).DEFAULT


def _known(name: str) -> Any:
    library = optional("torchvision.models", "this model needs torchvision", "vision")
    if name not in library.list_models(module=library):
        raise SettingError(f"torchvision does not know {name!r}; see torchvision.models.list_models()")
    if name in TRANSFORMING:
        raise SettingError(
            f"torchvision:{name}: its weights do not say whether it transforms its input; give a function that builds "
            "it, as py:package.module:factory"
        )
    return library
