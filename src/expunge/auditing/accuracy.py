"""Accuracy of a model on labelled examples."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from expunge.auditing.forward import outputs_of
from expunge.data import Examples, as_examples


def accuracy(model: nn.Module, dataset: "Examples | Dataset[Any]", *, batch_size: int = 500) -> float:
    """The share of examples whose largest logit is their label's, in [0, 1], in eval mode.

    Args:
        model: maps a batch to logits (B, C); its mode is put back afterwards.
        dataset: examples in memory, or any dataset of (input, label).
        batch_size: examples a forward pass.
    """
    return outputs_of(model, as_examples(dataset, "given"), batch_size=batch_size).accuracy
