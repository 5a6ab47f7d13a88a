"""Image classifiers in the Hugging Face format (extra: hf)."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge.errors import InputError, MissingExtraError


class LogitsOnly(nn.Module):
    """Wraps a `transformers` image classifier so that it maps pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, channels, H, W) to logits (B, C)."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def hf_network(config: dict[str, Any]) -> nn.Module:
    """A `transformers` image classifier with random weights, from its own configuration."""
    transformers = _transformers()
    settings = transformers.AutoConfig.for_model(**config)
    return LogitsOnly(transformers.AutoModelForImageClassification.from_config(settings))


def load_hf(directory: str) -> tuple[dict[str, Any], nn.Module]:
    """Reads a directory that `save_pretrained` wrote (safetensors weights). Nothing is downloaded.

    Returns:
        A dict of `config` (JSON values), `num_classes`, `in_channels`, `image_size`, `mean`, `std` and
        `class_names`; and the network with its weights.
    """
    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"there is no {directory}/config.json; give a directory that save_pretrained wrote")
    transformers = _transformers()
    try:
        model, info = transformers.AutoModelForImageClassification.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the library raises its own, safetensors' and JSON's types
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot load hf:{directory}: {first_line}") from error
    if info["missing_keys"] or info["mismatched_keys"]:  # the library gives those random weights and goes on
        name = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[0]
        raise InputError(f"hf:{directory} lacks weights of the classifier, such as {name!r}; give a trained one")
    config = model.config.to_dict()
    try:
        processor, _ = transformers.ImageProcessingMixin.get_image_processor_dict(directory, local_files_only=True)
    except OSError:
        processor = {}
    channels = int(config.get("num_channels", 3))
    names = config["id2label"]
    return {
        "config": config,
        "num_classes": len(names),
        "in_channels": channels,
        "image_size": int(config.get("image_size") or _side(processor)),
        "mean": tuple(processor.get("image_mean", [0.5] * channels)),
        "std": tuple(processor.get("image_std", [0.5] * channels)),
        "class_names": tuple(str(names[key]) for key in sorted(names, key=int)),
    }, LogitsOnly(model)


def _side(processor: dict[str, Any]) -> int:
    size = processor.get("size", {})
    side = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    return int(side or 224)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("hf: models need transformers: pip install 'expunge[hf]'") from error
    library: Any = transformers
    # Standard error is for what expunge has to say; what the library only warns of is checked here.
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library
