"""How concentrated unlearning's updates of a real model are: per example in theory, and as a run leaves them."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge import theory
from expunge.audit.parameter_change import last_layer, parameter_change
from expunge.data import Examples, materialise
from expunge.data.examples import check_labels
from expunge.errors import InputError
from expunge.methods import NegGrad, RandomLabel, Targeted
from expunge.methods._loop import Descent
from expunge.methods.random_label import wrong_labels
from expunge.randomness import stream

Floats = NDArray[np.float64]
MAX_ENTRIES = 2**23  # entries of per-example gradients held at once: 64 MiB in float64


@dataclass(frozen=True, kw_only=True)
class UpdateShape:
    """How concentrated |Δφ| of the last layer is after one step on one example: float64, shape (N,) each.

    Attributes:
        pair_share: share of ‖Δφ‖₁ in the row of y and that of the wrong class concerned (gradient ascent: y′).
        pr_rows, pr_entries: participation ratio over the C rows, and over the C × M (with a bias C × (M + 1)) entries.
        gini_rows, gini_entries: Gini coefficient over the same.
    """

    pair_share: Floats
    pr_rows: Floats
    pr_entries: Floats
    gini_rows: Floats
    gini_entries: Floats


@dataclass(frozen=True, kw_only=True)
class Concentration:
    """What `concentration` measured. The mappings' keys: `targeted`, `gradient_ascent`, `random_label`.

    Attributes:
        closed_form: from p and o by `expunge.theory`.
        autograd: from each example's gradient, computed in float64.
        disagreement: the largest relative difference between the two, over all methods, measures and examples.
        predicted: bool, shape (N,): the model predicts the label, which is where the theorem applies.
        majorized: bool, shape (N,): targeted's row shares majorize those of gradient ascent.
        l1_ratio: float64, shape (N,): `theory.l1_to_boundary_ratio` for the second-best class.
    """

    closed_form: Mapping[str, UpdateShape]
    autograd: Mapping[str, UpdateShape]
    disagreement: float
    predicted: NDArray[np.bool_]
    majorized: NDArray[np.bool_]
    l1_ratio: Floats

    def medians(self) -> dict[str, dict[str, float]]:
        """The median over the examples of each closed-form measure, by method: JSON values."""
        return {
            name: {measure: float(np.median(values)) for measure, values in vars(shape).items()}
            for name, shape in self.closed_form.items()
        }


def concentration(
    model: nn.Module, dataset: "Examples | Dataset[Any]", *, seed: int = 0, batch_size: int = 500
) -> Concentration:
    """Measures, example by example, how one gradient step would spread over the model's last linear layer.

    Features and logits come from the model in eval mode; all that follows is float64. Three updates are compared:
    descent toward `theory.second_best`, ascent from the label, descent toward a random wrong label, the one that
    `RandomLabel` draws with the same seed. "Towards Safe Machine Unlearning", theorem 4.1; see docs/theory.md.

    Args:
        model: maps a batch to logits (B, C), which its last linear layer puts out as they are; its mode is put back.
        dataset: examples in memory, or any dataset of (input, label).
        seed: of the random labels.
        batch_size: examples a forward pass.

    Raises:
        InputError: the logits are not the output of a plain linear layer on features (B, M), labels are out of
            range, or an example's gradient is exactly zero.

    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> result = concentration(model, Examples(torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])))
    >>> result.disagreement < 1e-6, result.closed_form["targeted"].pair_share.shape
    (True, (5,))
    """
    examples = dataset if isinstance(dataset, Examples) else materialise(dataset, "given")
    features, head = _features(model, examples, batch_size)
    with torch.no_grad():
        probabilities = head(features).softmax(1).numpy()
    check_labels(examples.labels, probabilities.shape[1], "given set")
    labels = examples.labels.cpu()
    y, second = labels.numpy(), theory.second_best(probabilities, labels.numpy())
    drawn = wrong_labels(labels, probabilities.shape[1], stream("method", seed)).numpy()
    targets = {"targeted": (second, y), "gradient_ascent": (y, second), "random_label": (drawn, y)}
    columns = theory.feature_shares(features.numpy(), bias=head.bias is not None)
    closed = {
        name: _shape(target, other, _from_shares(theory.row_shares(probabilities, target), columns))
        for name, (target, other) in targets.items()
    }
    by_autograd = {
        name: _shape(target, other, _gradients(head, features, torch.from_numpy(target)))
        for name, (target, other) in targets.items()
    }
    differences = [
        np.abs(vars(by_autograd[name])[measure] / np.where(values == 0, 1, values) - (values != 0)).max()
        for name, shape in closed.items()
        for measure, values in vars(shape).items()
    ]
    rows = {name: theory.row_shares(probabilities, target) for name, (target, _) in targets.items()}
    return Concentration(
        closed_form=closed,
        autograd=by_autograd,
        disagreement=float(max(differences)),
        predicted=probabilities.argmax(1) == y,
        majorized=theory.majorizes(rows["targeted"], rows["gradient_ascent"]),
        l1_ratio=theory.l1_to_boundary_ratio(probabilities, y, second),
    )


@dataclass(frozen=True, kw_only=True)
class UpdateMeasurement:
    """The change that one run left behind. JSON values.

    Attributes:
        method: its key in `methods`.
        optimizer: `sgd` or `adam`.
        scope: the parameters that were free to change: `last_layer` or `all`.
        steps: full-batch updates made.
        pr_rows, pr_entries, gini_rows: of |Δφ| of the last layer, bias included; None where it did not change.
        l1, l1_last_layer: ‖Δθ‖₁ and ‖Δφ‖₁.
        forget_accuracy: afterwards, in [0, 1].
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


