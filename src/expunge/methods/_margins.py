"""Logit margins: measuring them, moving a distribution of them onto another, and what is held meanwhile."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.training import are_images

MIN_PER_CLASS = 20
"""Unseen examples of a class that its own distribution of margins is taken from; with fewer, that of all classes."""

BLENDED = 256
"""Mixtures made at a time: 8-bit images take four times the room as floats."""


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """s = z_y − logsumexp_{j≠y} z_j, the log odds of the true class.

    Args:
        logits: z, shape (N, C), C ≥ 2.
        labels: y, int64, shape (N,).

    Returns:
        shape (N,), in the dtype of `logits`; positive where the true class has more than half of the probability.

    >>> margins(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
    tensor([1.3069])
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)


def with_margins(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """The same logits but for the true class's, which is set so that the margins are `wanted`, shape (N,)."""
    rest = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return logits.scatter(1, labels[:, None], (rest + wanted)[:, None])


def ranks(values: Tensor) -> Tensor:
    """The rank of each of N values, 0 for the lowest, int64, shape (N,); of equal ones the earlier comes first."""
    return values.argsort(stable=True).argsort()


def transported(order: Tensor, labels: Tensor, unseen: Tensor, unseen_labels: Tensor) -> Tensor:
    """Hands the quantiles of unseen margins to N examples in their order: target margins, shape (N,).

    First over all classes: the example of rank r gets the quantile (r + ½) / N of all unseen margins, by Hazen's rule,
    with which as many examples as unseen margins get these themselves. Classes differ in
    difficulty, and memorised margins show less of that than unseen ones. So the examples are ranked anew by where those
    quantiles stand among the unseen margins of their own class, and get the quantile (r + ½) / N of these: targets are
    then spread evenly within classes too. A class with fewer than `MIN_PER_CLASS` unseen margins takes those of all.

    Args:
        order: by which the examples are ranked, shape (N,).
        labels: int64, shape (N,).
        unseen: margins, float, shape (M,), M ≥ 1.
        unseen_labels: int64, shape (M,).

    >>> zeros = torch.zeros(2, dtype=torch.int64)
    >>> transported(torch.tensor([5, 1]), zeros, torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1, 1, 1, 1]))
    tensor([2.5000, 0.5000])
    """
    first = _quantiles(unseen, _shares(order, unseen.dtype))
    groups = [(labels == label, unseen[unseen_labels == label]) for label in labels.unique()]
    groups = [(mine, among if len(among) >= MIN_PER_CLASS else unseen) for mine, among in groups]
    placed = torch.empty_like(first)
    for mine, among in groups:
        placed[mine] = torch.searchsorted(among.sort().values, first[mine]).to(first.dtype) / len(among)
    by_order = order.argsort(stable=True)  # so that examples that stand alike in their classes keep their order
    again = torch.empty_like(by_order)
    again[by_order] = ranks(placed[by_order])
    shares = _shares(again, unseen.dtype)
    targets = torch.empty_like(first)
    for mine, among in groups:
        targets[mine] = _quantiles(among, shares[mine])
    return targets


def followed(planned: Tensor, before: Tensor, now: Tensor) -> Tensor:
    """Where margins would be, had they gone the way of others since: by the same change of the mean and of the spread.

    Regression of `now` on `before` would draw margins together, the more the less the two agree. A spread that grows is
    not followed: where little is held, that of unseen margins grows with that of the targets.

    Args:
        planned: margins under the original model, shape (N,).
        before: those of other examples under the original model, shape (M,), M ≥ 1.
        now: theirs under the model as it is, shape (M,).

    >>> followed(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
    tensor([0.5000, 2.5000])
    """
    spread = before.std(correction=0)
    slope = (now.std(correction=0) / spread).clamp(max=1) if spread > 0 else 1.0
    return now.mean() + slope * (planned - before.mean())


def _quantiles(values: Tensor, shares: Tensor) -> Tensor:
    """Of M values at `shares` in (0, 1), by Hazen's rule: the i-th lowest, from 0, is at (i + ½) / M.

    That of torch.quantile is at i / (M − 1), so that fewer of the quantiles than of the values would be low.
    """
    position = (shares * len(values) - 0.5).clamp(0, len(values) - 1)
    ascending, below = values.sort().values, position.floor().long()
    return torch.lerp(ascending[below], ascending[position.ceil().long()], position - below)


def _shares(order: Tensor, dtype: torch.dtype) -> Tensor:
    return (ranks(order) + 0.5).to(dtype) / len(order)


def mixable(inputs: Tensor) -> bool:
    """Whether a weighted mean of two inputs is one too: floats and 8-bit images, but no token ids."""
    return inputs.is_floating_point() or are_images(inputs)


def mixed(inputs: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """`num` mixtures of two different inputs each; the first has a weight in [¼, ¾] (Zhang et al. 2018).

    Args:
        inputs: shape (N, ...), N ≥ 2, floating-point or uint8 (mixtures are rounded).
        num: how many, ≥ 1.
        rng: a CPU generator.
    """
    first = torch.randint(len(inputs), (num,), generator=rng, device="cpu")
    second = (first + torch.randint(1, len(inputs), (num,), generator=rng, device="cpu")) % len(inputs)
    weight = 0.25 + 0.5 * torch.rand(num, generator=rng, device="cpu")
    return _blended(inputs, first, inputs, second, weight)


def mixed_with(inputs: Tensor, others: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """`num` mixtures of one of `inputs`, with a weight in [½, 1], and one of `others`; both are drawn with replacement.

    Args:
        inputs: shape (N, ...), N ≥ 1, floating-point or uint8 (mixtures are rounded).
        others: shape (M, ...), M ≥ 1, of the same shape otherwise and dtype.
        num, rng: as in `mixed`.
    """
    first = torch.randint(len(inputs), (num,), generator=rng, device="cpu")
    second = torch.randint(len(others), (num,), generator=rng, device="cpu")
    return _blended(inputs, first, others, second, 0.5 + 0.5 * torch.rand(num, generator=rng, device="cpu"))


def _blended(inputs: Tensor, first: Tensor, others: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """The inputs at `first` with a weight each, (K,), and the others at `second` with the rest: shape (K, ...)."""
    blended = inputs.new_empty(len(weight), *inputs.shape[1:])
    kind = inputs.dtype if inputs.is_floating_point() else torch.float32
    for part in torch.arange(len(weight), device="cpu").split(BLENDED):
        one, other = (pool[index[part].to(pool.device)].to(kind) for pool, index in ((inputs, first), (others, second)))
        share = weight[part].to(one.device, kind).view(-1, *[1] * (inputs.ndim - 1))
        mixture = share * one + (1 - share) * other
        blended[part.to(blended.device)] = mixture if inputs.is_floating_point() else mixture.round().to(inputs.dtype)
    return blended


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """KL(wanted ‖ softmax(logits)) of each example, shape (N,); `wanted` are log-probabilities, shape (N, C)."""
    return F.kl_div(logits.log_softmax(1), wanted, reduction="none", log_target=True).sum(1)


def huber(gap: Tensor) -> Tensor:
    """½ gap² where |gap| < 1, |gap| − ½ elsewhere (Huber 1964)."""
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none")


def held_loss(unit: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """How far outputs have left the original's: their divergence, plus the Huber loss of their margins' change.

    The margin is that of the original's likeliest class, in units of `unit`. Takes the original's log-probabilities
    and logits, each (B, C), and gives one loss an example, (B,).
    """

    def loss(taught: Tensor, logits: Tensor) -> Tensor:
        top = taught.argmax(1)
        return divergence(taught, logits) + huber((margins(logits, top) - margins(taught, top)) / unit)

    return loss
