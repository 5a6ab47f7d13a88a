"""Networks from torchvision and timm (extra: vision)."""

from typing import Any

from torch import nn

from expunge.errors import MissingExtraError, SettingError, one_line
from expunge.models.spec import ModelSpec

SMALL_STEM_BELOW = 64  # pixels: the standard stem would leave a 1 × 1 map before the last stage's end
READS_FILES = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable"}
"""Options of `timm.create_model` that have it read or compile more than the network's code."""


def resnet(name: str, spec: ModelSpec) -> nn.Module:
    """torchvision's `resnet18` or `resnet50`, with the stem that `spec.options["stem"]` names."""
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError(f"{name} needs torchvision: pip install '.[vision]' in expunge's sources") from error
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
    if ":" in name or not spec.options.keys().isdisjoint(READS_FILES):  # files may be pickles, or on the network
        raise SettingError(f"timm:{name} with {dict(spec.options)} would read other files; give weights by --weights")
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
    if ":" in name:
        raise SettingError(f"timm:{name} would read other files; give a plain name, and weights by --weights")
    try:
        config: dict[str, Any] = _timm().create_model(name, pretrained=False).pretrained_cfg
    except RuntimeError as error:
        raise SettingError(f"timm does not know {name!r}: {str(error).splitlines()[0]}") from error
    return config


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("this model needs timm: pip install '.[vision]' in expunge's sources") from error
    return timm
