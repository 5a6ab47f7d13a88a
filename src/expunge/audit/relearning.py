"""How fast an unlearned model relearns what it forgot, against unseen examples of the same size and classes."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import nn

from expunge.audit.audit_report import Relearning
from expunge.audit.forward import Outputs
from expunge.audit.parameter_change import last_layer
from expunge.audit.placement import as_scores
from expunge.data import Examples
from expunge.errors import InputError, NonFiniteError, SettingError
from expunge.models import forward
from expunge.progress import track
from expunge.randomness import stream
from expunge.theory._checks import Floats, Integers

TOLERANCE = 1.05
"""A set is relearned when its mean loss is at most this multiple of the original model's on the forget set."""
MOST_SHARED = 0.25
"""The largest share of a class that one control set may take for their ranks to be worth a p-value."""
RIDGE = 1e-3
"""Added to the features' second moment before it is inverted, as a share of its mean eigenvalue."""


def relearn_statistic(steps: float, control_steps: ArrayLike) -> tuple[float, float]:
    """The ratio ρ = T(D_f) / median_r T(C_r) and the rank p-value (1 + #{T(C_r) ≤ T(D_f)}) / (R + 1).

    Where forgotten and control examples are exchangeable, p ≤ α with probability at most α. Ties count against
    significance.

    Args:
        steps: T(D_f) ≥ 0.
        control_steps: T(C_r) ≥ 0, float, shape (R,), R ≥ 1.

    Raises:
        InputError: no controls, negative or non-finite times, or a median of 0: then there is nothing to relearn.

    >>> relearn_statistic(3.0, [4.0, 6.0, 8.0])
    (0.5, 0.25)
    """
    controls = as_scores(control_steps, "control_steps")
    if not 0 <= steps < float("inf") or bool((controls < 0).any()):
        raise InputError("numbers of steps must be finite and not negative")
    median = float(np.median(controls))
    if median == 0:
        raise InputError(
            "at least half of the control sets need no step: unseen examples have as low a loss as the forget set had "
            "in the original model, so that there is nothing to relearn"
        )
    return steps / median, float((1 + (controls <= steps).sum()) / (len(controls) + 1))


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
    (with `RIDGE`), so that no step size has to be chosen; L, one for all runs, is the smallest constant for which
    none can rise (half of the largest eigenvalue of P^½ (Xᵀ X / n) P^½ over all sets). The loss is convex.

    What it sees: traces in the features and in the last layer. What it cannot see: knowledge that is left in earlier
    layers but does not reach the features; `relearn_network` trains those too, and costs a training run. A forget set
    of more than `max_examples` is represented by a random part of that size. 512 examples and 39 controls took 2.4 s
    of one core on a ResNet-18's features; 40 runs that all reach `max_steps` would take about a minute.

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

    >>> from expunge.audit.forward import outputs_of
    >>> net = nn.Sequential(nn.Linear(8, 3))
    >>> data = Examples(torch.randn(200, 8), torch.arange(200) % 3)
    >>> seen = [outputs_of(net, part, features=True) for part in (data.take(torch.arange(6)), data)]
    >>> result = relearn(net, *seen, original_loss=0.2)
    >>> len(result.control_steps), 0 < result.p_value <= 1
    (39, True)
    """
    _check_numbers(num_controls, max_examples, max_steps)
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
    step = _step_matrix(everything, [x for x, _ in sets], width)
    target = _target(original_loss)
    times = [_head_steps(x, y, phi, step, target, max_steps) for x, y in track(sets, "relearning", num_controls + 1)]
    note = f"last layer on fixed features, {len(chosen)} of {len(forget.labels)} forgotten examples"
    return _result(times, note, shared, max_steps)


def relearn_network(
    model: nn.Module,
    forget: Examples,
    heldout: Examples,
    *,
    original_loss: float,
    num_controls: int = 39,
    max_examples: int = 128,
    max_steps: int = 100,
    lr: float = 0.01,
    momentum: float = 0.9,
    seed: int = 0,
) -> Relearning:
    """As `relearn`, with all parameters trained: `network_steps` on the forget set and on each control set.

    Costs (R + 1) T forward and backward passes of `max_examples` examples, T up to `max_steps`.

    Args:
        model: the unlearned model; left untouched.
        forget, heldout: examples that fit it; the held-out ones were never trained on.
        lr, momentum: of the fixed SGD.
        original_loss, num_controls, max_examples, max_steps, seed: as for `relearn`.

    Raises:
        InputError, SettingError: as `relearn`.
        NonFiniteError: a loss became NaN or infinite.

    >>> net = nn.Linear(8, 3)
    >>> data = Examples(torch.randn(200, 8), torch.arange(200) % 3)
    >>> parts = data.take(torch.arange(6)), data.take(torch.arange(6, 200))
    >>> result = relearn_network(net, *parts, original_loss=0.5, num_controls=9, lr=0.1)
    >>> len(result.control_steps), 0 < result.p_value <= 1
    (9, True)
    """
    _check_numbers(num_controls, max_examples, max_steps)
    rng = np.random.default_rng(_seed(seed))
    chosen = np.sort(rng.permutation(len(forget))[:max_examples])
    part = forget.take(torch.from_numpy(chosen))
    draws, shared = matched_draws(part.labels.numpy(), heldout.labels.numpy(), num_controls, rng)
    sets = [part, *(heldout.take(torch.from_numpy(draw)) for draw in draws)]
    target = _target(original_loss)
    times = [
        network_steps(model, examples, target, lr=lr, momentum=momentum, max_steps=max_steps)
        for examples in track(sets, "relearning", num_controls + 1)
    ]
    note = f"all layers, SGD with lr {lr:g}, {len(chosen)} of {len(forget)} forgotten examples"
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

    The network is a copy in eval mode throughout: normalisation with the statistics that it has, no dropout. The last
    step is interpolated linearly in the loss.

    Args:
        model: maps a batch to logits (B, C); left untouched.
        examples: of any number; gradients add up over batches of `batch_size`.
        target_loss: > 0.
        lr, momentum: of SGD.
        max_steps: returned where more would be needed.

    Raises:
        NonFiniteError: the loss became NaN or infinite.

    >>> net = nn.Linear(4, 3)
    >>> data = Examples(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    >>> 0 < network_steps(net, data, 0.7, lr=0.5) < 100
    True
    """
    own = copy.deepcopy(model).eval()
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
            return _interpolated(step, previous, loss, target_loss)
        previous = loss
        optimizer.step()
    return float(max_steps)


