"""Text classifiers in the Hugging Face format (extra: hf)."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from expunge.errors import ExpungeError, InputError, SettingError, one_line
from expunge.models.adapter import check_one_label
from expunge.models.description import plain_hf_config
from expunge.models.huggingface import check_directory, library, own_config
from expunge.parsing import parse_json, read_text

ARCHITECTURE = "hf-text"
"""What a `ModelSpec` calls one."""

LONGEST = 512
"""Tokens of a text, where neither tokenizer nor model says how many it may have."""


def holds_texts(directory: Path) -> bool:
    """Whether a directory of `save_pretrained` holds a text classifier, as its configuration says."""
    try:
        config = parse_json(read_text(directory / "config.json"))
    except InputError:
        return False
    named = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(named, list) and any(str(each).endswith("ForSequenceClassification") for each in named)


def text_network(config: Any) -> nn.Module:
    """A text classifier of `transformers` with random weights, from its own configuration.

    Raises `SettingError` where the configuration names code or files, or cannot be built.
    """
    if not isinstance(config, dict):
        raise SettingError("the description of a text classifier has no configuration")
    transformers = library()
    plain = plain_hf_config(config, transformers, texts=True)
    try:
        settings = transformers.AutoConfig.for_model(**plain)
        network: nn.Module = transformers.AutoModelForSequenceClassification.from_config(
            settings, trust_remote_code=False
        )
    except (ExpungeError, MemoryError):
        raise
    except Exception as error:  # of odd configurations, the library raises many types
        raise SettingError(f"transformers cannot build {plain['model_type']!r}: {one_line(error)}") from error
    return network


def load_text(directory: str) -> tuple[dict[str, Any], tuple[str, ...], nn.Module]:
    """The configuration, the names of the classes and the network of a directory that `save_pretrained` wrote.

    Raises `InputError`: it is damaged, lacks weights, or names code.
    """
    transformers = library()
    check_directory(Path(directory), transformers, partial(plain_hf_config, texts=True), text_network)
    try:
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype="auto",
        )
    except Exception as error:  # the library raises its own, safetensors' and JSON's types
        raise InputError(f"cannot load hf:{directory}: {one_line(error)}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        name = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[0]
        raise InputError(f"hf:{directory} lacks weights of the classifier, such as {name!r}; give a trained one")
    check_one_label(model)
    names = model.config.id2label
    config: dict[str, Any] = json.loads(json.dumps(own_config(model)))
    return config, tuple(str(names[key]) for key in sorted(names, key=int)), model


def tokenizer_of(directory: str) -> tuple[Callable[..., Any], int]:
    """The tokenizer in such a directory, and how many tokens a text may have.

    Raises `InputError` where there is none, or one that names code.
    """
    transformers = library()
    try:
        for file in ("tokenizer_config.json", "tokenizer.json", "config.json"):
            if (Path(directory) / file).exists() and '"auto_map"' in read_text(Path(directory) / file):
                raise InputError(f"{file} names code (auto_map), which is not run")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        config = parse_json(read_text(Path(directory) / "config.json"))
    except Exception as error:  # the library raises many types
        raise InputError(
            f"hf:{directory} has no tokenizer that can be loaded ({one_line(error)}); save it there too"
        ) from error
    told = config.get("max_position_embeddings") if isinstance(config, dict) else None
    position = told - 2 if isinstance(told, int) and told > 2 else LONGEST  # some count two positions more
    most = tokenizer.model_max_length
    return tokenizer, int(most if isinstance(most, int) and 0 < most <= position + 2 else position)
