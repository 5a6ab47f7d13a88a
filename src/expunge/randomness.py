"""Independent random streams from one seed."""

from hashlib import blake2b

import torch


def stream(purpose: str, seed: int) -> torch.Generator:
    """A CPU generator for one purpose, independent of the streams for others with the same seed.

    With one plain seed for everything, the examples drawn to be forgotten would be the very first batch that a
    network trained with that seed saw.

    >>> torch.rand(1, generator=stream("a", 0)) == torch.rand(1, generator=stream("b", 0))
    tensor([False])
    """
    digest = blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # 63 bits: torch takes signed seeds
