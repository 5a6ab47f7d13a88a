"""Models of one logit, or of several labels, as classifiers of two classes."""

from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import InputError


class TwoClasses(nn.Module):
    """One logit z of a model as a classifier of two classes: class 1 where the label is there, class 0 where not.

    Its logits are (0, z), so that the probability of class 1 is the sigmoid of z, exactly. Parameters are those of the
    `model` within, which is what you keep: `result.model.model`. Of a model of several labels, the outputs of the
    others are not held: measure them afterwards.

    >>> net = TwoClasses(nn.Linear(4, 1))
    >>> net(torch.zeros(3, 4)).shape, bool((net(torch.zeros(3, 4))[:, 0] == 0).all())
    (torch.Size([3, 2]), True)
    """

    def __init__(self, model: nn.Module, label: int = 0) -> None:
        """Wraps a model that maps a batch to logits (B,), (B, 1) or (B, L); `label` is the column, in [0, L)."""
        super().__init__()
        self.model = model
        self.label = label

    def forward(self, inputs: Any) -> Tensor:
        """Logits (B, 2). Raises `InputError` where the model has no such label."""
        found = self.model(inputs)
        logits: Tensor = getattr(found, "logits", found)
        logits = logits.reshape(len(logits), -1)
        if not 0 <= self.label < logits.shape[1]:
            raise InputError(f"there is no label {self.label}: the model gives {logits.shape[1]}")
        chosen = logits[:, self.label]
        return torch.stack([torch.zeros_like(chosen), chosen], 1)


def check_one_label(model: nn.Module) -> None:
    """Raises `InputError` for a model of transformers that was trained on several labels an example, unless wrapped."""
    modules = list(model.modules())
    if any(isinstance(module, TwoClasses) for module in modules):
        return
    kinds = {str(getattr(getattr(module, "config", None), "problem_type", None)) for module in modules}
    if "multi_label_classification" in kinds:
        raise InputError(
            "the model gives several labels an example (problem_type=multi_label_classification), and its logits are "
            "no softmax's. Forget one label at a time: expunge.TwoClasses(model, label), with examples labelled 0 or 1"
        )
