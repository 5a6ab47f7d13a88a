"""The driver: its trace, its measurements, and what it says of odd runs."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from expunge.auditing import AuditSettings, accuracy, audit
from expunge.auditing.preparation import prepare
from expunge.data import Examples
from expunge.errors import InputError, SettingError
from expunge.methods import METHODS, make_method
from expunge.metrics import Difficulty, parameter_change
from expunge.models import last_layer
from expunge.records import Trace
from expunge.unlearning import unlearn
from tests.arrangements import NETWORKS, arrange, pairs, read_by

ODD = AuditSettings(non_random=True)


def test_parameter_change_is_the_norm_of_the_difference() -> None:
    torch.manual_seed(0)
    model = NETWORKS["batch_norm"]().double()
    result = unlearn(model, pairs(5, 0), method=make_method("targeted", lr=1e-2, epochs=4))
    before, after = dict(model.named_parameters()), dict(result.model.named_parameters())
    flat = torch.cat([(after[k] - before[k]).detach().flatten() for k in before])
    change = result.trace.change
    assert change.l1 == pytest.approx(float(flat.abs().sum()), rel=1e-12)
    assert change.l2 == pytest.approx(float(flat.norm()), rel=1e-12)
    assert change.num_parameters == flat.numel()
    last = torch.cat([(after[k] - before[k]).detach().flatten() for k in ("4.weight", "4.bias")])
    assert change.l1_last_layer == pytest.approx(float(last.abs().sum()), rel=1e-12)
    assert change.l2_last_layer == pytest.approx(float(last.norm()), rel=1e-12)
    assert list(change.by_layer) == ["0", "1", "4"]
    assert math.fsum(l1 for l1, _ in change.by_layer.values()) == pytest.approx(change.l1)
    assert math.fsum(l2**2 for _, l2 in change.by_layer.values()) == pytest.approx(change.l2**2)


def test_the_last_layer_is_the_last_linear_one() -> None:
    assert last_layer(NETWORKS["batch_norm"]()) == "4"
    assert last_layer(NETWORKS["tied"]()) == "head"
    assert last_layer(nn.Sequential(nn.Conv2d(1, 4, 6), nn.Flatten())) == "0"


def test_an_untouched_model_changed_by_nothing() -> None:
    model = NETWORKS["layer_norm"]()
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    change = parameter_change(before, dict(model.named_parameters()), last_layer="0")
    assert (change.l1, change.l2, change.l1_last_layer) == (0, 0, 0)


def test_the_traces_accuracies_are_those_of_the_models() -> None:
    torch.manual_seed(0)
    model, forget = NETWORKS["batch_norm"](), pairs(20, 0)
    result = unlearn(model, forget, method=make_method("targeted", lr=1e-2))
    assert result.trace.forget_accuracy_before == accuracy(model, forget)
    assert result.trace.forget_accuracy_after == accuracy(result.model, forget)


def test_accuracy_leaves_modes_and_counts_exactly() -> None:
    model = NETWORKS["dropout"]().train()
    data = pairs(50, 1)
    value = accuracy(model, data, batch_size=7)
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        predicted = model.eval()(data.inputs).argmax(1)
    assert value == int((predicted == data.labels).sum()) / 50


def test_the_first_step_reached_is_the_first(tmp_path: Path) -> None:
    """One run tells the step; a run cut there predicts every pseudo-label, a run cut one step earlier does not."""
    arrangement = arrange("targeted", "layer_norm", tmp_path)
    settings: dict[str, Any] = {"epochs": 300, "lr": 3e-3}
    first = arrangement.run(**settings).trace.first_step_all_reached
    assert first is not None
    assert first > 1
    logits = arrangement.model.eval()(arrangement.forget.inputs)
    best, second = logits.topk(2).indices.T
    wanted = torch.where(best == arrangement.forget.labels, second, best)
    reached = [
        torch.equal(arrangement.run(**settings, max_steps=n).model.eval()(arrangement.forget.inputs).argmax(1), wanted)
        for n in (first - 1, first)
    ]
    assert reached == [False, True]


def test_the_digest_depends_on_content_and_not_on_order() -> None:
    model, forget = NETWORKS["layer_norm"](), pairs(6, 0)
    turned = pairs(6, 0)
    turned.inputs, turned.labels = turned.inputs.flip(0), turned.labels.flip(0)
    relabelled = pairs(6, 0)
    relabelled.labels = (relabelled.labels + 1) % 4
    method = make_method("targeted", epochs=0)
    digests = [unlearn(model, data, method=method).trace.forget_digest for data in (forget, turned, relabelled)]
    assert digests[0] == digests[1] != digests[2]


def test_the_trace_says_where_and_with_what_it_ran() -> None:
    trace = unlearn(NETWORKS["layer_norm"](), pairs(3, 0)).trace
    assert trace.versions["torch"] == torch.__version__
    assert trace.versions["expunge"] == "0.1.0"
    assert "threads" in trace.device
    assert trace.seconds > 0
    assert trace.peak_bytes is not None
    assert trace.peak_bytes > 50e6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"change": 1, "pseudo_labels": null}',
        '{"change": {"by_layer": []}, "pseudo_labels": null}',
    ],
)
def test_a_foreign_trace_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a trace"):
        Trace.from_json(text)


def test_traces_are_standard_json() -> None:
    trace = unlearn(NETWORKS["layer_norm"](), pairs(3, 0)).trace
    content = json.loads(trace.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["num_forget"] == 3


def test_names_and_objects_are_accepted_as_methods() -> None:
    model, forget = NETWORKS["layer_norm"](), pairs(3, 0)
    default, explicit = unlearn(model, forget), unlearn(model, forget, method=expunge.HeldBoundary())
    assert default.trace.settings == explicit.trace.settings
    assert default.trace.change == explicit.trace.change
    assert unlearn(model, forget, method="neg_grad").trace.method == "neg_grad"
    with pytest.raises(SettingError, match="did you mean 'targeted'"):
        unlearn(model, forget, method="targetted")
    with pytest.raises(SettingError, match="method"):
        unlearn(model, forget, method=expunge.Targeted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("targeted", {"delta": 1.5}, "delta=1.5"),
        ("targeted", {"lam": 0.5}, "lam=0.5"),
        ("targeted", {"lam": "three"}, "lam='three'"),
        ("targeted", {"lam": "nan"}, "finite"),
        ("targeted", {"epochs": 2.5}, "whole"),
        ("targeted", {"epochs": -1}, "epochs=-1"),
        ("targeted", {"norm": "trane"}, "train, eval"),
        ("targeted", {"batch_size": 0}, "batch_size=0"),
        ("targeted", {"lr": 0}, "lr=0"),
        ("targeted", {"lamda": 3}, "did you mean 'lam'"),
        ("bad_teacher", {"temperature": 0}, "temperature=0"),
        ("bad_teacher", {"divide_by_classes": "perhaps"}, "true"),
        ("amnesiac", {"retain_size": 0}, "retain_size=0"),
        ("amnesiac_undo", {"lr": 1}, "'lr'.*updates"),
        ("retrain", {"warmup": 1}, "warmup=1"),
        ("finetune", {"preset": "chundawat2023"}, "preset"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        make_method(name, **settings)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_text_becomes_the_fields_type() -> None:
    method = make_method("amnesiac", lr="1e-3", epochs="7", batch_size="none", retain_size="20", norm="eval")
    assert method == METHODS["amnesiac"](lr=1e-3, epochs=7, batch_size=None, retain_size=20, norm="eval")


def blobs(num: int, seed: int = 0) -> TensorDataset:
    """Examples of three classes, with 6 features each."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    return TensorDataset(torch.randn(num, 6, generator=rng) + 2 * torch.eye(3, 6)[labels], labels)


