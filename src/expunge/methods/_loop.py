"""The one gradient loop that the methods share, and its settings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.errors import NonFiniteError, SettingError
from expunge.methods._task import Recorder
from expunge.models import forward, logits_of, refusing
from expunge.progress import track
from expunge.records import Epoch
from expunge.settings import require, require_types

NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers that behave differently in train and eval mode: they keep running statistics."""

PROBED = 256
"""Examples, at most, that a step size is chosen on."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a method minimises its loss. Every choice that the paper leaves open is a field here.

    Attributes:
        optimizer: `adam` (coupled weight decay, as torch.optim.Adam), `adamw` (decoupled) or `sgd`.
        lr: learning rate, > 0, finite. The paper: 1e-4 with Adam (section 5).
        weight_decay: L2 coefficient, ≥ 0. The paper: 1e-5. With Adam it moves even weights without gradient, by
            about lr a step.
        momentum: in [0, 1), for `sgd` alone.
        epochs: passes over the examples, ≥ 0: the budget.
        max_steps: ends the run after so many updates, ≥ 0, whatever `epochs` says; None: no such limit.
        batch_size: examples a step, ≥ 1; None takes all at once, as Algorithm 1 does.
        stop: `budget` runs all epochs; `epsilon` ends when the loss is below `epsilon` (Algorithm 1, line 19);
            `forgotten` ends when, in eval mode, every forgotten example is predicted as the method wants it,
            which costs one more forward pass over the forget set an epoch.
        epsilon: > 0, on the scale of the method's loss; for `epsilon` alone.
        norm: mode of the normalisation layers that keep running statistics. `train` normalises by the batch at
            hand and updates the statistics from it, as most published code does; `eval` keeps the statistics. A layer
            whose parameters are all frozen (`requires_grad`) keeps them in either mode.
        dropout: whether dropout layers are active, which a class decides and no setting: not where outputs are moved to
            given values, which its noise would hide.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-5
    momentum: float = 0.0
    epochs: int = 20
    max_steps: int | None = None
    batch_size: int | None = None
    stop: Literal["budget", "epsilon", "forgotten"] = "budget"
    epsilon: float = 0.05
    norm: Literal["train", "eval"] = "train"

    dropout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_types(self)
        ranges = {
            "optimizer": self.optimizer in {"adam", "adamw", "sgd"},
            "lr": 0 < self.lr < math.inf,
            "weight_decay": self.weight_decay >= 0,
            "momentum": 0 <= self.momentum < 1,
            "epochs": self.epochs >= 0,
            "max_steps": self.max_steps is None or self.max_steps >= 0,
            "batch_size": self.batch_size is None or self.batch_size >= 1,
            "stop": self.stop in {"budget", "epsilon", "forgotten"},
            "epsilon": self.epsilon > 0,
            "norm": self.norm in {"train", "eval"},
        }
        require(self, ranges)


def descend(
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: Descent,
    *,
    forget_labels: Tensor,
    goal: Callable[[Tensor], Tensor],
    rng: torch.Generator,
    record: Recorder,
    finished: Callable[[], bool] = lambda: False,
    passes: Callable[[int], Sequence[tuple[Tensor, int | None]]] | None = None,
    after_step: Callable[[], None] | None = None,
    missed: str = "the budget ended before every example was forgotten; raise epochs or lr",
) -> nn.Module:
    """Minimises the mean of `loss` over `inputs`, and records how it goes.

    Args:
        model: changed in place.
        inputs: shape (N, ...); the forget set comes first.
        loss: maps logits (B, C) and positions (B,), int64, to one loss an example (B,).
        settings: optimizer, budget, stop rule and mode.
        forget_labels: true labels of the forget set, int64, shape (F,) with F ≤ N; empty where `inputs` holds none.
        goal: maps logits (F, C) of the whole forget set to a bool an example: predicted as the method wants it.
        rng: a CPU generator; it draws the batches where `batch_size` is smaller than N.
        record: what is reported goes here.
        finished: a stop rule of the method's own. Once it says True, no update is made of a step over all examples,
            and a pass in mini-batches is the last.
        passes: called at the start of epoch 0, 1, …; gives the passes that the epoch consists of, each as the
            positions that it goes through, int64, shape (K,), and its batch size (None: all at once). None: one
            pass over all inputs an epoch.
        after_step: called after each update, to correct it.
        missed: what is warned of where `stop="forgotten"` did not end the run.

    Raises:
        NonFiniteError: the loss became NaN or infinite; says before which step.
    """
    size, num_forget = len(inputs), len(forget_labels)
    everything = torch.arange(size, device=inputs.device)
    parameters, optimizer = trainable(model), _optimizer(model, settings)
    for epoch in track(range(settings.epochs), "forgetting", settings.epochs):
        if settings.stop == "forgotten" and _all_reached(model, inputs[:num_forget], goal, record):
            return model
        for positions, wanted in passes(epoch) if passes else [(everything, settings.batch_size)]:
            set_mode(model, settings.norm, dropout=settings.dropout)
            batch_size = min(wanted or len(positions), len(positions))
            whole = batch_size == len(positions)
            order = positions
            if not whole:
                order = positions[torch.randperm(len(positions), generator=rng, device="cpu").to(inputs.device)]
            began, seen, losses = record.steps, list[Tensor](), list[float]()
            for index in order.split(batch_size):
                if record.steps == settings.max_steps:
                    unseen = int((order[sum(map(len, seen)) :] < num_forget).sum())
                    if epoch == 0 and record.steps and unseen:
                        record.warn(
                            f"max_steps ended the first pass early: {unseen} forgotten examples were never used"
                        )
                    break
                if len(index) == 1 and any(m.training for m in model.modules() if isinstance(m, _BatchNorm)):
                    set_mode(model, "eval", dropout=settings.dropout)  # one has no statistics to normalise by
                    record.warn("a batch held one example: its normalisation layers ran in eval mode")
                batch = inputs if len(index) == size and whole else inputs[index]
                with refusing(batch, f"a batch of {len(index)} in {settings.norm} mode"):
                    logits = forward(model, batch)
                value = loss(logits, index).mean()
                losses.append(float(value.detach()))
                if not torch.isfinite(value):
                    made = f"the loss became {losses[-1]} after {record.steps} steps; the model is left as it was: "
                    steps = "lower lr, or set max_steps"
                    raise NonFiniteError(made + (steps if record.steps else "no step size helps, other settings may"))
                seen.append(logits.detach())
                if whole and (finished() or (settings.stop == "epsilon" and losses[-1] < settings.epsilon)):
                    break
                require_gradient(value)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                dense_gradients(parameters)
                optimizer.step()
                if after_step:
                    after_step()
                record.steps += 1
                record.examples_seen += len(index)
            _record_epoch(record, began, order, seen, losses, forget_labels, goal)
            mean = _mean_loss(losses, seen)
            if finished() or (settings.stop == "epsilon" and mean is not None and mean < settings.epsilon):
                return model
        if record.steps == settings.max_steps:
            break
    if settings.stop == "forgotten" and not _all_reached(model, inputs[:num_forget], goal, record):
        cut = record.steps == settings.max_steps
        record.warn("max_steps ended the run before every example was forgotten; raise it" if cut else missed)
    if settings.stop == "epsilon":
        record.warn(f"the budget ended before the loss was below epsilon={settings.epsilon}; raise epochs, or lr")
    return model


def step_size(
    model: nn.Module, inputs: Tensor, loss: Callable[[Tensor, Tensor], Tensor], settings: Descent, pace: float
) -> float:
    """The step size with which a first step lowers the loss by the share `pace`, to first order, but at most `lr`.

    Adam's first step moves each parameter by the step size along its gradient's sign, so that the loss falls by it
    times ‖g‖₁ (AdamW's too); a plain step lowers it by the step size times ‖g‖₂².

    Args:
        model: its parameters are left as they were. The gradient is that with normalisation statistics kept.
        inputs: shape (N, ...); `PROBED` of them serve, evenly spaced, since they may be sorted by class, `batch_size`
            at a time.
        loss, settings: as in `descend`.
        pace: > 0.
    """
    set_mode(model, "eval", dropout=settings.dropout)
    num = min(PROBED, len(inputs))
    parameters, total = trainable(model), 0.0
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    probed = torch.arange(num, device=inputs.device) * len(inputs) // num
    for index in probed.split(settings.batch_size or num):
        value = loss(forward(model, inputs[index]), index).sum() / num
        require_gradient(value)
        total += float(value.detach())
        for gradient, part in zip(gradients, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
            if part is not None:
                gradient += part
    power = 2 if settings.optimizer == "sgd" else 1
    size = sum(float(gradient.abs().pow(power).sum(dtype=torch.float64)) for gradient in gradients)
    fallen = pace * total
    return min(settings.lr, fallen / size) if size > 0 and fallen > 0 else settings.lr


def require_gradient(value: Tensor) -> None:
    """Raises `SettingError` where a loss depends on no parameter that may change."""
    if not value.requires_grad:
        raise SettingError("the loss depends on no parameter that may change; set requires_grad on others")


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that may change; raises `SettingError` if there are none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise SettingError("every parameter of the model is frozen; set requires_grad on those that may change")
    return parameters


def _optimizer(model: nn.Module, settings: Descent) -> torch.optim.Optimizer:
    parameters = trainable(model)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def dense_gradients(parameters: Sequence[Tensor]) -> None:
    """Makes those of embeddings dense: no optimizer here takes sparse ones."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


def set_mode(model: nn.Module, norm: str, *, dropout: bool = True) -> None:
    """Train mode, but for normalisation layers that are to keep their statistics: all, or those that are frozen.

    Without dropout all the rest is in eval mode, wherever its dropout may be, but for recurrent layers, through which
    cuDNN has gradients in train mode alone.
    """
    model.train()
    for module in model.modules():
        if not dropout and not isinstance(module, (*NORMALISATION, nn.RNNBase)):
            module.training = False
        if isinstance(module, NORMALISATION):
            own = list(module.parameters(recurse=False))
            if norm == "eval" or (own and not any(parameter.requires_grad for parameter in own)):
                module.eval()


def _all_reached(model: nn.Module, forget: Tensor, goal: Callable[[Tensor], Tensor], record: Recorder) -> bool:
    reached = bool(goal(logits_of(model, forget)).all())
    if reached and record.first_step_all_reached is None:
        record.first_step_all_reached = record.steps
    return reached


def _record_epoch(
    record: Recorder,
    began: int,
    order: Tensor,
    seen: list[Tensor],
    losses: list[float],
    forget_labels: Tensor,
    goal: Callable[[Tensor], Tensor],
) -> None:
    """Adds the pass to the record. A single batch's logits on all forgotten examples say whether the goal was met."""
    if not losses:
        return
    accuracy = None
    num_forget = len(forget_labels)
    logits = torch.cat(seen)
    forgotten = order < num_forget
    if num_forget and len(logits) == len(order) and int(forgotten.sum()) == num_forget:
        forget_logits = torch.empty_like(logits[:num_forget])
        forget_logits[order[forgotten]] = logits[forgotten]
        accuracy = float((forget_logits.argmax(1) == forget_labels).double().mean())
        if record.first_step_all_reached is None and len(seen) == 1 and bool(goal(forget_logits).all()):
            record.first_step_all_reached = began  # the logits precede the update
    record.epochs.append(Epoch(loss=_mean_loss(losses, seen), forget_accuracy=accuracy))


def _mean_loss(losses: Sequence[float], seen: Sequence[Tensor]) -> float | None:
    """Over the examples of a pass, whose last batch may be smaller; None where there was no batch."""
    sizes = [len(logits) for logits in seen]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes) if sizes else None
