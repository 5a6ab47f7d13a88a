"""The split of test examples: one half calibrates a method, the other audits it."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from expunge.data.content import content_digests
from expunge.randomness import as_seed


def calibration_side(inputs: Tensor, seed: int) -> Tensor:
    """Which test examples, inputs (N, ...), calibrate a method that ran with `seed`: about half of them.

    The side is a hash of an example's content (`content_digests`) and the seed, so whoever knows the seed finds the
    same split, whatever the order of the examples and whatever else is in the set; equal inputs are on one side.

    Returns:
        bool, shape (N,), on the CPU.

    >>> side = calibration_side(torch.arange(100.0)[:, None], seed=0)
    >>> int(side.sum()), bool((side.flip(0) == calibration_side(torch.arange(100.0).flip(0)[:, None], seed=0)).all())
    (54, True)
    """
    salt = f"heldout:{as_seed(seed)}:".encode()
    sides = [blake2b(salt + digest, digest_size=1).digest()[0] < 128 for digest in content_digests(inputs)]
    return torch.tensor(sides, dtype=torch.bool, device="cpu")


def audit_side(inputs: Tensor, seeds: Sequence[int]) -> Tensor:
    """Which test examples are on the calibration side of none of `seeds`: bool, shape (N,), on the CPU."""
    left = torch.ones(len(inputs), dtype=torch.bool, device="cpu")
    for seed in seeds:
        left &= ~calibration_side(inputs, seed)
    return left
