"""Confidences: how they are measured, where they are to be moved, and how hard examples are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples
from expunge.distributed import add_gradients
from expunge.methods._distilling import divergence
from expunge.methods._gradient import dense_gradients, require_gradient
from expunge.methods._inputs import mixable, mixed
from expunge.methods._modes import kept_statistics, set_mode
from expunge.methods._split import Split
from expunge.methods._task import Recorder
from expunge.models import copied, forward, refusing, split_logits_of
from expunge.progress import track
from expunge.training import are_images, augmented

VIEWS = 16
"""Shifted copies of each forgotten image, whose mean φ stands for unseen ones where there are no test examples."""

MIN_PER_CLASS = 20
"""Unseen examples of a class from which on its own confidences are taken; with fewer, those of all classes are."""

STUDENT_PASSES = 6
"""Passes in which a student is taught, each over inputs of its own."""

STUDENT_DRAWS = 512
"""Held-out examples of a pass, at most, and as many mixtures."""

STUDENT_BATCH = 128
"""Inputs of an update of a student, at most."""

STUDENT_LR = 0.2
"""Its highest step size, relative to the size of each parameter, so that one number suits every network."""

STUDENT_NOISE = 0.5
"""Standard deviation of the noise that its parameters start with, relative to the size of each."""


def huber(gap: Tensor) -> Tensor:
    """½ gap² where |gap| < 1, |gap| − ½ elsewhere (Huber 1964)."""
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none")


def apart(taught: Tensor, logits: Tensor, unit: Tensor) -> Tensor:
    """How far outputs have left the original's: their divergence, plus the Huber loss of the change of φ, in `unit`.

    `taught` are the original's log-probabilities, (B, C); φ is that of its likeliest class. One loss an example, (B,).
    """
    top = taught.argmax(1)
    return divergence(taught, logits) + huber((scaled_confidence(logits, top) - scaled_confidence(taught, top)) / unit)


def scaled_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = z_y − logsumexp_{j≠y} z_j, the log odds of the true class (Carlini et al. 2022: logit-scaled confidence).

    Args:
        logits: z, shape (N, C), C ≥ 2.
        labels: y, int64, shape (N,).

    Returns:
        shape (N,), in the dtype of `logits`; positive where the true class has more than half of the probability.

    >>> scaled_confidence(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
    tensor([1.3069])
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)


def shifted_confidence(model: nn.Module, examples: Examples, rng: torch.Generator) -> Tensor:
    """Mean φ of `VIEWS` shifted copies of each image, float, (N,): a stand-in for that of unseen ones."""
    views = [split_logits_of(model, augmented(examples.inputs, "shift", rng)) for _ in range(VIEWS)]
    return torch.stack([scaled_confidence(logits, examples.labels) for logits in views]).mean(0)


def with_confidence(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """The same logits but for the true class's, which is set so that φ is `wanted`, shape (N,)."""
    rest = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return logits.scatter(1, labels[:, None], (rest + wanted)[:, None])


def ranks(values: Tensor) -> Tensor:
    """The rank of each of N values, 0 for the lowest, int64, shape (N,); of equal ones the earlier comes first."""
    return values.argsort(stable=True).argsort()


def transported(order: Tensor, labels: Tensor, unseen: Tensor, unseen_labels: Tensor) -> Tensor:
    """Hands the quantiles of unseen φ to N examples in their order: targets, shape (N,).

    First over all classes: the example of rank r gets the quantile (r + ½) / N of all unseen φ. Classes differ in
    difficulty, and memorised φ show less of that than unseen ones. So the examples are ranked anew by where those
    quantiles stand among the unseen φ of their own class, and get the quantile (r + ½) / N of these: targets are then
    spread evenly within classes too. A class with fewer than `MIN_PER_CLASS` unseen φ takes those of all.

    Args:
        order: by which the examples are ranked, shape (N,).
        labels: int64, shape (N,).
        unseen: φ of unseen examples, float, shape (M,), M ≥ 1.
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
    """Targets moved as the φ of other examples moved since: by the change of their mean and of their spread.

    Regression of `now` on `before` would draw targets together, the more the less the two agree. A spread that grows is
    not followed: where little is held, that of unseen φ grows with that of the targets.

    Args:
        planned: targets under the original model, shape (N,).
        before: φ of other examples under the original model, shape (M,), M ≥ 1.
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


