"""Room for many inputs: in memory, or in a file without a name that the system may move out of memory."""

from collections.abc import Iterable
from math import prod
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

ON_DISK = 64 * 2**20
"""Bytes from which on inputs lie in a file."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor without values. From `ON_DISK` bytes on, on the CPU, it lies in a file in the temporary directory.

    The file has no name, so that it is gone with the tensor, however the process ends.
    """
    size = prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < ON_DISK:
        return torch.empty(shape, dtype=dtype, device=device)
    with TemporaryFile(prefix="expunge-") as file:
        file.truncate(size)
        held = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
    return torch.from_numpy(held).view(dtype).view(shape)


def stacked(parts: Iterable[Tensor], num: int) -> Tensor:
    """`num` ≥ 1 tensors of one shape as one, of the dtype that all of them fit into; on the CPU."""
    together: Tensor | None = None
    for n, part in enumerate(parts):
        if together is None:
            together = empty((num, *part.shape), part.dtype)
        kind = torch.promote_types(together.dtype, part.dtype)
        if kind != together.dtype:
            wider = empty(tuple(together.shape), kind)
            wider[:n] = together[:n]
            together = wider
        together[n] = part
    assert together is not None
    return together
