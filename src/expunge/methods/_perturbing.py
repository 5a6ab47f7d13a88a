"""Inputs that can be perturbed: the forget set in floating point, and its unit."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.methods._task import Task
from expunge.models import logits_of


@dataclass(frozen=True)
class Continuous:
    """The forget inputs as floating-point numbers that the model maps to the same logits.

    Attributes:
        inputs: floating-point, shape (N, ...).
        low, high: the range of values: that of the dtype for uint8 images (0 and 255, or 0 and 1 where the model
            takes floats as scaled already), the forget set's own for any other inputs.
    """

    inputs: Tensor
    low: float
    high: float


def continuous(model: nn.Module, task: Task) -> Continuous:
    """The forget inputs in floating point. Leaves `model` in eval mode, and `task` as it is.

    A model may scale integer images and take floats as scaled already, as expunge's own do, or convert whatever it
    gets. Both readings are tried against the original logits.

    Raises:
        InputError: the model gives other logits for either reading, or takes no floats (token ids, say).
    """
    given = task.forget.inputs
    low, high = (0.0, 255.0) if given.dtype == torch.uint8 else (float(given.min()), float(given.max()))
    if given.is_floating_point():
        return Continuous(given, low, high)
    dtype = next(model.parameters()).dtype
    for scale in (255, 1):
        inputs = given.to(dtype) / scale
        try:
            logits = logits_of(model, inputs)
        except (RuntimeError, IndexError, ValueError, TypeError):
            continue
        if torch.allclose(logits, task.forget_logits, rtol=1e-3, atol=1e-3):
            return Continuous(inputs, low / scale, high / scale)
    raise InputError(f"the model takes its {given.dtype} inputs as integers alone; this method must add noise to them")
