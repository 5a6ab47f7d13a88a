"""The audits' one pass of a model over examples: everything else is computed from what it leaves behind."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.data import Examples, as_examples
from expunge.errors import SettingError
from expunge.models import as_float, device_and_dtype, enough_memory, forward, in_memory, last_layer, refusing
from expunge.progress import advance


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model in eval mode says about N examples.

    Attributes:
        logits: float64, shape (N, C).
        labels: int64, shape (N,): the truth.
        features: float32 or float64, shape (N, M): the input of the last linear layer, whose output the logits are;
            None where they were not asked for, or the model does not end in such a layer.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    features: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """Share of examples whose largest logit is their label's, in [0, 1]."""
        return float((self.logits.argmax(1) == self.labels).mean())

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, float64, shape (N, C)."""
        from scipy import special

        return np.asarray(special.softmax(self.logits, axis=1))


def outputs_of(
    model: nn.Module, examples: Examples, *, features: bool = False, batch_size: int = 500, label: str = "evaluating"
) -> Outputs:
    """Runs `model` once over `examples`, in eval mode and without gradients; its mode is put back.

    Args:
        model: maps a batch to logits (B, C).
        examples: inputs of any device; they are brought to the model a batch at a time.
        features: also keep the last linear layer's inputs.
        batch_size: examples a forward pass; fewer where memory does not suffice.
        label: what the progress bar and errors say.

    Raises:
        InputError: the model has no parameters, cannot take the inputs, or returns no tensor.
        SettingError: batch_size < 1.
        NotEnoughMemoryError: memory does not suffice for one example.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> outputs = outputs_of(net, Examples(torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)), features=True)
    >>> outputs.logits.shape, outputs.features.shape
    ((5, 3), torch.Size([5, 4]))
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise SettingError(f"batch_size={batch_size!r} is out of range; it is at least 1")
    device, dtype = device_and_dtype(model)
    head = model.get_submodule(last_layer(model))
    caught: list[tuple[Tensor, Tensor]] = []
    hook = None
    if features and isinstance(head, nn.Linear):
        hook = head.register_forward_hook(lambda _, given, output: caught.append((given[0], output)))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    logits: list[Tensor] = []
    kept: list[Tensor] = []

    def run(inputs: Tensor) -> None:
        caught.clear()
        batch = Examples(inputs, examples.labels[: len(inputs)]).to(device, dtype)
        # Not in inference mode: a tensor that the model keeps must serve training still.
        with torch.no_grad(), refusing(inputs, label):
            found = forward(model, batch.inputs).cpu()
        last = []
        if len(caught) == 1 and caught[0][0].ndim == 2 and torch.equal(as_float(caught[0][1]).cpu(), found):
            last = [as_float(caught[0][0]).cpu()]
        logits.append(found)  # at the end: a batch for which memory does not suffice comes again in halves
        kept.extend(last)

    try:
        with enough_memory("one example at a time is too much for it; take a machine with more"):
            for start in range(0, len(examples), batch_size):
                stop = min(start + batch_size, len(examples))
                in_memory(run, examples.inputs[start:stop])
                advance(label, stop, len(examples))
    finally:
        if hook is not None:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    whole = len(kept) == len(logits) and len(kept) > 0
    return Outputs(
        logits=torch.cat(logits).double().numpy(),
        labels=examples.labels.cpu().numpy(),
        features=torch.cat(kept) if whole else None,
    )


def accuracy(model: nn.Module, dataset: "Examples | Dataset[Any]", *, batch_size: int = 500) -> float:
    """The share of examples whose largest logit is their label's, in [0, 1], in eval mode.

    Args:
        model: maps a batch to logits (B, C); its mode is put back afterwards.
        dataset: examples in memory, or any dataset of (input, label).
        batch_size: examples a forward pass.
    """
    return outputs_of(model, as_examples(dataset, "given"), batch_size=batch_size).accuracy
