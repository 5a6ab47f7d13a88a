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

from expunge.methods import METHODS, make_method
from expunge.randomness import stream
from expunge.unlearning import unlearn
from expunge.update_log import UpdateRecorder
from tests.arrangements import Pairs

Array = npt.NDArray[np.float64]
C, M, N, R = 5, 3, 4, 6
LR, WD = 0.05, 0.01
rng = np.random.default_rng(0)
W, B = rng.normal(size=(C, M)), rng.normal(size=C)
X, Y = rng.normal(size=(N, M)), np.array([0, 1, 2, 2])
XR, YR = rng.normal(size=(R, M)), np.array([4, 3, 1, 0, 2, 4])
WT, BT = rng.normal(size=(C, M)), rng.normal(size=C)
"""Weights of the network, of forgotten and retained examples, and of what the factory builds."""


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


def finetune() -> tuple[Array, Array]:
    return step(XR, (softmax(XR @ W.T + B) - one_hot(YR)) / R)


def retrain() -> tuple[Array, Array]:
    """From the factory's weights; the one-cycle schedule starts at lr / 25; Nesterov's first step is (1 + μ) g."""
    dz = (softmax(XR @ WT.T + BT) - one_hot(YR)) / R
    scale = LR / 25 * (1 + 0.95)
    return WT - scale * (dz.T @ XR + WD * WT), BT - scale * (dz.sum(0) + WD * BT)


GOLDEN: dict[str, tuple[dict[str, Any], Callable[[], tuple[Array, Array]]]] = {
    "targeted": ({"lam": 2.5, "stop": "budget"}, lambda: targeted(2.5)),
    "neg_grad": ({}, neg_grad),
    "random_label": ({}, random_label),
    "amnesiac": ({}, amnesiac),
    "bad_teacher": ({"temperature": 2.0}, bad_teacher),
    "salun": ({}, salun),
    "scrub": ({"epochs": 2, "msteps": 2, "temperature": 2.0, "alpha": 0.3, "gamma": 0.8}, scrub),
    "finetune": ({}, finetune),
    "retrain": ({"batch_size": R, "warmup": 0.99}, retrain),
}
"""Settings and the expected (weight, bias); `amnesiac_undo` has a test of its own, `ssd` a file."""


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
    assert {*GOLDEN, "amnesiac_undo", "ssd"} == set(METHODS)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_one_step_equals_the_formula(name: str) -> None:
    settings, expected = GOLDEN[name]
    common: dict[str, Any] = {"lr": LR, "weight_decay": WD, "epochs": 1}
    if name != "retrain":
        common |= {"optimizer": "sgd", "batch_size": None}
    model = unlearn(
        network(W, B),
        data(X, Y),
        method=make_method(name, **{**common, **settings}),
        retain=data(XR, YR),
        factory=lambda: network(WT, BT),
    ).model
    for actual, golden in zip(arrays(model), expected(), strict=True):
        np.testing.assert_allclose(actual, golden, rtol=0, atol=1e-12)


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
    undone = unlearn(model, data(X[:2], Y[:2]), method="amnesiac_undo", updates=tmp_path)
    expected = trained - sum(load_file(path)["weight"] for path in files)
    np.testing.assert_allclose(arrays(undone.model)[0], expected, rtol=0, atol=1e-12)
    assert undone.trace.steps == len(sensitive)
