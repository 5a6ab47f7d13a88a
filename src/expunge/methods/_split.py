"""How a step's examples are split over the processes of a run, and put together again."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from expunge.distributed import Summed, as_first_model, count, gathered, rank, share, summed
from expunge.errors import SettingError
from expunge.methods._modes import NORMALISATION


class Split:
    """Each process runs the network on its share of a batch, and the gradients of all are added up.

    With one process nothing is split. Where a batch has fewer examples than there are processes, or the method's do not
    split, each takes all of it, and its share of the weight.

    Attributes:
        weight: that of the mean loss of this process's part in the mean loss of the batch.
    """

    def __init__(self, model: nn.Module, splits: bool = True, dropout: bool = False) -> None:
        """Gives the model the first process's weights; noise of dropout is drawn by each process for itself."""
        self._model, self._count = model, count()
        self._splits, self._part, self._num, self.weight = splits and self._count > 1, False, 0, 1.0
        as_first_model(model)
        if self._splits and dropout:
            torch.manual_seed((torch.initial_seed() + rank()) % 2**63)

    def own(self, index: Tensor) -> Tensor:
        """Of the positions of a batch (B,) those that are this process's."""
        part = share(len(index)) if self._splits else None
        own = index if part is None else index[part]
        self._part, self._num = part is not None, len(index)
        self.weight = len(own) / len(index) if self._part else 1 / self._count
        return own

    def all_rows(self, rows: Tensor) -> Tensor:
        """The rows of the whole batch (B, ...), of which these are this process's."""
        return gathered(rows, self._num) if self._part else rows

    def total(self, value: Tensor) -> float:
        """The sum of a number over all processes."""
        return float(value if self._count == 1 else summed(value.clone()))

    def spread(self, gradients_of: Sequence[Tensor]) -> None:
        """Leaves each process its share of the gradients that are to be added to: all are added up once more."""
        if self._count > 1:
            for parameter in gradients_of:
                if parameter.grad is not None:
                    parameter.grad.div_(self._count)

    def statistics(self) -> AbstractContextManager[Any]:
        """Where layers that normalise by the batch do so by all of it, not by this process's part."""
        if not self._part or not any(m.training for m in self._model.modules() if isinstance(m, NORMALISATION)):
            return nullcontext()
        return _WholeBatch(self.weight)

    def state(self, rng: torch.Generator) -> Tensor | None:
        """The generator's state, where `check_nothing_drawn` is to know it."""
        return rng.get_state() if self._part else None

    def check_nothing_drawn(self, state: Tensor | None, rng: torch.Generator, name: str) -> None:
        """Raises `SettingError` where numbers were drawn since: each process drew others, or the same for others."""
        if state is not None and not torch.equal(state, rng.get_state()):
            raise SettingError(f"{name} draws random numbers within a step: set splits = False in its class")


class _WholeBatch(TorchFunctionMode):
    """Normalises batches by the statistics of all processes' parts: torch's own layer for it runs on GPUs alone."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self._weight = weight

    def __torch_function__(self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        made = func(*args, **kwargs)
        if func is F.instance_norm:
            self._average(*args, **kwargs)
        return made

    def _average(
        self,
        _: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        *others: Any,
        **more: Any,
    ) -> None:
        """Running statistics of instances are means over examples: so each process's weigh by its share of them."""
        for running in (running_mean, running_var):
            if running is not None and use_input_stats:
                running.copy_(summed(running * self._weight))


def _batch_norm(
    given: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, with the mean and variance of all processes' inputs (B, C, ...)."""
    if not training:
        return F.batch_norm(given, running_mean, running_var, weight, bias, False, momentum, eps)
    x = given if given.dtype == torch.float64 else given.float()
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    sums = Summed.apply(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]))
    num = sums[-1].detach()
    mean = sums[:-1] / num
    apart = x - mean.view(shape)
    variance = Summed.apply(apart.square().sum(axes)) / num
    with torch.no_grad():
        for running, now in ((running_mean, mean), (running_var, variance * num / (num - 1).clamp(min=1))):
            if running is not None:
                running.lerp_(now.to(running), momentum)
    x = apart * (variance + eps).rsqrt().view(shape)
    x = x if weight is None else x * weight.view(shape)
    x = x if bias is None else x + bias.view(shape)
    made: Tensor = x.to(given.dtype)
    return made