def test_the_trace_is_of_the_model_that_is_given_back_where_rounding_undoes_the_steps() -> None:
    forget = TensorDataset(torch.eye(8), torch.zeros(8, dtype=torch.long))
    model = nn.Linear(8, 3, bias=False)
    with torch.no_grad():
        model.weight.fill_(100)
        model.weight[0] = 102  # steps of less than ½ are lost when it is rounded to bfloat16
    result = unlearn(model.bfloat16(), forget, method=expunge.Targeted(lr=0.01))
    assert result.model.weight.dtype == torch.bfloat16
    assert result.trace.forget_accuracy_after == accuracy(result.model, Examples(*forget.tensors)) == 1
    assert "0.0000 to 1.0000" in " ".join(result.trace.warnings)


def test_what_is_not_of_half_precision_in_such_a_model_is_kept_to_the_bit() -> None:
    class Scaled(nn.Module):
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3).half()
            self.register_buffer("scale", torch.tensor(1 / 3, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head((inputs * self.scale).to(self.head.weight.dtype))
            return logits

    model = Scaled()
    forget = TensorDataset(torch.eye(4)[:2], torch.tensor([0, 1]))
    result = unlearn(model, forget, method=expunge.Targeted(lr=0.1, epochs=3)).model
    assert torch.equal(result.get_buffer("scale"), model.scale)
    assert result.get_buffer("scale").dtype == torch.float64
    assert next(result.parameters()).dtype == torch.float16


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["targeted", "calibrated", "ssd"])
def test_the_callers_gradient_mode_changes_nothing(method: str, mode: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    chosen = make_method(method)
    given = {"method": chosen, **read_by(chosen, retain=blobs(30, 1), test=blobs(200, 2))}
    plain = unlearn(model, blobs(9), **given)
    with mode():
        again = unlearn(model, blobs(9), **given)
        assert torch.is_grad_enabled() is False
    assert torch.is_grad_enabled()
    for first, second in zip(plain.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(first, second)
        assert not second.is_inference()


def test_examples_that_carry_gradients_leave_none_behind() -> None:
    body, head = nn.Linear(6, 4), nn.Linear(4, 3)
    inputs, labels = blobs(9).tensors
    unlearn(head, TensorDataset(body(inputs), labels), method="targeted")
    assert body.weight.grad is None
    leaf = torch.randn(9, 4, requires_grad=True)
    unlearn(head, TensorDataset(leaf, labels), method="targeted")
    assert leaf.grad is None


@pytest.mark.parametrize("label", [-100, 3])
@pytest.mark.parametrize("method", ["finetune", "amnesiac", "ssd"])
def test_retained_labels_are_checked(method: str, label: int) -> None:
    retain = TensorDataset(torch.randn(20, 6), torch.full((20,), label))
    with pytest.raises(InputError, match="retained"):
        unlearn(nn.Linear(6, 3), blobs(9), method=method, retain=retain)


@pytest.mark.parametrize("output", [lambda logits: logits.argmax(1), lambda logits: {"a": 1, "b": 2}, lambda _: None])
def test_a_model_that_returns_no_tensor_is_told_so(output: Any) -> None:
    class Odd(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> Any:
            return output(super().forward(inputs))

    data = Examples(*blobs(60).tensors)
    with pytest.raises(InputError, match="must return logits"):
        unlearn(Odd(6, 3), blobs(9), method="targeted")
    with pytest.raises(InputError, match="must return logits"):
        audit(Odd(6, 3), Odd(6, 3), data.take(torch.arange(9)), data.take(torch.arange(9, 60)))


class Wrapper(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(inputs)
        return found


def test_the_audit_leaves_out_what_a_wrapped_or_unwrapped_model_was_calibrated_on() -> None:
    model, forget, heldout = nn.Sequential(nn.Linear(6, 3)), blobs(9), blobs(200, 2)
    after = unlearn(model, forget, method=expunge.Calibrated(epochs=2), test=heldout, seed=3).model
    used = audit(model, after, forget, heldout).num_test
    assert used < 150
    assert audit(Wrapper(model), Wrapper(after), forget, heldout).num_test == used
    inner = unlearn(Wrapper(model), forget, method=expunge.Calibrated(epochs=2), test=heldout, seed=3).model
    assert isinstance(inner.network, nn.Module)
    assert audit(model, inner.network, forget, heldout).num_test == used


def test_a_correction_for_difficulty_may_be_of_all_held_out_examples() -> None:
    model, forget, heldout = nn.Linear(6, 3), blobs(9), blobs(200, 2)
    after = unlearn(model, forget, method=expunge.Calibrated(epochs=2), test=heldout).model
    rng = np.random.default_rng(0)
    hard = Difficulty(
        forget=rng.normal(size=9), test=rng.normal(size=200), num_references=4, accuracy=0.8, forget_accuracy=0.8
    )
    report = audit(model, after, forget, heldout, references=hard, settings=ODD)
    left = prepare(forget, heldout).uncalibrated(after).positions["test"].numpy()
    same = audit(model, after, forget, heldout, references=replace(hard, test=hard.test[left]), settings=ODD)
    assert report.num_test == len(left) < 150
    assert replace(report, seconds={}) == replace(same, seconds={})


def test_a_tensor_that_a_model_keeps_from_an_audit_serves_training() -> None:
    class Keeps(nn.Linear):
        kept: torch.Tensor | None = None

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.kept is None:
                self.kept = torch.linspace(0, 1, 6)
            return super().forward(inputs * self.kept)

    model = Keeps(6, 3)
    data = Examples(*blobs(60).tensors)
    audit(model, model, data.take(torch.arange(9)), data.take(torch.arange(9, 60)))
    inputs = torch.randn(2, 6, requires_grad=True)
    model(inputs).sum().backward()
    assert inputs.grad is not None


@pytest.mark.parametrize("method", ["targeted", "finetune"])
def test_an_autocast_of_the_caller_changes_nothing(method: str) -> None:
    """It keeps 16-bit copies of weights until it ends, so that no pass within would see an update."""
    torch.manual_seed(0)
    model, forget = NETWORKS["layer_norm"](), pairs(16, 1)
    settings: dict[str, Any] = {"targeted": {"lr": 1e-2, "epochs": 60}, "finetune": {"lr": 1e-2, "epochs": 20}}[method]
    chosen = make_method(method, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        result = unlearn(model, forget, method=chosen, **read_by(chosen, retain=pairs(64, 2)))
    assert result.trace.forget_accuracy_after == pytest.approx(accuracy(result.model, forget), abs=1 / 16)
    assert result.trace.change.l1 > 0
    if method == "targeted":
        assert result.trace.forget_accuracy_after == 0


class WithIds(nn.Module):
    """Its first parameter is of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Parameter(torch.arange(36), requires_grad=False)
        self.head = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1)[:, self.ids])
        return logits


def test_parameters_that_are_whole_numbers_or_complex() -> None:
    model, forget = WithIds(), pairs(8, 3)
    result = unlearn(model, forget, method=make_method("targeted", lr=1e-2))
    assert result.trace.forget_accuracy_after == 0 == accuracy(result.model, forget)
    before = {"a": torch.tensor([3 + 4j]), "b": torch.tensor([True])}
    holder = nn.Module()
    holder.a = nn.Parameter(torch.tensor([0j]))
    holder.b = nn.Parameter(torch.tensor([False]), requires_grad=False)
    change = parameter_change(before, dict(holder.named_parameters()), last_layer="")
    assert (change.l1, change.l2) == pytest.approx((6, math.sqrt(26)))


def test_a_forward_that_refers_to_the_model_itself_is_refused() -> None:
    """No copy can be made of it: its steps would change the caller's model."""
    model = NETWORKS["batch_norm"]()
    plain = model.forward
    model.forward = lambda x: plain(x)
    with pytest.raises(InputError, match="forward"):
        unlearn(model, pairs(5, 0), method="targeted")


def test_what_a_factory_hands_out_is_left_as_it_was() -> None:
    model, held = NETWORKS["layer_norm"](), NETWORKS["layer_norm"]()
    before = {name: value.clone() for name, value in held.state_dict().items()}
    retrain = make_method("retrain", epochs=1, batch_size=8)
    results = [unlearn(model, pairs(5, 0), method=retrain, retain=pairs(32, 1), factory=lambda: held) for _ in "12"]
    assert all(torch.equal(value, before[name]) for name, value in held.state_dict().items())
    assert results[0].model is not held
    states = [result.model.state_dict() for result in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in before)


@pytest.mark.parametrize("method", ["retrain", "bad_teacher"])
def test_a_factory_that_hands_out_the_trained_weights_is_refused(method: str) -> None:
    model = NETWORKS["batch_norm"]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    given: dict[str, Any] = {"method": make_method(method, epochs=1), "retain": pairs(32, 1)}

    def but_for(names: tuple[str, ...], model: nn.Module) -> nn.Module:
        other = NETWORKS["batch_norm"]()
        own = other.state_dict()
        other.load_state_dict({k: own[k] if k.startswith(names) else v for k, v in model.state_dict().items()})
        return other

    for source in (model, copy.deepcopy(model).bfloat16()):
        for kept in (("-",), ("4.",)):
            network = but_for(kept, source)
            for made in (network, network.double()):
                with pytest.raises(InputError, match="fresh"):
                    unlearn(model, pairs(5, 0), factory=lambda made=made: made, **given)  # type: ignore[misc]
    # A frozen part was never trained on what is to be forgotten.
    model[:3].requires_grad_(False)  # type: ignore[index]
    frozen = but_for(("4.",), model)
    frozen[:3].requires_grad_(False)  # type: ignore[index]
    assert unlearn(model, pairs(5, 0), factory=lambda: frozen, **given).trace.steps


def test_masks_on_gradients_are_not_lost_without_a_word() -> None:
    model = NETWORKS["layer_norm"]()
    next(model.parameters()).register_hook(lambda gradient: 0 * gradient)
    result = unlearn(model, pairs(5, 0), method=make_method("neg_grad", epochs=1))
    assert any("hooks" in warning for warning in result.trace.warnings)


class Sparse(nn.Module):
    """Gradients of its embedding are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 8, sparse=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.bag(tokens))
        return logits


class Squeezing(nn.Module):
    """Fails on a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1).squeeze())
        return logits.view(len(x), 5) if len(x) > 1 else logits.view(len(x), 7)


def test_networks_of_odd_kinds() -> None:
    rng = torch.Generator().manual_seed(0)
    forget = TensorDataset(torch.randint(0, 20, (6, 4), generator=rng), torch.randint(0, 5, (6,), generator=rng))
    assert unlearn(Sparse(), forget, method=make_method("targeted", lr=1e-2)).trace.forget_accuracy_after == 0
    with pytest.raises(InputError, match="train mode"):
        unlearn(Squeezing(), pairs(9, 0), method=make_method("neg_grad", batch_size=8))
    scalars = TensorDataset(torch.rand(6, generator=rng), torch.randint(0, 5, (6,), generator=rng))
    model = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 5))
    for name in ("instance_wise", "mu_mis", "jit", "amun"):
        assert unlearn(model, scalars, method=make_method(name, epochs=1)).trace.steps


@pytest.mark.parametrize("method", ["calibrated", "ssd", "salun", "instance_wise"])
def test_a_loss_without_a_free_parameter_is_one_clear_line(method: str) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused = nn.Linear(36, 5).requires_grad_(False), nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.body(x.flatten(1))
            return logits

    chosen = make_method(method)
    with pytest.raises(SettingError, match="requires_grad"):
        unlearn(Detached(), pairs(30, 0), method=chosen, **read_by(chosen, retain=pairs(40, 1), test=pairs(80, 2)))


def test_a_factory_of_another_width_is_told_before_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.Linear(width, 5))

    monkeypatch.setattr("expunge.methods.retrain.train", lambda *given, **more: pytest.fail("it was trained"))
    with pytest.raises(InputError, match="factory"):
        unlearn(network(8), pairs(5, 0), method="retrain", retain=pairs(9, 1), factory=lambda: network(9))
