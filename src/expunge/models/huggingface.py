"""Image classifiers in the Hugging Face format (extra: hf)."""

import json
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from expunge.errors import ExpungeError, InputError, SettingError, one_line, optional
from expunge.files import is_regular
from expunge.models.adapter import check_one_label
from expunge.models.description import plain_hf_config
from expunge.models.skeleton import skeleton
from expunge.parsing import parse_json, read_text


class LogitsOnly(nn.Module):
    """Wraps a `transformers` image classifier so that it maps pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, channels, H, W) to logits (B, C)."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def hf_network(config: Any) -> nn.Module:
    """An image classifier with random weights, from its own configuration. Raises as `from_config`."""
    return LogitsOnly(from_config(config))


def from_config(config: Any, *, texts: bool = False) -> nn.Module:
    """A classifier of `transformers`, of images or of `texts`, with random weights, from its own configuration.

    Raises `SettingError` where the configuration names code or files, or cannot be built.
    """
    if not isinstance(config, dict):
        raise SettingError("the description of an hf network has no configuration")
    transformers = library()
    plain = plain_hf_config(config, transformers, texts=texts)
    try:
        settings = transformers.AutoConfig.for_model(**plain)
        network: nn.Module = _kind(transformers, texts).from_config(settings, trust_remote_code=False)
    except (ExpungeError, MemoryError):
        raise
    except Exception as error:  # of odd configurations, the library raises many types
        raise SettingError(f"transformers cannot build {plain['model_type']!r}: {one_line(error)}") from error
    return network


def from_directory(
    directory: str, *, texts: bool = False, replaced: Collection[str] = (), num_labels: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A classifier of `transformers`, of images or of `texts`, that `save_pretrained` wrote, and its configuration.

    Weights of the names `replaced` may be missing there, and may be for another number of classes than the `num_labels`
    that are wanted: an adapter brings them.

    Raises:
        InputError: it is damaged, lacks weights, names code, or gives several labels an example.
    """
    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"there is no {directory}/config.json; give a directory that save_pretrained wrote")
    transformers = library()
    _check_directory(Path(directory), transformers, texts)
    try:
        model, info = _kind(transformers, texts).from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype="auto",  # that of the file, as the library does by itself from version 5 on
            **({"num_labels": num_labels, "ignore_mismatched_sizes": True} if num_labels is not None else {}),
        )
    except Exception as error:  # the library raises its own, safetensors' and JSON's types
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot load hf:{directory}: {first_line}") from error
    mismatched = (found if isinstance(found, str) else found[0] for found in info["mismatched_keys"])
    lacking = sorted({*info["missing_keys"], *mismatched} - set(replaced))
    if lacking:  # the library gives those random weights and goes on
        raise InputError(f"hf:{directory} lacks weights of the classifier, such as {lacking[0]!r}; give a trained one")
    check_one_label(model)
    # What the network is built from, the same for every copy of it: without place, precision and version.
    left_out = {"_name_or_path", "dtype", "transformers_version"}
    told = {key: value for key, value in model.config.to_dict().items() if key not in left_out}
    return model, json.loads(json.dumps(told))


def _kind(transformers: Any, texts: bool) -> Any:
    return transformers.AutoModelForSequenceClassification if texts else transformers.AutoModelForImageClassification


def load_hf(
    directory: str, replaced: Collection[str] = (), num_labels: int | None = None, processed: str | None = None
) -> tuple[dict[str, Any], nn.Module]:
    """The fields of a `ModelSpec`, `config`, `processor` and `class_names`, and the network, of a directory.

    `replaced`, `num_labels` and the errors are those of `from_directory`. The image processor may lie in another
    directory, `processed`.
    """
    model, config = from_directory(directory, replaced=replaced, num_labels=num_labels)
    transformers = library()
    try:
        processor, _ = transformers.ImageProcessingMixin.get_image_processor_dict(
            processed or directory, local_files_only=True
        )
    except OSError as error:
        raise InputError(
            f"hf:{directory} has no preprocessor_config.json, which says how the model's inputs are scaled; save its "
            "image processor there too"
        ) from error
    names: Any = config["id2label"]
    try:
        channels = int(config.get("num_channels", 3))
        mean, std = _scale(processor, channels, directory)
        side = _side(_size(processor) or config.get("image_size") or 224, directory)
        class_names = tuple(str(names[key]) for key in sorted(names, key=int))
    except ExpungeError:
        raise
    except (ArithmeticError, TypeError, ValueError, AttributeError) as error:  # of numbers that are none
        raise InputError(
            f"cannot load hf:{directory}: config.json or preprocessor_config.json does not say what the model takes "
            f"({one_line(error)}); take another copy"
        ) from error
    return {
        "config": config,
        "num_classes": len(names),
        "in_channels": channels,
        "image_size": side,
        "mean": mean,
        "std": std,
        "processor": json.loads(json.dumps(processor)),
        "class_names": class_names,
    }, LogitsOnly(model)


