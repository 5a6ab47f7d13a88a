"""Independent random streams from one seed."""

from hashlib import blake2b
from operator import index
from typing import Any

import torch

from expunge.errors import SettingError


def as_seed(seed: Any) -> int:
    """`seed` as an int: Python's, NumPy's or a tensor's. Raises `SettingError` for one that torch cannot take."""
    try:
        value = index(seed)
    except TypeError as error:
        raise SettingError(f"seed must be an integer, not {seed!r}") from error
    if not -(2**63) <= value < 2**64:
        raise SettingError(f"seed must be an integer from -2**63 to 2**64 - 1, not {value}")
    return value


def stream(purpose: str, seed: int) -> torch.Generator:
    """A CPU generator for one purpose, independent of the streams for others with the same seed.

    With one plain seed for everything, the examples drawn to be forgotten would be the very first batch that a
    network trained with that seed saw.

    >>> torch.rand(1, generator=stream("a", 0)) == torch.rand(1, generator=stream("b", 0))
    tensor([False])
    """
    digest = blake2b(f"{purpose}:{as_seed(seed)}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # 63 bits: torch takes signed seeds
