"""MU-Mis: its sensitivities, its stopping rule, and what second derivatives ask of a model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expunge.errors import SettingError
from expunge.methods import Recorder, Task, make_method
from expunge.methods.mu_mis import Recovery
from expunge.methods.random_label import wrong_labels
from expunge.models import logits_of
from expunge.randomness import stream
from expunge.unlearning import unlearn
from tests.arrangements import NETWORKS, NUM_CLASSES, Pairs, arrange, pairs, state_bits


def squared_sensitivities(model: nn.Module, inputs: Tensor, classes: Tensor) -> Tensor:
    """‖∇ₓ f_c(x)‖², one example at a time, from whole Jacobians."""
    model.eval()
    jacobians = [torch.autograd.functional.jacobian(model, x[None]) for x in inputs]
    return torch.stack([j[0, c].square().sum() for j, c in zip(jacobians, classes, strict=True)])


@pytest.mark.parametrize("network", ["layer_norm", "batch_norm"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_loss_is_the_difference_of_squared_sensitivities(
    network: str, batch_size: int | None, tmp_path: Path
) -> None:
    """Of each example alone: in eval mode no example's logit depends on another's input."""
    arrangement = arrange("mu_mis", network, tmp_path)
    inputs, labels = arrangement.forget.inputs, arrangement.forget.labels
    trace = arrangement.run(epochs=1, norm="eval", batch_size=batch_size, lr=1e-12, weight_decay=0).trace
    rng = stream("method", 0)
    order = torch.arange(6) if batch_size is None else torch.randperm(6, generator=rng)
    losses = []
    for index in order.split(batch_size or 6):
        others = wrong_labels(labels[index], NUM_CLASSES, rng)
        true, irrelevant = (
            squared_sensitivities(arrangement.model, inputs[index], classes) for classes in (labels[index], others)
        )
        losses += (true - irrelevant).tolist()
    assert trace.epochs[0].loss == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("network", ["layer_norm", "batch_norm", "tied"])
def test_the_sensitivity_to_the_true_class_falls_behind_that_to_the_others(network: str, tmp_path: Path) -> None:
    arrangement = arrange("mu_mis", network, tmp_path)
    inputs, labels = arrangement.forget.inputs, arrangement.forget.labels
    model = arrangement.run(epochs=30, norm="eval").model

    def lead(of: nn.Module) -> float:
        others = [squared_sensitivities(of, inputs, (labels + n) % NUM_CLASSES).mean() for n in range(1, NUM_CLASSES)]
        return float(squared_sensitivities(of, inputs, labels).mean() - torch.stack(others).mean())

    assert lead(model) < lead(arrangement.model)


def test_other_classes_are_drawn_anew_for_each_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Tensor] = []

    def recorded(labels: Tensor, num_classes: int, rng: torch.Generator) -> Tensor:
        drawn.append(wrong_labels(labels, num_classes, rng))
        return drawn[-1]

    monkeypatch.setattr("expunge.methods.mu_mis.wrong_labels", recorded)
    arrangement = arrange("mu_mis", "layer_norm", tmp_path)
    arrangement.run(epochs=4)
    assert len(drawn) == 4
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    assert all(bool((other != arrangement.forget.labels).all()) for other in drawn)


@pytest.mark.parametrize(
    ("passes", "delta", "met"),
    [
        ([], 1.0, False),
        ([3.0], 0.5, False),  # the first is its own lowest: a δ below 1 must not end the run before it began
        ([3.0, 2.0], 0.5, False),  # still falling
        ([3.0, 2.0, 2.5], 1.0, False),  # rising, not recovered
        ([3.0, 2.0, 2.5], 0.8, True),
        ([3.0, 2.0, 3.1], 1.0, True),
        ([3.0, 2.0, 3.1], None, False),
    ],
)
def test_the_stopping_rule(passes: list[float], delta: float | None, met: bool) -> None:
    rule = Recovery(delta, size=3)
    for value in passes:
        rule.add(torch.tensor([value, value]) ** 2)
        rule.add(torch.tensor([value]) ** 2)
    assert rule.passes == pytest.approx(passes)
    assert rule.met() == met


def test_a_pass_that_is_not_over_does_not_count() -> None:
    rule = Recovery(0.5, size=3)
    rule.add(torch.ones(2))
    assert not rule.passes
    rule.add(torch.full((1,), 4.0))
    assert rule.passes == pytest.approx([2**0.5])


@pytest.mark.parametrize("batch_size", [None, 4])
def test_recovery_ends_the_run(batch_size: int | None, tmp_path: Path) -> None:
    """On the full batch without the update of the step that it was seen in, as Algorithm 1 has it."""
    arrangement = arrange("mu_mis", "layer_norm", tmp_path)
    settings = {"epochs": 400, "batch_size": batch_size, "recovery": 1.05}
    ended = arrangement.run(**settings)  # type: ignore[arg-type]
    passes = len(ended.trace.epochs)
    assert 1 < passes < 400
    assert ended.trace.steps == (passes - 1 if batch_size is None else 2 * passes)
    assert not any("recovered" in warning for warning in ended.trace.warnings)
    bounded = arrangement.run(epochs=400, batch_size=batch_size, max_steps=ended.trace.steps)
    assert state_bits(bounded.model) == state_bits(ended.model)


def test_a_budget_that_ends_before_recovery_is_reported(tmp_path: Path) -> None:
    trace = arrange("mu_mis", "layer_norm", tmp_path).run(epochs=2, recovery=50.0).trace
    assert ["recovered" in warning for warning in trace.warnings] == [True]


@pytest.mark.parametrize("recovery", [0.0, -1.0, float("inf")])
def test_a_recovery_out_of_range_is_refused(recovery: float) -> None:
    with pytest.raises(SettingError, match="recovery"):
        make_method("mu_mis", recovery=recovery)


def test_the_task_comes_back_as_it_was(tmp_path: Path) -> None:
    arrangement = arrange("mu_mis", "layer_norm", tmp_path)
    forget = arrangement.forget
    task = Task(forget=forget, forget_digests=(), forget_logits=logits_of(arrangement.model, forget.inputs))  # type: ignore[arg-type]
    bits = forget.inputs.clone()
    make_method("mu_mis", epochs=2).run(
        arrangement.model, task, rng=torch.Generator().manual_seed(0), record=Recorder()
    )
    assert torch.equal(forget.inputs, bits)
    assert not forget.inputs.requires_grad
    assert forget.inputs.grad is None


class _Attention(nn.Module):
    """Self-attention over the rows of an image, which runs in a fused kernel where it may."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(36, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        mixed, _ = self.attention(rows, rows, rows, need_weights=False)
        logits: Tensor = self.head(mixed.flatten(1))
        return logits


