"""Safetensors files as expunge writes them: the same bytes for the same content, with a digest of all of them."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import InputError
from expunge.files import is_regular
from expunge.parsing import MAX_BYTES, parse_json

DIGEST = "sha256"
"""The entry of the metadata: SHA-256 of the whole file, read with 64 zeros in place of the digest."""
_NONE = "0" * 64


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes tensors and metadata to `path`, with a digest.

    The library writes its metadata in an order that changes from process to process, so it is sorted afterwards.
    """
    save_file(dict(tensors), path, metadata={**metadata, DIGEST: _NONE})
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(length))
        metadata = dict(sorted(content.pop("__metadata__").items()))
        ordered = json.dumps({"__metadata__": metadata, **content}, ensure_ascii=False, separators=(",", ":"))
        file.seek(8)
        file.write(ordered.encode().ljust(length))
        found = _digest(file, _NONE)
        file.seek(8 + ordered.encode().index(_entry(_NONE)))
        file.write(_entry(found))


def check_digest(path: Path, *, needed: bool = False) -> None:
    """Raises `InputError` where a file is not as it was written; one without a digest is taken unless it is `needed`.

    Files from before there were digests, and those of other programs, have none.
    """
    if not is_regular(path):
        raise InputError(f"there is no file {path}; check the path")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_BYTES, path.stat().st_size):
            raise InputError(f"{path} is not a whole safetensors file; take another copy")
        content = parse_json(file.read(length))
        metadata = content.get("__metadata__") if isinstance(content, dict) else None
        told = metadata.get(DIGEST) if isinstance(metadata, dict) else None
        if told is None and not needed:
            return
        if not isinstance(told, str) or _digest(file, told) != told:
            raise InputError(f"{path} is damaged: its content does not match its digest; take another copy")


def _entry(digest: str) -> bytes:
    return json.dumps({DIGEST: digest}, separators=(",", ":"))[1:-1].encode()


def _digest(file: BinaryIO, told: str) -> str:
    """SHA-256 of the file, hexadecimal, with zeros in place of the digest `told`."""
    file.seek(0)
    start = file.read(8)
    header = file.read(int.from_bytes(start, "little"))
    found = sha256(start + header.replace(_entry(told), _entry(_NONE), 1))
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()
