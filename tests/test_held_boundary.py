"""What is pasted together from forgotten examples, and what holding it is worth."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from expunge.data import Examples
from expunge.methods import HeldBoundary, make_method
from expunge.methods._inputs import pasted
from expunge.methods.held_boundary import entering_last_layer
from expunge.randomness import stream
from expunge.unlearning import unlearn


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def constants(num: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs that hold their own number everywhere, so that each value tells where it came from."""
    return torch.arange(num).view(num, *[1] * len(shape)).expand(num, *shape).to(dtype)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 8, 8), torch.float32), ((3, 8, 12), torch.uint8), ((20,), torch.int64), ((2, 20), torch.float64)],
)
def test_a_part_is_one_rectangle_or_span_of_another_example(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs, labels = constants(6, *shape, dtype=dtype), torch.tensor([0, 0, 0, 1, 1, 2])
    made = pasted(Examples(inputs, labels), 400, generator())
    assert made.shape == (400, *shape)
    assert made.dtype == dtype
    alike = 0
    for one in made:
        values, counts = one.unique(return_counts=True)
        assert len(values) == 2, "an example was pasted into itself"
        first, second = values.long().tolist()
        alike += int(labels[first] == labels[second])
        plane = one.reshape(-1, *shape[-2:])[0] if len(shape) == 3 else one.reshape(-1, shape[-1])[0]
        inside = [plane == value for value in values]
        boxes = [bool(part.all()) for part in map(bounding, inside)]
        assert any(boxes), "neither of the two parts is a box"
        assert 0.05 <= counts.min() / counts.sum() <= 0.75
    assert 0.55 < alike / 400 < 0.8  # 80% of the pairs where the class has two members, and some of the others


def bounding(part: Tensor) -> Tensor:
    """The smallest box around the places where a mask (…) is true."""
    for axis in range(part.ndim):
        places = part.nonzero()[:, axis]
        part = part.narrow(axis, int(places.min()), int(places.max() - places.min()) + 1)
    return part


def test_of_rows_columns_are_taken_wherever_they_are() -> None:
    made = pasted(Examples(constants(2, 40), torch.tensor([0, 1])), 500, generator())
    assert set(made.unique().tolist()) == {0.0, 1.0}
    assert made.mean(0).min() > 0.35
    assert made.mean(0).max() < 0.65


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_single_example_is_pasted_together_with_itself(dtype: torch.dtype) -> None:
    alone = torch.arange(12).view(1, 12).to(dtype)
    made = pasted(Examples(alone, torch.tensor([0])), 50, generator())
    assert set(made.unique().tolist()) <= set(range(12))
    assert (made != alone).any(1).float().mean() > 0.9
    image = torch.rand(1, 3, 16, 16)
    views = pasted(Examples(image, torch.tensor([0])), 50, generator())
    assert (views != image).flatten(1).any(1).float().mean() > 0.9
    assert (views == image).flatten(1).float().mean(1).min() >= 0.4


def test_an_update_is_that_of_the_stated_loss() -> None:
    """Two updates, recomputed: the hinge, and KL and features of what is pasted, which count for less each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    method = HeldBoundary(
        lr=0.05, optimizer="sgd", pace=None, epochs=2, batch_size=None, stop="budget", gap=20.0,
        retention=3.0, relax=0.5, features=0.7, retention_size=10,
    )  # fmt: skip
    made = unlearn(model, TensorDataset(x, y), method=method, seed=7).model
    rng = stream("method", 7)
    drawn = [pasted(Examples(x, y), 10, rng) for _ in range(2)]
    parameters = [parameter.detach().clone() for parameter in model.parameters()]

    def outputs(weights: list[Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(inputs @ weights[0].T + weights[1])
        return hidden, hidden @ weights[2].T + weights[3]

    original = parameters
    for step in range(2):
        weights = [parameter.clone().requires_grad_() for parameter in parameters]
        z = outputs(weights, x)[1]
        others = z.masked_fill(nn.functional.one_hot(y, 3).bool(), -torch.inf).max(1).values
        hinge = (z[torch.arange(4), y] - others + 20).mean()
        entered, held = outputs(weights, drawn[step])
        was, wanted = outputs(original, drawn[step])
        kl = (wanted.softmax(1) * (wanted.log_softmax(1) - held.log_softmax(1))).sum(1).mean()
        moved = ((entered - was) ** 2).sum(1).mean() / was.var(0).sum()
        loss = hinge + 3.0 * 0.5**step * (kl + 0.7 * moved)
        gradients = torch.autograd.grad(loss, weights)
        parameters = [p - 0.05 * g for p, g in zip(parameters, gradients, strict=True)]
    for actual, expected in zip(made.parameters(), parameters, strict=True):
        torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


def test_what_enters_the_last_layer_is_seen_and_the_hook_goes() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    with entering_last_layer(model) as seen:
        model(x)
        assert torch.equal(seen[0], model[1](model[0](x)))
    model(x)
    assert len(seen) == 1
    assert not model[2]._forward_pre_hooks


def test_everything_is_forgotten_for_less_than_the_papers_method_costs() -> None:
    """The model and the examples, nothing else: rows, and a network that keeps no statistics."""
    torch.manual_seed(0)
    centres = 1.2 * torch.randn(5, 20)
    y = torch.arange(900) % 5
    x = centres[y] + torch.randn(900, 20)
    model = nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 5))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x[:400]), y[:400]).backward()
        adam.step()
    forget = TensorDataset(x[:30], y[:30])

    def kept(method: str, **settings: Any) -> float:
        done = unlearn(model, forget, method=make_method(method, **settings))
        assert done.trace.forget_accuracy_after == 0
        return float((done.model(x[400:]).argmax(1) == y[400:]).double().mean())

    assert kept("held_boundary") > kept("targeted") + 0.1


def test_it_is_the_default_where_there_is_nothing_else() -> None:
    assert expunge.unlearn(nn.Linear(4, 3), TensorDataset(torch.eye(4), torch.arange(4) % 3)).trace.method == (
        "held_boundary"
    )


@pytest.mark.parametrize("times", [0, 2])
def test_a_last_layer_that_is_not_run_once_is_not_held(times: int) -> None:
    """What enters it then says nothing of one example each; outputs are held all the same."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.last = nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            for _ in range(times):
                inputs = inputs + self.last(inputs)
            logits: Tensor = self.head(inputs)
            return logits

    done = unlearn(Odd(), TensorDataset(torch.eye(4), torch.arange(4) % 3), method=HeldBoundary(epochs=3))
    assert done.trace.steps > 0


@pytest.mark.parametrize(("num", "one_class", "kept"), [(1, False, True), (64, False, False), (40, True, True)])
def test_normalisation_keeps_its_statistics_where_those_of_a_batch_make_no_sense(
    num: int, one_class: bool, kept: bool
) -> None:
    """Of one example or of one class: predictions would be others, so that holding them there would teach nonsense."""
    torch.manual_seed(0)
    centres = 3 * torch.randn(4, 12)
    y = torch.arange(800) % 4
    x = centres[y] + torch.randn(800, 12)
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    chosen = (y == 1).nonzero()[:num, 0] if one_class else torch.arange(num)
    done = unlearn(model, TensorDataset(x[chosen], y[chosen]), method=HeldBoundary(max_steps=3))
    before, after = dict(model.named_buffers()), dict(done.model.named_buffers())
    assert torch.equal(before["1.running_mean"], after["1.running_mean"]) == kept
    assert any("norm=eval" in warning for warning in done.trace.warnings) == kept
