"""Relearning: its statistic and both of its clocks against plain recomputations, and what it must tell apart."""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from expunge.auditing.forward import Outputs, outputs_of
from expunge.auditing.relearning import _seed, network_steps, relearn
from expunge.auditing.report import Relearning
from expunge.data import Examples
from expunge.errors import InputError, NonFiniteError, SettingError
from expunge.metrics.relearning import head_steps, matched_draws, relearn_statistic, step_matrix
from expunge.models.building import small_resnet

Floats = NDArray[np.float64]
NUM_CLASSES, NUM_FEATURES = 3, 12


def test_the_statistic_is_a_ratio_to_the_median_and_a_rank() -> None:
    rng = np.random.default_rng(0)
    for num in (1, 2, 39):
        controls = rng.integers(1, 9, num).astype(float)
        steps = float(rng.integers(1, 9))
        ratio, p_value = relearn_statistic(steps, controls)
        assert ratio == pytest.approx(steps / np.median(controls), rel=1e-12)
        assert p_value == (1 + sum(control <= steps for control in controls)) / (num + 1)
    assert relearn_statistic(0.0, [1.0] * 39) == (0.0, 1 / 40)
    assert relearn_statistic(5.0, [5.0] * 39) == (1.0, 1.0)  # ties count against significance


@pytest.mark.parametrize(
    ("steps", "controls"), [(1.0, [0.0, 0.0, 3.0]), (-1.0, [1.0]), (1.0, [-1.0]), (float("nan"), [1.0]), (1.0, [])]
)
def test_times_without_a_meaning_are_refused(steps: float, controls: list[float]) -> None:
    with pytest.raises(InputError):
        relearn_statistic(steps, controls)


# --- the last layer on fixed features ------------------------------------------------------------------------------


def features(num: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(1.0, 1.0, (num, NUM_FEATURES))), rng.integers(0, NUM_CLASSES, num)


@pytest.mark.parametrize("num", [5, 40], ids=["fewer examples than features", "more"])
def test_the_last_layers_clock_agrees_with_plain_descent_by_autograd(num: int) -> None:
    x, y = features(num)
    everything, _ = features(200, seed=1)
    rng = np.random.default_rng(2)
    phi = rng.normal(size=(NUM_CLASSES, NUM_FEATURES))
    step = step_matrix(everything, [x, everything[:30]], NUM_FEATURES)

    parameters = torch.tensor(phi, requires_grad=True)
    losses: list[float] = []
    for _ in range(60):
        loss = F.cross_entropy(torch.tensor(x) @ parameters.T, torch.tensor(y))
        (gradient,) = torch.autograd.grad(loss, parameters)
        losses.append(float(loss.detach()))
        parameters = (parameters - gradient @ torch.tensor(step)).detach().requires_grad_(True)
    assert all(after < before for before, after in pairwise(losses))
    for target in (losses[0], losses[7], 0.3 * losses[20] + 0.7 * losses[21], losses[0] + 1):
        expected = float(np.interp(-target, [-loss for loss in losses], np.arange(60)))
        assert head_steps(x, y, phi, step, target, 1000) == pytest.approx(expected, abs=1e-9)
    assert head_steps(x, y, phi, step, losses[50], 20) == 20.0


def test_the_step_is_the_longest_that_no_set_can_outrun() -> None:
    everything, _ = features(200, seed=1)
    sets = [everything[:5], everything[5:9]]
    step = step_matrix(everything, sets, NUM_FEATURES)
    second = everything.T @ everything / 200
    preconditioner = np.linalg.inv(second + 1e-3 * np.trace(second) / NUM_FEATURES * np.eye(NUM_FEATURES))
    largest = max(np.linalg.eigvals(preconditioner @ (x.T @ x / len(x))).real.max() for x in sets)
    np.testing.assert_allclose(step, preconditioner / (0.5 * largest), rtol=1e-9, atol=1e-12)


