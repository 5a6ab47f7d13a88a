"""SCRUB's alternation of max-steps and min-steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.errors import SettingError
from expunge.methods import make_method
from expunge.models import logits_of
from expunge.unlearning import Unlearned
from tests.arrangements import Arrangement, arrange, state_bits


def divergence(arrangement: Arrangement, result: Unlearned, inputs: Tensor) -> float:
    """The mean KL(teacher ‖ student), in eval mode."""
    teacher, student = (logits_of(model, inputs).log_softmax(1) for model in (arrangement.model, result.model))
    return float((teacher.exp() * (teacher - student)).sum(1).mean())


def test_passes_alternate_in_the_first_epochs_alone(tmp_path: Path) -> None:
    """A pass over the forget set reports its accuracy, one over the retained examples none."""
    arrangement = arrange("scrub", "layer_norm", tmp_path)
    trace = arrangement.run(epochs=4, msteps=2).trace
    assert [epoch.forget_accuracy is not None for epoch in trace.epochs] == [True, False, True, False, False, False]
    assert (trace.steps, trace.examples_seen) == (6, 2 * 6 + 4 * 12)
    trace = arrangement.run(epochs=4, msteps=2, forget_batch_size=4, batch_size=5).trace
    assert (trace.steps, trace.examples_seen) == (2 * 2 + 4 * 3, 2 * 6 + 4 * 12)


@pytest.mark.parametrize("norm", ["train", "eval"])
def test_every_trainable_weight_moves_and_the_teacher_stays(norm: str, tmp_path: Path) -> None:
    """With the optimizer on the teacher's parameters only BatchNorm buffers would move."""
    arrangement = arrange("scrub", "batch_norm", tmp_path)
    before = state_bits(arrangement.model)
    model = arrangement.run(norm=norm, weight_decay=0.0).model
    assert state_bits(arrangement.model) == before
    for (name, after), original in zip(model.named_parameters(), arrangement.model.parameters(), strict=True):
        assert not torch.equal(after, original), f"{name} did not move"


def test_the_teacher_is_the_original_throughout(tmp_path: Path) -> None:
    """With γ = 0 and no max-steps the student has nothing to learn; a teacher that followed would hide a drift."""
    arrangement = arrange("scrub", "layer_norm", tmp_path)
    arrangement.model.double()  # so that rounding is no drift on any processor
    result = arrangement.run(alpha=1.0, gamma=0.0, msteps=0, epochs=10, weight_decay=0.0, optimizer="sgd", lr=0.1)
    assert divergence(arrangement, result, arrangement.retain.inputs.double()) < 1e-12  # type: ignore[attr-defined]


def test_max_steps_move_away_on_the_forget_set_and_min_steps_hold_the_rest(tmp_path: Path) -> None:
    arrangement = arrange("scrub", "layer_norm", tmp_path)
    settings: dict[str, Any] = {"alpha": 1.0, "gamma": 0.1, "epochs": 30, "lr": 3e-3}
    result = arrangement.run(msteps=20, **settings)
    on_forget = divergence(arrangement, result, arrangement.forget.inputs)
    on_retain = divergence(arrangement, result, arrangement.retain.inputs)  # type: ignore[attr-defined]
    without = divergence(arrangement, arrangement.run(msteps=0, **settings), arrangement.forget.inputs)
    assert on_forget > 4 * without
    assert on_forget > 4 * on_retain
    losses = [epoch.loss for epoch in result.trace.epochs if epoch.forget_accuracy is not None]
    assert losses[0] == pytest.approx(0, abs=1e-5), "student and teacher agree at first"
    assert all(loss is not None and loss < -1e-6 for loss in losses[1:]), "KL(teacher ‖ student) is never negative"


def test_without_weight_decay_the_first_max_step_changes_nothing(tmp_path: Path) -> None:
    arrangement = arrange("scrub", "layer_norm", tmp_path)
    settings: dict[str, Any] = {"epochs": 1, "msteps": 1, "optimizer": "sgd", "weight_decay": 0.0}
    assert arrangement.run(max_steps=1, lr=0.1, **settings).trace.change.l1 < 1e-4
    assert arrangement.run(max_steps=2, lr=0.1, **settings).trace.change.l1 > 1e-2


def test_stop_forgotten_ends_when_every_example_is_forgotten(tmp_path: Path) -> None:
    """Of examples that the teacher has right."""
    arrangement = arrange("scrub", "layer_norm", tmp_path)
    arrangement.forget.labels = logits_of(arrangement.model, arrangement.forget.inputs).argmax(1)
    settings: dict[str, Any] = {"epochs": 400, "msteps": 400, "lr": 3e-3, "retain_size": 1}
    trace = arrangement.run(stop="forgotten", **settings).trace
    assert trace.forget_accuracy_after == 0
    assert 0 < trace.steps < 800


@pytest.mark.parametrize(
    "settings",
    [{"alpha": -1}, {"gamma": -1}, {"msteps": -1}, {"temperature": 0}, {"forget_batch_size": 0}, {"stop": "epsilon"}],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        make_method("scrub", **settings)


def test_published_settings() -> None:
    method: Any = make_method("scrub", preset="kurmanji2023")
    assert (method.optimizer, method.lr, method.momentum, method.weight_decay) == ("sgd", 5e-4, 0.9, 5e-4)
    assert (method.alpha, method.gamma, method.msteps, method.epochs) == (0.001, 0.99, 2, 3)
    assert (method.temperature, method.forget_batch_size, method.batch_size) == (4, 512, 256)
    assert method.retain_size is None