class _Unlearned(Protocol):
    @property
    def model(self) -> nn.Module: ...
    @property
    def trace(self) -> Any: ...


METHODS_COMPARED: Mapping[str, Descent] = {
    "targeted": Targeted(),
    "targeted_lam3": Targeted(lam=3.0),
    "neg_grad": NegGrad(),
    "random_label": RandomLabel(),
}


def measure_updates(
    model: nn.Module,
    forget: Dataset[Any],
    *,
    unlearn: Callable[..., _Unlearned],
    methods: Mapping[str, Descent] = METHODS_COMPARED,
    steps: Sequence[int] = (1, 2, 5, 10, 20),
    seed: int = 0,
    norm: Literal["train", "eval"] = "train",
) -> tuple[UpdateMeasurement, ...]:
    """Measures the updates that whole runs make on a batch: what the theorem, on one example and step, leaves open.

    For each method: one SGD step of all parameters; then Adam, the last layer alone and all parameters, for each
    number of `steps` (each a run of its own from the start, with the same seed). All runs are full-batch and in
    float64, on a copy of the model, so that Δφ is not lost to rounding. SGD runs without weight decay, and it and
    the last layer alone with normalisation layers in eval mode, so that features stay as they are (in a network
    with dropout, which stays active, they do not).

    Args:
        model: maps a batch to logits (B, C) and works in float64; left untouched.
        forget: the examples to forget, a dataset of (input, label).
        unlearn: `expunge.unlearn`; handed in, since audits know nothing of the driver.
        methods: by name; learning rate, weight decay and λ are taken from each, the budget is not.
        steps: numbers of Adam updates, each ≥ 1. The work is their sum, twice, for each method.
        seed: of everything random.
        norm: mode of the normalisation layers where Adam changes all parameters.
    """
    wide = copy.deepcopy(model).double()
    narrow = copy.deepcopy(wide).requires_grad_(False)
    narrow.get_submodule(last_layer(narrow)).requires_grad_(True)
    measured = []
    for name, method in methods.items():
        sgd = replace(method, optimizer="sgd", weight_decay=0.0, momentum=0.0, norm="eval")
        plans: list[tuple[str, nn.Module, Descent, int]] = [("all", wide, sgd, 1)]
        for scope, start, own in (
            ("last_layer", narrow, replace(method, optimizer="adam", norm="eval")),
            ("all", wide, replace(method, optimizer="adam", norm=norm)),
        ):
            plans += [(scope, start, own, num) for num in steps]
        for scope, start, settings, num in plans:
            run = replace(settings, epochs=num, max_steps=num, batch_size=None, stop="budget")
            result = unlearn(start, forget, method=run, seed=seed)
            measured.append(_measurement(name, scope, run, start, result))
    return tuple(measured)


def _measurement(name: str, scope: str, run: Descent, before: nn.Module, result: _Unlearned) -> UpdateMeasurement:
    originals = dict(before.named_parameters())
    change = parameter_change(originals, result.model)
    last = last_layer(before)
    deltas = {
        key.rpartition(".")[2]: (value.detach() - originals[key].detach()).abs().cpu().double()
        for key, value in result.model.named_parameters()
        if key.rpartition(".")[0] == last
    }
    moved = bool(change.l1_last_layer)
    matrix = _with_bias(deltas).numpy()
    return UpdateMeasurement(
        method=name,
        optimizer=run.optimizer,
        scope=scope,
        steps=result.trace.steps,
        pr_rows=float(theory.participation_ratio(matrix.sum(1))) if moved else None,
        pr_entries=float(theory.participation_ratio(matrix.ravel())) if moved else None,
        gini_rows=float(theory.gini(matrix.sum(1))) if moved else None,
        l1=change.l1,
        l1_last_layer=change.l1_last_layer,
        forget_accuracy=result.trace.forget_accuracy_after,
    )