def test_attention_has_second_derivatives() -> None:
    torch.manual_seed(0)
    assert unlearn(_Attention(), pairs(4, seed=2), method=make_method("mu_mis", epochs=2)).trace.change.l1 > 0


def test_uint8_images_have_sensitivities() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = NETWORKS["batch_norm"]()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x if x.is_floating_point() else x / 255)
            return logits

    torch.manual_seed(0)
    model = Scales()
    images = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    method = make_method("mu_mis", epochs=2)
    runs = [unlearn(model, Pairs(x, labels), method=method).model for x in (images, images / 255)]
    assert state_bits(runs[0]) == state_bits(runs[1])
    assert state_bits(runs[0]) != state_bits(model)


def test_a_rule_that_is_never_met_changes_nothing(tmp_path: Path) -> None:
    models = [arrange("mu_mis", "layer_norm", tmp_path / str(r)).run(recovery=r).model for r in (None, 1e9)]
    assert state_bits(models[0]) == state_bits(models[1])


class _Scaling(nn.Module):
    """Scales images of 0 to 255 whatever their dtype; with `floats_as_they_are` only integers."""

    def __init__(self, network: nn.Module, *, floats_as_they_are: bool) -> None:
        super().__init__()
        self.network, self.floats_as_they_are = network, floats_as_they_are

    def forward(self, images: Tensor) -> Tensor:
        kept = self.floats_as_they_are and images.is_floating_point()
        logits: Tensor = self.network(images.float() / (1 if kept else 255))
        return logits


def test_sensitivities_of_images_do_not_depend_on_where_the_model_scales_them() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3)).double().float()
    images = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)
    forget = Pairs(images, torch.arange(8) % 3)
    method = make_method("mu_mis", optimizer="sgd", lr=0.1, epochs=3)
    models = [_Scaling(network, floats_as_they_are=kept) for kept in (True, False)]
    losses = [[epoch.loss or 0.0 for epoch in unlearn(m, forget, method=method).trace.epochs] for m in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert abs(losses[0][0]) > 1e-6
