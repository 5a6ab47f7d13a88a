"""One step of every method on a linear float64 network, recomputed in NumPy from the formulas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from expunge.data import calibration_side
from expunge.methods import METHODS, make_method
from expunge.randomness import stream
from expunge.unlearning import unlearn
from expunge.update_log import UpdateRecorder
from tests.arrangements import Pairs, read_by

Array = npt.NDArray[np.float64]
C, M, N, R = 5, 3, 4, 6
LR, WD = 0.05, 0.01
rng = np.random.default_rng(0)
W, B = rng.normal(size=(C, M)), rng.normal(size=C)
X, Y = rng.normal(size=(N, M)), np.array([0, 1, 2, 2])
XR, YR = rng.normal(size=(R, M)), np.array([4, 3, 1, 0, 2, 4])
WT, BT = rng.normal(size=(C, M)), rng.normal(size=C)
XT, YT = rng.normal(size=(30, M)), np.array([0, 2, 3, 4])[np.arange(30) % 4]
"""Weights of the network, forgotten and retained examples, what the factory builds, and unseen examples."""


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def one_hot(labels: npt.NDArray[np.int64]) -> Array:
    return np.eye(C)[labels]


def step(x: Array, dz: Array) -> tuple[Array, Array]:
    """The plain gradient step θ − η (∂L/∂θ + wd θ), given ∂L/∂z (N, C)."""
    return W - LR * (dz.T @ x + WD * W), B - LR * (dz.sum(0) + WD * B)


def second_best() -> npt.NDArray[np.int64]:
    """Pseudo-labels by sorting: the top class where it is wrong, the runner-up where it is right."""
    order = np.argsort(-(X @ W.T + B), axis=1)
    return np.where(order[:, 0] == Y, order[:, 1], order[:, 0])


def targeted(lam: float) -> tuple[Array, Array]:
    p = softmax(X @ W.T + B)
    labels = second_best()
    loss = -np.log(p[np.arange(N), labels])
    return step(X, (lam * loss ** (lam - 1) / N)[:, None] * (p - one_hot(labels)))


def neg_grad() -> tuple[Array, Array]:
    return step(X, -(softmax(X @ W.T + B) - one_hot(Y)) / N)


def drawn_wrong(seed: int = 0) -> npt.NDArray[np.int64]:
    offset = torch.randint(1, C, (N,), generator=stream("method", seed)).numpy()
    return np.asarray((Y + offset) % C)


def random_label() -> tuple[Array, Array]:
    return step(X, (softmax(X @ W.T + B) - one_hot(drawn_wrong())) / N)


def attacked(labels: npt.NDArray[np.int64], draw: torch.Generator, radius: float, length: float, steps: int) -> Array:
    """Targeted L2-PGD against the original network, in units of the range of X."""
    low, high = X.min(), X.max()
    span = high - low

    def into_ball(delta: Array) -> Array:
        norms = np.linalg.norm(delta, axis=1, keepdims=True)
        return np.asarray(delta * np.minimum(1, radius * span / norms))

    delta = into_ball(low + span * torch.rand(X.shape, generator=draw).double().numpy() - X)
    for _ in range(steps):
        gradient = (softmax((X + delta) @ W.T + B) - one_hot(labels)) @ W
        delta = delta - length * span * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        delta = into_ball(np.clip(X + delta, low, high) - X)
    return np.asarray(X + delta)


def instance_wise(lam: float, steps: int) -> tuple[Array, Array]:
    """Several steps: the penalty has no gradient at the first one."""
    draw = stream("method", 0)
    labels = (Y + torch.randint(1, C, (N,), generator=draw).numpy()) % C
    x = np.concatenate([X, attacked(labels, draw, radius=0.4, length=0.1, steps=4)])
    target = one_hot(np.concatenate([Y, labels]))
    sign = np.repeat([-1, 1], N)[:, None]
    output = X @ W.T + B
    omegas = np.abs(2 * output[:, :, None] * X[:, None, :]).mean(0), np.abs(2 * output).mean(0)
    hold_w, hold_b = (1 - (omega - omega.min()) / (omega.max() - omega.min()) for omega in omegas)
    weight, bias = W, B
    for _ in range(steps):
        dz = sign * (softmax(x @ weight.T + bias) - target) / (2 * N)
        weight, bias = (
            weight - LR * (dz.T @ x + lam * hold_w * (weight - W) + WD * weight),
            bias - LR * (dz.sum(0) + lam * hold_b * (bias - B) + WD * bias),
        )
    return weight, bias


def mu_mis(steps: int) -> tuple[Array, Array]:
    """∇ₓ f_c is row c of the weight. The bias is not in the loss: it gets no gradient, so not even weight decay."""
    draw = stream("method", 0)
    weight = W
    for _ in range(steps):
        others = (Y + torch.randint(1, C, (N,), generator=draw).numpy()) % C
        gradient = 2 * (one_hot(Y) - one_hot(others)).sum(0)[:, None] * weight / N
        weight = weight - LR * (gradient + WD * weight)
    return weight, B


def amnesiac() -> tuple[Array, Array]:
    x = np.concatenate([X, XR])
    labels = np.concatenate([drawn_wrong(), YR])
    return step(x, (softmax(x @ W.T + B) - one_hot(labels)) / (N + R))


def salun() -> tuple[Array, Array]:
    """The gradient step, taken by the 10 of 20 weights with the largest gradient of the forget set's loss."""
    dz = (softmax(X @ W.T + B) - one_hot(Y)) / N
    size = np.abs(np.concatenate([(dz.T @ X).ravel(), dz.sum(0)]))
    moves = size >= np.sort(size)[-10]
    weight, bias = amnesiac()
    return np.where(moves[: C * M].reshape(C, M), weight, W), np.where(moves[C * M :], bias, B)


