"""Text classifiers in the Hugging Face format (extra: hf)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from expunge.errors import InputError, one_line
from expunge.models.adapters import base_of
from expunge.models.huggingface import library
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


def tokenizer_of(directory: Path) -> tuple[Callable[..., Any], int]:
    """The tokenizer in such a directory, and how many tokens a text may have. An adapter may have its base model's.

    Raises `InputError` where there is none, or one that names code.
    """
    transformers, base = library(), base_of(directory)
    if not (directory / "tokenizer_config.json").exists():
        directory = base
    try:
        for file in ("tokenizer_config.json", "tokenizer.json", "config.json"):
            if (directory / file).exists() and '"auto_map"' in read_text(directory / file):
                raise InputError(f"{file} names code (auto_map), which is not run")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        config = parse_json(read_text(base / "config.json"))
    except Exception as error:  # the library raises many types
        raise InputError(
            f"hf:{directory} has no tokenizer that can be loaded ({one_line(error)}); save it there too"
        ) from error
    told = config.get("max_position_embeddings") if isinstance(config, dict) else None
    position = told - 2 if isinstance(told, int) and told > 2 else LONGEST  # some count two positions more
    most = tokenizer.model_max_length
    return tokenizer, int(most if isinstance(most, int) and 0 < most <= position + 2 else position)
