"""The audits' one pass of a model over examples: everything else is computed from what it leaves behind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from expunge.data import Examples, as_examples
from expunge.errors import SettingError, caution
from expunge.inputs import fitted
from expunge.metrics.scores import logit_scaled_confidence
from expunge.models import device_and_dtype, enough_memory, forward, last_layer, logits_of, refusing
from expunge.progress import advance


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model in eval mode says about N examples.

    Attributes:
        logits: float64, shape (N, C).
        labels: int64, shape (N,): the truth.
        features: float32 or float64, shape (N, M): the input of the last linear layer, whose output the logits are;
            None where they were not asked for, or the model does not end in such a layer.
        shifted: float64, (N, C) each: the logits on images moved by a pixel to each side; empty where not asked for.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    features: Tensor | None = None
    shifted: tuple[NDArray[np.float64], ...] = ()

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether an example's largest logit is its label's, shape (N,)."""
        return np.asarray(self.logits.argmax(1) == self.labels)

    @property
    def accuracy(self) -> float:
        """Share of examples whose largest logit is their label's, in [0, 1]."""
        return float(self.right.mean())

    @property
    def scores(self) -> NDArray[np.float64]:
        """Logit-scaled confidences, float64, shape (N,)."""
        return logit_scaled_confidence(self.logits, self.labels)

    def take(self, index: Tensor) -> "Outputs":
        """Those of the examples at `index`, int64, (K,), on the CPU."""
        at = index.numpy()
        return Outputs(
            logits=self.logits[at],
            labels=self.labels[at],
            features=None if self.features is None else self.features[index],
            shifted=tuple(each[at] for each in self.shifted),
        )

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, float64, shape (N, C)."""
        return np.asarray(special.softmax(self.logits, axis=1))


def outputs_of(
    model: nn.Module,
    examples: Examples,
    *,
    features: bool = False,
    batch_size: int = 500,
    label: str = "evaluating",
    view: Callable[[Tensor], Tensor] = lambda inputs: inputs,
) -> Outputs:
    """Runs `model` once over `examples`, in eval mode and without gradients; its mode is put back.

    Examples are brought to the model's device a batch at a time, in smaller ones where memory does not suffice. With
    `features`, the last linear layer's inputs are kept too. `label` is what the progress bar and errors say. `view` is
    what is done to each batch before.

    Raises:
        InputError: the model has no parameters, cannot take the inputs, or returns no tensor.
        SettingError: batch_size < 1.
        NotEnoughMemoryError: memory does not suffice for one example.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise SettingError(f"batch_size={batch_size!r} is out of range; it is at least 1")
    device, dtype = device_and_dtype(model)
    head = model.get_submodule(last_layer(model))
    caught: list[tuple[Tensor, Tensor]] = []
    kept: list[Tensor] = []
    seen: list[int] = []

    def run(model: nn.Module, inputs: Tensor) -> Tensor:
        caught.clear()
        batch = view(inputs.to(device, dtype) if inputs.is_floating_point() else inputs.to(device))
        with refusing(inputs, label):
            logits = forward(model, batch).cpu()
        kept.extend(entering(caught, logits))  # last: a batch too large for memory comes again in halves
        seen.append(len(inputs))
        advance(label, sum(seen), len(examples))
        return logits

    hook = None
    if features and isinstance(head, nn.Linear):
        hook = head.register_forward_hook(lambda _, given, output: caught.append((given[0], output)))
    modes = {module: module.training for module in model.modules()}
    try:
        with enough_memory("one example at a time is too much for it; take a machine with more"):
            logits = logits_of(model, examples.inputs, batch_size, run)
    finally:
        if hook is not None:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return Outputs(
        logits=logits.double().numpy(),
        labels=examples.labels.cpu().numpy(),
        features=torch.cat(kept) if kept and len(kept) == len(seen) else None,
    )


def entering(caught: Sequence[tuple[Tensor, Tensor]], logits: Tensor) -> list[Tensor]:
    """What entered the last linear layer, by its inputs and outputs in a pass, where it gave the `logits` at once."""
    if len(caught) != 1 or caught[0][0].ndim != 2 or not torch.equal(caught[0][1].to(logits), logits):
        return []
    return [caught[0][0].to(logits)]


def accuracy(model: nn.Module, dataset: Any, *, batch_size: int = 500) -> float:
    """The share of examples whose largest logit is their label's, in [0, 1], in eval mode; the mode is put back.

    Args:
        model: maps a batch to logits (B, C).
        dataset: examples, in any form that `expunge.forget` takes.
        batch_size: examples a forward pass, ≥ 1.
    """
    fit = fitted(model, {"given": dataset})
    caution(fit.said)
    return outputs_of(fit.around(model), as_examples(fit.sets["given"], "given"), batch_size=batch_size).accuracy
