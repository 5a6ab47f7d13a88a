"""How hard examples are for networks that never saw them, as far as held-out examples can tell."""

import copy

import torch
from torch import Tensor, nn

from expunge.data import Examples
from expunge.methods._loop import dense_gradients, require_gradient, set_mode
from expunge.methods._margins import divergence, margins, mixable, mixed
from expunge.methods._task import Recorder
from expunge.models import forward, logits_of, refusing
from expunge.progress import track
from expunge.training import are_images, augmented

PASSES = 6
"""Passes in which a student is taught, each over inputs of its own."""

DRAWN = 512
"""Held-out examples of a pass, at most, and as many mixtures."""

BATCH = 128
"""Inputs of an update, at most."""

LR = 0.2
"""Highest step size, relative to the size of each parameter, so that one number suits every network."""

NOISE = 0.5
"""Standard deviation of what a student's parameters start off by, relative to the size of each."""


def student_margins(
    model: nn.Module,
    forget: Examples,
    heldout: Examples,
    rng: torch.Generator,
    *,
    mixtures: bool = True,
    batch_size: int | None = None,
    record: Recorder | None = None,
) -> Tensor:
    """Margins of forgotten examples under a student of the model, which is taught without them.

    The student starts as a copy of the model, all of it free to change, and learns the model's outputs on held-out
    examples (images are shifted at random) and on mixtures of two. Its steps are so large at first that what the model
    knows by heart wears off: what is typical keeps a high margin, and what is odd does not.

    Args:
        model: left as it is, but for its mode.
        forget: N examples that the student is not taught on.
        heldout: M ≥ 2 examples that it is; their labels are not used.
        rng: a CPU generator.
        mixtures: whether mixtures are taught too, where inputs can be mixed.
        batch_size: inputs of an update, ≥ 1, if fewer than `BATCH`.
        record: is warned where the student diverges.

    Returns:
        floating-point, shape (N,): the model's own margins where the student diverges.

    Raises:
        InputError: the model cannot take mixtures.
        SettingError: its outputs depend on no parameter.
    """
    student = copy.deepcopy(model)
    parameters = [p.requires_grad_(True) for p in student.parameters() if p.is_floating_point()]
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=rng, device="cpu").to(parameter.device, parameter.dtype)
        parameter.data.add_(NOISE * parameter.data.square().mean().sqrt() * noise)
    num, images = min(DRAWN, len(heldout)), are_images(heldout.inputs)
    mixing, size = mixtures and mixable(heldout.inputs), min(BATCH, batch_size or BATCH)
    optimizer = torch.optim.Adafactor(parameters, lr=LR)
    total = PASSES * -(-num * (1 + mixing) // size)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=total, cycle_momentum=False)
    for _ in track(range(PASSES), "ranking", PASSES):
        order = torch.randperm(len(heldout), generator=rng, device="cpu")[:num]
        inputs = heldout.inputs[order.to(heldout.inputs.device)]
        inputs = augmented(inputs, "shift", rng) if images else inputs
        if mixing:
            inputs = torch.cat([inputs, mixed(heldout.inputs, num, rng)])
        with refusing(inputs, 'what examples are ranked by (rank="margin" needs none of it)'):
            taught = logits_of(model, inputs).log_softmax(1)
        for index in torch.randperm(len(inputs), generator=rng, device="cpu").to(inputs.device).split(size):
            norm = "train" if len(index) > 1 else "eval"  # one has no statistics to normalise by
            set_mode(student, norm, dropout=False)
            loss = divergence(taught[index], forward(student, inputs[index])).mean()
            require_gradient(loss)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            dense_gradients(parameters)
            with torch.device(inputs.device):  # the optimizer makes tensors on the default one
                optimizer.step()
            pace.step()
    found = margins(logits_of(student, forget.inputs), forget.labels)
    if found.isfinite().all():
        return found
    if record is not None:
        record.warn("the student that examples are ranked by diverged: they were ranked by their own margins alone")
    return margins(logits_of(model, forget.inputs), forget.labels)
