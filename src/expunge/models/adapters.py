"""LoRA adapters of Hugging Face classifiers, of images or texts, as PEFT writes them (extra: hf)."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from expunge.errors import InputError, SettingError, one_line, optional
from expunge.models.description import check_plain, words
from expunge.models.inference import not_finite
from expunge.parsing import parse_json, read_text

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
KNOWN = words(
    """alpha_pattern bias exclude_modules fan_in_fan_out layers_pattern layers_to_transform lora_alpha lora_bias
    lora_dropout modules_to_save r rank_pattern target_modules use_dora use_rslora"""
)
"""Entries of an adapter's configuration that say which network it makes."""
UNUSED = words(
    """auto_mapping base_model_name_or_path inference_mode init_lora_weights megatron_core peft_type peft_version
    revision task_type"""
)
"""Entries that change nothing once there are weights, and which nothing is loaded or run from."""
_PREFIX = "base_model.model."


class Adapter:
    """What a directory holds of an adapter: `settings`, its `weights`, and the directory of its `base` model."""

    def __init__(self, directory: Path) -> None:
        """Reads it. Raises `InputError` where it is no LoRA adapter, names code, or its base is not a directory."""
        where = f"hf:{directory}"
        try:
            config = parse_json(read_text(directory / CONFIG))
            if not isinstance(config, dict) or config.get("peft_type") != "LORA":
                raise InputError("expunge reads LoRA adapters alone; merge another into its model, and save that")
            self.settings = _settings(config)
            self.weights: dict[str, Tensor] = load_file(directory / WEIGHTS)
        except (SettingError, InputError, SafetensorError, OSError) as error:
            raise InputError(f"cannot load {where}: {error}") from error
        # Before anything is built: a number may stand there that would fill the memory.
        sides = [side for value in self.weights.values() for side in value.shape]
        for rank in (self.settings.get("r", 8), *(self.settings.get("rank_pattern") or {}).values()):
            if not isinstance(rank, int) or rank > max(sides, default=0):
                raise InputError(f"cannot load {where}: its weights are not of rank {str(rank)[:20]}")
        self.name = str(config.get("base_model_name_or_path"))
        self.base = _base(directory, self.name)

    @property
    def replaced(self) -> dict[str, Tensor]:
        """The weights that stand in for the base model's own, such as those of a new classifier, by its names."""
        kept = self.settings.get("modules_to_save") or ()
        own = {name.removeprefix(_PREFIX): value for name, value in self.weights.items() if "lora_" not in name}
        return {name: value for name, value in own.items() if any(part in kept for part in name.split("."))}

    def around(self, network: Any) -> Any:
        """The base model with the adapter in it, whose parameters alone are trained.

        Raises `InputError` where the weights are not this adapter's.
        """
        peft = _peft()
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of its calls of transformers
                network.load_state_dict(self.replaced, strict=False)  # where the base has none, they are random
                model = peft.get_peft_model(network, peft.LoraConfig(**self.settings))
            wanted = {name: value.shape for name, value in adapter_state(model).items()}
            odd = sorted({name for name in {**wanted, **self.weights} if not self._fits(name, wanted)})
            if odd:
                raise InputError(f"its weights do not fit: {odd[0]!r} is missing, unknown or of another shape")
            if (bad := not_finite(self.weights.items())) is not None:
                raise InputError(f"{bad!r} holds NaN or infinity; take another checkpoint")
            peft.set_peft_model_state_dict(model, self.weights)
        except InputError as error:
            raise InputError(f"the adapter of {self.name} cannot be used: {error}") from error
        except Exception as error:  # of odd settings, the library raises many types
            raise InputError(f"peft cannot put the adapter into {self.name}: {one_line(error)}") from error
        model.peft_config["default"].base_model_name_or_path = self.name
        return model

    def _fits(self, name: str, wanted: Mapping[str, Any]) -> bool:
        return name in wanted and name in self.weights and wanted[name] == self.weights[name].shape


def base_of(directory: Path) -> Path:
    """The directory of the model that an adapter in this one is of; this one, where it holds no adapter.

    Raises `InputError` where that is no directory.
    """
    if not (directory / CONFIG).exists():
        return directory
    config = parse_json(read_text(directory / CONFIG))
    return _base(directory, str(config.get("base_model_name_or_path")) if isinstance(config, dict) else "")


def _base(directory: Path, name: str) -> Path:
    for place in (Path(name), directory / name):
        if (place / "config.json").is_file():
            return place
    raise InputError(
        f"hf:{directory} is an adapter of {name!r}, which is no directory here: save that model, with its image "
        f"processor or its tokenizer, and write the directory into base_model_name_or_path of {CONFIG}"
    )


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The weights of the adapter in a model of PEFT, under the names that they have in a file."""
    found: dict[str, Tensor] = _peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def save_adapter(directory: Path, model: Any) -> Path:
    """Writes the adapter of a model of PEFT as `PeftModel.from_pretrained` takes it; the file of its weights."""
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # of an empty form
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    # Some lists were sets, whose order changes from process to process.
    ordered = {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in config.items()}
    (directory / CONFIG).write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    return directory / WEIGHTS


def _peft() -> Any:
    return optional("peft", "LoRA adapters need peft", "hf")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that make the network. Raises `SettingError` for an unknown one, or a value that could name code."""
    defaults, found = _peft().LoraConfig().to_dict(), dict[str, Any]()
    for key, value in config.items():
        if key in KNOWN:
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            check_plain(f"{CONFIG}: {key}", inner)
            found[key] = sorted(value, key=str) if isinstance(value, list) else value  # most are sets, in any order
        elif key not in UNUSED and value and value != defaults.get(key):
            raise SettingError(f"{CONFIG} has an entry {key[:80]!r}, which expunge does not read; take it out")
    return found


def num_labels(replaced: Mapping[str, Tensor]) -> int | None:
    """How many classes a classifier has that replaces the base model's, None where none does."""
    heads = [value for name, value in replaced.items() if re.match(r"(\w*classifier|head)\b.*weight$", name)]
    return int(heads[-1].shape[0]) if heads else None
