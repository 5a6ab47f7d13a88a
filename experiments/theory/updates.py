"""The updates that whole runs leave behind: how concentrated, how large, step by step."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset, TensorDataset

from experiments.theory.head import features_and_head, with_bias
from expunge.auditing.forward import accuracy
from expunge.data import materialise
from expunge.errors import InputError, SettingError
from expunge.methods import GradientMethod, Needs, NegGrad, RandomLabel, Recorder, Targeted, Task
from expunge.metrics.distances import parameter_change
from expunge.models import last_layer
from expunge.progress import advance, hidden
from expunge.theory import gini, participation_ratio
from expunge.unlearning import unlearn


@dataclass(frozen=True, kw_only=True)
class UpdateMeasurement:
    """The change that a run had made after so many steps. JSON values.

    Attributes:
        method: its key in `methods`.
        optimizer: `sgd` or `adam`.
        scope: the parameters that were free to change: `last_layer` or `all`.
        steps: full-batch updates made.
        pr_rows, pr_entries, gini_rows: of |Δφ| of the last layer, bias included; None where it did not change.
        l1, l1_last_layer: ‖Δθ‖₁ and ‖Δφ‖₁.
        forget_accuracy: afterwards, in [0, 1], in eval mode.
    """

    method: str
    optimizer: str
    scope: str
    steps: int
    pr_rows: float | None
    pr_entries: float | None
    gini_rows: float | None
    l1: float
    l1_last_layer: float
    forget_accuracy: float


_PAPER: dict[str, Any] = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-5}  # section 5; alike for all
METHODS_COMPARED: Mapping[str, GradientMethod] = {
    "targeted": Targeted(lam=1.0, **_PAPER),
    "targeted_lam3": Targeted(lam=3.0, **_PAPER),
    "neg_grad": NegGrad(**_PAPER),
    "random_label": RandomLabel(**_PAPER),
}
"""What is compared where nothing else is named: the paper's methods without retained examples, at its settings."""


def measure_updates(
    model: nn.Module,
    forget: Dataset[Any],
    *,
    methods: Mapping[str, GradientMethod] = METHODS_COMPARED,
    steps: Sequence[int] = (1, 2, 5, 10, 20),
    seed: int = 0,
    norm: Literal["train", "eval"] = "train",
) -> tuple[UpdateMeasurement, ...]:
    """Measures the updates that whole runs make on a batch: what the theorem, on one example and step, leaves open.

    For each method three full-batch runs from the same start, with the same seed:

    - one SGD step of all parameters, without weight decay, normalisation layers in eval mode, in float64, since the
      step of a method with a small gradient would be lost in the rounding of float32 weights;
    - Adam on the last layer alone, in float64, on the features that the model has in eval mode;
    - Adam on all parameters, in the model's own precision: what `unlearn` does.

    The Adam runs are looked at on their way, after each number of `steps`, and are not disturbed by it.

    Args:
        model: maps a batch to logits (B, C), which its last linear layer puts out as they are, and works in float64
            too; left untouched.
        forget: the examples to forget, a dataset of (input, label).
        methods: by name, each in need of the forget set alone; learning rate, weight decay and λ are taken from each,
            the budget is not.
        steps: numbers of Adam updates, each ≥ 1. The work of a run is that of the largest.
        seed: of everything random.
        norm: mode of the normalisation layers where Adam changes all parameters.

    Returns:
        For each method the SGD step, then the last layer alone and then all parameters by rising number of steps.

    Raises:
        SettingError: no steps, or one below 1.
        InputError: as `concentration`, and as `unlearn`.
        NonFiniteError: a loss became NaN or infinite.
    """
    if not steps or min(steps) < 1:
        raise SettingError(f"steps must be numbers of updates, each at least 1, not {list(steps)}")
    examples = materialise(forget, "forget")
    features, head = features_and_head(model, examples)
    frozen = TensorDataset(features, examples.labels.cpu())
    wide = copy.deepcopy(model).double()
    measured: list[UpdateMeasurement] = []
    for done, (name, method) in enumerate(methods.items()):
        sgd = replace(method, optimizer="sgd", weight_decay=0.0, momentum=0.0, norm="eval")
        adam = replace(method, optimizer="adam", norm=norm)
        runs: list[tuple[str, nn.Module, Dataset[Any], GradientMethod, Sequence[int]]] = [
            ("all", wide, forget, sgd, (1,)),
            ("last_layer", head, frozen, adam, steps),
            ("all", model, forget, adam, steps),
        ]
        for number, (scope, start, given, settings, stops) in enumerate(runs):
            advance("measuring updates", len(runs) * done + number, len(runs) * len(methods), name)
            run = replace(settings, epochs=max(stops), max_steps=None, batch_size=None, stop="budget")
            watched = _Watched(run, frozenset(stops), _measuring(name, scope, run, start, measured))
            try:
                with hidden():
                    unlearn(start, given, method=watched, seed=seed)
            except InputError as error:
                if start is not wide:
                    raise
                raise InputError(
                    f"one SGD step is measured in float64, which the model does not work in ({error}); it must compute "
                    "in the precision of its weights, without casts to float32"
                ) from error
    advance("measuring updates", 3 * len(methods), 3 * len(methods))
    return tuple(measured)


@dataclass(frozen=True)
class _Watched:
    """A method that is looked at on its way.

    `look` is called with the network, the task and the number of updates so far, where that is one of `stops`.
    """

    method: GradientMethod
    stops: frozenset[int]
    look: Callable[[nn.Module, Task, int], None]

    name: ClassVar[str] = "watched"
    needs: ClassVar[Needs] = Needs.FORGET

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Runs the method, and does not disturb it."""
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)

        def stepped(optimizer: torch.optim.Optimizer, *_: object) -> None:
            ours = optimizer.param_groups[0]["params"][0] is first  # the hook hears of every optimizer there is
            if ours and record.steps + 1 in self.stops:
                self.look(model, task, record.steps + 1)

        hook = register_optimizer_step_post_hook(stepped)
        try:
            return self.method.run(model, task, rng=rng, record=record)
        finally:
            hook.remove()


def _measuring(
    name: str, scope: str, run: GradientMethod, before: nn.Module, measured: list[UpdateMeasurement]
) -> Callable[[nn.Module, Task, int], None]:
    """What measures a network on its way and adds the measurement to `measured`."""
    originals = {key: value.detach() for key, value in before.named_parameters()}
    last = last_layer(before)

    def look(network: nn.Module, task: Task, steps: int) -> None:
        change = parameter_change(originals, dict(network.named_parameters()), last_layer=last)
        deltas: dict[str, Tensor] = {
            key.rpartition(".")[2]: (value.detach() - originals[key]).abs().cpu().double()
            for key, value in network.named_parameters()
            if key.rpartition(".")[0] == last
        }
        matrix = with_bias(deltas).numpy()
        moved = bool(matrix.any())
        measured.append(
            UpdateMeasurement(
                method=name,
                optimizer=run.optimizer,
                scope=scope,
                steps=steps,
                pr_rows=float(participation_ratio(matrix.sum(1))) if moved else None,
                pr_entries=float(participation_ratio(matrix.ravel())) if moved else None,
                gini_rows=float(gini(matrix.sum(1))) if moved else None,
                l1=change.l1,
                l1_last_layer=change.l1_last_layer,
                forget_accuracy=accuracy(network, task.forget),
            )
        )

    return look
