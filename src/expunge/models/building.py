"""Building a classifier from its description: a small network of our own, torchvision's, timm's and transformers'."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import ExpungeError, InputError, SettingError, one_line, optional
from expunge.models.description import MAX_SIDE, TIMM_OPTIONS, check_numbers, check_options
from expunge.models.huggingface import LogitsOnly, from_config, hf_network
from expunge.models.texts import ARCHITECTURE
from expunge.models.vision import torchvision_network
from expunge.parsing import record

SMALL_STEM_BELOW = 64  # pixels: the standard stem would leave a 1 × 1 map before the last stage's end


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a network, weights apart.

    Attributes:
        architecture: a key of `ARCHITECTURES`, or `timm:NAME`, `torchvision:NAME`, `py:package.module:factory`, `hf`.
        num_classes: C, the number of logits.
        in_channels: 1 or 3.
        image_size: side of the square input, in pixels.
        mean, std: one a channel, for pixels scaled to [0, 1]; the network normalises its own input.
        options: what the architecture takes besides, JSON values only. Residual networks: `stem`, `standard` (7 × 7
            convolution of stride 2 and pooling, as published for 224-pixel images) or `small` (3 × 3 convolution
            of stride 1, no pooling); where it is left out, `small` below 64 pixels.
    """

    architecture: str
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ModelSpec":
        """The inverse of `to_dict`. Raises `SettingError` on missing or unknown keys."""
        try:
            spec = record(cls, content)
        except InputError as error:
            raise SettingError(f"the model's description is incomplete or foreign: {error}") from error
        if min(spec.num_classes, spec.in_channels, spec.image_size) < 0:
            raise SettingError("the model's description is incomplete or foreign: a number is negative")
        if {len(spec.mean), len(spec.std)} - {1, spec.in_channels}:
            raise SettingError("the model's description is incomplete or foreign: mean and std are one a channel")
        return spec


class Normalise(nn.Module):
    """Scales uint8 pixels to [0, 1] (floating-point input is taken as scaled already) and standardises them."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W), uint8 in [0, 255] or floating-point in [0, 1]. Rows (B, D) stay as they are."""
        if images.ndim == 2:  # columns of numbers
            return images.to(self.mean.dtype)
        scale = 1 if images.is_floating_point() else 255
        return (images.to(self.mean.dtype) / scale - self.mean) / self.std