class Arrangement:
    """A last layer and outputs: forgotten examples that it knows better than unseen ones by `head_start`."""

    def __init__(self, head_start: float, num_forget: int = 12, num_heldout: int = 400, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.linear = nn.Linear(NUM_FEATURES, NUM_CLASSES).double()
        self.model = nn.Sequential(self.linear)
        labels = torch.arange(num_forget + num_heldout) % NUM_CLASSES
        noise = torch.randn(len(labels), NUM_FEATURES, generator=rng).double()
        weight = self.linear.weight.detach()
        noise[:num_forget] += head_start * F.normalize(weight, dim=1)[labels[:num_forget]]
        data = Examples(noise, labels)
        self.forget = data.take(torch.arange(num_forget))
        self.heldout = data.take(torch.arange(num_forget, len(labels)))

    def outputs(self) -> tuple[Outputs, Outputs]:
        forget, heldout = (outputs_of(self.model, part, features=True) for part in (self.forget, self.heldout))
        return forget, heldout

    def relearn(self, **settings: Any) -> Relearning:
        forget, heldout = self.outputs()
        return relearn(self.model, forget, heldout, **{"original_loss": 0.05, **settings})


def test_relearning_is_not_constant_and_tells_known_examples_from_unknown_ones() -> None:
    """The reference code returned the number of epochs less one, whatever the model."""
    known, unknown = Arrangement(3.0).relearn(), Arrangement(0.0).relearn()
    assert known.p_value == 1 / 40
    assert known.ratio < 0.8
    assert unknown.p_value is not None
    assert unknown.p_value > 0.05
    assert len(set(unknown.control_steps)) == 39
    assert known.steps != unknown.steps
    assert known.steps == pytest.approx(known.ratio * np.median(known.control_steps), rel=1e-12)


def test_features_in_greater_number_than_examples_are_reduced_without_a_trace() -> None:
    """The matrix of the step would have 65,000² numbers behind a plain convolution."""
    rng = np.random.default_rng(0)
    num_forget, num_heldout, width = 6, 24, 90
    labels = np.arange(num_forget + num_heldout) % NUM_CLASSES
    x = rng.normal(size=(len(labels), width))
    linear = nn.Linear(width, NUM_CLASSES).double()
    model = nn.Sequential(linear)
    logits = model(torch.from_numpy(x)).detach().numpy()
    forget, heldout = (
        Outputs(logits=logits[part], labels=labels[part], features=torch.from_numpy(x[part]))
        for part in (slice(num_forget), slice(num_forget, None))
    )
    found = relearn(model, forget, heldout, original_loss=0.1, num_controls=4, seed=3)

    phi = torch.cat([linear.weight, linear.bias[:, None]], 1).detach().numpy()
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    draws, _ = matched_draws(labels[:num_forget], labels[num_forget:], 4, _generator(3, num_forget))
    sets = [(x[:num_forget], labels[:num_forget])]
    sets += [(x[num_forget:][draw], labels[num_forget:][draw]) for draw in draws]
    step = step_matrix(x, [s for s, _ in sets], width + 1)
    times = [head_steps(s, y, phi, step, 1.05 * 0.1, 3000) for s, y in sets]
    np.testing.assert_allclose((found.steps, *found.control_steps), times, rtol=1e-6)
    assert len(set(times)) == 5


def _generator(seed: int, num_forget: int) -> np.random.Generator:
    """As `relearn` has it when it draws the control sets."""
    rng = np.random.default_rng(_seed(seed))
    rng.permutation(num_forget)
    return rng


def test_a_network_with_a_wide_last_layer_relearns() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64 * 64, 2))
    data = Examples(torch.rand(64, 3, 64, 64), torch.arange(64) % 2)
    parts = (data.take(torch.arange(4)), data.take(torch.arange(4, 64)))
    found = relearn(net, *(outputs_of(net, part, features=True) for part in parts), original_loss=0.1)
    assert len(set(found.control_steps)) == 39


def test_a_model_that_never_forgot_needs_no_step() -> None:
    arrangement = Arrangement(0.0)
    forget, heldout = arrangement.outputs()
    # The last layer of a model that has learned the forget set by heart.
    x = torch.cat([forget.features, torch.ones(12, 1)], 1) if forget.features is not None else torch.empty(0)
    solution = torch.linalg.lstsq(x, 20 * F.one_hot(arrangement.forget.labels).double(), driver="gelsd").solution.T
    with torch.no_grad():
        arrangement.linear.weight.copy_(solution[:, :-1])
        arrangement.linear.bias.copy_(solution[:, -1])
    forget, heldout = arrangement.outputs()
    own_loss = float(F.cross_entropy(torch.tensor(forget.logits), arrangement.forget.labels))
    result = relearn(arrangement.model, forget, heldout, original_loss=own_loss)
    assert (result.steps, result.ratio, result.p_value) == (0.0, 0.0, 1 / 40)


def test_p_values_are_uniform_where_forgotten_examples_are_like_unseen_ones() -> None:
    p_values = [
        Arrangement(0.0, 6, 120, seed).relearn(num_controls=9, seed=seed, original_loss=0.1).p_value or 0.0
        for seed in range(60)
    ]
    assert np.mean(p_values) == pytest.approx(0.55, abs=4 * 0.29 / 60**0.5)
    assert np.mean(np.array(p_values) <= 0.2) <= 0.2 + 4 * 0.4 / 60**0.5


def test_the_same_seed_gives_the_same_draws_and_another_seed_others() -> None:
    arrangement = Arrangement(0.0, num_heldout=100)
    assert arrangement.relearn(seed=1) == arrangement.relearn(seed=1)
    assert arrangement.relearn(seed=1).control_steps != arrangement.relearn(seed=2).control_steps