def _features(model: nn.Module, examples: Examples, batch_size: int) -> tuple[Tensor, nn.Linear]:
    """Inputs (N, M) of the last linear layer in eval mode, and a copy of that layer: float64, on the CPU."""
    name = last_layer(model)
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear) or set(dict(layer.named_parameters())) - {"weight", "bias"}:
        raise InputError(f"the model's last layer {name!r} is not a plain linear layer, which the theorem is about")
    reference = next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    passed: list[tuple[Tensor, Tensor]] = []
    parts: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, output: passed.append((given[0], output)))
    model.eval()
    try:
        for start in range(0, len(examples), batch_size):
            index = torch.arange(start, min(start + batch_size, len(examples)))
            passed.clear()
            with torch.no_grad():
                logits = model(examples.take(index).to(reference.device, reference.dtype).inputs)
            if len(passed) != 1 or passed[0][0].ndim != 2 or not torch.equal(passed[0][1].to(logits), logits):
                raise InputError(f"the logits are not what the last linear layer {name!r} puts out for each example")
            parts.append(passed[0][0].double().cpu())
    finally:
        hook.remove()
        for module, training in modes.items():
            module.training = training
    return torch.cat(parts), copy.deepcopy(layer).double().cpu()


def _gradients(head: nn.Linear, features: Tensor, target: Tensor) -> Iterable[Floats]:
    """|∂ℓ/∂φ| of each example by autograd, bias as the last column: parts of shape (B, C, M or M + 1)."""
    weights = {name: value.detach() for name, value in head.named_parameters()}

    def loss(parameters: dict[str, Tensor], o: Tensor, one_hot: Tensor) -> Tensor:
        # Cross-entropy toward k as log(1 + Σ_{i≠k} exp(z_i − z_k)): its gradient keeps its digits where p_k is near 1.
        z: Tensor = torch.func.functional_call(head, parameters, (o,))
        others = z.masked_fill(one_hot, -torch.inf).logsumexp(0)
        return -nn.functional.logsigmoid(z.masked_fill(~one_hot, 0.0).sum() - others)

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    part = max(1, MAX_ENTRIES // (head.out_features * (head.in_features + 1)))
    one_hot = nn.functional.one_hot(target, head.out_features).bool()
    for o, hot in zip(features.split(part), one_hot.split(part), strict=True):
        yield _with_bias({name: g.abs() for name, g in per_example(weights, o, hot).items()}).numpy()


def _with_bias(parameters: Mapping[str, Tensor]) -> Tensor:
    """A weight (..., C, M) with the bias (..., C), where there is one, as its last column."""
    parts = [parameters["weight"]]
    if "bias" in parameters:
        parts.append(parameters["bias"][..., None])
    return torch.cat(parts, -1)


def _from_shares(rows: Floats, columns: Floats) -> Iterable[Floats]:
    """v wᵀ of each example, a part at a time."""
    part = max(1, MAX_ENTRIES // (rows.shape[1] * columns.shape[1]))
    for start in range(0, len(rows), part):
        yield rows[start : start + part, :, None] * columns[start : start + part, None, :]


def _shape(target: NDArray[np.int64], other: NDArray[np.int64], parts: Iterable[Floats]) -> UpdateShape:
    """The measures of |Δφ| (N, C, M), given in parts along the examples."""
    columns: list[tuple[Floats, ...]] = []
    start = 0
    for sizes in parts:
        rows, entries = sizes.sum(2), sizes.reshape(len(sizes), -1)
        here = np.arange(len(sizes))
        pair = rows[here, target[start + here]] + rows[here, other[start + here]]
        pr, gini = theory.participation_ratio, theory.gini
        columns.append((pair / rows.sum(1), pr(rows), pr(entries), gini(rows), gini(entries)))
        start += len(sizes)
    share, pr_rows, pr_entries, gini_rows, gini_entries = (np.concatenate(c) for c in zip(*columns, strict=True))
    return UpdateShape(
        pair_share=share, pr_rows=pr_rows, pr_entries=pr_entries, gini_rows=gini_rows, gini_entries=gini_entries
    )
