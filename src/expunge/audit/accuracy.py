"""Accuracy of a model on labelled examples."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from expunge.data import Examples, materialise
from expunge.progress import advance


def accuracy(model: nn.Module, dataset: "Examples | Dataset[Any]", *, batch_size: int = 500) -> float:
    """The share of examples whose largest logit is their label's, in [0, 1], in eval mode.

    Args:
        model: maps a batch to logits (B, C); its mode is put back afterwards.
        dataset: examples in memory, or any dataset of (input, label).
        batch_size: examples a forward pass.
    """
    examples = dataset if isinstance(dataset, Examples) else materialise(dataset, "given")
    reference = next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    correct = 0
    try:
        for start in range(0, len(examples), batch_size):
            part = Examples(
                examples.inputs[start : start + batch_size], examples.labels[start : start + batch_size]
            ).to(reference.device, reference.dtype)
            with torch.inference_mode():
                correct += int((model(part.inputs).argmax(1) == part.labels).sum())
            if len(examples) > batch_size:
                advance("evaluating", min(start + batch_size, len(examples)), len(examples))
    finally:
        for module, training in modes.items():
            module.training = training
    return correct / len(examples)