def bad_teacher() -> tuple[Array, Array]:
    t = 2.0
    x = np.concatenate([X, XR])
    target = softmax(np.concatenate([X @ WT.T + BT, XR @ W.T + B]) / t)
    return step(x, t**2 / C / t * (softmax((x @ W.T + B) / t) - target) / (N + R))


def boundary_shrink() -> tuple[Array, Array]:
    """The step is a tenth of the range of X; of each moved row the largest logit but the true one's is the label."""
    gradient = (softmax(X @ W.T + B) - one_hot(Y)) @ W
    moved = np.clip(X + 0.1 * (X.max() - X.min()) * np.sign(gradient), X.min(), X.max())
    labels = np.argmax(moved @ W.T + B - 1e9 * one_hot(Y), axis=1)
    return step(X, (softmax(X @ W.T + B) - one_hot(labels)) / N)


def delete() -> tuple[Array, Array]:
    """The target by counting: e^z over the wrong classes alone, each row divided by its sum."""
    z = X @ W.T + B
    wrong = np.exp(z) * (1 - one_hot(Y))
    return step(X, (softmax(z) - wrong / wrong.sum(1, keepdims=True)) / N)


def falw() -> tuple[Array, Array]:
    """The unseen examples of each class score p ± σ as their own do; a class without any weighs 1."""
    tau, seen = 0.5, calibration_side(torch.tensor(XT), 0).numpy()
    x, labels = np.concatenate([X, XR]), np.concatenate([drawn_wrong(), YR])
    unseen = softmax(XT[seen] @ W.T + B)[np.arange(seen.sum()), YT[seen]]
    weights = np.ones(N + R)
    for row, own in enumerate(Y):
        among = unseen[YT[seen] == own]
        if len(among):
            z = (softmax(X @ W.T + B)[row, own] - among.mean()) / max(among.std(), 1e-8)
            balance = (N / (C * (own == Y).sum())) ** tau
            weights[row] = 1 + np.sign(z) * np.tanh(abs(z)) ** (1 / balance)
    assert len(set(weights.round(6))) > 2
    return step(x, weights[:, None] * (softmax(x @ W.T + B) - one_hot(labels)) / (N + R))


