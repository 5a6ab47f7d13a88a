"""What may be wrong with a model or with examples that a run goes through all the same: sentences for the user."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

GAP = 0.25
"""A model's accuracy that is lower than expected by more than this is odd."""

LEAST_WRONG = 3
"""Examples, at least, by which the model must be wrong more often than expected."""

DEVIATIONS = 4.0
"""Standard deviations of a count by which it must be lower than expected."""

WHOLE_CLASS = 20
"""Forgotten examples of one class, at least, that are taken for the whole of it where nothing else tells."""

SAMPLED, LEAST_RANGE = 256, 10
"""Examples and features that are looked at for their scale; rows that tell a range."""

MANY, LARGER, NARROWER = 0.1, 8, 50
"""A share that is large; how many times as large, or as narrow, values of one population are not."""

PRUNED = 0.05
"""Share of zeros in a weight from which on it is taken for pruned."""

percent = partial("{:.0%}".format)


def doubts_of_scale(forget: Tensor, inputs: Tensor, name: str) -> Iterator[str]:
    """Says so where the inputs of a set were preprocessed otherwise than the forgotten ones, as far as values tell.

    Of images, one set has no negative values and the other has many, as after a Normalize, or far larger ones. Of
    rows, most features are off (`_off_scale`).

    Args:
        forget, inputs: shapes (N, ...) and (M, ...), of 8 bits or floating-point; others are not looked at.
        name: the set's.
    """
    given = forget, inputs
    if any(not (part.is_floating_point() or part.dtype == torch.uint8) for part in given):
        return
    one, other = (_sampled(part) for part in given)
    if forget.ndim > 3:
        negative = sorted(float((part < 0).float().mean()) for part in (one, other))
        largest = sorted(float(part.abs().max()) for part in (one, other))
        differ = (negative[0] == 0 and negative[1] > MANY) or largest[0] * LARGER < largest[1]
    else:
        differ = min(len(one), len(other)) >= LEAST_RANGE and float(_off_scale(one, other).float().mean()) > 0.5
    if differ:
        yield (
            f"inputs of the {name} set are on another scale than those of the forget set: give all sets the "
            "preprocessing that the model was trained with"
        )


