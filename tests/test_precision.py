"""Steps in parts, and bfloat16."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import expunge
from expunge.cli.sources import tell_of_bf16
from expunge.methods import METHODS, GradientMethod, make_method
from expunge.models import computes_in_bf16, inference
from expunge.trainer import train
from tests.arrangements import arrange, state_bits
from tests.conftest import expunge as run

GRADIENT = sorted(name for name, cls in METHODS.items() if issubclass(cls, GradientMethod))


@pytest.mark.parametrize("method", GRADIENT)
def test_a_step_in_parts_is_the_step(method: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    arrangement = arrange(method, "layer_norm", tmp_path)
    arrangement.model.double()  # steps amplify rounding
    given: dict[str, Any] = {"optimizer": "sgd", "lr": 1e-2, "weight_decay": 0.0}  # Adam does so most
    whole, parts = (arrangement.run(**given, micro_batch_size=size) for size in (None, 2))
    assert parts.trace.steps == whole.trace.steps
    assert parts.trace.examples_seen == whole.trace.examples_seen
    if method in {"jit", "instance_wise"}:  # noise is drawn by the part
        return
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)


def test_bf16_is_another_computation_with_the_same_weights() -> None:
    torch.manual_seed(0)
    net, data = nn.Linear(6, 3), TensorDataset(torch.rand(30, 6), torch.arange(30) % 3)
    kinds = []
    net.register_forward_hook(lambda module, given, output: kinds.append(output.dtype))
    found = [
        expunge.unlearn(net, data, method=make_method("targeted", precision=kind, epochs=3))
        for kind in ("fp32", "bf16")
    ]
    assert torch.bfloat16 in kinds
    assert found[1].trace.settings["precision"] == "bf16"
    assert all(p.dtype == torch.float32 for p in found[1].model.parameters())
    assert state_bits(found[0].model) != state_bits(found[1].model)
    kinds.clear()
    test = TensorDataset(torch.rand(60, 6), torch.arange(60) % 3)
    report = expunge.audit(net, net, data, test, settings=expunge.AuditSettings(precision="bf16"))
    assert set(kinds) == {torch.bfloat16}
    assert report.device.endswith("bf16")


def test_the_command_takes_the_precision_of_the_audit(trained: Path, tmp_path: Path) -> None:
    ids = run("data", "ids", "sample", "--num", "8").stdout
    (tmp_path / "ids").write_text(ids)
    sets: list[str | Path] = ["--forget", "sample", "--ids", tmp_path / "ids", "--test", "sample:test", "--precision"]
    given: list[str | Path] = ["forget", "--model", trained, "--method", "targeted", "--out", tmp_path / "out", *sets]
    refused = run(*given, "fp8")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()
    first = run(*given, "bf16", "--json")
    audit: list[str | Path] = ["audit", "--before", trained, "--after", tmp_path / "out", "--out", tmp_path / "audited"]
    again = run(*audit, *sets, "bf16", "--json")
    for done in (first, again):
        assert done.returncode in {0, 3}, done.stderr
        assert json.loads(done.stdout)["audit"]["device"].endswith("bf16")
        assert ("bf16" in done.stderr) != computes_in_bf16(torch.device("cpu"))


@pytest.mark.parametrize(("quick", "precision"), [(True, "bf16"), (False, "fp32"), (False, "bf16")])
def test_a_precision_that_is_slow_here_is_said_before_the_work(
    quick: bool,
    precision: Literal["fp32", "bf16"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inference, "computes_in_bf16", lambda device: quick)
    slow = not quick and precision == "bf16"
    net, data = nn.Linear(6, 3), TensorDataset(torch.rand(60, 6), torch.arange(60) % 3)
    forget, test = (Subset(data, part) for part in (range(20), range(20, 60)))
    method, audit = make_method("targeted", precision=precision), expunge.AuditSettings(precision=precision)
    begun: list[str] = []
    net.register_forward_pre_hook(lambda *_: begun.append("a pass"))
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: begun.append(str(message)))
    calls: tuple[Callable[[], object], ...] = (
        lambda: expunge.unlearn(net, forget, method=method),
        lambda: expunge.audit(net, net, forget, test, settings=audit),
        lambda: expunge.forget(net, forget, test=test, method="targeted", settings=audit),
    )
    for call in calls:
        begun.clear()
        with warnings.catch_warnings(action="always"):
            call()
        assert any("bf16" in line for line in begun[: begun.index("a pass")]) == slow
    tell_of_bf16(torch.device("cpu"), None, precision)
    said: list[str] = []
    settings = {"epochs": 1, "width": 2, "precision": precision}
    train("sample", "small_resnet", tmp_path / "run", settings=settings, device="cpu", announce=said.append)
    assert len(said) == slow
    assert [line for line in capsys.readouterr().err.splitlines() if "bf16" in line] == [
        f"expunge: note: {line}" for line in said
    ]


@pytest.mark.parametrize(
    ("there", "expected"),
    [({}, False), ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False)]
    + [({"neon": True, name: True}, True) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")],
)
def test_a_processor_says_whether_it_computes_in_bf16(
    there: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "any", **there}, raising=False)
    assert computes_in_bf16(torch.device("cpu")) == expected
    assert computes_in_bf16(torch.device("cuda"))