def scrub() -> tuple[Array, Array]:
    """Two epochs, each of a max-step and a min-step; the gradient of the first max-step is zero."""
    t, alpha, gamma = 2.0, 0.3, 0.8
    w, b = W, B
    for _ in range(2):
        for x, y in ((X, None), (XR, YR)):
            z, teacher = x @ w.T + b, softmax((x @ W.T + B) / t)
            dz = t * (softmax(z / t) - teacher)
            dz = -dz if y is None else alpha * dz + gamma * (softmax(z) - one_hot(y))
            w, b = w - LR * (dz.T @ x / len(x) + WD * w), b - LR * (dz.mean(0) + WD * b)
    return w, b


def hinge() -> tuple[Array, Array]:
    """The true logit against the highest other one, where the hinge is above zero; what is held has not moved yet."""
    z = X @ W.T + B
    best = np.argmax(z - 1e9 * one_hot(Y), axis=1)
    active = z[np.arange(N), Y] - z[np.arange(N), best] + 2.5 > 0
    assert 0 < active.sum() < N
    return step(X, active[:, None] * (one_hot(Y) - one_hot(best)) / N)


def finetune() -> tuple[Array, Array]:
    return step(XR, (softmax(XR @ W.T + B) - one_hot(YR)) / R)


def jit(detach: bool, scale: float = 1.0) -> tuple[Array, Array]:
    """Two draws of noise e in units of X's deviation s: the mean of ‖W s e‖ / ‖e‖; the bias cancels unless detached."""
    generator, s, dw, db = stream("method", 0), X.std(), np.zeros_like(W), np.zeros_like(B)
    for _ in range(2):
        e = 0.3 * torch.randn(N, M, dtype=torch.float64, generator=generator).numpy()
        moved = s * e @ W.T
        u = scale * moved / np.linalg.norm(moved, axis=1, keepdims=True) / np.linalg.norm(e, axis=1, keepdims=True) / N
        dw += -u.T @ X / 2 if detach else u.T @ (s * e) / 2
        db += -u.sum(0) / 2 if detach else 0
    return W - LR * (dw + WD * W), B - LR * (db + WD * B)


def retrain() -> tuple[Array, Array]:
    """From the factory's weights; the one-cycle schedule starts at lr / 25; Nesterov's first step is (1 + μ) g."""
    dz = (softmax(XR @ WT.T + BT) - one_hot(YR)) / R
    scale = LR / 25 * (1 + 0.95)
    return WT - scale * (dz.T @ XR + WD * WT), BT - scale * (dz.sum(0) + WD * BT)


def salsa() -> tuple[Array, Array]:
    """One step of a run of one: α is at its start, the anchor without effect. Probabilities moved as fractions."""
    p = softmax(X @ W.T + B)
    given = one_hot((X @ W.T + B).argmax(1))
    taken = 0.3 * p * given
    others = p * (1 - given)
    target = p - taken + others * taken.sum(1, keepdims=True) / others.sum(1, keepdims=True)
    return step(X, (p - target) / N)


