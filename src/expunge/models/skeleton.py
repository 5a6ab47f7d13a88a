"""Whether a description fits the tensors of a file, seen on a network without memory, before a real one is built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from expunge.errors import SettingError

SLACK = 2**28
"""Bytes that a network may take beside its file: tables that it computes, such as masks and positions."""


def skeleton(make: Callable[[], nn.Module], num_tensors: int, num_bytes: int) -> nn.Module:
    """The network that `make` builds, on the meta device, where tensors have shapes and no values.

    Args:
        make: builds it from its description.
        num_tensors: in the file that it comes with. A network of many more is given up while it is built.
        num_bytes: of that file.

    Raises:
        SettingError: it cannot be built, or would be much larger than the file.
        MissingExtraError: it needs a package that is not installed.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _at_most(num_tensors):
        try:
            network = make()
        except MemoryError as error:
            raise SettingError("its description is of a network that is much larger than the file") from error
    needed = sum(tensor.numel() * tensor.itemsize for tensor in [*network.parameters(), *network.buffers()])
    if needed > 4 * num_bytes + SLACK:
        raise SettingError(f"its description is of a network of {needed / 1e9:.1f} GB, much larger than the file")
    return network


@contextmanager
def _at_most(num_tensors: int) -> Iterator[None]:
    """Gives up a network, while it is built, that has far more tensors or modules than its file holds."""
    left = {"tensors": 4 * num_tensors + 64, "modules": 32 * num_tensors + 1000}

    def count(kind: str) -> None:
        left[kind] -= 1
        if left[kind] < 0:
            raise SettingError(f"its description is of a network with far more {kind} than the file")

    def tensor(_module: nn.Module, _name: str, value: Tensor | None) -> None:
        if value is not None:
            count("tensors")

    def submodule(_module: nn.Module, _name: str, _value: Any) -> None:
        count("modules")

    handles = [
        registration.register_module_parameter_registration_hook(tensor),
        registration.register_module_buffer_registration_hook(tensor),
        registration.register_module_module_registration_hook(submodule),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
