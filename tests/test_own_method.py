"""Methods that users write: the examples of docs/howto/own-method.md, and what the base class lets a method do."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.unlearning import unlearn
from tests.arrangements import NETWORKS, pairs, state_bits

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "own-method.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's Python blocks define, run in order."""
    names: dict[str, Any] = {"__name__": "own_method"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102
    return names


def entropy(logits: Tensor) -> float:
    return float(torch.distributions.Categorical(logits=logits).entropy().detach().mean())


def test_the_gradient_method_of_the_page_does_what_it_says(page: dict[str, Any]) -> None:
    model, forget = page["model"], page["forget"]
    done = unlearn(model, forget, method=page["Uniform"](lr=0.01, epochs=50, batch_size=10))
    assert done.trace.method == "uniform"
    assert done.trace.steps == 100
    assert done.trace.settings["temperature"] == 1.0
    inputs = forget.tensors[0]
    assert entropy(model(inputs)) < entropy(done.model(inputs)) > 1.38


def test_its_optimizer_is_the_one_that_it_makes(page: dict[str, Any]) -> None:
    """The first step of RMSprop is lr · g / √(0.01 g²), ten times that of Adam."""
    model, forget = page["model"], page["forget"]
    settings = {"lr": 1e-3, "epochs": 1, "weight_decay": 0.0}
    moved = []
    for method in (page["Uniform"], page["UniformRMSprop"]):
        after = unlearn(model, forget, method=method(**settings)).model
        moved.append(
            max(
                float((a - b).detach().abs().max()) for a, b in zip(after.parameters(), model.parameters(), strict=True)
            )
        )
    assert moved == pytest.approx([1e-3, 1e-2], rel=1e-2)


def test_the_other_method_of_the_page_repeats_by_its_seed(page: dict[str, Any]) -> None:
    model, forget = page["model"], page["forget"]
    once, again, other = (unlearn(model, forget, method=page["Noise"](), seed=seed).model for seed in (1, 1, 2))
    assert state_bits(once) == state_bits(again) != state_bits(other)


@dataclass(frozen=True, kw_only=True)
class Ends(expunge.GradientMethod):
    """Ends its run at the first batch of the third epoch."""

    name = "ends"

    def run(self, model: nn.Module, task: expunge.Task, *, rng: torch.Generator, record: expunge.Recorder) -> nn.Module:
        descent = self.descent(model, task, rng=rng, record=record)
        for epoch in descent.epochs():
            for _, logits in descent.batches():
                if epoch == 2:
                    descent.end()
                descent.step(logits.square().sum(1))
        return model


@pytest.mark.parametrize(("batch_size", "steps"), [(None, 2), (4, 6)])
def test_a_rule_of_its_own_ends_a_run_before_a_whole_step_and_after_a_pass(batch_size: int | None, steps: int) -> None:
    trace = unlearn(NETWORKS["layer_norm"](), pairs(6, seed=2), method=Ends(batch_size=batch_size)).trace
    assert (trace.steps, len(trace.epochs)) == (steps, 3)


def test_batches_may_be_left_out() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sparse(expunge.GradientMethod):
        """Makes no step on the first batch of a pass."""

        name = "sparse"

        def run(self, model: nn.Module, task: Any, *, rng: torch.Generator, record: Any) -> nn.Module:
            descent = self.descent(model, task, rng=rng, record=record)
            for _ in descent.epochs():
                for number, (_, logits) in enumerate(descent.batches()):
                    if number:
                        descent.step(logits.square().sum(1))
            return model

    trace = unlearn(NETWORKS["layer_norm"](), pairs(6, seed=2), method=Sparse(batch_size=2, epochs=3)).trace
    assert (trace.steps, trace.examples_seen) == (6, 12)
    assert all(epoch.loss is not None and epoch.forget_accuracy is None for epoch in trace.epochs)


@pytest.mark.parametrize("setting", ["batch_size", "forget_batch_size", "retain_size"])
def test_sizes_of_nothing_are_refused(setting: str) -> None:
    settings: dict[str, Any] = {setting: 0}
    with pytest.raises(expunge.SettingError, match=f"{setting}=0"):
        expunge.make_method("scrub", **settings)
