"""What a model is written as: the form that it came in, with the record of what was done to it."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from expunge.files import written_whole
from expunge.markdown import markdown
from expunge.models.adapters import CONFIG, WEIGHTS, save_adapter
from expunge.models.checkpoint import (
    FILE_NAME,
    Header,
    header_in,
    header_of,
    metadata_of,
    own_network,
    save_checkpoint,
)
from expunge.models.texts import ARCHITECTURE
from expunge.parsing import read_text
from expunge.tensor_files import write_tensors

RECORD = "expunge.json"
"""The record beside the weights: a library that writes them anew keeps nothing of their metadata."""
CARD = "README.md"
SIDE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    CARD,
)
"""What is taken over from a Hugging Face directory. Anything else may hold the weights that were to forget."""
_BEGIN, _END = "<!-- expunge: begin -->", "<!-- expunge: end -->"


def save_model(directory: Path, model: nn.Module, header: Header, source: Path | None = None) -> None:
    """Writes a model into a directory that is not whole yet, as its own library reads it.

    A Hugging Face model as `from_pretrained` takes it, any other as a plain state dict in `model.safetensors`. The
    header is in the metadata of the weights.

    Args:
        directory: exists, and holds no model.
        model: of `load_model`, or one made from it, on the CPU.
        header: what is recorded.
        source: the Hugging Face directory that it came from; its configuration, processor and card are taken over.
    """
    if header.spec.architecture not in {"hf", ARCHITECTURE}:
        save_checkpoint(directory / FILE_NAME, model, header)
        return
    network: Any = own_network(model)
    if "adapter" in header.spec.options:
        weights = save_adapter(directory, network)
    else:
        network.save_pretrained(directory, max_shard_size=2**60)  # one file: the record is of all weights
        weights = directory / FILE_NAME
    with written_whole(weights) as temporary:
        write_tensors(load_file(weights), temporary, metadata_of(header))
    if source is not None and not ((source / "config.json").exists() or (source / CONFIG).exists()):
        source = None  # a file of weights, in a directory of other things
    processor = json.dumps(dict(header.processor), indent=2) + "\n"
    if header.spec.architecture == "hf":
        (directory / "preprocessor_config.json").write_text(processor, encoding="utf-8")
    for name in SIDE_FILES:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    record = json.dumps(header.to_dict(), indent=2, sort_keys=True) + "\n"
    (directory / RECORD).write_text(record, encoding="utf-8")
    card = directory / CARD
    before = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    card.write_text(with_section(before, header), encoding="utf-8")


def recorded(directory: Path) -> Header | None:
    """What expunge recorded of the model in a Hugging Face directory, None where it wrote none.

    Raises `InputError` where the weights or the record are damaged.
    """
    for weights in (directory / FILE_NAME, directory / WEIGHTS):
        found = header_in(weights) if weights.exists() else None
        if found is not None:
            return found
    record = directory / RECORD
    return header_of(record, read_text(record)) if record.exists() else None


def with_section(card: str, header: Header) -> str:
    """A model card with a section that says in numbers what was forgotten and what was lost, in place of an older."""
    rows = [_row(entry) for entry in header.history if entry.get("did") == "forget"]
    head = ["method", "audit", "examples forgotten", "test accuracy before", "after"]
    text = "Training examples were removed from this model with expunge. One row a request:"
    section = "\n".join([_BEGIN, "## Forgotten examples", "", text, "", markdown(head, rows, left=2), _END])
    old = re.compile(rf"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    if old.search(card):
        return old.sub(lambda _: section, card, count=1)
    return (card.rstrip() + "\n\n" + section if card.strip() else section) + "\n"


def _row(entry: Mapping[str, Any]) -> list[str]:
    """What the card says of one entry of a history, which may come from anywhere."""
    shares = entry.get("test_accuracy")
    known = isinstance(shares, list | tuple) and len(shares) == 2 and all(isinstance(share, float) for share in shares)
    words = [str(entry.get(key) or "none") for key in ("method", "verdict", "num_forget")]
    plain = [word if re.fullmatch(r"\w{1,40}", word) else "unknown" for word in words]
    return [*plain, *(f"{share:.1%}" for share in shares)] if known and shares else [*plain, *["not measured"] * 2]
