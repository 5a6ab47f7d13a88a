"""What a method runs under besides its settings."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.grid import Cell, load_grid
from experiments.grid.cells import CONDITIONS
from experiments.grid.conditions import Conditions, adam_moments
from experiments.grid.measuring import Stage

from expunge.errors import InputError, SettingError
from expunge.methods import Targeted
from tests.experiments.test_background import SMOKE


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    from expunge.trainer import train

    out = tmp_path_factory.mktemp("models") / "sample-small_resnet"
    settings: dict[str, Any] = {"epochs": 2, "width": 8, "batch_size": 64, "lr": 0.1}
    train("sample:train", "small_resnet", out, settings=settings, seed=0, device="cpu")
    return Stage("sample", out / "model.safetensors", "cpu")


def cell(**conditions: Any) -> Cell:
    found = next(c for c in load_grid(SMOKE).cells("cpu") if (c.row, c.forget_size) == ("targeted1", 16))
    return replace(found, settings={**found.settings, "epochs": 6, "batch_size": 8}, conditions=conditions)


@cache
def _measured(stage: Stage) -> dict[str, Any]:
    """The cell without conditions."""
    return stage.measured(cell())


@pytest.mark.parametrize(("name", "value"), [(name, values[0]) for name, values in CONDITIONS.items()])
def test_each_condition_is_another_cell_with_another_result(
    stage: Stage, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.grid.conditions.CARRIED_STEPS", 30)
    plain, under = cell(), cell(**{name: value})
    assert plain.id != under.id
    first, second = _measured(stage), stage.measured(under)
    assert first["delta_l1"] != second["delta_l1"]
    assert second == {**stage.measured(under), **{key: second[key] for key in ("seconds", "seconds_evaluating")}}
    if name == "precision":  # the same steps, rounded
        assert second["evaluated_in"] == "bf16"
        assert second["delta_l1"] == pytest.approx(first["delta_l1"], rel=0.1)


def test_the_cosine_ends_at_zero() -> None:
    model = torch.nn.Linear(2, 2)
    with Conditions(schedule="cosine").applied(4, dict):
        optimizer = Targeted(lr=0.5).make_optimizer(model)
    sizes = []
    for _ in range(5):
        sizes.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert sizes == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)])


def test_carried_moments_are_adams(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.grid.conditions.CARRIED_STEPS", 3)
    before = {name: tensor.clone() for name, tensor in stage.network.state_dict().items()}
    moments = adam_moments(stage.network, stage.resident["train"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.network.state_dict().items())
    assert {name for name, _ in stage.network.named_parameters()} == set(moments)
    with Conditions(carried=True).applied(1, lambda: moments):
        optimizer = Targeted(lr=1e-4).make_optimizer(stage.network)
    for name, parameter in stage.network.named_parameters():
        assert float(optimizer.state[parameter]["step"]) == 3
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], moments[name]["exp_avg_sq"])


def test_subsets_of_the_test_set_are_fixed(stage: Stage) -> None:
    part = replace(cell(), test_subset=100)
    positions = stage._audited_on(part)
    assert (len(positions), len(positions.unique())) == (100, 100)
    assert torch.equal(positions, stage._audited_on(replace(part, seed=3, forget_size=4)))
    assert stage.measured(part)["test_measured"] == 100


def test_readings_multiply_rows(tmp_path: Path) -> None:
    readings = (
        '[[readings]]\nname = "short"\nsettings = { epochs = 1 }\n\n[[readings]]\nname = "rounded"\n'
        'rows = ["targeted3"]\nconditions = { precision = "bf16" }\n\n'
    )
    text = SMOKE.read_text().replace("[profiles]", readings + "[profiles]")
    path = tmp_path / "grid.toml"
    path.write_text(text.replace("cpu = { retain = 500 }", "cpu = { retain = 500, test = 50 }"))
    rows = {row.name: row for row in load_grid(path).rows}
    assert list(rows) == ["before", *(f"{row}: short" for row in (
        "neg_grad", "random_label", "bad_teacher", "amnesiac", "targeted1", "targeted3"
    )), "targeted3: rounded"]  # fmt: skip
    assert (rows["targeted3: short"].settings["epochs"], rows["targeted3: rounded"].settings["epochs"]) == (1, 3)
    assert rows["targeted3: rounded"].conditions == {"precision": "bf16"}
    subsets = {(c.method == "before", c.retain_subset, c.test_subset) for c in load_grid(path).cells("cpu")}
    assert subsets == {(True, None, None), (False, 500, 50)}
    for wrong, kind in (
        (text.replace('precision = "bf16"', 'precision = "int8"'), SettingError),
        (text.replace("conditions = {", "settings = { rounding = 1, "), SettingError),
        (text.replace('name = "short"', 'title = "short"'), InputError),
        (text.replace("cpu = { retain = 500 }", "cpu = { retain = 500, test = 0 }"), SettingError),
        (text.replace("cpu = { retain = 500 }", 'cpu = { retain = 500, precision = "fp8" }'), SettingError),
    ):
        path.write_text(wrong)
        with pytest.raises(kind):
            load_grid(path)


def test_a_network_whose_narrow_convolutions_are_unsafe_in_channels_last_is_not_laid_out_so(stage: Stage) -> None:
    # oneDNN writes past a buffer in the backward pass of strided 1 × 1 convolutions of fewer than 16 channels.
    for network in (stage.network, Conditions(precision="bf16").network(stage.network)):
        seen: list[torch.Tensor] = []
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
        narrow = [layer for layer in layers if layer.kernel_size == (1, 1) and layer.in_channels == 8]
        hook = narrow[0].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        network(stage.resident["test"].inputs[:4])
        hook.remove()
        assert len(narrow) == 1
        assert seen[0].is_contiguous()
        assert all(layer.weight.is_contiguous() for layer in layers)
