"""How far outputs are from those of another model, what that tells of who was forgotten, and how far parameters are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from expunge.arrays import Floats, as_probabilities
from expunge.errors import InputError
from expunge.metrics.membership import auc, auc_interval


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
    return float(_distances(p, q).mean())


def update_leakage(
    p_before_forget: ArrayLike,
    p_after_forget: ArrayLike,
    p_before_test: ArrayLike,
    p_after_test: ArrayLike,
    *,
    confidence: float = 0.95,
) -> tuple[float, tuple[float, float]]:
    """AUC of ‖p_before − p_after‖₂, forgotten against test examples, for someone who holds both models.

    Chen et al. 2021, "When machine unlearning jeopardizes privacy". A warning, never a gate: exact retraining changes
    its answers on forgotten examples too. What helps is to withdraw the old model.

    Args:
        p_before_forget, p_after_forget: both models' probabilities on the forget set, float, shape (n, C).
        p_before_test, p_after_test: the same on examples that neither was trained on, shape (m, C).
        confidence: of the interval, in (0, 1).

    Returns:
        The AUC, in [0, 1], ½ where the update tells nothing, and its interval (low, high), that of `auc_interval`.

    Raises:
        InputError: rows that are no distributions, different shapes, or no example.
        SettingError: `confidence` is not in (0, 1).

    >>> update_leakage([[0.9, 0.1]], [[0.2, 0.8]], [[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.6, 0.4]])[0]
    1.0
    """
    forget, test = _distances(p_before_forget, p_after_forget), _distances(p_before_test, p_after_test)
    return auc(forget, test), auc_interval(forget, test, confidence=confidence)


def _distances(p: ArrayLike, q: ArrayLike) -> Floats:
    """‖p − q‖₂ of each row, float64, shape (...)."""
    first, second = as_probabilities(p), as_probabilities(q)
    if first.shape != second.shape or first.size == 0:
        raise InputError(
            f"both must hold the same examples and classes, at least one, not {first.shape} and {second.shape}"
        )
    return np.asarray(np.sqrt(((first - second) ** 2).sum(-1)))


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