def _check_directory(directory: Path, transformers: Any, texts: bool) -> None:
    """Raises `InputError` for a configuration that names code or files, or one that does not fit the weights.

    That is seen on a network without memory: a few bytes may ask for more than any machine has.
    """
    try:
        if (directory / "adapter_config.json").exists():  # which may name another model
            raise InputError("it holds an adapter; merge it into its model, and save that")
        config = _object(directory / "config.json")
        plain_hf_config(config, transformers, texts=texts)
        if (directory / "preprocessor_config.json").exists():
            _object(directory / "preprocessor_config.json")
        files = _weight_files(directory)
        found = _shapes(files)
        wanted = skeleton(
            partial(from_config, config, texts=texts), len(found), sum(path.stat().st_size for path in files)
        )
    except (SettingError, InputError) as error:
        raise InputError(f"cannot load hf:{directory}: {error}") from error
    for name, tensor in wanted.state_dict().items():  # others have older names, or are missing: the library tells
        if found.get(name, tensor.shape) != tensor.shape:
            raise InputError(
                f"cannot load hf:{directory}: {name!r} is {tuple(found[name])} in its weights, and "
                f"{tuple(tensor.shape)} by its config.json; take another copy"
            )


def _weight_files(directory: Path) -> list[Path]:
    """The files that `transformers` would read weights from. Raises `InputError` where there are none."""
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if not index.exists():
        raise InputError("it has no model.safetensors; save it with save_pretrained(safe_serialization=True)")
    places = _object(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise InputError(f"{index.name} does not say which files beside it hold the weights; take another copy")
    return [directory / name for name in names]


def _shapes(paths: list[Path]) -> dict[str, torch.Size]:
    """The shapes of the tensors in safetensors files, from their headers alone."""
    found = {}
    for path in paths:
        if not is_regular(path):
            raise InputError(f"there is no file {path.name}; take another copy")
        try:
            with safe_open(path, framework="pt") as file:
                found.update({name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path.name} is not a whole safetensors file ({error}); take another copy") from error
    return found


def _object(path: Path) -> dict[str, Any]:
    content = parse_json(read_text(path))
    if not isinstance(content, dict):
        raise InputError(f"{path.name} must hold an object")
    return content


def _scale(processor: dict[str, Any], channels: int, directory: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, of pixels in [0, 1], that come to what the processor does to bytes."""
    for step in ("do_flip_channel_order", "offset", "rescale_offset"):
        if processor.get(step):
            raise InputError(f"hf:{directory}: its image processor sets {step}, which expunge cannot do")
    factor = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0

    def by_channel(key: str) -> list[float]:
        given = processor.get(key, [0.5] * channels)
        values = given if isinstance(given, list | tuple) else [given] * channels
        if len(values) != channels:
            raise InputError(f"hf:{directory}: {key} is of {len(values)} channels, the model takes {channels}")
        return [float(value) for value in values]

    mean, std = [0.0] * channels, [1.0] * channels
    if processor.get("do_normalize", True):
        mean, std = by_channel("image_mean"), by_channel("image_std")
    kind = str(processor.get("image_processor_type", ""))
    if processor.get("include_top", kind.startswith("EfficientNet")):  # it divides by the deviation once more
        std = [one * other for one, other in zip(std, by_channel("image_std"), strict=True)]
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _size(processor: dict[str, Any]) -> Any:
    """What its images end as: cropped, if they are, else resized; None where it does not say."""
    kind = str(processor.get("image_processor_type", ""))
    cropped = processor.get("do_center_crop", True) and processor.get("crop_size")
    resized = processor.get("do_resize", True) and processor.get("size")
    size = (resized or cropped) if kind.startswith("Perceiver") else (cropped or resized)  # that one crops first
    if not isinstance(size, dict):
        return size or None
    sides = [size[key] for key in ("height", "width") if size.get(key)]
    return sides or size.get("shortest_edge")


def _side(size: Any, directory: str) -> int:
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise InputError(f"hf:{directory} takes images of {' × '.join(map(str, size))}; they must be square")
    return int(sides.pop())


def library() -> Any:
    """`transformers`, which says nothing by itself."""
    library = optional("transformers", "hf: models need transformers", "hf")
    # Standard error is for what expunge has to say; what the library only warns of is checked here.
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library
