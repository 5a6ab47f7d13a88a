"""Files with several sets of weights: which of them is the model's is never guessed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from expunge.errors import InputError, SettingError
from expunge.models import load_model, load_weights
from tests.conftest import expunge, pixels, write_folder


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


RAW, AVERAGE = network(1).state_dict(), network(2).state_dict()
AVERAGED = AveragedModel(network(2)).state_dict()


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in state.items()}


def read(path: Path, key: str | None = None) -> Tensor:
    made = network()
    load_weights(made, path, allow_pickle=True, key=key)
    return made[1].weight  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "raw", "average"),
    [
        ({"state_dict": RAW, "state_dict_ema": AVERAGE, "epoch": 3}, "state_dict", "state_dict_ema"),
        ({"model": RAW, "model_ema": AVERAGE}, "model", "model_ema"),
        ({"model": RAW, "ema": {"module": AVERAGE, "decay": 0.9}}, "model", "ema.module"),
        ({"model": RAW, "ema": {"module": AVERAGE, "decay": 0.9}}, "model", "ema"),
        ({"net": prefixed("module.", RAW), "ema": AVERAGE}, "net", "ema"),
        ({"model": RAW, "averaged": AVERAGED}, "model", "averaged"),
        (prefixed("net.", RAW) | prefixed("ema.", AVERAGE), "net", "ema"),
        (dict(RAW) | prefixed("ema.", AVERAGE), "", "ema"),
        ({"all": prefixed("a.net.", RAW) | prefixed("a.ema.", AVERAGE)}, "all.a.net", "all.a.ema"),
    ],
)
def test_of_several_sets_of_weights_one_must_be_named(
    tmp_path: Path, content: dict[str, Any], raw: str, average: str
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="several") as caught:
        read(tmp_path / "w.pt")
    assert "--weights-key" in str(caught.value)
    assert repr(raw) in str(caught.value)
    assert average in str(caught.value)
    assert torch.equal(read(tmp_path / "w.pt", raw), RAW["1.weight"])
    assert torch.equal(read(tmp_path / "w.pt", average), AVERAGE["1.weight"])
    with pytest.raises(InputError, match=r"'other'.*holds"):
        read(tmp_path / "w.pt", "other")


@pytest.mark.parametrize(
    "content",
    [
        RAW,
        {"net": RAW},
        {"ema": RAW},
        AveragedModel(network(1)).state_dict(),
        {"model": RAW, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}},
        {"student": {"weights": RAW}, "teacher": {"conv.weight": torch.ones(3)}},
    ],
)
def test_one_set_of_weights_needs_no_name(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert torch.equal(read(tmp_path / "w.pt"), RAW["1.weight"])


def test_averages_that_no_network_takes_are_not_passed_over(tmp_path: Path) -> None:
    averaged = {"decay": 0.9, "shadow_params": list(AVERAGE.values())}
    torch.save({"model": RAW, "ema": averaged}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="'model' and 'ema'"):
        read(tmp_path / "w.pt")
    assert torch.equal(read(tmp_path / "w.pt", "model"), RAW["1.weight"])
    with pytest.raises(InputError, match="state dict"):
        read(tmp_path / "w.pt", "ema")


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    for n, content in enumerate(({}, {"a": 1}, [RAW])):
        torch.save(content, tmp_path / f"{n}.pt")
        with pytest.raises(InputError, match="state dict"):
            read(tmp_path / f"{n}.pt")


def test_the_commands_take_the_name_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    save_file(prefixed("net.", RAW) | prefixed("ema.", AVERAGE), tmp_path / "w.safetensors")
    data = write_folder(tmp_path / "data", pixels(6, side=2), ["0", "1", "2"] * 2)
    test = write_folder(tmp_path / "test", pixels(60, side=2, seed=1), ["0", "1", "2"] * 20)
    model, weights = "py:nets:make,image_size=2,in_chans=1", ("--weights", tmp_path / "w.safetensors")
    command = ("forget", "--model", model, *weights, "--forget", f"folder:{data}", "--method", "targeted")
    refused = expunge(*command, "--out", tmp_path / "a")
    assert refused.returncode == 1
    assert "--weights-key" in refused.stderr
    done = expunge(*command, "--weights-key", "ema", "--set", "epochs=0", "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    made, _ = load_model(model, weights=tmp_path / "a" / "model.safetensors")
    assert torch.equal(made.state_dict()["network.1.weight"], AVERAGE["1.weight"])
    again = ("--after", model, "--after-weights", tmp_path / "w.safetensors", "--after-weights-key", "net")
    both = ("audit", "--before", model, *weights, "--weights-key", "ema", *again)
    audited = expunge(*both, "--forget", f"folder:{data}", "--test", f"folder:{test}", "--out", tmp_path / "b")
    assert audited.returncode in {0, 3}, audited.stderr


def test_weights_that_are_the_only_ones_have_no_name(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(SettingError, match="--weights-key"):
        load_model(trained, weights_key="ema")
