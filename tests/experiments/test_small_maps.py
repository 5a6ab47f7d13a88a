"""Convolutions on small maps by products are the convolutions that they stand for."""

import itertools

import pytest
import torch
from experiments.grid import small_maps
from experiments.grid.small_maps import small_maps_by_products
from torch import nn

SHAPES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 4)]


@pytest.mark.parametrize(("shape", "stride", "bias"), [*itertools.product(SHAPES, (1, 2), (True, False))])
def test_values_and_gradients_are_the_convolution_s(shape: tuple[int, int], stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 3, stride, 1, bias=bias).double()
    maps = torch.randn(4, 5, *shape, dtype=torch.float64, requires_grad=True)
    weights = [*layer.parameters(), maps]
    usual = layer(maps)
    pull = torch.randn_like(usual)
    with small_maps_by_products():
        quick = layer(maps)
    assert quick.shape == usual.shape
    torch.testing.assert_close(quick, usual)
    for found, wanted in zip(
        torch.autograd.grad(quick, weights, pull), torch.autograd.grad(usual, weights, pull), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, (1, 2), 1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ],
)
def test_other_convolutions_are_left_as_they_are(other: nn.Conv2d) -> None:
    size = 3 if other.padding in (0, (0, 0)) else 2
    maps = torch.randn(2, 4, size, size)
    usual = other(maps)
    with small_maps_by_products():
        assert torch.equal(other(maps), usual)


def test_only_small_maps_are_products_and_only_in_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    usual = small_maps.by_product

    def counted(layer: nn.Conv2d, maps: torch.Tensor) -> torch.Tensor:
        sizes.append(maps.shape[2])
        return usual(layer, maps)

    monkeypatch.setattr(small_maps, "by_product", counted)
    layer = nn.Conv2d(3, 3, 3, padding=1)
    with small_maps_by_products():
        for size in (1, 2, 3, 8):
            layer(torch.zeros(1, 3, size, size))
    layer(torch.zeros(1, 3, 1, 1))
    assert sizes == [1, 2]
