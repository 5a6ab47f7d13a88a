"""The description of a network, weights apart: it goes to JSON and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from expunge.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a network, weights apart.

    Attributes:
        architecture: a key of `ARCHITECTURES`, or `timm:NAME`, `py:package.module:factory`, `hf`.
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
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ModelSpec":
        """The inverse of `to_dict`. Raises `SettingError` on missing or unknown keys."""
        try:
            spec = cls(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})
        except (TypeError, KeyError) as error:
            raise SettingError(f"the model's description is incomplete or foreign: {error}") from error
        numbers = (spec.num_classes, spec.in_channels, spec.image_size)
        if (
            not all(type(n) is int and n >= 0 for n in numbers)
            or not all(isinstance(n, int | float) for n in (*spec.mean, *spec.std))
            or not isinstance(spec.architecture, str)
            or not isinstance(spec.options, dict)
        ):
            raise SettingError("the model's description is incomplete or foreign: a value has the wrong type")
        return spec
