"""Gradients with respect to inputs: inputs that have one, and adversarial examples."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import SettingError
from expunge.methods._task import Task
from expunge.models import as_float, logits_of


def differentiable_inputs(model: nn.Module, task: Task) -> Tensor:
    """The forget set's inputs as floating-point numbers for which `model` gives the logits that it gave for them.

    Floating-point inputs are returned as they are. uint8 images are divided by 255, as `Classifier` does itself, or,
    for a model that casts its inputs and does not scale them, by nothing. Leaves `model` in eval mode.

    Raises:
        SettingError: the inputs are neither, such as token ids, or the model treats floats in some other way.
    """
    inputs = task.forget.inputs
    if inputs.is_floating_point():
        return inputs
    if inputs.dtype == torch.uint8:
        for divisor in (255, 1):
            scaled = inputs.to(next(model.parameters()).dtype) / divisor
            if torch.allclose(logits_of(model, scaled), task.forget_logits, rtol=1e-3, atol=1e-3):
                return scaled
    raise SettingError(
        f"the method needs gradients with respect to the inputs, which {inputs.dtype} inputs of this model have not; "
        "give floating-point inputs"
    )


def targeted_pgd(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    rng: torch.Generator,
    batch_size: int = 500,
) -> Tensor:
    """Moves each input toward being classified as its target: projected gradient descent in L2 (Madry et al. 2018).

    Starts at a uniformly random input, brought back into the ball. Each step goes against the gradient of the
    cross-entropy toward the target, at a fixed length, then back into the range of values and into the ball.
    Leaves `model` in eval mode, and its parameters without gradients.

    Args:
        model: maps inputs to logits (B, C).
        inputs: floating-point, shape (N, ...); the lowest and highest value in it bound the values of the result.
        targets: int64, shape (N,).
        radius: of the L2 ball around each input, > 0, in units of the range of values: for pixels in [0, 1] the
            distance itself, for pixels in [0, 255] a 255th of it.
        step: length of a step, > 0, in the same units.
        steps: ≥ 0.
        rng: a CPU generator.
        batch_size: how many are computed at once.

    Returns:
        Shape and dtype of `inputs`; whether an input reached its target is not checked.
    """
    low, high = inputs.min(), inputs.max()
    span = high - low
    model.eval()
    moved = []
    for batch, target in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        start = low + span * torch.rand(batch.shape, generator=rng).to(batch)
        delta = _into_ball(start - batch, radius * span)
        for _ in range(steps):
            delta.requires_grad_()
            loss = F.cross_entropy(as_float(model(batch + delta)), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            shifted = delta.detach() - step * span * _of_length_one(gradient)
            delta = _into_ball((batch + shifted).clamp(low, high) - batch, radius * span)
        moved.append(batch + delta)
    return torch.cat(moved)


def _norms(vectors: Tensor) -> Tensor:
    """L2 norms of the examples, shape (N, 1, …); the smallest normal number where one is zero."""
    norms: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
    return norms.view(-1, *[1] * (vectors.ndim - 1))


def _of_length_one(vectors: Tensor) -> Tensor:
    return vectors / _norms(vectors)


def _into_ball(vectors: Tensor, radius: Tensor) -> Tensor:
    return vectors * (radius / _norms(vectors)).clamp_max(1)
