"""Inputs that methods make: in floating point, adversarial, and mixed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples
from expunge.errors import InputError
from expunge.methods._task import Task
from expunge.models import forward, logits_of, refusing
from expunge.training import are_images, augmented

PROBED = 32
"""Examples that are asked for gradients."""

MOST_AT_ONCE = 500
"""Examples, at most, whose gradients are taken at once."""

BLENDED = 256
"""Mixtures made at a time: 8-bit images take four times the room as floats."""

SAME_CLASS = 0.8
"""Share of the pasted inputs both of whose parts are of one class."""


@dataclass(frozen=True)
class Continuous:
    """The forget inputs as floating-point numbers that the model maps to the same logits.

    Attributes:
        inputs: floating-point, shape (N, ...).
        low, high: the range of values: that of the dtype for uint8 images (0 and 255, or 0 and 1 where the model
            takes floats as scaled already), the forget set's own for any other inputs.
        scale: what integers were divided by.
    """

    inputs: Tensor
    low: float
    high: float
    scale: int = 1

    def alike(self, inputs: Tensor) -> Tensor:
        """Other inputs, given as the forget set was, made continuous in the same way."""
        return inputs if inputs.is_floating_point() else inputs.to(self.inputs.dtype) / self.scale


def continuous(model: nn.Module, task: Task) -> Continuous:
    """The forget inputs in floating point. Leaves `model` in eval mode, and `task` as it is.

    A model may scale integer images and take floats as scaled already, as expunge's own do, or convert whatever it
    gets. Both readings are tried against the original logits.

    Raises:
        InputError: the model gives other logits for either reading, or takes no floats (token ids, say).
    """
    given = task.forget.inputs
    low, high = (0.0, 255.0) if given.dtype == torch.uint8 else (float(given.min()), float(given.max()))
    if given.is_floating_point():
        return Continuous(given, low, high)
    dtype = next(model.parameters()).dtype
    for scale in (255, 1):
        inputs = given.to(dtype) / scale
        try:
            with refusing(inputs, "as floats"):
                logits = logits_of(model, inputs)
                moves = _has_gradients(model, inputs[:PROBED])
        except InputError:
            continue
        if moves and torch.allclose(logits, task.forget_logits, rtol=1e-3, atol=1e-3):
            return Continuous(inputs, low / scale, high / scale, scale)
    raise InputError(f"the model takes its {given.dtype} inputs as integers alone; this method must change them")


def _has_gradients(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the model's outputs have gradients in its inputs that are not all zero: not if it rounds them, say."""
    inputs = inputs.detach().clone().requires_grad_()
    output = forward(model, inputs).square().sum()
    if not output.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(output, inputs, allow_unused=True)
    return gradient is not None and bool(gradient.any())


