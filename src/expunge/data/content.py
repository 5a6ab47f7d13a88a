"""What inputs are, told by their content: equal ones, and those that stand in two sets."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from math import prod

import torch
from torch import Tensor

from expunge.errors import InputError

SCALE = 255
"""What 8-bit images are divided by where they become floats."""

CHUNK = 2**20
"""Values that are looked at together: in float64, several times over."""

GLANCE = 64
"""Values of each input that tell in most cases that it is no 8-bit image."""

PAD = -(2**62)
"""What fills the end of a packed input of integers that is shorter than others: no content is so low."""


def digests(inputs: Tensor) -> list[bytes]:
    """A 16-byte BLAKE2b digest of each input's shape, dtype and values; equal inputs have equal digests.

    What fills packed integers up to the longest (`PAD`) is no part of them.
    """
    array = inputs.detach().cpu().contiguous()
    if _is_padded(array):
        return [digests(row)[0] for row in _unpadded(array)]
    head = f"{array.dtype}{tuple(array.shape[1:])}".encode()
    if array.dtype == torch.bfloat16:  # NumPy has no bfloat16; its bits serve as well
        array = array.view(torch.int16)
    rows = array.reshape(len(array), prod(array.shape[1:])).numpy()
    return [blake2b(head + row.tobytes(), digest_size=16).digest() for row in rows]


def _is_padded(inputs: Tensor) -> bool:
    return inputs.dtype == torch.int64 and inputs.ndim > 2 and bool((inputs == PAD).any())


def _unpadded(inputs: Tensor) -> Iterator[Tensor]:
    """Each input (1, ...) without what fills it up."""
    lengths = (inputs != PAD).flatten(1, -2).any(1).sum(1)
    for n, length in enumerate(lengths.tolist()):
        yield inputs[n : n + 1, ..., :length]


def content_digests(inputs: Tensor) -> list[bytes]:
    """As `digests`, but one digest for the forms that an 8-bit image takes, and one for integers of any dtype.

    The forms are any dtype with values of 0 to 255, and floats k/255 as their dtype rounds them (what torchvision's
    ToTensor makes of it). Floats that are all 0 or 1 are read as the latter.
    """
    if inputs.dtype == torch.uint8 or inputs.is_complex():
        return digests(inputs)
    if _is_padded(inputs):
        return [content_digests(row)[0] for row in _unpadded(inputs)]
    found: list[bytes] = []
    for part in inputs.detach().split(max(1, CHUNK // max(1, prod(inputs.shape[1:])))):
        _, may_be = _as_pixels(_rows(part)[:, :GLANCE].cpu())
        pixels, are_pixels = _as_pixels(part.cpu()) if any(may_be) else (part, may_be)
        own = digests(part + 0.0 if part.is_floating_point() else part.long())  # adding 0 makes −0 a 0
        found += [digests(pixels[n : n + 1])[0] if are_pixels[n] else own[n] for n in range(len(part))]
    return found


def _as_pixels(inputs: Tensor) -> tuple[Tensor, list[bool]]:
    """The values of 0 to 255 that each input stands for, uint8, and which inputs stand for such values throughout."""
    values = inputs.double()
    held = values.clamp(0, SCALE).round()
    same = _rows(values == held)
    if not inputs.is_floating_point():
        return held.to(torch.uint8), same.all(1).tolist()
    levels = (values * SCALE).clamp(0, SCALE).round()
    exact = (levels / SCALE).to(inputs.dtype).double()
    # Where they were multiplied by 1/255, or rounded to float32 on the way, they may be off by the last bits of those.
    slack = 0.0 if inputs.dtype in {torch.float16, torch.bfloat16} else 2 * torch.finfo(torch.float32).eps
    scaled = _rows((values - exact).abs() <= slack * exact).all(1)
    raw = same.all(1) & _rows(values > 1).any(1)
    chosen = torch.where(raw.view(-1, *[1] * (values.ndim - 1)), held, levels)
    return chosen.to(torch.uint8), (scaled | raw).tolist()


def _rows(values: Tensor) -> Tensor:
    """As a matrix, a row an example, also where an example is one number."""
    return values.reshape(len(values), prod(values.shape[1:]))


def shared(first: Tensor, second: Tensor) -> Tensor:
    """Which inputs of the second set stand in the first, too, by `content_digests`: bool, (N,), on the CPU."""
    if first.is_floating_point() and second.is_floating_point():  # floats are compared in the coarser dtype
        coarser = min(first.dtype, second.dtype, key=lambda dtype: -torch.finfo(dtype).eps)
        first, second = first.to(coarser), second.to(coarser)
    seen = set(content_digests(first))
    return torch.tensor([digest in seen for digest in content_digests(second)], dtype=torch.bool, device="cpu")


def apart_from(inputs: Tensor, name: str, others: Mapping[str, Tensor]) -> tuple[Tensor, list[str]]:
    """The inputs that stand in none of the other sets (`shared`), and one sentence on those of each that do.

    Raises `InputError` where none is left.
    """
    said, num = [], len(inputs)
    for other, there in others.items():
        both = shared(there, inputs)
        inputs = inputs[~both.to(inputs.device)]
        if len(inputs) == 0:
            raise InputError(f"no {name} example is left that is not in the {other} set too; give others")
        if both.any():
            said.append(f"Left out {int(both.sum()):,} of {num:,} {name} examples: they are in the {other} set.")
    return inputs, said


def first_copies(inputs: Tensor) -> Tensor:
    """Positions of the inputs that equal no earlier one (`content_digests`), ascending: int64, (M,), on the CPU.

    >>> first_copies(torch.tensor([[1], [2], [1]])).tolist()
    [0, 1]
    """
    seen: dict[bytes, int] = {}
    for n, digest in enumerate(content_digests(inputs)):
        seen.setdefault(digest, n)
    return torch.tensor(list(seen.values()), dtype=torch.int64, device="cpu")


def check_disjoint(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    """Raises `InputError` when an input stands in both sets (`shared`)."""
    if num := int(shared(first, second).sum()):
        raise InputError(
            f"{num} of the {second_name} examples are in the {first_name} set too; "
            f"take them out of the {second_name} set, which must share nothing with it"
        )
