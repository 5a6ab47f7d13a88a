"""How far unlearning moved the parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from expunge.records import ParameterChange


def parameter_change(before: Mapping[str, Tensor], model: nn.Module) -> ParameterChange:
    """‖Δθ‖₁ and ‖Δθ‖₂, summed in float64, of all parameters, of each module's own, and of the last linear layer's.

    Args:
        before: the original parameters by name, as `model.named_parameters()` gives them (tied ones once).
        model: the unlearned model, with the same names and shapes.
    """
    sums: dict[str, tuple[float, float]] = {}
    count = 0
    for name, parameter in model.named_parameters():
        delta = _difference(parameter.detach(), before[name].detach().to(parameter.device))
        layer = name.rpartition(".")[0]
        l1, squares = sums.get(layer, (0.0, 0.0))
        sums[layer] = (l1 + _norm(delta, 1), squares + _norm(delta, 2) ** 2)
        count += parameter.numel()
    last = last_layer(model)
    l1_last, squares_last = sums.get(last, (0.0, 0.0))
    return ParameterChange(
        l1=sum(l1 for l1, _ in sums.values()),
        l2=sum(squares for _, squares in sums.values()) ** 0.5,
        l1_last_layer=l1_last,
        l2_last_layer=squares_last**0.5,
        by_layer={layer: (l1, squares**0.5) for layer, (l1, squares) in sums.items()},
        num_parameters=count,
    )


def _difference(after: Tensor, before: Tensor) -> Tensor:
    if after.is_complex():
        return (after - before).abs()
    return after - before if after.is_floating_point() else after.double() - before.double()


def _norm(delta: Tensor, order: int) -> float:
    return float(torch.linalg.vector_norm(delta, order, dtype=torch.float64))


def last_layer(model: nn.Module) -> str:
    """The name of the last linear layer, or of the last module with parameters where there is none."""
    modules = dict(model.named_modules())
    owners = [name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
    linear = [name for name in owners if isinstance(modules[name], nn.Linear)]
    last: str = (linear or owners)[-1]
    return last
