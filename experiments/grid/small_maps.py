"""3 × 3 convolutions on maps of one or two pixels a side, as one matrix product: a step of ResNet-18 in a third.

The last stages of a ResNet with its standard stem see such maps where images are small. PyTorch's convolutions on a CPU
then spend most of a training step on taps that fall outside the map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

LARGEST = 2
"""Pixels a side; on larger maps the convolution itself is quicker."""


@contextmanager
def small_maps_by_products() -> Iterator[None]:
    """Inside of the block every `Conv2d` on a CPU treats small maps so. Values are the same up to rounding."""
    usual = nn.Conv2d.forward

    def forward(layer: nn.Conv2d, maps: Tensor) -> Tensor:
        small = maps.ndim == 4 and max(maps.shape[2:]) <= LARGEST and maps.device.type == "cpu"
        return by_product(layer, maps) if small and _fits(layer) else usual(layer, maps)

    with patch.object(nn.Conv2d, "forward", forward):
        yield


def by_product(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    """What the 3 × 3 convolution makes of maps (B, C, H, W): (B, O, H', W')."""
    height, width = maps.shape[2:]
    rows, columns = (torch.arange(0, size, layer.stride[0]) for size in (height, width))
    # The tap through which a pixel of the output (before) sees one of the input (after).
    down = torch.arange(height) - rows[:, None] + 1
    right = torch.arange(width) - columns[:, None] + 1
    taps = (3 * down[:, None, :, None] + right[None, :, None, :]).flatten(2).flatten(0, 1)
    if taps.numel() == 1:
        matrix = layer.weight[:, :, 1, 1]
    else:  # taps first, so that whole blocks are copied
        blocks = layer.weight.flatten(2).permute(2, 0, 1).contiguous().index_select(0, taps.flatten())
        matrix = blocks.unflatten(0, taps.shape).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    made: Tensor = nn.functional.linear(maps.flatten(2).transpose(1, 2).flatten(1), matrix)
    made = made.unflatten(1, (len(rows), len(columns), layer.out_channels)).permute(0, 3, 1, 2)
    return made if layer.bias is None else made + layer.bias[:, None, None]


def _fits(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.padding == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.stride[0] == layer.stride[1]
    )
