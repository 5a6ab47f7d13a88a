"""How concentrated the first step of unlearning one example is, for real examples of a real model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiments.theory.head import features_and_head, with_bias
from expunge.arrays import Booleans, Floats, Integers
from expunge.data import Examples, materialise
from expunge.data.examples import check_labels
from expunge.methods.random_label import wrong_labels
from expunge.progress import track
from expunge.randomness import stream
from expunge.theory import (
    feature_shares,
    gini,
    l1_to_boundary_ratio,
    majorizes,
    participation_ratio,
    row_shares,
    second_best,
)

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
        label_probability: p_y, float64, shape (N,).
        predicted: bool, shape (N,): the model predicts the label, which is where the theorem applies.
        majorized: bool, shape (N,): targeted's row shares majorize those of gradient ascent.
        l1_ratio: float64, shape (N,): `theory.l1_to_boundary_ratio` for the second-best class.
    """

    closed_form: Mapping[str, UpdateShape]
    autograd: Mapping[str, UpdateShape]
    disagreement: float
    label_probability: Floats
    predicted: Booleans
    majorized: Booleans
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
    `RandomLabel` draws with the same seed. "Towards Safe Machine Unlearning", theorem 4.1; see docs/research/theory.md.

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
    features, head = features_and_head(model, examples, batch_size=batch_size)
    with torch.no_grad():
        probabilities = head(features).softmax(1).numpy()
    check_labels(examples.labels, probabilities.shape[1], "given set")
    labels = examples.labels.cpu()
    y, second = labels.numpy(), second_best(probabilities, labels.numpy())
    drawn = wrong_labels(labels, probabilities.shape[1], stream("method", seed)).numpy()
    targets = {"targeted": (second, y), "gradient_ascent": (y, second), "random_label": (drawn, y)}
    columns = feature_shares(features.numpy(), bias=head.bias is not None)
    rows = {name: row_shares(probabilities, target) for name, (target, _) in targets.items()}
    closed, by_autograd = {}, {}
    for name, (target, other) in track(targets.items(), "measuring examples", len(targets)):
        closed[name] = _shape(target, other, _from_shares(rows[name], columns))
        by_autograd[name] = _shape(target, other, _gradients(head, features, torch.from_numpy(target)))
    differences = [
        np.abs(vars(by_autograd[name])[measure] / np.where(values == 0, 1, values) - (values != 0)).max()
        for name, shape in closed.items()
        for measure, values in vars(shape).items()
    ]
    return Concentration(
        closed_form=closed,
        autograd=by_autograd,
        disagreement=float(max(differences)),
        label_probability=np.take_along_axis(probabilities, y[:, None], axis=1)[:, 0].astype(np.float64),
        predicted=probabilities.argmax(1) == y,
        majorized=majorizes(rows["targeted"], rows["gradient_ascent"]),
        l1_ratio=l1_to_boundary_ratio(probabilities, y, second),
    )


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
        yield with_bias({name: g.abs() for name, g in per_example(weights, o, hot).items()}).numpy()


def _from_shares(rows: Floats, columns: Floats) -> Iterable[Floats]:
    """v wᵀ of each example, a part at a time."""
    part = max(1, MAX_ENTRIES // (rows.shape[1] * columns.shape[1]))
    for start in range(0, len(rows), part):
        yield rows[start : start + part, :, None] * columns[start : start + part, None, :]


def _shape(target: Integers, other: Integers, parts: Iterable[Floats]) -> UpdateShape:
    """The measures of |Δφ| (N, C, M), given in parts along the examples."""
    columns: list[tuple[Floats, ...]] = []
    start = 0
    for sizes in parts:
        rows, entries = sizes.sum(2), sizes.reshape(len(sizes), -1)
        here = np.arange(len(sizes))
        pair = rows[here, target[start + here]] + rows[here, other[start + here]]
        pr = participation_ratio
        columns.append((pair / rows.sum(1), pr(rows), pr(entries), gini(rows), gini(entries)))
        start += len(sizes)
    share, pr_rows, pr_entries, gini_rows, gini_entries = (np.concatenate(c) for c in zip(*columns, strict=True))
    return UpdateShape(
        pair_share=share, pr_rows=pr_rows, pr_entries=pr_entries, gini_rows=gini_rows, gini_entries=gini_entries
    )