def test_what_limits_the_result_is_said() -> None:
    plain = Arrangement(0.0, num_heldout=39 * 12).relearn()
    assert "12 of 12" in plain.note
    assert "%" not in plain.note, "no two control sets share an example"
    shared = Arrangement(0.0, num_heldout=100).relearn()
    assert "12%" in shared.note
    assert shared.p_value is not None
    crowded = Arrangement(0.0, num_heldout=40).relearn()
    assert crowded.p_value is None
    assert "%" in crowded.note
    assert "5 of 12" in Arrangement(0.0).relearn(max_examples=5).note
    cut = Arrangement(0.0).relearn(max_steps=2)
    assert set(cut.control_steps) == {2.0}
    assert cut.p_value == 1.0
    assert "39 of 39" in cut.note
    assert "nor " in cut.note


def test_what_cannot_be_relearned_is_refused() -> None:
    with pytest.raises(InputError, match=r"class 0 .*1 .*4 "):
        Arrangement(0.0, num_heldout=3).relearn()
    with pytest.raises(InputError, match=r"0\.0"):
        Arrangement(0.0).relearn(original_loss=0.0)
    with pytest.raises(InputError, match="relearn"):
        Arrangement(0.0).relearn(original_loss=9.0)
    with pytest.raises(SettingError, match="num_controls"):
        Arrangement(0.0).relearn(num_controls=0)
    arrangement = Arrangement(0.0)
    seen = [outputs_of(arrangement.model, part) for part in (arrangement.forget, arrangement.heldout)]
    with pytest.raises(InputError, match="linear"):
        relearn(arrangement.model, seen[0], seen[1], original_loss=0.1)


def test_draws_match_the_classes_and_share_nothing_where_they_can() -> None:
    rng = np.random.default_rng(0)
    forget, heldout = np.array([2, 0, 0, 1, 0]), rng.integers(0, 3, 400)
    draws, shared = matched_draws(forget, heldout, 20, rng)
    assert shared == 0
    assert len(np.unique(np.concatenate(draws))) == 20 * 5
    for draw in draws:
        assert sorted(heldout[draw]) == sorted(forget)
    draws, shared = matched_draws(forget, heldout[:30], 20, rng)
    assert shared == max(np.bincount(forget) / np.bincount(heldout[:30]))
    for draw in draws:
        assert sorted(heldout[draw]) == sorted(forget)
        assert len(set(draw.tolist())) == 5


# --- the whole network ---------------------------------------------------------------------------------------------


def test_the_networks_clock_agrees_with_sgd_written_out() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.integers(0, 3, 7)
    net = nn.Linear(4, 3).double()
    weight, bias = net.weight.detach().numpy().copy(), net.bias.detach().numpy().copy()
    original = weight.copy()
    velocity_w, velocity_b = np.zeros_like(weight), np.zeros_like(bias)
    losses = []
    for _ in range(50):
        z = x @ weight.T + bias
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(7), y]).mean())
        residual = (p - np.eye(3)[y]) / 7
        velocity_w = 0.9 * velocity_w + residual.T @ x
        velocity_b = 0.9 * velocity_b + residual.sum(0)
        weight, bias = weight - 0.05 * velocity_w, bias - 0.05 * velocity_b
    examples = Examples(torch.tensor(x), torch.tensor(y))
    target = 0.25 * losses[11] + 0.75 * losses[12]
    assert losses[12] < target < losses[11]
    steps = network_steps(net, examples, target, lr=0.05)
    assert steps == pytest.approx(11.75, abs=1e-9)
    assert network_steps(net, examples, target, lr=0.05, batch_size=3) == pytest.approx(steps, abs=1e-9)
    assert network_steps(net, examples, target, lr=0.05, max_steps=5) == 5.0
    assert (net.weight.detach().numpy() == original).all()
    contradictory = Examples(torch.ones(2, 4).double(), torch.tensor([0, 1]))
    with pytest.raises(NonFiniteError, match="relearning's loss"):
        network_steps(net, contradictory, 1e-3, lr=1e308)


def test_normalisation_layers_stay_frozen_and_the_model_untouched() -> None:
    torch.manual_seed(0)
    net = small_resnet(3, width=4)
    net(torch.randn(8, 1, 28, 28))
    net.train()
    before = copy.deepcopy(net.state_dict())
    examples = Examples(torch.randn(1, 1, 28, 28), torch.tensor([1]))  # train mode would need more than one value
    steps = network_steps(net, examples, 0.1, lr=0.05)
    assert 0 < steps < 100
    assert net.training
    assert network_steps(copy.deepcopy(net).eval(), examples, 0.1, lr=0.05) == steps
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_network_relearns_what_it_knows_sooner() -> None:
    arrangement = Arrangement(4.0, num_heldout=200)
    draws, _ = matched_draws(
        arrangement.forget.labels.numpy(), arrangement.heldout.labels.numpy(), 19, np.random.default_rng(0)
    )
    sets = [arrangement.forget, *(arrangement.heldout.take(torch.from_numpy(draw)) for draw in draws)]
    times = [network_steps(arrangement.model, part, 0.3, lr=0.1) for part in sets]
    assert relearn_statistic(times[0], times[1:])[1] == 1 / 20