GOLDEN: dict[str, tuple[dict[str, Any], Callable[[], tuple[Array, Array]]]] = {
    "targeted": ({"lam": 2.5, "stop": "budget"}, lambda: targeted(2.5)),
    "neg_grad": ({}, neg_grad),
    "random_label": ({}, random_label),
    "instance_wise": (
        {"adversarial": 1, "importance": 2.0, "radius": 0.4, "attack_step": 0.1, "attack_steps": 4, "epochs": 3},
        lambda: instance_wise(lam=2.0, steps=3),
    ),
    "mu_mis": ({"epochs": 2}, lambda: mu_mis(steps=2)),
    "amnesiac": ({}, amnesiac),
    "bad_teacher": ({"temperature": 2.0}, bad_teacher),
    "boundary_shrink": ({"bound": 0.1}, boundary_shrink),
    "delete": ({}, delete),
    "masked_distillation": ({"pace": None, "gap": 2.5, "stop": "budget"}, hinge),
    "held_boundary": ({"pace": None, "gap": 2.5, "stop": "budget"}, hinge),
    "falw": ({"tau": 0.5}, falw),
    "salun": ({}, salun),
    "scrub": ({"epochs": 2, "msteps": 2, "temperature": 2.0, "alpha": 0.3, "gamma": 0.8}, scrub),
    "finetune": ({}, finetune),
    "jit": ({"sigma": 0.3, "draws": 2}, lambda: jit(detach=False)),
    "salsa": ({}, salsa),
    "retrain": ({"batch_size": R, "warmup": 0.99}, retrain),
}
"""Settings and the expected (weight, bias). `amnesiac_undo`, `calibrated` and both of AMUN have tests of their own,
both of SSD a file."""


def network(weight: Array, bias: Array) -> nn.Linear:
    linear = nn.Linear(M, C, dtype=torch.float64)
    linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
    return linear


def arrays(model: nn.Module) -> tuple[Array, Array]:
    """The weight and the bias of a linear network."""
    weight, bias = model.parameters()
    return weight.detach().numpy(), bias.detach().numpy()


def data(x: Array, y: npt.NDArray[np.int64]) -> Pairs:
    return Pairs(torch.tensor(x), torch.tensor(y))


def test_every_method_has_a_golden_value() -> None:
    assert {*GOLDEN, "amnesiac_undo", "amun", "amun_retain", "calibrated", "ssd", "lfssd"} == set(METHODS)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_one_step_equals_the_formula(name: str) -> None:
    settings, expected = GOLDEN[name]
    common: dict[str, Any] = {"lr": LR, "weight_decay": WD, "epochs": 1}
    if name != "retrain":
        common |= {"optimizer": "sgd", "batch_size": None}
    method = make_method(name, **{**common, **settings})
    given = read_by(method, retain=data(XR, YR), factory=lambda: network(WT, BT))
    given |= {"test": data(XT, YT)} if name == "falw" else {}
    model = unlearn(network(W, B), data(X, Y), method=method, **given).model
    for actual, golden in zip(arrays(model), expected(), strict=True):
        np.testing.assert_allclose(actual, golden, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "with_true"), [("amun", True), ("amun", False), ("amun_retain", False)])
