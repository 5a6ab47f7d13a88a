"""The base class of methods that descend a gradient, and the loop that they share."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.distributed import add_gradients, agreed
from expunge.errors import NonFiniteError, SettingError
from expunge.methods._modes import kept_statistics, set_mode
from expunge.methods._split import Split
from expunge.methods._task import Method, Needs, Presets, Recorder, Task
from expunge.models import forward, refusing, split_logits_of
from expunge.progress import AT_MOST, advance
from expunge.records import Epoch
from expunge.settings import Ranges, check_settings

PROBED = 256
"""Examples, at most, that a step size is chosen on."""

MOMENTUM: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9}
"""How most published settings descend."""


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """The settings of every method that minimises a loss. A subclass adds its own, and `run`.

    Whole numbers in fields whose names end in `_size` are checked here: ≥ 1. docs/howto/own-method.md has examples.

    Attributes:
        optimizer: `adam` (coupled weight decay, as torch.optim.Adam), `adamw` (decoupled) or `sgd`.
        lr: learning rate, > 0, finite. The paper, of its own method: 1e-4 with Adam (section 5).
        weight_decay: L2 coefficient, ≥ 0. The paper: 1e-5. With Adam it moves even weights without gradient, by
            about lr a step.
        momentum: in [0, 1), for `sgd` alone.
        epochs: passes over the examples, ≥ 0: the budget.
        max_steps: ends the run after so many updates, ≥ 0, whatever `epochs` says; None: no such limit.
        batch_size: examples a step, ≥ 1; None takes all at once, as Algorithm 1 does.
        micro_batch_size: examples at a time, ≥ 1, where a step's do not fit into memory: their gradients are added up.
            Batch normalisation in train mode takes the statistics of these few. None: the whole step's at once.
        precision: `fp32` is that of the weights; `bf16` runs the network under autocast in bfloat16, with weights as
            they are: about half the memory, and twice as fast where the processor has it.
        gradient_checkpointing: whether what a model of transformers or timm computes on its way is computed again for
            the gradient, and not kept: less memory, about a third slower. Not with batch normalisation.
        stop: `budget` runs all epochs; `epsilon` ends when the loss is below `epsilon` (Algorithm 1, line 19);
            `forgotten` ends when, in eval mode, every forgotten example is predicted as the method wants it,
            which costs one more forward pass over the forget set an epoch.
        epsilon: > 0, on the scale of the method's loss; for `epsilon` alone.
        norm: mode of the normalisation layers that keep running statistics. `train` normalises by the batch at
            hand and updates the statistics from it, as most published code does; `eval` keeps the statistics. A
            layer whose parameters are all frozen (`requires_grad_(False)`) keeps them in either mode. One without
            parameters goes with the layer before it in its container, or with the one after it if it is the first.
        dropout: whether dropout layers are active. A class decides it, no setting: they are off where outputs are
            moved to given values, which their noise would hide.
        missed: the warning where `stop="forgotten"` did not end the run.
        splits: whether several processes may each take a part of a step's examples. Not where the loss of one example
            hangs on others, or numbers are drawn between an example's logits and its loss.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-5
    momentum: float = 0.0
    epochs: int = 20
    max_steps: int | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    stop: Literal["budget", "epsilon", "forgotten"] = "budget"
    epsilon: float = 0.05
    norm: Literal["train", "eval"] = "train"

    needs: ClassVar[Needs] = Needs.FORGET
    presets: ClassVar[Presets] = {"paper": {}}
    dropout: ClassVar[bool] = True
    missed: ClassVar[str] = "the budget ended before every example was forgotten; raise epochs or lr"
    splits: ClassVar[bool] = True

    ranges: ClassVar[Ranges] = {
        "lr": "above 0",
        "weight_decay": "at least 0",
        "momentum": "at least 0, below 1",
        "epochs": "at least 0",
        "max_steps": "at least 0",
        "epsilon": "above 0",
    }

    def __post_init__(self) -> None:
        check_settings(self)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a run. A subclass may make another one. Raises as `trainable`."""
        parameters = trainable(model)
        # One pass over the memory a step, in place of six: on a CPU a step of Adam takes a quarter of the time.
        fused = all(p.is_floating_point() and p.device.type in {"cpu", "cuda"} for p in parameters)
        shared: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "fused": fused}
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=self.momentum, **shared)
        return (torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW)(parameters, **shared)

    def descent(
        self,
        model: nn.Module,
        task: Task,
        *,
        inputs: Tensor | None = None,
        goal: Callable[[Tensor], Tensor] | None = None,
        rng: torch.Generator,
        record: Recorder,
    ) -> "Descent":
        """The loop of a run, by these settings.

        Args:
            model: changed in place.
            task: gives the forget set.
            inputs: what the model is run on, shape (N, ...): the F forgotten examples and then any others; none of the
                forgotten ones where `needs` lacks `FORGET`. None: the forget set alone.
            goal: maps logits (F, C) of the whole forget set to a bool an example: predicted as the method wants it.
                None: predicted as anything but the true label.
            rng: a CPU generator; it draws the batches where `batch_size` is smaller than N.
            record: what is reported goes here.

        Raises:
            SettingError: every parameter of the model is frozen.
        """
        labels = task.forget.labels if Needs.FORGET in self.needs else task.forget.labels[:0]
        inputs = task.forget.inputs if inputs is None else inputs
        return Descent(self, model, inputs, labels, goal or (lambda logits: logits.argmax(1) != labels), rng, record)


@dataclass(eq=False)
class Descent:
    """The loop of one run, which `GradientMethod.descent` makes. It keeps to the budget, the stop rule and the record.

        for index, logits in descent:
            descent.step(losses)

    goes through all inputs in each epoch. Where an epoch begins with something, or consists of other passes:

        for epoch in descent.epochs():
            for index, logits in descent.batches():
                descent.step(losses)
    """

    method: GradientMethod
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    goal: Callable[[Tensor], Tensor]
    rng: torch.Generator
    record: Recorder

    def __post_init__(self) -> None:
        self._parameters = trainable(self.model)
        self._optimizer = self.method.make_optimizer(self.model)
        self._kept = kept_statistics(self.model, self.method.norm)
        self._split = Split(self.model, self.method.splits, self.method.dropout)
        self._epoch, self._over = 0, False
        self._whole, self._losses, self._seen = False, list[float](), list[Tensor]()  # of the pass at hand
        self._size, self._loss = 0, 0.0  # of the step at hand, which may come in parts
        self._begins, self._ends, self._share = True, True, 1.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in self.epochs():
            yield from self.batches()

    def epochs(self) -> Iterator[int]:
        """Yields 0, 1, … until a stop rule ends the run, and warns where none did."""
        method, record = self.method, self.record
        note = "" if method.stop == "budget" else AT_MOST
        for epoch in range(method.epochs):
            advance("forgetting", epoch, method.epochs, note)
            if method.stop == "forgotten" and self._all_reached():
                return advance("forgetting", epoch, epoch, "all as wanted")
            self._epoch = epoch
            yield epoch
            if self._over:
                return advance("forgetting", epoch + 1, epoch + 1, "as far as wanted")
            if record.steps == method.max_steps:
                break
        advance("forgetting", self._epoch + 1, self._epoch + 1)
        if method.stop == "forgotten" and not self._all_reached():
            cut = record.steps == method.max_steps
            record.warn(
                "max_steps ended the run before every example was forgotten; raise it" if cut else method.missed
            )
        if method.stop == "epsilon":
            record.warn(f"the budget ended before the loss was below epsilon={method.epsilon}; raise epochs, or lr")

    def batches(
        self, positions: Tensor | None = None, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: yields the positions of a batch, int64 (B,), and its logits (B, C). Recorded when it is done.

        Args:
            positions: those that the pass goes through, int64, shape (K,); None: all, by the method's `batch_size`.
            batch_size: None: all at once.
        """
        inputs, method, record = self.inputs, self.method, self.record
        if positions is None:
            positions, batch_size = torch.arange(len(inputs), device=inputs.device), method.batch_size
        set_mode(self.model, self._kept, dropout=method.dropout)
        size = min(batch_size or len(positions), len(positions))
        self._whole, self._losses, self._seen, began = size == len(positions), [], [], record.steps
        if not self._whole:
            positions = positions[torch.randperm(len(positions), generator=self.rng, device="cpu").to(inputs.device)]
        for number, index in enumerate(positions.split(size)):
            if record.steps == method.max_steps:
                unused = int((positions[number * size :] < len(self.labels)).sum())
                if self._epoch == 0 and record.steps and unused:
                    record.warn(f"max_steps ended the first pass early: {unused} forgotten examples were never used")
                break
            parts = index.split(method.micro_batch_size or len(index))
            self._size, self._loss = len(index), 0.0
            for part, all_at in enumerate(parts):
                at = self._split.own(all_at)
                if len(all_at) == 1 and any(m.training for m in self.model.modules() if isinstance(m, _BatchNorm)):
                    # One example has no statistics to normalise by.
                    set_mode(self.model, kept_statistics(self.model, "eval"), dropout=method.dropout)
                    record.warn("a batch held one example: its normalisation layers ran in eval mode")
                self._begins, self._ends, self._share = part == 0, part == len(parts) - 1, len(all_at) / len(index)
                batch = inputs if self._whole and len(at) == len(inputs) else inputs[at]
                with refusing(batch, f"a batch of {len(at)} in {method.norm} mode"), self._split.statistics():
                    logits = forward(self.model, batch)
                self._logits = self._split.all_rows(logits.detach())
                drawn = self._split.state(self.rng)
                yield at, logits
                self._split.check_nothing_drawn(drawn, self.rng, method.name)
        self._record_pass(positions, began)

    def step(self, losses: Tensor, *, fresh: bool = True) -> None:
        """Makes one update that lowers the mean of `losses`, one for each example of the batch, shape (B,).

        Where a step comes in parts (`micro_batch_size`), they are weighed by their sizes, and the update is made after
        the last. Where the batch is the whole pass, and the loss is below `epsilon` or `end` was called, the run ends
        without it. Where it is not `fresh`, the gradient is added to that of the steps before.

        Raises:
            NonFiniteError: the loss became NaN or infinite; says before which step.
            SettingError: the loss depends on no parameter that may change.
        """
        weight, record = self._share * self._split.weight, self.record
        value = losses.mean() if weight == 1 else losses.mean() * weight
        loss = self._split.total(value.detach()) / self._share
        if not math.isfinite(loss):
            advice = "lower lr, or set max_steps" if record.steps else "no step size helps, other settings may"
            raise NonFiniteError(
                f"the loss became {loss} after {record.steps} steps; the model is left as it was: {advice}"
            )
        self._losses.append(loss)
        self._seen.append(self._logits)
        self._loss += loss * self._share
        self._over |= self._whole and self._ends and self._is_below_epsilon(self._loss)
        if self._whole and self._over:
            return
        require_gradient(value)
        if self._begins:
            if fresh:
                self._optimizer.zero_grad(set_to_none=True)
            self._split.spread(self._parameters)
        value.backward()
        if self._ends:
            dense_gradients(self._parameters)
            add_gradients(self._parameters)
            self._optimizer.step()
            record.steps += 1
            record.examples_seen += self._size

    def slow(self, factor: float) -> None:
        """Multiplies the step size by `factor`, for the updates from here on."""
        for group in self._optimizer.param_groups:
            group["lr"] *= factor

    def end(self) -> None:
        """Ends the run: after this pass, and without the update of a step over all examples."""
        self._over = True

    def _is_below_epsilon(self, loss: float) -> bool:
        return self.method.stop == "epsilon" and loss < self.method.epsilon

    def _all_reached(self) -> bool:
        reached = agreed(bool(self.goal(split_logits_of(self.model, self.inputs[: len(self.labels)])).all()))
        if reached and self.record.first_step_all_reached is None:
            self.record.first_step_all_reached = self.record.steps
        return reached

    def _record_pass(self, positions: Tensor, began: int) -> None:
        """Adds the pass. A single batch's logits on all forgotten examples say whether the goal was met."""
        if not self._losses:
            return
        record, logits, num_forget = self.record, torch.cat(self._seen), len(self.labels)
        # The last batch may be smaller.
        loss = sum(loss * len(part) for loss, part in zip(self._losses, self._seen, strict=True)) / len(logits)
        self._over |= self._is_below_epsilon(loss)
        accuracy, forgotten = None, positions < num_forget
        if num_forget and len(logits) == len(positions) and int(forgotten.sum()) == num_forget:
            forget_logits = torch.empty_like(logits[:num_forget])
            forget_logits[positions[forgotten]] = logits[forgotten]
            accuracy = float((forget_logits.argmax(1) == self.labels).double().mean())
            if record.first_step_all_reached is None and self._whole and bool(self.goal(forget_logits).all()):
                record.first_step_all_reached = began  # the logits precede the update
        self._over = agreed(self._over | record.add(Epoch(loss=loss, forget_accuracy=accuracy)))


