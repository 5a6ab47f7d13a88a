"""How fast an unlearned model relearns what it forgot, against unseen examples of the same size and classes."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from expunge.auditing.forward import Outputs
from expunge.auditing.report import Relearning
from expunge.data import Examples
from expunge.errors import InputError, NonFiniteError, SettingError
from expunge.metrics.relearning import head_steps, interpolated, matched_draws, relearn_statistic, step_matrix
from expunge.models import copied, forward, last_layer
from expunge.progress import track
from expunge.randomness import stream

TOLERANCE = 1.05
"""A set is relearned when its mean loss is at most this multiple of the original model's on the forget set."""
MOST_SHARED = 0.25
"""The largest share of a class that one control set may take for their ranks to be worth a p-value."""


def relearn(
    model: nn.Module,
    forget: Outputs,
    heldout: Outputs,
    *,
    original_loss: float,
    num_controls: int = 39,
    max_examples: int = 512,
    max_steps: int = 3000,
    seed: int = 0,
) -> Relearning:
    """Steps in which the unlearned model's last layer relearns the forget set, on features that stay as they are.

    T(S) is the number of steps, interpolated within the last one, until the mean cross-entropy on S is at most
    `TOLERANCE` times the original model's on the forget set. Each run starts at the unlearned last layer and takes
    full-batch gradient steps φ ← φ − g P / L. P inverts the second moment of the features of all examples at hand
    (with `RIDGE`); L, one for all runs, is the smallest constant for which no loss can rise (half of the largest
    eigenvalue of P^½ (Xᵀ X / n) P^½ over all sets).

    It cannot see what is left in earlier layers but does not reach the features; `network_steps` trains those too. A
    forget set of more than `max_examples` is represented by a random part of that size.

    Args:
        model: the unlearned model; only its last linear layer is read.
        forget, heldout: its outputs with `features`, from `outputs_of`.
        original_loss: the original model's mean cross-entropy on the forget set, > 0.
        num_controls: R; the smallest p-value is 1 / (R + 1).
        max_examples: ≥ 1.
        max_steps: a run that is not done by then counts as that many.
        seed: of the draws.

    Raises:
        InputError: no features (the model does not end in a linear layer), a class with fewer held-out examples than a
            control needs, a loss of 0, or nothing to relearn (`relearn_statistic`).
        SettingError: a number out of range.

    >>> from expunge.auditing.forward import outputs_of
    >>> net = nn.Sequential(nn.Linear(8, 3))
    >>> data = Examples(torch.randn(200, 8), torch.arange(200) % 3)
    >>> seen = [outputs_of(net, part, features=True) for part in (data.take(torch.arange(6)), data)]
    >>> result = relearn(net, *seen, original_loss=0.2)
    >>> len(result.control_steps), 0 < result.p_value <= 1
    (39, True)
    """
    if min(num_controls, max_examples, max_steps) < 1:
        raise SettingError("num_controls, max_examples and max_steps are at least 1")
    if not 0 < original_loss < float("inf"):
        raise InputError(f"the original model's loss on the forget set is {original_loss}: no training reaches it")
    head = model.get_submodule(last_layer(model))
    if forget.features is None or heldout.features is None or not isinstance(head, nn.Linear):
        raise InputError("relearning needs a model whose logits are the output of its last linear layer")
    rng = np.random.default_rng(_seed(seed))
    chosen = np.sort(rng.permutation(len(forget.labels))[:max_examples])
    labels = forget.labels[chosen]
    draws, shared = matched_draws(labels, heldout.labels, num_controls, rng)
    weight, bias = head.weight.detach().double().cpu(), head.bias
    x_forget, x_heldout = forget.features[chosen].double().numpy(), heldout.features.double().numpy()
    phi = weight.numpy()
    if bias is not None:  # one more feature of constant value 1
        phi = np.concatenate([phi, bias.detach().double().cpu().numpy()[:, None]], axis=1)
        x_forget, x_heldout = (np.concatenate([x, np.ones((len(x), 1))], axis=1) for x in (x_forget, x_heldout))
    sets = [(x_forget, labels), *((x_heldout[draw], heldout.labels[draw]) for draw in draws)]
    everything = np.concatenate([x_forget, x_heldout])
    if not everything.any():
        raise InputError("the last layer's features are all zero: it can learn nothing from them")
    width = everything.shape[1]
    if width > len(everything):  # all of it happens in the span of the examples: no need for a matrix of width² numbers
        _, _, basis = np.linalg.svd(everything, full_matrices=False)
        everything, phi = everything @ basis.T, phi @ basis.T
        sets = [(x @ basis.T, y) for x, y in sets]
    step = step_matrix(everything, [x for x, _ in sets], width)
    target = TOLERANCE * original_loss
    times = [head_steps(x, y, phi, step, target, max_steps) for x, y in track(sets, "relearning", num_controls + 1)]
    note = f"last layer on fixed features, {len(chosen)} of {len(forget.labels)} forgotten examples"
    return _result(times, note, shared, max_steps)


def network_steps(
    model: nn.Module,
    examples: Examples,
    target_loss: float,
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
    max_steps: int = 100,
    batch_size: int = 500,
) -> float:
    """T: full-batch SGD steps on all parameters until the mean cross-entropy on `examples` is at most `target_loss`.

    They are made by a copy of `model` in eval mode. The last step is interpolated linearly in the loss. Where more than
    `max_steps` would be needed, `max_steps` is returned. Gradients add up over batches; `target_loss` is positive.

    Raises:
        NonFiniteError: the loss became NaN or infinite.

    >>> net = nn.Linear(4, 3)
    >>> data = Examples(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    >>> 0 < network_steps(net, data, 0.7, lr=0.5) < 100
    True
    """
    own = copied(model).eval()
    parameters = [parameter.requires_grad_(True) for parameter in own.parameters()]
    examples = examples.to(parameters[0].device, parameters[0].dtype)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    previous = 0.0
    for step in range(max_steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for inputs, labels in zip(examples.inputs.split(batch_size), examples.labels.split(batch_size), strict=True):
            with torch.enable_grad():
                part = F.cross_entropy(forward(own, inputs), labels, reduction="sum") / len(examples)
                part.backward()
            loss += float(part.detach())
        if not np.isfinite(loss):
            raise NonFiniteError(f"relearning's loss became NaN or infinite at step {step}; lower lr")
        if loss <= target_loss:
            return interpolated(step, previous, loss, target_loss)
        previous = loss
        optimizer.step()
    return float(max_steps)


def _result(times: Sequence[float], note: str, shared: float, max_steps: int) -> Relearning:
    ratio, rank = relearn_statistic(times[0], times[1:])
    p_value = rank if shared <= MOST_SHARED else None
    if shared:
        effect = "p is somewhat low" if p_value is not None else "their ranks say nothing"
        note += f"; control sets share held-out examples (each takes up to {shared:.0%} of a class): {effect}"
    cut = sum(time >= max_steps for time in times[1:])
    if cut:
        note += f"; {cut} of {len(times) - 1} control sets were not learned in {max_steps} steps, which they count as"
    if times[0] >= max_steps:
        note += (
            f"; nor was the forget set in {max_steps} steps" if cut else f"; the forget set took over {max_steps} steps"
        )
    return Relearning(steps=times[0], control_steps=tuple(times[1:]), ratio=ratio, p_value=p_value, note=note)


def _seed(seed: int) -> int:
    return int(torch.randint(2**62, (1,), generator=stream("relearning", seed), device="cpu"))