def test_amun_learns_the_first_misclassified_point_on_the_way_up_the_loss(name: str, with_true: bool) -> None:
    """The network gets Y wrong from the start, so that its own predictions are the labels but for the last example."""
    labels = np.where(np.arange(N) < N - 1, (X @ W.T + B).argmax(1), Y)
    ends, wrong, lengths = np.empty_like(X), np.empty_like(Y), []
    low, high = X.min(), X.max()
    for row, (start, own) in enumerate(zip(X, labels, strict=True)):
        x, ball, steps = start, 0.2 * (high - low), 0
        while np.argmax(z := x @ W.T + B) == own:
            odds = np.where(np.arange(C) == own, 0, np.exp(z))
            slope = odds / odds.sum() @ W - W[own]
            delta = x + ball / 10 * slope / np.linalg.norm(slope) - start
            x = np.clip(start + delta * min(1, ball / np.linalg.norm(delta)), low, high)
            steps += 1
            ball *= 2 if steps % 3 == 0 else 1
        ends[row], wrong[row] = x, np.argmax(z)
        lengths.append(steps)
    assert lengths[-1] == 0 < 3 < max(lengths), "none came to a second ball"
    x, y = (np.concatenate([X, ends]), np.concatenate([labels, wrong])) if with_true else (ends, wrong)
    if name == "amun_retain":
        x, y = np.concatenate([x, XR]), np.concatenate([y, YR])
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": LR, "weight_decay": WD, "epochs": 1, "batch_size": None}
    method = make_method(name, **settings, radius=0.2, attack_steps=3, with_true=with_true)
    result = unlearn(network(W, B), data(X, labels), method=method, **read_by(method, retain=data(XR, YR)))
    assert result.trace.pseudo_labels is not None
    assert (result.trace.pseudo_labels.adversarial, result.trace.pseudo_labels.second_best) == (N, 0)
    for actual, expected in zip(
        arrays(result.model), step(x, (softmax(x @ W.T + B) - one_hot(y)) / len(x)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_masked_distillation_by_divergence_starts_as_delete_does() -> None:
    """What is held has not moved yet, so that the pull alone counts: the original softmax without the true class."""
    method = make_method(
        "masked_distillation", objective="divergence", pace=None, lr=LR, weight_decay=WD, epochs=1, batch_size=None,
        optimizer="sgd", stop="budget",
    )  # fmt: skip
    model = unlearn(network(W, B), data(X, Y), method=method, test=data(XR, YR)).model
    for actual, expected in zip(arrays(model), delete(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_the_first_adam_step_is_the_sign_of_the_decayed_gradient() -> None:
    """With bias correction m̂ = g and v̂ = g², so θ moves by η g / (|g| + 1e-8), g with the weight decay in it."""
    labels = second_best()
    p = softmax(X @ W.T + B)
    gradient = ((p - one_hot(labels)) / N).T @ X + WD * W
    model = unlearn(
        network(W, B),
        data(X, Y),
        method=make_method("targeted", lam=1, stop="budget", lr=LR, weight_decay=WD, epochs=1),
    ).model
    expected = W - LR * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(arrays(model)[0], expected, rtol=0, atol=1e-12)


def test_the_papers_settings_are_the_defaults() -> None:
    """Section 5: Adam, learning rate 1e-4, weight decay 1e-5."""
    for name in ("neg_grad", "random_label", "targeted"):
        method: Any = make_method(name, preset="paper")
        assert (method.optimizer, method.lr, method.weight_decay, method.epochs) == ("adam", 1e-4, 1e-5, 20)


def test_the_bad_teachers_loss_is_a_mean_over_classes_or_not() -> None:
    moved = []
    for divide in (True, False):
        settings: dict[str, Any] = {"optimizer": "sgd", "lr": LR, "weight_decay": 0, "epochs": 1, "temperature": 2.0}
        method = make_method("bad_teacher", **settings, divide_by_classes=divide)
        given: dict[str, Any] = {"retain": data(XR, YR), "factory": lambda: network(WT, BT)}
        moved.append(arrays(unlearn(network(W, B), data(X, Y), method=method, **given).model)[0] - W)
    np.testing.assert_allclose(C * moved[0], moved[1], rtol=0, atol=1e-14)


def test_the_printed_equation_divides_by_the_size_twice() -> None:
    once, twice = (
        unlearn(
            network(W, B),
            data(X, Y),
            method=make_method(
                "targeted", optimizer="sgd", stop="budget", lr=LR, weight_decay=0, epochs=1, lam=3, reduction=reduction
            ),
        ).model
        for reduction in ("mean", "paper")
    )
    moved = [arrays(model)[0] - W for model in (once, twice)]
    np.testing.assert_allclose(moved[0] / N, moved[1], rtol=0, atol=1e-14)


def test_undo_subtracts_exactly_the_updates_of_sensitive_batches(tmp_path: Path) -> None:
    from expunge.data import Examples, digests
    from expunge.training import Recipe, train

    model = network(W, B)
    x = torch.tensor(np.concatenate([X, XR]))
    y = torch.tensor(np.concatenate([Y, YR]))
    recorder = UpdateRecorder(tmp_path, frozenset(digests(torch.tensor(X[:2]))))
    recipe = Recipe(epochs=3, batch_size=2, lr=LR)
    train(model, Examples(x, y), recipe, rng=torch.Generator().manual_seed(0), updates=recorder)
    trained = arrays(model)[0].copy()
    order = torch.Generator().manual_seed(0)
    sensitive = [
        epoch * 5 + n
        for epoch in range(3)
        for n, batch in enumerate(torch.randperm(10, generator=order).split(2))
        if set(batch.tolist()) & {0, 1}
    ]
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [int(path.stem) for path in files] == sensitive
    undone = unlearn(model, data(X[:2], Y[:2]), method=make_method("amnesiac_undo", updates=tmp_path))
    expected = trained - sum(load_file(path)["weight"] for path in files)
    np.testing.assert_allclose(arrays(undone.model)[0], expected, rtol=0, atol=1e-12)
    assert undone.trace.steps == len(sensitive)


def sorted_quantile(values: Array, share: float) -> float:
    """Linear interpolation between order statistics, the i-th of which, from 0, stands at (i + ½) / M."""
    ordered, position = np.sort(values), min(max(share * len(values) - 0.5, 0), len(values) - 1)
    low = int(np.floor(position))
    high = min(low + 1, len(values) - 1)
    return float(ordered[low] + (position - low) * (ordered[high] - ordered[low]))


def even(values: Array) -> Array:
    """(rank + ½) / N."""
    return np.asarray((np.argsort(np.argsort(values)) + 0.5) / len(values))


def margin_gradient(z: Array, y: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Margins s = z_y − log Σ_{j≠y} exp z_j, and ∂s/∂z: 1 at y, minus the softmax of the others elsewhere."""
    rest = np.exp(z) * (1 - one_hot(y))
    return z[np.arange(len(y)), y] - np.log(rest.sum(1)), one_hot(y) - rest / rest.sum(1, keepdims=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("pace", [None, 0.1])
def test_calibrated_steps_toward_the_margins_of_the_calibration_side(optimizer: str, pace: float | None) -> None:
    draw = np.random.default_rng(3)
    heldout, labels = draw.normal(size=(200, M)), draw.integers(0, C, 200)
    z = X @ W.T + B
    predicted = z.argmax(1)
    y = np.where(np.arange(N) == 2, z.argmin(1), predicted)  # one that the model gets wrong
    # The last one's class has no margins of its own: fewer than 20 on either side.
    labels[labels == y[-1]] = (y[-1] + 1) % C
    side = calibration_side(torch.tensor(heldout), seed=0).numpy()
    assert 60 < side.sum() < 140
    unseen, _ = margin_gradient(heldout[side] @ W.T + B, labels[side])
    own, gradient = margin_gradient(X @ W.T + B, y)
    groups = [unseen[labels[side] == c] if (labels[side] == c).sum() >= 20 else unseen for c in y]
    assert {len(group) for group in groups} >= {len(unseen)}, "no example is compared with all"
    first = [sorted_quantile(unseen, share) for share in even(own)]
    placed = np.array([(group < value).mean() for group, value in zip(groups, first, strict=True)])
    targets = [sorted_quantile(group, share) for group, share in zip(groups, even(placed), strict=True)]
    wrong = predicted != y  # no margin of theirs is raised
    assert (np.array(targets) > own)[wrong].any()
    targets = [min(target, margin) if bad else target for target, margin, bad in zip(targets, own, wrong, strict=True)]
    gap = (own - targets) / unseen.std()
    huber = np.where(np.abs(gap) < 1, gap**2 / 2, np.abs(gap) - 0.5)
    dz = np.clip(gap, -1, 1)[:, None] / unseen.std() * gradient / N
    # The outputs that are distilled are those of the model itself, so that they give no gradient at the first step.
    slope = dz.T @ X, dz.sum(0)
    entries = np.concatenate([np.ravel(part) for part in slope])
    size = (entries**2).sum() if optimizer == "sgd" else np.abs(entries).sum()
    lr = LR if pace is None else pace * huber.mean() / size
    assert pace is None or lr < 10
    model = unlearn(
        network(W, B),
        data(X, y),
        method=make_method(
            "calibrated",
            optimizer=optimizer,
            lr=LR if pace is None else 10.0,
            pace=pace,
            epochs=1,
            batch_size=None,
            stop="budget",
        ),
        test=data(heldout, labels),
    ).model
    for actual, start, part in zip(arrays(model), (W, B), slope, strict=True):
        moved = part if optimizer == "sgd" else part / (np.abs(part) + 1e-8)
        np.testing.assert_allclose(actual, start - lr * moved, rtol=0, atol=1e-10)


def test_calibrated_holds_what_it_holds_and_follows_what_it_watches() -> None:
    """Four epochs, with gradients by autograd: held outputs and margins, their falling weight, targets that move."""
    draw = np.random.default_rng(3)
    everything, known = draw.normal(size=(260, M)), draw.integers(0, C, 260)
    y = (X @ W.T + B).argmax(1)
    side = calibration_side(torch.tensor(everything), seed=0).numpy()
    inputs, labels = torch.tensor(everything[side]), torch.tensor(known[side])
    forget, own_labels = torch.tensor(X), torch.tensor(y)
    weight, bias = torch.tensor(W, requires_grad=True), torch.tensor(B, requires_grad=True)

    def scores(z: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        rest = [torch.cat([row[:at], row[at + 1 :]]).logsumexp(0) for row, at in zip(z, true.tolist(), strict=True)]
        return z[torch.arange(len(z)), true] - torch.stack(rest)

    def huber(gap: torch.Tensor) -> torch.Tensor:
        return torch.where(gap.abs() < 1, gap**2 / 2, gap.abs() - 0.5)

    unseen = scores(inputs @ weight.T + bias, labels).detach()
    own = scores(forget @ weight.T + bias, own_labels).detach()
    groups = [unseen[labels == c].numpy() if (labels == c).sum() >= 20 else unseen.numpy() for c in y]
    first = [sorted_quantile(unseen.numpy(), share) for share in even(own.numpy())]
    placed = np.array([(group < value).mean() for group, value in zip(groups, first, strict=True)])
    planned = [sorted_quantile(group, share) for group, share in zip(groups, even(placed), strict=True)]
    unit, order = unseen.std(correction=0), torch.randperm(len(unseen), generator=stream("method", 0))
    watched, held = order[: len(unseen) // 4], order[len(unseen) // 4 :]
    assert len(watched) >= 25
    before, taught = unseen[watched], (inputs[held] @ weight.T + bias).detach()
    for epoch in range(4):
        now = scores(inputs[watched] @ weight.T + bias, labels[watched]).detach()
        slope = min(1.0, float(now.std() / before.std()))
        targets = now.mean() + slope * (torch.tensor(planned, dtype=torch.float64) - before.mean())
        pull = huber((scores(forget @ weight.T + bias, own_labels) - targets) / unit).mean()
        z, p = inputs[held] @ weight.T + bias, taught.softmax(1)
        apart = (p * (p.log() - z.log_softmax(1))).sum(1)
        sunk = huber((scores(z, taught.argmax(1)) - scores(taught, taught.argmax(1))) / unit)
        loss = pull + 2.0 * 0.7**epoch * (apart + sunk).mean()
        slopes = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            weight -= 0.3 * slopes[0]
            bias -= 0.3 * slopes[1]
    method = make_method(
        "calibrated",
        optimizer="sgd",
        lr=0.3,
        pace=None,
        epochs=4,
        batch_size=None,
        stop="budget",
        rank="margin",
        retention=2.0,
        relax=0.7,
        retention_size=1000,
        mixtures=False,
    )
    model = unlearn(network(W, B), data(X, y), method=method, test=data(everything, known)).model
    for actual, expected in zip(arrays(model), (weight, bias), strict=True):
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=0, atol=1e-12)