def student_confidence(
    model: nn.Module,
    forget: Examples,
    heldout: Examples,
    rng: torch.Generator,
    *,
    mixtures: bool = True,
    batch_size: int | None = None,
    record: Recorder | None = None,
) -> Tensor:
    """φ of forgotten examples under a student of the model that is taught without them: how hard they are.

    The student starts as a copy of the model, all of it free to change, and learns the model's outputs on held-out
    examples (images are shifted at random) and on mixtures of two. Its steps are so large at first that what the model
    knows by heart wears off: typical examples keep a high φ, and odd ones do not.

    Args:
        model: left as it is, but for its mode.
        forget: N examples that the student is not taught on.
        heldout: M ≥ 2 examples that it is; their labels are not used.
        rng: a CPU generator.
        mixtures: whether mixtures are taught too, where inputs can be mixed.
        batch_size: inputs of an update, ≥ 1, if fewer than `STUDENT_BATCH`.
        record: is warned where the student diverges.

    Returns:
        floating-point, shape (N,): the model's own φ where the student diverges.

    Raises:
        InputError: the model cannot take mixtures.
        SettingError: its outputs depend on no parameter.
    """
    student = copied(model)
    parameters = [p.requires_grad_(True) for p in student.parameters() if p.is_floating_point()]
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=rng, device="cpu").to(parameter.device, parameter.dtype)
        parameter.data.add_(STUDENT_NOISE * parameter.data.square().mean().sqrt() * noise)
    split = Split(student)
    num, images = min(STUDENT_DRAWS, len(heldout)), are_images(heldout.inputs)
    mixing, size = mixtures and mixable(heldout.inputs), min(STUDENT_BATCH, batch_size or STUDENT_BATCH)
    optimizer = torch.optim.Adafactor(parameters, lr=STUDENT_LR)
    total = STUDENT_PASSES * -(-num * (1 + mixing) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, STUDENT_LR, total_steps=total, cycle_momentum=False)
    for _ in track(range(STUDENT_PASSES), "ranking", STUDENT_PASSES):
        order = torch.randperm(len(heldout), generator=rng, device="cpu")[:num]
        inputs = heldout.inputs[order.to(heldout.inputs.device)]
        inputs = augmented(inputs, "shift", rng) if images else inputs
        if mixing:
            inputs = torch.cat([inputs, mixed(heldout.inputs, num, rng)])
        with refusing(inputs, 'what examples are ranked by (rank="margin" needs none of it)'):
            taught = split_logits_of(model, inputs).log_softmax(1)
        for index in torch.randperm(len(inputs), generator=rng, device="cpu").to(inputs.device).split(size):
            kept = [] if len(index) > 1 else kept_statistics(student, "eval")  # one has no statistics
            set_mode(student, kept, dropout=False)
            at = split.own(index)
            with split.statistics():
                loss = split.weight * divergence(taught[at], forward(student, inputs[at])).mean()
            require_gradient(loss)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            dense_gradients(parameters)
            add_gradients(parameters)
            with torch.device(inputs.device):  # the optimizer makes tensors on the default one
                optimizer.step()
            schedule.step()
    found = scaled_confidence(split_logits_of(student, forget.inputs), forget.labels)
    if found.isfinite().all():
        return found
    if record is not None:
        record.warn("the student that examples are ranked by diverged: they were ranked by their own margins alone")
    return scaled_confidence(split_logits_of(model, forget.inputs), forget.labels)