def targeted_pgd(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    rng: torch.Generator,
    batch_size: int | None = None,
) -> Tensor:
    """Moves each input toward being classified as its target: projected gradient descent in L2 (Madry et al. 2018).

    Starts at a uniformly random input, brought back into the ball. Each step goes against the gradient of the
    cross-entropy toward the target, at a fixed length, then back into the range of values and into the ball.
    Columns of whole numbers stay as they are (`movable`).

    Leaves `model` in eval mode, and its parameters without gradients.

    Args:
        model: maps inputs to logits (B, C).
        inputs: floating-point, shape (N, ...); the lowest and highest value in it bound the values of the result.
        targets: int64, shape (N,).
        radius: of the L2 ball around each input, > 0, in units of the range of values: for pixels in [0, 1] the
            distance itself, for pixels in [0, 255] a 255th of it.
        step: length of a step, > 0, in the same units.
        steps: ≥ 0.
        rng: a CPU generator.
        batch_size: how many are computed at once; None: `MOST_AT_ONCE`, which it never exceeds.

    Returns:
        Shape and dtype of `inputs`; whether an input reached its target is not checked.
    """
    low, high = inputs.min(), inputs.max()
    size = at_once(batch_size)
    span = high - low
    model.eval()
    free = movable(inputs)
    moved = []
    for batch, target in zip(inputs.split(size), targets.split(size), strict=True):
        start = low + span * torch.rand(batch.shape, generator=rng, device="cpu").to(batch)
        delta = _into_ball((start - batch) * free, radius * span)
        for _ in range(steps):
            delta.requires_grad_()
            loss = F.cross_entropy(forward(model, batch + delta), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            shifted = delta.detach() - step * span * of_length_one(gradient * free)
            delta = _into_ball((batch + shifted).clamp(low, high) - batch, radius * span)
        moved.append(batch + delta)
    return torch.cat(moved)


def at_once(batch_size: int | None) -> int:
    """How many examples' gradients are taken at once by a method whose setting `batch_size` is."""
    return min(batch_size or MOST_AT_ONCE, MOST_AT_ONCE)


def norms(vectors: Tensor) -> Tensor:
    """L2 norms of the examples, shape (N, 1, …); the smallest normal number where one is zero."""
    norms: Tensor = torch.linalg.vector_norm(vectors.reshape(len(vectors), -1), dim=1).clamp_min(
        torch.finfo(vectors.dtype).tiny
    )
    return norms.view(-1, *[1] * (vectors.ndim - 1))


def of_length_one(vectors: Tensor) -> Tensor:
    """Each example's vector, shape (N, …), at an L2 norm of 1; zero stays zero."""
    return vectors / norms(vectors)


def _into_ball(vectors: Tensor, radius: Tensor) -> Tensor:
    return vectors * (radius / norms(vectors)).clamp_max(1)


def mixable(inputs: Tensor) -> bool:
    """Whether a weighted mean of two inputs is one too: floats and 8-bit images, but no token ids."""
    return inputs.is_floating_point() or are_images(inputs)


def whole_columns(inputs: Tensor) -> Tensor | None:
    """Which columns of rows (N, D) of floats hold whole numbers alone: bool, (D,); None for inputs of another form.

    Such columns may hold codes, of which half of one and half of another is a third.
    """
    return (inputs == inputs.round()).all(0) if inputs.ndim == 2 and inputs.is_floating_point() else None


def movable(inputs: Tensor) -> Tensor:
    """1 for each value of an input that may be moved a little, 0 for those in columns of whole numbers: shape (...).

    Where all columns are such, they are taken for numbers.
    """
    whole = whole_columns(inputs)
    return torch.ones_like(inputs[0]) if whole is None or bool(whole.all()) else (~whole).to(inputs)


def mixed(inputs: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """`num` mixtures of two different inputs each; the first has a weight in [¼, ¾] (Zhang et al. 2018).

    A column of whole numbers (`whole_columns`) beside others is not blended: it is that of one of the two, drawn with
    the weights.

    Args:
        inputs: shape (N, ...), N ≥ 2, floating-point or uint8 (mixtures are rounded).
        num: how many, ≥ 1.
        rng: a CPU generator.
    """
    first = torch.randint(len(inputs), (num,), generator=rng, device="cpu")
    second = (first + torch.randint(1, len(inputs), (num,), generator=rng, device="cpu")) % len(inputs)
    weight = 0.25 + 0.5 * torch.rand(num, generator=rng, device="cpu")
    return _blended(inputs, first, inputs, second, weight, rng)


def mixed_with(inputs: Tensor, others: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """`num` mixtures of one of `inputs`, with a weight in [½, 1], and one of `others`; both are drawn with replacement.

    Columns of whole numbers are not blended, as in `mixed`.

    Args:
        inputs: shape (N, ...), N ≥ 1, floating-point or uint8 (mixtures are rounded).
        others: shape (M, ...), M ≥ 1, of the same shape otherwise and dtype.
        num, rng: as in `mixed`.
    """
    first = torch.randint(len(inputs), (num,), generator=rng, device="cpu")
    second = torch.randint(len(others), (num,), generator=rng, device="cpu")
    return _blended(inputs, first, others, second, 0.5 + 0.5 * torch.rand(num, generator=rng, device="cpu"), rng)


def pasted(examples: Examples, num: int, rng: torch.Generator, *, parts: Examples | None = None) -> Tensor:
    """`num` inputs with a part of another one in the place of their own (Yun et al. 2019, CutMix).

    The part is a rectangle of images (N, channels, H, W), a span of integers (N, L) or of signals (N, C, L), and
    columns drawn at random of rows (N, D). It takes ¼ to ¾ of each side. No value is blended: codes and token ids stay
    what they are. Four of five pairs are of one class, where it has two members: they look most like what a model is
    used on.

    Args:
        examples: whose inputs are drawn from with replacement, shape (N, ...), N ≥ 1, any dtype.
        num: how many, ≥ 1.
        rng: a CPU generator.
        parts: where the part is taken from. None: from another one of the examples; a single one is pasted together
            with itself, shifted and mirrored, or in another order.
    """
    inputs, labels = examples.inputs, examples.labels.cpu()
    if parts is None and len(inputs) == 1:
        alone = inputs.expand(num, *inputs.shape[1:])
        return torch.where(_places(inputs, num, rng).to(inputs.device), _altered(alone, rng), alone)
    own = parts is None
    others, other_labels = (inputs, labels) if parts is None else (parts.inputs, parts.labels.cpu())
    first = torch.randint(len(inputs), (num,), generator=rng, device="cpu")
    step = torch.randint(int(own), len(others), (num,), generator=rng, device="cpu")
    second = (first + step) % len(others) if own else step
    alike = torch.rand(num, generator=rng, device="cpu") < SAME_CLASS
    for label in labels.unique():
        members = (other_labels == label).nonzero()[:, 0]
        if len(members) > own:
            place = (alike & (labels[first] == label)).nonzero()[:, 0]
            jump = torch.randint(int(own), len(members), (len(place),), generator=rng, device="cpu")
            second[place] = members[(torch.searchsorted(members, first[place]) + jump) % len(members) if own else jump]
    at = inputs.device
    return torch.where(_places(inputs, num, rng).to(at), others[second.to(at)], inputs[first.to(at)])


def _altered(inputs: Tensor, rng: torch.Generator) -> Tensor:
    """Images shifted and mirrored; the values of anything else in another order along its last axis."""
    if are_images(inputs):
        return augmented(inputs, "flip_shift", rng)
    order = torch.rand(len(inputs), inputs.shape[-1], generator=rng, device="cpu").argsort(1).to(inputs.device)
    return inputs.gather(-1, order.view(len(inputs), *[1] * (inputs.ndim - 2), -1).expand_as(inputs))


def _places(inputs: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Which values of `num` inputs are taken from another: bool, of a shape that broadcasts to theirs."""
    shape = inputs.shape[1:]
    if len(shape) == 1 and inputs.is_floating_point():
        share = 0.25 + 0.5 * torch.rand(num, 1, generator=rng, device="cpu")
        return torch.rand(num, *shape, generator=rng, device="cpu") < share
    inside = torch.ones(num, *[1] * len(shape), dtype=torch.bool, device="cpu")
    for axis in range(1, len(shape) + 1)[-1 if len(shape) < 3 else -2 :]:
        size = inputs.shape[axis]
        length = (size * (0.25 + 0.5 * torch.rand(num, 1, generator=rng, device="cpu"))).round().clamp(min=1)
        start = (torch.rand(num, 1, generator=rng, device="cpu") * (size - length + 1)).floor()
        place = torch.arange(size, device="cpu")
        span = (place >= start) & (place < start + length)
        inside = inside & span.view(num, *[size if axis == n else 1 for n in range(1, len(shape) + 1)])
    return inside


def _blended(
    inputs: Tensor, first: Tensor, others: Tensor, second: Tensor, weight: Tensor, rng: torch.Generator
) -> Tensor:
    """The inputs at `first` with a weight each, (K,), and the others at `second` with the rest: shape (K, ...)."""
    blended = inputs.new_empty(len(weight), *inputs.shape[1:])
    kind = inputs.dtype if inputs.is_floating_point() else torch.float32
    whole, other_whole = whole_columns(inputs), whole_columns(others)
    codes = None if whole is None or other_whole is None else whole & other_whole.to(whole)
    if codes is not None and (bool(codes.all()) or not bool(codes.any())):  # all columns are whole: they are numbers
        codes = None
    for part in torch.arange(len(weight), device="cpu").split(BLENDED):
        one, other = (pool[index[part].to(pool.device)].to(kind) for pool, index in ((inputs, first), (others, second)))
        share = weight[part].to(one.device, kind).view(-1, *[1] * (inputs.ndim - 1))
        mixture = share * one + (1 - share) * other
        if codes is not None:
            drawn = torch.rand(one.shape, generator=rng, device="cpu").to(share) < share
            mixture = torch.where(codes, torch.where(drawn, one, other), mixture)
        blended[part.to(blended.device)] = mixture if inputs.is_floating_point() else mixture.round().to(inputs.dtype)
    return blended
