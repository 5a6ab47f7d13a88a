"""Selective synaptic dampening against its formula, with importances recomputed in NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from expunge.errors import SettingError
from expunge.methods import make_method
from expunge.randomness import stream
from expunge.unlearning import unlearn
from tests.arrangements import arrange
from tests.test_golden import XR, YR, Array, B, N, R, W, X, Y, arrays, data, network, one_hot, softmax


def importances(x: Array, y: Any, batch_size: int, draw: torch.Generator) -> Array:
    """As `squared`, of examples in random order where batches hold more than one."""
    order = torch.randperm(len(x), generator=draw).numpy() if batch_size > 1 else np.arange(len(x))
    return squared(x[order], y[order], batch_size)


def squared(x: Array, y: Any, batch_size: int) -> Array:
    """Squared gradients of the linear network, flat: weights (C, M), then biases (C,)."""
    squares = []
    for start in range(0, len(x), batch_size):
        batch, labels = x[start : start + batch_size], y[start : start + batch_size]
        dz = (softmax(batch @ W.T + B) - one_hot(labels)) / len(batch)
        squares.append(np.concatenate([(dz.T @ batch).ravel(), dz.sum(0)]) ** 2)
    return np.asarray(np.mean(squares, axis=0))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("reference", ["retain", "all"])
@pytest.mark.parametrize(("alpha", "lam"), [(1.0, 1.0), (0.5, 1.0), (0.5, 0.3), (0.5, 5.0)])
def test_dampening_equals_the_formula(alpha: float, lam: float, reference: str, batch_size: int) -> None:
    """In batches of 3, the last batch of both sets is smaller (N = 4, and 10 for all), and counts as one."""
    x, y = (np.concatenate([XR, X]), np.concatenate([YR, Y])) if reference == "all" else (XR, YR)
    draw = stream("method", 0)
    forget, other = importances(X, Y, batch_size, draw), importances(x, y, batch_size, draw)
    flat = np.concatenate([W.ravel(), B])
    chosen = forget > alpha * other
    assert 0 < chosen.sum() < len(flat)
    expected = np.where(chosen, flat * np.minimum(lam * other / forget, 1), flat)
    result = unlearn(
        network(W, B),
        data(X, Y),
        method=make_method("ssd", alpha=alpha, lam=lam, reference=reference, batch_size=batch_size),
        retain=data(XR, YR),
    )
    actual = np.concatenate([array.ravel() for array in arrays(result.model)])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert (actual[~chosen] == flat[~chosen]).all()
    assert (np.abs(actual) <= np.abs(flat)).all(), "a weight was amplified"
    assert (result.trace.steps, result.trace.examples_seen) == (1, N + R + (N if reference == "all" else 0))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_without_labels_importance_is_the_slope_of_the_squared_norm_of_the_logits(batch_size: int) -> None:
    def slopes(x: Array) -> Array:
        order = torch.randperm(len(x), generator=draw).numpy() if batch_size > 1 else np.arange(len(x))
        parts = []
        for batch in np.split(x[order], range(batch_size, len(x), batch_size)):
            dz = 2 * (batch @ W.T + B) / len(batch)
            parts.append(np.abs(np.concatenate([(dz.T @ batch).ravel(), dz.sum(0)])))
        return np.asarray(np.mean(parts, axis=0))

    draw = stream("method", 0)
    forget, other, alpha = slopes(X), slopes(XR), 0.9
    flat = np.concatenate([W.ravel(), B])
    chosen = forget > alpha * other
    assert 0 < chosen.sum() < len(flat)
    expected = np.where(chosen, flat * np.minimum(0.5 * other / forget, 1), flat)
    method = make_method("lfssd", alpha=alpha, lam=0.5, batch_size=batch_size)
    for labels in (Y, (Y + 1) % 5):
        model = unlearn(network(W, B), data(X, labels), method=method, retain=data(XR, YR)).model
        actual = np.concatenate([array.ravel() for array in arrays(model)])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("forget_last", [False, True])
def test_the_order_of_the_data_does_not_matter(forget_last: bool) -> None:
    """Gradients of one class, in which a folder is sorted, do not cancel within a batch."""
    torch.manual_seed(0)
    model, labels = torch.nn.Linear(8, 4), torch.arange(440) % 4
    inputs = torch.randn(440, 8) + 2 * torch.eye(4, 8)[labels]
    forget = TensorDataset(inputs[400:], labels[400:])
    method = make_method("ssd", alpha=0.5, reference="all", batch_size=40, forget_last=forget_last)
    moved = []
    for order in (torch.arange(400), labels[:400].argsort(stable=True)):
        retain = TensorDataset(inputs[order], labels[order])
        runs = [unlearn(model, forget, method=method, retain=retain, seed=seed) for seed in range(8)]
        moved.append(sum(run.trace.change.l1 for run in runs))
    assert moved[0] == pytest.approx(moved[1], rel=0.3)


def test_forgotten_examples_can_fill_the_last_batches() -> None:
    """Each set in random order, the forgotten one after the other: batches of 3 of 6 retained and 4 forgotten."""
    draw = stream("method", 0)
    own, others = torch.randperm(N, generator=draw).numpy(), torch.randperm(R, generator=draw).numpy()
    x, y = np.concatenate([XR[others], X[own]]), np.concatenate([YR[others], Y[own]])
    forget, other = squared(X[own], Y[own], 3), squared(x, y, 3)
    flat, alpha = np.concatenate([W.ravel(), B]), 0.8
    expected = np.where(forget > alpha * other, flat * np.minimum(other / forget, 1), flat)
    method = make_method("ssd", alpha=alpha, reference="all", batch_size=3, forget_last=True)
    model = unlearn(network(W, B), data(X, Y), method=method, retain=data(XR, YR)).model
    actual = np.concatenate([array.ravel() for array in arrays(model)])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert not np.array_equal(expected, flat)


def test_a_large_alpha_dampens_nothing_and_says_so(tmp_path: Path) -> None:
    trace = arrange("ssd", "layer_norm", tmp_path).run(alpha=1e12).trace
    assert trace.change.l1 == 0
    assert "nothing" in trace.warnings[0]


def test_a_forget_set_that_is_a_tenth_of_the_reference_is_not_dampened_at_ten() -> None:
    """I_all ≥ f·I_forget: 4 of 10 examples are more than a tenth."""
    settings: dict[str, Any] = {"alpha": 10.0, "reference": "all"}
    trace = unlearn(network(W, B), data(X, Y), method=make_method("ssd", **settings), retain=data(XR, YR)).trace
    assert trace.change.l1 == 0


def test_weights_without_importance_stay_finite_and_in_place(tmp_path: Path) -> None:
    """A dead input: 0 / 0 in the factor of its weights."""
    x, xr = X.copy(), XR.copy()
    x[:, 0] = xr[:, 0] = 0
    method = make_method("ssd", alpha=0.5)
    weight, _ = arrays(unlearn(network(W, B), data(x, Y), method=method, retain=data(xr, YR)).model)
    assert (weight[:, 0] == W[:, 0]).all()
    assert np.isfinite(weight).all()


def test_running_statistics_and_dropout_are_left_alone(tmp_path: Path) -> None:
    arrangement = arrange("ssd", "batch_norm", tmp_path)
    before = dict(arrangement.model.named_buffers())
    result = arrangement.run()
    assert result.trace.change.l1 > 0
    for name, buffer in result.model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize(
    "settings", [{"alpha": 0}, {"lam": 0}, {"reference": "forget"}, {"batch_size": 0}, {"retain_size": 0}], ids=str
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        make_method("ssd", **settings)


def test_published_settings() -> None:
    method = make_method("ssd", preset="foster2024")
    assert (method.alpha, method.lam, method.retain_size) == (10, 1, None)  # type: ignore[attr-defined]
    assert (method.reference, method.batch_size, method.forget_last) == ("all", 128, True)  # type: ignore[attr-defined]
    assert make_method("lfssd", preset="foster2024").alpha == 3.5  # type: ignore[attr-defined]
