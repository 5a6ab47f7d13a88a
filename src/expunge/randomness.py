"""Independent random streams from one seed, and the global states for code that draws from those."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from operator import index
from typing import Any

import numpy as np
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
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)  # 63 bits: torch takes signed seeds


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds Python, NumPy and torch inside the block, GPUs only for one as `device`; puts the states back after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    try:
        with torch.random.fork_rng(gpus):
            if device.type == "cpu":
                torch.default_generator.manual_seed(seed)
            else:
                torch.manual_seed(seed)  # that of every GPU too
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
