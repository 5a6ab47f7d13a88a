"""Targets nearer to retraining than ranks alone: what features in mid-network foretell, and who stays where it is."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples
from expunge.methods._confidence import scaled_confidence, transported
from expunge.methods._task import Recorder
from expunge.metrics.rank_test import UNIFORM_VARIANCE, percentile_ranks
from expunge.models import forward, logits_of

KEPT_FROM, KEPT_WIDTH = 0.3, 0.25
"""Where an example is half kept: so far above the median of the unseen φ, in their standard deviation; its width."""

HALVINGS = 20
"""Halvings of an interval that find the least value with which targets are not recognisable."""

DEPTH = 0.6
"""How deep the layer is whose inputs are the features, as a share of the layers with weights."""

RIDGE = 0.3
"""Penalty of the regression, as a share of the mean squared norm of the features."""

PROBES = 2, 3
"""Sizes of the batches that show which tensors have one row an example."""


def nearer(
    order: Tensor, by_rank: Tensor, model: nn.Module, forget: Examples, heldout: Examples, record: Recorder
) -> Tensor:
    """Targets of the N forgotten examples, shape (N,): what features foretell, plus a quantile of what they do not.

    Confident examples are kept, and none is raised (`kept`). Features may foretell forgotten examples so well that they
    would stay `recognisable`. Targets are then moved toward those by rank, as far as it takes. Where no features can be
    read, they are those by rank. `record` is warned of the latter, and where targets move more than half of the way.

    Args:
        order: by which the examples are ranked, shape (N,).
        by_rank: targets as `transported` gives them, shape (N,).
        model: the original one. It is left in eval mode.
        forget, heldout: N forgotten examples, M that the model was not trained on.
        record: takes the warnings.
    """
    layer, given = middle_layer(model, heldout.inputs), None
    if layer is not None:
        read = [features_and_logits(layer, model, part.inputs) for part in (forget, heldout)]
        if all(part.isfinite().all() for both in read for part in both):
            (asked, logits), (given, taught) = read
    if given is None:
        logits, taught = logits_of(model, forget.inputs).double().cpu(), logits_of(model, heldout.inputs).double().cpu()
    labels, known = forget.labels.cpu(), heldout.labels.cpu()
    own, unseen = scaled_confidence(logits, labels), scaled_confidence(taught, known)
    targets = by_rank.double().cpu()
    if given is None:
        record.warn("no features were found in mid-network: confident margins are kept, and others go by ranks alone")
    else:
        of_forget, of_heldout = foretold(asked, given, taught, labels, known)
        found = of_forget + transported(order.cpu(), labels, unseen - of_heldout, known)
        found, by_rank_alone = torch.minimum(own, found), torch.minimum(own, targets)

        def moved(share: float) -> Tensor:
            return torch.lerp(found, by_rank_alone, share)

        share = _least(lambda share: recognisable(moved(share), labels, unseen, known), 0.0, 1.0)
        if share > 0.5:
            record.warn("features in mid-network give forgotten examples away: targets go by ranks for the most part")
        targets = moved(share)
    return kept(own, targets, labels, unseen, known).to(by_rank)


def kept(own: Tensor, targets: Tensor, labels: Tensor, unseen: Tensor, unseen_labels: Tensor) -> Tensor:
    """Targets that leave confident examples where they are and raise none, shape (N,).

    A network that is retrained without a typical example scores it much as before, since other examples are like it.
    Ranks alone would move it by chance. The target becomes a mean of the example's own φ, with the weight
    sigmoid((own − place) / width), and the lower of that φ and its target. The place is `KEPT_FROM`, or higher until
    the targets are not `recognisable`: a model may be confident of all that it was trained on.

    Args:
        own: φ of the forgotten examples under the original model, shape (N,).
        targets: as `transported` gives them, shape (N,).
        labels, unseen, unseen_labels: as there.

    >>> values, labels = torch.arange(-4.0, 5.0), torch.zeros(9, dtype=torch.int64)
    >>> kept(torch.tensor([-1.0, 9.0]), torch.tensor([-3.0, 4.0]), labels[:2], values, labels)
    tensor([-2.8797,  9.0000])
    """
    unit, lower = unseen.std(correction=0).clamp(min=1e-6), torch.minimum(own, targets)

    def blended(place: float) -> Tensor:
        return torch.lerp(lower, own, ((own - place) / (KEPT_WIDTH * unit)).sigmoid()).clamp(lower, own)

    def too_high(place: float) -> bool:
        return recognisable(blended(place), labels, unseen, unseen_labels)

    low = float(unseen.median() + KEPT_FROM * unit)
    high = max(low, float(own.max())) + 8 * KEPT_WIDTH * float(unit)
    return lower if too_high(high) else blended(_least(too_high, low, high))


def recognisable(scores: Tensor, labels: Tensor, unseen: Tensor, unseen_labels: Tensor) -> bool:
    """Whether A1, the mean percentile rank within classes, is more than a standard error above ½."""
    ours, theirs = scores.double().cpu().numpy(), unseen.double().cpu().numpy()
    found = percentile_ranks(ours, theirs, forget_labels=labels.cpu(), test_labels=unseen_labels.cpu())
    return found.a1 > 0.5 + math.sqrt(UNIFORM_VARIANCE * (1 / len(scores) + 1 / len(unseen)))


def _least(too_little: Callable[[float], bool], low: float, high: float) -> float:
    """The least value in [low, high] that is not too little, or one a little above it; `high` where there is none."""
    if not too_little(low):
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_little(middle) else (low, middle)
    return high


def foretold(asked: Tensor, given: Tensor, taught: Tensor, labels: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The φ that features foretell, of N forgotten examples and of M held-out ones, shapes (N,) and (M,).

    The φ of the logits that `left_out` foretells, on a line that is fitted to the model's own φ at held-out examples.

    Args:
        asked, given: features of the forgotten and of the held-out examples, float64, shapes (N, D) and (M, D).
        taught: the model's logits at the held-out examples, float64, shape (M, C).
        labels, known: int64, shapes (N,) and (M,).
    """
    at_asked, at_given = left_out(asked, given, taught)
    own = scaled_confidence(taught, known)
    line = torch.stack([scaled_confidence(at_given, known), torch.ones_like(own)], 1)
    slope, level = torch.linalg.lstsq(line, own[:, None]).solution[:, 0]
    return slope * scaled_confidence(at_asked, labels) + level, slope * line[:, 0] + level