class Classifier(nn.Module):
    """A network that normalises its own input: uint8 images (B, channels, H, W) to logits (B, C)."""

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.normalise = Normalise(spec.mean, spec.std)
        self.network = network

    @property
    def own(self) -> nn.Module:
        """The network as its library or its author makes it, with nothing of expunge around it."""
        return self.network.model if isinstance(self.network, LogitsOnly) else self.network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, channels, H, W), uint8 or floating-point in [0, 1]."""
        logits: Tensor = self.network(self.normalise(images))
        return logits


class Block(nn.Module):
    """Two 3 × 3 convolutions with batch normalisation and a shortcut (He et al. 2016, Fig. 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def small_resnet(num_classes: int, in_channels: int = 1, width: int = 32) -> nn.Module:
    """A stem of stride 2 and three residual blocks of `width`, 2 × `width` and 4 × `width` channels.

    At the default width: 308,074 parameters for one channel and ten classes.

    >>> net = small_resnet(10)
    >>> sum(p.numel() for p in net.parameters())
    308074
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def resnet(name: str, spec: ModelSpec) -> nn.Module:
    """torchvision's `resnet18` or `resnet50`, with the stem that `spec.options["stem"]` names."""
    models = optional("torchvision.models", f"{name} needs torchvision", "vision")
    stem = spec.options.get("stem", "small" if spec.image_size < SMALL_STEM_BELOW else "standard")
    if stem not in {"small", "pooled", "standard"} or set(spec.options) - {"stem"}:
        raise SettingError(f"{name} takes stem=standard, stem=pooled or stem=small, not {dict(spec.options)}")
    network: nn.Module = getattr(models, name)(num_classes=spec.num_classes)
    if stem in {"small", "pooled"}:
        network.conv1 = nn.Conv2d(spec.in_channels, 64, 3, 1, 1, bias=False)
        if stem == "small":
            network.maxpool = nn.Identity()
    elif spec.in_channels != 3:
        network.conv1 = nn.Conv2d(spec.in_channels, 64, 7, 2, 3, bias=False)
    return network


def vit(spec: ModelSpec) -> nn.Module:
    """timm's vision transformer, sized for small images: patches of side/8 or side/7, width 192, depth 9."""
    timm = _timm()
    patch = next((spec.image_size // n for n in (8, 7) if spec.image_size % n == 0), None)
    if patch is None:
        raise SettingError(f"vit needs an image side divisible by 8 or 7, not {spec.image_size}")
    settings: dict[str, Any] = {
        "patch_size": patch,
        "embed_dim": 192,
        "depth": 9,
        "num_heads": 3,
        "mlp_ratio": 2.0,
        **spec.options,
    }
    network: nn.Module = timm.models.VisionTransformer(
        img_size=spec.image_size, in_chans=spec.in_channels, num_classes=spec.num_classes, **settings
    )
    return network


def timm_network(spec: ModelSpec) -> nn.Module:
    """The network that `timm:NAME` names, with random weights (nothing is downloaded)."""
    name = spec.architecture.removeprefix("timm:")
    _check_plain_name(name)
    timm = _timm()
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=spec.num_classes, in_chans=spec.in_channels, **spec.options
        )
    except MemoryError:
        raise
    except Exception as error:  # of odd options, networks raise many types
        raise SettingError(f"timm cannot build {name!r}: {one_line(error)}") from error
    return network


def timm_defaults(name: str) -> dict[str, Any]:
    """timm's own description of NAME: `num_classes`, `input_size` (C, H, W), `mean`, `std`."""
    _check_plain_name(name)
    try:
        config: dict[str, Any] = _timm().create_model(name, pretrained=False).pretrained_cfg
    except RuntimeError as error:
        raise SettingError(f"timm does not know {name!r}: {str(error).splitlines()[0]}") from error
    return config


def _check_plain_name(name: str) -> None:
    """Raises `SettingError` for a name that timm would take for a place: files may be pickles, or on the network."""
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise SettingError(f"timm:{name} would read other files; give a plain name, and weights by --weights")


def _torchvision(spec: ModelSpec) -> nn.Module:
    if spec.in_channels != 3 or spec.options:
        raise SettingError(f"{spec.architecture} takes images of 3 channels, and no options; give another model")
    return torchvision_network(spec.architecture.removeprefix("torchvision:"), spec.num_classes, spec.image_size)


def _timm() -> Any:
    return optional("timm", "this model needs timm", "vision")


ARCHITECTURES: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "small_resnet": lambda spec: small_resnet(
        num_classes=spec.num_classes, in_channels=spec.in_channels, **spec.options
    ),
    "resnet18": partial(resnet, "resnet18"),
    "resnet50": partial(resnet, "resnet50"),
    "vit": vit,
}
"""The architectures that `expunge train` knows by name; besides, any `timm:NAME` and `torchvision:NAME`."""


def own_factory(model: nn.Module) -> Callable[[], nn.Module] | None:
    """What builds the network anew of a model that `build` made, None for any other."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec) or spec.architecture.startswith("py:"):
        return None
    return lambda: build(spec)


def with_spec(network: nn.Module, spec: ModelSpec) -> nn.Module:
    """A network that takes its inputs as they are, with its description as an attribute, as a `Classifier` has it."""
    network.spec = spec  # type: ignore[assignment]
    return network


def build(spec: ModelSpec) -> nn.Module:
    """Builds the network with fresh random weights, from the global random state.

    Raises:
        SettingError: unknown architecture or option.
        MissingExtraError: it needs a package that is not installed.
    """
    check_numbers("image_size", spec.image_size, most=MAX_SIDE)
    check_numbers("the description", spec.num_classes, spec.in_channels, *spec.mean, *spec.std)
    if spec.architecture not in {"hf", ARCHITECTURE}:
        check_options(spec.architecture, spec.options, TIMM_OPTIONS | {"stem"})
    if spec.architecture.startswith("timm:"):
        return Classifier(spec, timm_network(spec))
    if spec.architecture.startswith("torchvision:"):
        return Classifier(spec, _torchvision(spec))
    if spec.architecture == "hf":
        return Classifier(spec, hf_network(spec.options.get("config")))
    if spec.architecture == ARCHITECTURE:
        return with_spec(from_config(spec.options.get("config"), texts=True), spec)
    if spec.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise SettingError(f"unknown model {spec.architecture!r}; there are {known}, timm:NAME and torchvision:NAME")
    try:
        return Classifier(spec, ARCHITECTURES[spec.architecture](spec))
    except (ExpungeError, MemoryError):
        raise
    except Exception as error:  # of odd options, torch and timm raise many types
        options = dict(spec.options)
        raise SettingError(f"{spec.architecture} cannot be built with {options}: {one_line(error)}") from error