def paced_lr(
    method: GradientMethod,
    pace: float,
    model: nn.Module,
    inputs: Tensor,
    losses: Callable[[Tensor, Tensor], Tensor],
    *,
    most: float,
) -> float:
    """The step size whose first step lowers the loss by the share `pace`, to first order, but at most `most`.

    Adam's first step moves each parameter by the step size along its gradient's sign, so that the loss falls by it
    times ‖g‖₁ (AdamW's too); a plain step lowers it by the step size times ‖g‖₂². The gradient is that of `PROBED`
    examples, evenly spaced, since they may be sorted by class, with normalisation statistics kept.

    Args:
        method: its optimizer, batch size and dropout count.
        pace: > 0.
        model: left as it is, but for its mode.
        inputs: shape (N, ...).
        losses: maps logits (B, C) and positions in `inputs` (B,) to one loss an example (B,).
        most: > 0.
    """
    set_mode(model, kept_statistics(model, "eval"), dropout=method.dropout)
    num, parameters, total = min(PROBED, len(inputs)), trainable(model), 0.0
    slopes = [torch.zeros_like(parameter) for parameter in parameters]
    probed = torch.arange(num, device=inputs.device) * len(inputs) // num
    for index in probed.split(method.batch_size or num):
        value = losses(forward(model, inputs[index]), index).sum() / num
        for slope, part in zip(slopes, gradients(value, parameters), strict=True):
            slope += part
        total += float(value.detach())
    power = 2 if method.optimizer == "sgd" else 1
    size = sum(float(slope.abs().pow(power).sum(dtype=torch.float64)) for slope in slopes)
    fallen = pace * total
    return agreed(min(most, fallen / size) if size > 0 and fallen > 0 else most)


def require_gradient(value: Tensor) -> None:
    """Raises `SettingError` where a loss depends on no parameter that may change."""
    if not value.requires_grad:
        raise SettingError(
            "the loss depends on no parameter that may change: set requires_grad on others, or take no_grad and "
            "detach out of the model's forward"
        )


def gradients(value: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of `value` in each parameter, zeros where it does not enter. Raises as `require_gradient`."""
    require_gradient(value)
    return torch.autograd.grad(value, list(parameters), materialize_grads=True)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that may change; raises `SettingError` if there are none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise SettingError("every parameter of the model is frozen; set requires_grad on those that may change")
    return parameters


def dense_gradients(parameters: Sequence[Tensor]) -> None:
    """Makes those of embeddings dense: no optimizer here takes sparse ones."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