def _sampled(inputs: Tensor) -> Tensor:
    """Some examples and features, float32 (n, d); bytes in [0, 1]."""
    some = inputs[:: max(1, len(inputs) // SAMPLED)].flatten(1)
    some = some[:, :: max(1, some.shape[1] // SAMPLED)].float().cpu()
    return some / 255 if inputs.dtype == torch.uint8 else some


def _off_scale(forget: Tensor, other: Tensor) -> Tensor:
    """By feature, whether the two cannot be of one population, of which the forgotten may be any part.

    The median of the forgotten is outside of the other's range by half of its width, or many of them are negative and
    none of the others, or their range is far wider, or so much narrower that few parts are.
    """
    middle, low, high = forget.median(0).values, other.amin(0), other.amax(0)
    own, width = forget.amax(0) - forget.amin(0), high - low
    outside = (middle < low - width / 2) | (middle > high + width / 2)
    signs = ((forget < 0).float().mean(0) > MANY) & (low >= 0)
    return outside | signs | (own > LARGER * width) & (width > 0) | (width > NARROWER * own) & (own > 0)


def doubts_of_labels(
    logits: Tensor, labels: Tensor, test_accuracy: float | None = None, of: str = "forgotten"
) -> Iterator[str]:
    """Says so where the original is wrong on its own training examples more often than can be.

    It should be right about as often as it is confident, and as often as on unseen examples.

    Args:
        logits: the original model's, shape (N, C).
        labels: int64, shape (N,).
        test_accuracy: on unseen examples, in [0, 1]; None where it is not known.
        of: what these examples are called.
    """
    right = (logits.argmax(1) == labels).double()
    confidence = float(logits.double().softmax(1).amax(1).mean())
    expected = max(confidence, test_accuracy or 0.0)
    gap, spread = expected - float(right.mean()), (max(expected * (1 - expected), 0.05) / len(labels)) ** 0.5
    if gap <= max(GAP, DEVIATIONS * spread) or gap * len(labels) < LEAST_WRONG:
        return
    unseen = "" if test_accuracy is None else f", {percent(test_accuracy)} of the test examples"
    yield (
        f"the original model gets {percent(float(right.mean()))} of the {of} examples right{unseen}, and is "
        f"{percent(confidence)} sure of what it says. It should know its own training examples: compare the numbers of "
        "the classes (folders are sorted as text, 10 before 2), the preprocessing and the weights with the training's"
        f"{''.join(_other_order(logits, labels, float(right.mean())))}"
    )


def doubts_of_test_labels(logits: Tensor, labels: Tensor) -> Iterator[str]:
    """Says so where another numbering of the classes makes most unseen examples right: as `doubts_of_labels`."""
    accuracy = float((logits.argmax(1) == labels).double().mean())
    if len(labels) >= 10 * len(labels.unique()):
        for order in _other_order(logits, labels, accuracy):
            yield f"the original model gets {percent(accuracy)} of the test examples right{order}"


def _other_order(logits: Tensor, labels: Tensor, accuracy: float) -> Iterator[str]:
    """The numbering of the given classes under which most examples are right, where it is far better than theirs."""
    from scipy.optimize import linear_sum_assignment  # a third of a second, which most runs need not spend

    present, rows = labels.unique(return_inverse=True)
    counts = torch.zeros(len(present), logits.shape[1], dtype=torch.float64, device="cpu")
    one = torch.ones((), dtype=torch.float64, device="cpu")
    counts.index_put_((rows.cpu(), logits.argmax(1).cpu()), one, accumulate=True)
    given, meant = linear_sum_assignment(-counts.numpy())
    share = float(counts[given, meant].sum()) / len(labels)
    pairs = [(int(present[a]), b) for a, b in zip(given.tolist(), meant.tolist(), strict=True) if counts[a, b]]
    moved = [f"{a} as {b}" for a, b in pairs if a != b]
    if share > max(0.5, accuracy + GAP) and moved:
        more = ", …" if len(moved) > 3 else ""
        yield f". With class {', '.join(moved[:3])}{more} it would be {percent(share)}: labels may have another order"


def doubts_of_layers(model: nn.Module) -> Iterator[str]:
    """Says so where layers hold integers, which no step changes."""
    layers = [
        name
        for name, module in model.named_modules()
        if (".quantized" in type(module).__module__ and not type(module).__name__.endswith("PackedParams"))
        or any(p.dtype in {torch.int8, torch.uint8} for p in module.parameters(recurse=False))
    ]
    if layers:
        yield (
            f"{len(layers)} layers are quantised, such as {layers[-1]!r}: their weights cannot change, and only the "
            "rest of the model forgot. Unlearn the model in floats, and quantise that"
        )


def doubts_of_zeros(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Iterator[str]:
    """Says so where weights that were pruned to zero, in the parameters `before`, are not zero any more."""
    zeros = lost = 0
    for name, parameter in before.items():
        none = parameter.detach() == 0
        num = int(none.sum())
        if parameter.ndim >= 2 and PRUNED * parameter.numel() <= num < parameter.numel():
            zeros += num
            lost += int((none & (after[name].detach() != 0)).sum())
    if lost:
        yield (
            f"{lost:,} of {zeros:,} weights that were zero are not any more: a pruned model loses its zeros here. "
            "Prune what comes out again, and audit that"
        )


def whole_classes(labels: Tensor, retained: Tensor | None, num_classes: int) -> list[int]:
    """The classes, ascending, that are forgotten as a whole, as far as the examples tell.

    Those that no retained example has, of 10 a class or more. Without such, the one class of all forgotten examples, if
    they are `WHOLE_CLASS` or more.

    >>> whole_classes(torch.tensor([3] * 20), None, 10), whole_classes(torch.tensor([3] * 20 + [4]), None, 10)
    ([3], [])
    """
    given = labels.unique().tolist()
    if retained is not None and len(retained) >= 10 * num_classes:
        kept = set(retained.unique().tolist())
        return [label for label in given if label not in kept]
    return given if len(given) == 1 and len(labels) >= WHOLE_CLASS else []
