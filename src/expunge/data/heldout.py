"""One held-out set, two uses: a part that a method may calibrate on, and a part that is left to audit it with."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from expunge.data.examples import digests

SCALE = 255
"""What 8-bit images are divided by where they become floats."""

CHUNK = 256
"""Inputs that are looked at together."""


def calibration_side(inputs: Tensor, seed: int) -> Tensor:
    """Which held-out examples a method that ran with `seed` may have seen: about half of them.

    The side is a hash of an example's content and the seed, so whoever knows the seed finds the same split, whatever
    the order of the examples and whatever else is in the set; equal inputs are on one side. An 8-bit image is on one
    side as uint8 and as float32 in [0, 1] (as torchvision's ToTensor gives it), too.

    Args:
        inputs: shape (N, ...), in the dtype in which the dataset holds them.
        seed: of the split.

    Returns:
        bool, shape (N,), on the CPU.

    >>> side = calibration_side(torch.arange(100.0)[:, None], seed=0)
    >>> int(side.sum()), bool((side.flip(0) == calibration_side(torch.arange(100.0).flip(0)[:, None], seed=0)).all())
    (61, True)
    """
    salt = f"heldout:{seed}:".encode()
    return torch.tensor([blake2b(salt + digest, digest_size=1).digest()[0] < 128 for digest in _digests(inputs)])


def audit_side(inputs: Tensor, seeds: Sequence[int]) -> Tensor:
    """Which held-out examples are on the calibration side of none of `seeds`: bool, shape (N,), on the CPU."""
    left = torch.ones(len(inputs), dtype=torch.bool)
    for seed in seeds:
        left &= ~calibration_side(inputs, seed)
    return left


def _digests(inputs: Tensor) -> list[bytes]:
    """Digests of the contents, those of images in [0, 1] that were 8-bit ones as of these."""
    if not inputs.is_floating_point():
        return digests(inputs)
    found: list[bytes] = []
    for part in inputs.split(CHUNK):  # a few at a time: they are held in float64
        own = digests(part)
        levels = part.detach().cpu().double() * SCALE
        whole = levels.round()
        eight_bit = (((levels - whole).abs() < 1e-3) & (whole >= 0) & (whole <= SCALE)).flatten(1).all(1).tolist()
        found += [digests(whole[n : n + 1].to(torch.uint8))[0] if eight_bit[n] else own[n] for n in range(len(part))]
    return found
