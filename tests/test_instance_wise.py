"""Instance-wise unlearning: its adversarial examples, its importance, and its variants."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.errors import ExpungeWarning
from expunge.methods import make_method
from expunge.methods._inputs import continuous, targeted_pgd
from expunge.methods._task import Task
from expunge.methods.instance_wise import importances, turned_over
from expunge.models import ModelSpec, build, logits_of
from expunge.unlearning import unlearn
from tests.arrangements import NETWORKS, NUM_CLASSES, Pairs, arrange, pairs, state_bits

PLAIN: dict[str, Any] = {"adversarial": 0, "importance": 0.0}


def attack(model: nn.Module, inputs: Tensor, targets: Tensor, radius: float = 0.5, steps: int = 40) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return targeted_pgd(model, inputs, targets, radius=radius, step=0.05, steps=steps, rng=rng, batch_size=4)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_adversarial_examples_stay_in_the_ball_and_in_the_range(scale: float, tmp_path: Path) -> None:
    model = arrange("instance_wise", "batch_norm", tmp_path).model
    inputs = scale * pairs(6, seed=2).inputs
    before, bits = inputs.clone(), state_bits(model)
    model.zero_grad()
    moved = attack(model, inputs, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(inputs, before), "the forget set itself was changed"
    assert state_bits(model) == bits
    assert all(parameter.grad is None for parameter in model.parameters())
    assert inputs.min() <= moved.min()
    assert moved.max() <= inputs.max() + 1e-5 * scale
    distances = (moved - inputs).flatten(1).norm(dim=1) / (inputs.max() - inputs.min())
    assert bool((distances <= 0.5 + 1e-5).all())
    assert bool((distances > 0.1).all()), "the budget was not used"


def test_more_steps_bring_examples_nearer_to_their_targets(tmp_path: Path) -> None:
    model = arrange("instance_wise", "layer_norm", tmp_path).model
    inputs, labels = pairs(6, seed=2).inputs, pairs(6, seed=2).labels
    targets = (labels + 1) % NUM_CLASSES
    started, ended = (
        logits_of(model, attack(model, inputs, targets, radius=2.0, steps=steps)).softmax(1)[range(6), targets]
        for steps in (0, 40)
    )
    assert bool((ended > started).all())


def test_an_input_without_gradient_is_left_finite() -> None:
    """Where the model is certain, the gradient is zero and has no direction."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, NUM_CLASSES))
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    moved = attack(model, pairs(3, seed=2).inputs, torch.zeros(3, dtype=torch.int64))
    assert torch.isfinite(moved).all()


def test_importance_is_measured_example_by_example() -> None:
    """Gradients of opposite examples would cancel in a mean over the batch before the absolute value."""
    model = nn.Linear(2, 2, bias=False)
    x = torch.tensor([[1.0, 2.0], [2.0, -1.0]])
    (omega,) = importances(model, x, list(model.parameters()))
    output = x @ model.weight.detach().T
    expected = (2 * output[:, :, None] * x[:, None, :]).abs().mean(0)
    torch.testing.assert_close(omega, expected)


def test_parameters_that_all_matter_alike_are_held_without_nan() -> None:
    for omega in (torch.zeros(3), torch.full((1,), 7.0)):
        assert torch.equal(turned_over(omega), torch.ones_like(omega))


def test_a_large_penalty_holds_what_matters_little(tmp_path: Path) -> None:
    arrangement = arrange("instance_wise", "layer_norm", tmp_path)
    settings: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0.0, "epochs": 20, "lr": 0.05}
    free, held = (arrangement.run(importance=importance, **settings).model for importance in (0.0, 10.0))
    parameters = list(arrangement.model.parameters())
    omegas = importances(arrangement.model, arrangement.forget.inputs, parameters)
    for moved, kept, before, omega in zip(free.parameters(), held.parameters(), parameters, omegas, strict=True):
        little = turned_over(omega) > 0.9
        assert (kept - before)[little].abs().sum() < 0.7 * (moved - before)[little].abs().sum()


def test_without_either_regulariser_it_is_plain_ascent(tmp_path: Path) -> None:
    runs = [
        arrange(name, "batch_norm", tmp_path / name).run(**settings).model
        for name, settings in (("instance_wise", PLAIN), ("neg_grad", {}))
    ]
    assert state_bits(runs[0]) == state_bits(runs[1])


def test_relabelling_without_either_regulariser_is_random_labels(tmp_path: Path) -> None:
    result = arrange("instance_wise", "layer_norm", tmp_path / "a").run(**PLAIN, toward="wrong")
    other = arrange("random_label", "layer_norm", tmp_path / "b").run()
    assert state_bits(result.model) == state_bits(other.model)
    assert result.trace.pseudo_labels == other.trace.pseudo_labels


def test_uint8_images_give_the_model_that_their_floats_give() -> None:
    spec = ModelSpec(
        architecture="small_resnet",
        num_classes=3,
        in_channels=1,
        image_size=8,
        mean=(0.5,),
        std=(0.25,),
        options={"width": 4},
    )
    torch.manual_seed(0)
    model = build(spec)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    method = make_method("instance_wise", epochs=2, adversarial=2, attack_steps=3)
    runs = [unlearn(model, Pairs(x, labels), method=method).model for x in (images, images / 255)]
    assert state_bits(runs[0]) == state_bits(runs[1])


class _Casts(nn.Module):
    """Casts its inputs and then treats them as pixels in [0, 255]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = NETWORKS["layer_norm"]()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.float() / 255)
        return logits


def test_a_model_that_only_casts_gets_its_own_scale() -> None:
    model = _Casts()
    images = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    examples = Pairs(images, torch.tensor([0, 1, 2, 0]))
    task = Task(forget=examples, forget_digests=(), forget_logits=logits_of(model, images))  # type: ignore[arg-type]
    assert torch.equal(continuous(model, task).inputs, images.float())


def test_token_ids_are_moved_where_they_are_looked_up() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, NUM_CLASSES))
    tokens = Pairs(torch.randint(0, 9, (4, 3)), torch.tensor([0, 1, 2, 0]))
    with pytest.warns(ExpungeWarning, match="moved what '0' gives"):
        found = unlearn(model, tokens, method=make_method("instance_wise", adversarial=2, attack_steps=3, epochs=1))
    assert torch.equal(found.model.get_parameter("0.weight"), model.get_parameter("0.weight"))
    assert not torch.equal(found.model.get_parameter("2.weight"), model.get_parameter("2.weight"))
    method = make_method("instance_wise", adversarial=0, epochs=1)
    assert unlearn(model, tokens, method=method).trace.steps == 1
