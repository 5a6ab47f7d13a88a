"""How far a model's outputs are from those of a reference, and its parameters from what they were."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from expunge.arrays import as_probabilities
from expunge.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ParameterChange:
    """‖Δθ‖ of the parameters; running statistics of normalisation layers are not parameters.

    Attributes:
        l1: sum of absolute changes over all parameters.
        l2: Euclidean norm of the change of all parameters.
        l1_last_layer, l2_last_layer: the same for the last linear layer alone, bias included.
        by_layer: {module name: (l1, l2)}, in the model's order.
        num_parameters: how many there are.
    """

    l1: float
    l2: float
    l1_last_layer: float
    l2_last_layer: float
    by_layer: Mapping[str, tuple[float, float]]
    num_parameters: int


def activation_distance(p: ArrayLike, q: ArrayLike) -> float:
    """The mean Euclidean distance between two models' softmax outputs on the same examples.

    Golatkar et al. 2020/2021 and Chundawat et al. 2023, "activation distance", where `q` comes from a retrained
    model. It is never 0 even between two retrained models: compare with their distance from each other.

    Args:
        p, q: probabilities, float, shape (..., C), the same shape; leading axes may be (models, examples).

    Returns:
        In [0, √2].

    Raises:
        InputError: rows that are no distributions, different shapes, or no example.

    >>> activation_distance([[1.0, 0.0]], [[0.4, 0.6]])
    0.848528137423857
    """
    first, second = as_probabilities(p), as_probabilities(q)
    if first.shape != second.shape or first.size == 0:
        raise InputError(
            f"both must hold the same examples and classes, at least one, not {first.shape} and {second.shape}"
        )
    return float(np.sqrt(((first - second) ** 2).sum(-1)).mean())


def parameter_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, last_layer: str) -> ParameterChange:
    """‖Δθ‖₁ and ‖Δθ‖₂, summed in float64, of all parameters, of each module's own, and of the last layer's.

    Args:
        before, after: the parameters by the same names, of the same shapes, as `model.named_parameters()` gives them
            (tied ones once). On any device: those before are brought to the others.
        last_layer: the name of the module that counts as the last one (`expunge.models.last_layer`).

    >>> parameter_change({"a.weight": torch.zeros(2)}, {"a.weight": torch.tensor([3.0, 4.0])}, last_layer="a").by_layer
    {'a': (7.0, 5.0)}
    """
    sums: dict[str, tuple[float, float]] = {}
    for name, parameter in after.items():
        delta = _difference(parameter.detach(), before[name].detach().to(parameter.device))
        layer = name.rpartition(".")[0]
        l1, squares = sums.get(layer, (0.0, 0.0))
        sums[layer] = (l1 + _norm(delta, 1), squares + _norm(delta, 2) ** 2)
    l1_last, squares_last = sums.get(last_layer, (0.0, 0.0))
    return ParameterChange(
        l1=sum(l1 for l1, _ in sums.values()),
        l2=sum(squares for _, squares in sums.values()) ** 0.5,
        l1_last_layer=l1_last,
        l2_last_layer=squares_last**0.5,
        by_layer={layer: (l1, squares**0.5) for layer, (l1, squares) in sums.items()},
        num_parameters=sum(parameter.numel() for parameter in after.values()),
    )


def _difference(after: Tensor, before: Tensor) -> Tensor:
    if after.is_complex():
        return (after - before).abs()
    return after - before if after.is_floating_point() else after.double() - before.double()


def _norm(delta: Tensor, order: int) -> float:
    return float(torch.linalg.vector_norm(delta, order, dtype=torch.float64))
