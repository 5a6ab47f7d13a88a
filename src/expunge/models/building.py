"""Building a classifier from its description."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError, SettingError, one_line
from expunge.models.small_resnet import small_resnet
from expunge.models.spec import ModelSpec


class Normalise(nn.Module):
    """Scales uint8 pixels to [0, 1] (floating-point input is taken as scaled already) and standardises them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W), uint8 in [0, 255] or floating-point in [0, 1]."""
        scale = 1 if images.is_floating_point() else 255
        return (images.to(self.mean.dtype) / scale - self.mean) / self.std


class Classifier(nn.Module):
    """A network that normalises its own input: uint8 images (B, channels, H, W) to logits (B, C)."""

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.normalise = Normalise(spec.mean, spec.std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, H, W), uint8 or floating-point in [0, 1]."""
        logits: Tensor = self.network(self.normalise(images))
        return logits


def _small_resnet(spec: ModelSpec) -> nn.Module:
    return small_resnet(num_classes=spec.num_classes, in_channels=spec.in_channels, **spec.options)


def _resnet(name: str) -> Callable[[ModelSpec], nn.Module]:
    def build_resnet(spec: ModelSpec) -> nn.Module:
        from expunge.models.vision import resnet

        return resnet(name, spec)

    return build_resnet


def _vit(spec: ModelSpec) -> nn.Module:
    from expunge.models.vision import vit

    return vit(spec)


ARCHITECTURES: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "small_resnet": _small_resnet,
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "vit": _vit,
}
"""The architectures that `expunge train` knows by name; besides, any `timm:NAME`."""


def own_factory(model: nn.Module) -> Callable[[], nn.Module] | None:
    """What builds the network anew of a model that `build` made, None for any other."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec) or spec.architecture.startswith("py:"):
        return None
    return lambda: build(spec)


def build(spec: ModelSpec) -> nn.Module:
    """Builds the network with fresh random weights, from the global random state.

    Raises:
        SettingError: unknown architecture or option.
        MissingExtraError: it needs a package that is not installed.
    """
    if spec.architecture.startswith("timm:"):
        from expunge.models.vision import timm_network

        return Classifier(spec, timm_network(spec))
    if spec.architecture == "hf":
        from expunge.models.huggingface import hf_network

        return Classifier(spec, hf_network(spec.options["config"]))
    if spec.architecture not in ARCHITECTURES:
        raise SettingError(f"unknown model {spec.architecture!r}; there are {', '.join(ARCHITECTURES)} and timm:NAME")
    try:
        return Classifier(spec, ARCHITECTURES[spec.architecture](spec))
    except (ExpungeError, MemoryError):
        raise
    except Exception as error:  # of odd options, torch and timm raise many types
        options = dict(spec.options)
        raise SettingError(f"{spec.architecture} cannot be built with {options}: {one_line(error)}") from error