def left_out(asked: Tensor, given: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
    """A ridge regression's outputs at new rows and at those that it is fitted to, each left out of its own fit.

    Features and outputs are centred, and features scaled, by all of `given`; the penalty is `RIDGE` times the mean
    squared norm of a row. Left out are rows in closed form: the residual over 1 − leverage (Golub, Heath and Wahba
    1979).

    Args:
        asked, given: features, float64, shapes (N, D) and (M, D).
        taught: outputs at `given`, float64, shape (M, C).

    Returns:
        shapes (N, C) and (M, C).
    """
    centre, spread, level = given.mean(0), given.std(0, correction=0) + 1e-3, taught.mean(0)
    left, values, right = torch.linalg.svd((given - centre) / spread, full_matrices=False)
    squares = values.square()
    penalised = (squares + RIDGE * squares.sum() / len(given)).clamp(min=1e-12)
    along, shares = left.T @ (taught - level), squares / penalised
    leverage = (left.square() * shares).sum(1)
    residuals = taught - level - left @ (shares[:, None] * along)
    found = level + (asked - centre) / spread @ right.T @ ((values / penalised)[:, None] * along)
    return found, taught - residuals / (1 - leverage)[:, None]


def middle_layer(model: nn.Module, inputs: Tensor) -> nn.Module | None:
    """The layer at `DEPTH` of those that own weights, in the order in which they run; None where none will do.

    Weights are parameters of two or more axes. It never is the last: outputs are linear in what that one is given, so
    that all would be foretold. A layer that is not handed floats with a row an example is passed over for the next.
    """
    owners = [m for m in model.modules() if any(p.ndim >= 2 for p in m.parameters(recurse=False))]
    met: dict[nn.Module, bool] = {}
    for num in PROBES:

        def note(module: nn.Module, given: tuple[Any, ...], num: int = num) -> None:
            first = given[0] if given else None
            good = isinstance(first, Tensor) and first.is_floating_point() and first.ndim >= 2 and len(first) == num
            met[module] = met.get(module, True) and good

        with watched(owners, note):
            logits_of(model, inputs[:num])
    place = max(0, min(int(DEPTH * len(met)), len(met) - 2))
    return next((module for module, good in list(met.items())[place:-1] if good), None)


def features_and_logits(layer: nn.Module, model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What `layer` is handed, pooled, (N, D), and the model's logits, (N, C), both float64 on the CPU."""
    caught: list[Tensor] = []

    def run(model: nn.Module, part: Tensor) -> Tensor:
        caught.clear()  # a pass that found too little memory may have left something
        logits = forward(model, part)
        return torch.cat([caught[0], logits], 1)

    with watched([layer], lambda _, given: caught.append(pooled(given[0], layer))):
        both = logits_of(model, inputs, run=run).double().cpu()
    width = caught[0].shape[1]
    return both[:, :width], both[:, width:]


def pooled(given: Tensor, layer: nn.Module) -> Tensor:
    """A layer's input with one row an example, (N, D): images as 2 × 2 means, anything else as a mean over positions.

    A layer that has a kernel has its channels in front; any other has them at the end.
    """
    if given.ndim == 2:
        return given
    if all(p.ndim <= 2 for p in layer.parameters(recurse=False)):
        return given.flatten(1, -2).mean(1)
    return F.adaptive_avg_pool2d(given, 2).flatten(1) if given.ndim == 4 else given.flatten(2).mean(2)


@contextmanager
def watched(layers: Iterable[nn.Module], seen: Callable[[nn.Module, tuple[Any, ...]], None]) -> Iterator[None]:
    """Calls `seen` with each of the layers and its inputs, before it runs."""
    hooks = [layer.register_forward_pre_hook(seen) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