def matched_draws(
    forget_labels: NDArray[np.int64], heldout_labels: NDArray[np.int64], num: int, rng: np.random.Generator
) -> tuple[list[Integers], float]:
    """Draws of held-out examples, each with as many of every class as the forget set has.

    Args:
        forget_labels, heldout_labels: integers, shapes (n,) and (m,).
        num: how many draws.
        rng: what draws them.

    Returns:
        Positions, int64, shape (n,) each, without repetition within a draw; and 0 where no two draws share an example.
        Where a class is too small for that, its draws are independent of one another, and what is returned is the
        largest share f of a class that one draw takes. Draws then vary less among themselves than they should: by
        the normal approximation, p ≤ 0.05 comes up in 7%, 10% and 17% of cases without a difference for f = 0.1, 0.25
        and 0.5.

    Raises:
        InputError: a class has fewer held-out examples than forgotten ones.

    >>> draws, shared = matched_draws(np.array([1, 1, 0]), np.array([0, 1] * 6), 3, np.random.default_rng(0))
    >>> [np.arange(12)[draw].tolist()[1] % 2 for draw in draws], shared
    ([1, 1, 1], 0.0)
    """
    parts: list[list[Integers]] = [[] for _ in range(num)]
    shared = 0.0
    for label, count in zip(*np.unique(forget_labels, return_counts=True), strict=True):
        pool = np.flatnonzero(heldout_labels == label)
        if len(pool) < count:
            raise InputError(
                f"class {label} has {len(pool)} held-out examples for {count} forgotten ones: not one control set of "
                "the same classes can be drawn; give more held-out examples"
            )
        enough = len(pool) >= num * count
        shared = shared if enough else max(shared, count / len(pool))
        order = rng.permutation(pool)
        for r, part in enumerate(parts):
            part.append(order[r * count : (r + 1) * count] if enough else rng.permutation(pool)[:count])
    return [np.concatenate(part) for part in parts], float(shared)


def _step_matrix(everything: Floats, sets: Sequence[Floats], width: int) -> Floats:
    """P / L: symmetric, positive definite, (M, M), or (N, N) for features that were reduced from `width` = M to N."""
    second = everything.T @ everything / len(everything)
    values, vectors = np.linalg.eigh(second)
    root = vectors / np.sqrt(np.maximum(values, 0) + RIDGE * values.sum() / width) @ vectors.T
    # The Hessian of the cross-entropy in the logits is at most ½, whatever the number of classes.
    largest = max(np.linalg.norm(x @ root, 2) ** 2 / len(x) for x in sets)
    return np.asarray(root @ root / (0.5 * largest))


def _head_steps(x: Floats, y: Integers, phi: Floats, step: Floats, target: float, max_steps: int) -> float:
    """T of one set: features (n, M), labels (n,), last layer (C, M)."""
    n = len(x)
    rows = np.arange(n)
    moves = x @ step / n  # the step that one unit of each residual causes
    z = x @ phi.T
    gram = x @ moves.T if n <= x.shape[1] else None
    previous = 0.0
    for taken in range(max_steps + 1):
        z -= z.max(1, keepdims=True)
        odds = np.exp(z)
        totals = odds.sum(1)
        loss = float((np.log(totals) - z[rows, y]).mean())
        if loss <= target:
            return _interpolated(taken, previous, loss, target)
        previous = loss
        residual = odds / totals[:, None]
        residual[rows, y] -= 1.0
        z -= gram @ residual if gram is not None else x @ (moves.T @ residual)
    return float(max_steps)


def _interpolated(step: int, previous: float, loss: float, target: float) -> float:
    """The fractional number of steps at which a loss that was `previous` a step ago crossed `target`."""
    return 0.0 if step == 0 else step - 1 + (previous - target) / (previous - loss)


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


def _target(original_loss: float) -> float:
    if not 0 < original_loss < float("inf"):
        raise InputError(f"the original model's loss on the forget set is {original_loss}: no training reaches it")
    return TOLERANCE * original_loss


def _check_numbers(num_controls: int, max_examples: int, max_steps: int) -> None:
    if min(num_controls, max_examples, max_steps) < 1:
        raise SettingError("num_controls, max_examples and max_steps are at least 1")


def _seed(seed: int) -> int:
    return int(torch.randint(2**62, (1,), generator=stream("relearning", seed), device="cpu"))
