"""The contract that every method keeps, checked over all of them at once."""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.errors import InputError, NonFiniteError, SettingError
from expunge.methods import METHODS, AmnesiacUndo, GradientMethod, Needs, make_method, method_of, settings_of
from expunge.models import undone_steps
from expunge.records import Trace
from expunge.unlearning import unlearn
from tests.arrangements import (
    NETWORKS,
    NUM_CLASSES,
    SHORT,
    Pairs,
    Tied,
    Untouchable,
    arrange,
    pairs,
    read_by,
    state_bits,
)
from tests.forked import PATIENCE

ALL = sorted(METHODS)
GRADIENT = sorted(name for name, cls in METHODS.items() if issubclass(cls, GradientMethod))
ON_FORGET = [name for name in GRADIENT if Needs.FORGET in METHODS[name].needs]
ON_RETAIN = [name for name in ON_FORGET if Needs.RETAIN in METHODS[name].needs]
UNBOUNDED = {"neg_grad", "instance_wise", "mu_mis", "scrub"}
"""Methods whose loss has no lower bound, so that a threshold on it means nothing."""
OUT_OF_MEMORY = """
import resource, torch
from torch import nn
from torch.utils.data import TensorDataset
import expunge
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 200_000), nn.ReLU(), nn.Linear(200_000, 2))  # 0.8 MB an example and layer
forget = TensorDataset(torch.rand(500, 4), torch.arange(500) % 2)
expunge.unlearn(model, torch.utils.data.Subset(forget, range(4)), method=expunge.Targeted(epochs=1))  # loads code
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 300_000_000, resource.RLIM_INFINITY))
try:
    expunge.unlearn(model, forget, method=expunge.Targeted(epochs=1))
except expunge.errors.NotEnoughMemoryError as error:
    print(error)
expunge.unlearn(model, forget, method=expunge.Targeted(epochs=1, batch_size=50, max_steps=3))  # reads 250 at once
print("fits")
"""


@pytest.fixture(params=ALL)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_it_runs_on_every_kind_of_network(method: str, network: str, tmp_path: Path) -> None:
    arrangement = arrange(method, network, tmp_path)
    before = state_bits(arrangement.model)
    result = arrangement.run()
    assert state_bits(arrangement.model) == before, "the caller's model changed"
    assert result.model is not arrangement.model
    assert result.trace.change.l1 > 0, "the method changed nothing"
    originals = dict(arrangement.model.named_parameters())
    for name, parameter in result.model.named_parameters():
        assert parameter.dtype == originals[name].dtype
        assert parameter.requires_grad == originals[name].requires_grad
        assert parameter.data_ptr() != originals[name].data_ptr(), f"{name} is shared with the caller's model"
        assert parameter.grad is None
        if not parameter.requires_grad and method not in {"retrain", "amnesiac_undo"}:
            assert torch.equal(parameter, originals[name]), f"frozen {name} moved"
    logits = result.model(arrangement.forget.inputs.to(next(result.model.parameters()).dtype))
    assert logits.shape == (len(arrangement.forget), NUM_CLASSES)
    assert torch.isfinite(logits).all()


def test_no_more_than_a_batch_is_differentiated_at_once(method: str, tmp_path: Path) -> None:
    arrangement = arrange(method, "layer_norm", tmp_path)
    sizes = {field.name: 2 for field in fields(METHODS[method]) if field.name.endswith("batch_size")}
    if not sizes:
        pytest.skip("it goes through its examples one by one, or through none")
    seen = [0]
    arrangement.model.register_forward_pre_hook(
        lambda _, given: seen.append(len(given[0])) if torch.is_grad_enabled() else None
    )
    arrangement.run(**sizes)
    assert max(seen) <= 2


def test_what_does_not_fit_into_memory_is_one_line_that_says_what_to_lower() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=PATIENCE)
    said = done.stdout.splitlines()
    assert ["memory" in said[0], "batch_size" in said[0], said[1:]] == [True, True, ["fits"]], done.stderr


def test_tied_weights_stay_tied(method: str, tmp_path: Path) -> None:
    model = arrange(method, "tied", tmp_path).run().model
    assert isinstance(model, Tied)
    assert model.first.weight is model.second.weight


@pytest.mark.parametrize("network", ["batch_norm", "dropout"])
def test_one_seed_gives_one_set_of_bits(method: str, network: str, tmp_path: Path) -> None:
    arrangement = arrange(method, network, tmp_path)
    first = state_bits(arrangement.run(seed=5).model)
    torch.manual_seed(99)  # whatever the caller's random state
    assert state_bits(arrangement.run(seed=5).model) == first


@pytest.mark.parametrize("name", ["random_label", "instance_wise", "mu_mis", "jit", "retrain", *ON_RETAIN])
def test_another_seed_gives_another_model(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "layer_norm", tmp_path)
    arrangement.settings = {"retain_size": 5} if name in ON_RETAIN else {}
    assert state_bits(arrangement.run(seed=1).model) != state_bits(arrangement.run(seed=2).model)


def test_the_callers_random_states_and_modes_are_put_back(method: str, tmp_path: Path) -> None:
    arrangement = arrange(method, "dropout", tmp_path)
    arrangement.model.train()
    arrangement.model[3].eval()  # type: ignore[index]
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    model = arrangement.run().model
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]
    assert random.getstate() == states[2]
    for network in (arrangement.model, model):
        assert [module.training for module in network.modules()] == [True, True, True, True, False, True]


def test_it_reads_nothing_that_it_did_not_declare(method: str, tmp_path: Path) -> None:
    arrangement = arrange(method, "layer_norm", tmp_path)
    needs: Needs = METHODS[method].needs
    if Needs.RETAIN not in needs:
        arrangement.retain = Untouchable()
    if Needs.FACTORY not in needs:
        arrangement.factory = lambda: pytest.fail("the factory was called")
    if Needs.TEST not in needs:
        arrangement.heldout = Untouchable()
    if Needs.UPDATES not in needs:
        arrangement.updates = tmp_path / "absent"
    assert arrangement.run().trace.method == method


@pytest.mark.parametrize("missing", ["retain", "factory", "updates"])
def test_a_missing_input_is_refused(method: str, missing: str, tmp_path: Path) -> None:
    arrangement = arrange(method, "layer_norm", tmp_path)
    setattr(arrangement, missing, None)
    if Needs[missing.upper()] in METHODS[method].needs:
        with pytest.raises(SettingError, match=f"{method} needs"):
            arrangement.run()
    else:
        assert arrangement.run().trace.method == method


def test_every_example_is_used_once_a_pass(method: str, tmp_path: Path) -> None:
    arrangement = arrange(method, "layer_norm", tmp_path)
    trace = arrangement.run().trace
    # Once more, to see that it gives the same again, and the first one besides, to see how an example is built.
    assert arrangement.forget.reads == [3] + [2] * 5
    assert trace.num_forget == 6
    if method in GRADIENT and method != "scrub":  # whose epochs are of one pass or two
        needs: Needs = METHODS[method].needs
        retained = 12 if Needs.RETAIN in needs else 0
        # Adversarial examples; held-out ones with as many mixtures; where they are pasted, so many whatever there is.
        made = {"instance_wise": 12, "amun": 6, "amun_retain": 6, "held_boundary": 12, "masked_distillation": 2 * 256}
        made["calibrated"] = 2 * trace.num_calibration
        each = retained + made.get(method, 0) + (6 if Needs.FORGET in needs else 0)
        assert trace.examples_seen == 3 * each
        assert trace.steps == 3 * -(-each // (trace.settings["batch_size"] or each))
        assert trace.num_retain == retained
        small = arrangement.run(batch_size=4).trace
        assert small.examples_seen == 3 * each, "a mini-batch run must see every example too"
        assert small.steps == 3 * -(-each // 4)


def test_settings_survive_json_and_presets_are_valid(method: str, tmp_path: Path) -> None:
    trace = arrange(method, "layer_norm", tmp_path).run().trace
    again = Trace.from_json(trace.to_json())
    assert again == trace
    assert make_method(again.method, **again.settings) == make_method(trace.method, **trace.settings)
    for preset in METHODS[method].presets:
        made = make_method(method, preset=preset)
        assert make_method(method, **settings_of(made)) == made
    assert "paper" in METHODS[method].presets


def test_a_method_is_frozen_named_and_described(method: str) -> None:
    cls = METHODS[method]
    assert cls.name == method
    assert cls.__module__ == f"expunge.methods.{method}"
    assert cls.summary
    assert cls.source
    assert cls.__doc__
    instance = make_method(method)
    for field in fields(cls):
        with pytest.raises(FrozenInstanceError):
            setattr(instance, field.name, None)


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("network", ["batch_norm", "bf16"])
def test_zero_steps_is_identity(name: str, network: str, tmp_path: Path) -> None:
    arrangement = arrange(name, network, tmp_path)
    for settings in ({"max_steps": 0}, {"epochs": 0}):
        result = arrangement.run(**settings)
        assert state_bits(result.model) == state_bits(arrangement.model)
        assert "nothing" in result.trace.warnings[0]
        assert result.trace.steps == 0


def test_forgotten_examples_that_were_never_used_are_told(tmp_path: Path) -> None:
    arrangement = arrange("neg_grad", "batch_norm", tmp_path, num_forget=12)
    cut = arrangement.run(batch_size=5, max_steps=2).trace
    assert cut.examples_seen == 10
    assert any("2 forgotten" in warning for warning in cut.warnings)
    for settings in ({"batch_size": 5, "max_steps": 3}, {"max_steps": 1}):
        assert not any("never" in warning for warning in arrangement.run(**settings).trace.warnings)


def test_retained_examples_are_no_forgotten_ones_that_were_never_used(tmp_path: Path) -> None:
    arrangement = arrange("finetune", "layer_norm", tmp_path)
    for seed in range(4):
        cut = arrangement.run(seed=seed, batch_size=4, max_steps=1).trace
        assert not any("never" in warning for warning in cut.warnings)


@pytest.mark.parametrize("network", ["batch_norm", "layer_norm"])
def test_one_example_can_be_forgotten(method: str, network: str, tmp_path: Path) -> None:
    trace = arrange(method, network, tmp_path, num_forget=1).run().trace
    assert trace.num_forget == 1
    alone = trace.num_retain + trace.num_calibration == 0 and method not in {"instance_wise", "held_boundary", "amun"}
    if method in ON_FORGET and alone and network == "batch_norm":
        assert any("one example" in warning for warning in trace.warnings)


def test_inputs_need_not_be_contiguous(method: str, tmp_path: Path) -> None:
    arrangement = arrange(method, "batch_norm", tmp_path)
    expected = state_bits(arrangement.run().model)
    strided = arrangement.forget.inputs.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided[0].is_contiguous()
    arrangement.forget = Pairs(strided, arrangement.forget.labels)
    assert state_bits(arrangement.run().model) == expected


@pytest.mark.parametrize("name", GRADIENT)
def test_norm_mode_decides_whether_running_statistics_move(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "batch_norm", tmp_path)
    original = arrangement.model.state_dict()["1.running_mean"]
    assert torch.equal(arrangement.run(norm="eval").model.state_dict()["1.running_mean"], original)
    assert not torch.equal(arrangement.run(norm="train").model.state_dict()["1.running_mean"], original)


@pytest.mark.parametrize("name", GRADIENT)
def test_normalisation_layers_that_are_frozen_keep_their_statistics(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "batch_norm", tmp_path)
    arrangement.model[1].requires_grad_(False)  # type: ignore[index]
    original = {key: value.clone() for key, value in arrangement.model.state_dict().items() if key.startswith("1.")}
    result = arrangement.run(norm="train").model.state_dict()
    assert all(torch.equal(result[key], value) for key, value in original.items())


def _stack(layers: list[Any]) -> nn.Sequential:
    """Linear layers that are trained (t) or frozen (f), and normalisation layers without parameters (n)."""
    made: dict[str, Callable[[], nn.Module]] = {
        "t": lambda: nn.Linear(6, 6),
        "f": lambda: nn.Linear(6, 6).requires_grad_(False),
        "n": lambda: nn.BatchNorm1d(6, affine=False),
    }
    return nn.Sequential(*[_stack(layer) if isinstance(layer, list) else made[layer]() for layer in layers])


@pytest.mark.parametrize(
    ("layers", "moves"),
    [
        ([*"tntnt"], [True, True]),
        ([*"fntnt"], [False, True]),
        ([*"tnfnt"], [True, False]),
        ([*"ntnt"], [True, True]),
        ([*"nfnt"], [False, False]),
        (["t", [*"nfn"], "t"], [False, False]),
        (["f", [*"nt"], "t"], [True]),
        (["f", ["n"], "t"], [False]),
        (["t", ["f", ["n"]], "t"], [False]),
        (["t", [["n"], "f", ["n", ["n"]]], "t"], [False] * 3),
        (["f", [["n"], "t", ["n"]], "f"], [True] * 2),
        (["t", [["n", "f"], ["n", "t"]]], [False, True]),
    ],
    ids=str,
)
def test_a_normalisation_layer_without_parameters_is_frozen_with_its_neighbour(
    layers: list[Any], moves: list[bool]
) -> None:
    """The one before it in the innermost container with parameters, or the one after it, if it is the first."""
    forget = TensorDataset(torch.rand(9, 6), torch.arange(9) % 3)
    model = _stack(layers)
    after = unlearn(model, forget, method=make_method("targeted", epochs=2, stop="budget")).model
    means = [[value for name, value in net.named_buffers() if "running_mean" in name] for net in (model, after)]
    assert [not torch.equal(*pair) for pair in zip(*means, strict=True)] == moves


@pytest.mark.parametrize("key", ["name", "preset"])
def test_settings_from_files_may_be_called_like_arguments(key: str) -> None:
    with pytest.raises(SettingError, match=f"no setting '{key}'"):
        method_of("targeted", {key: "x"})


class Scaled(nn.Module):
    """A container with a parameter of its own, and a normalisation layer without any."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.BatchNorm1d(6, affine=False), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.norm(x) * self.scale
        return scaled


@pytest.mark.parametrize("frozen", [True, False])
def test_a_layer_is_frozen_where_all_of_its_container_is(frozen: bool) -> None:
    """Whatever stands before the container, and whatever it is that holds the parameters."""
    forget = TensorDataset(torch.rand(9, 6), torch.arange(9) % 3)
    for container in (
        Scaled(),
        nn.Sequential(Scaled(), nn.BatchNorm1d(6, affine=False)),
        nn.Sequential(Scaled().norm, Scaled()),
    ):
        container.requires_grad_(not frozen)
        model = nn.Sequential(nn.Linear(6, 6), container, nn.Linear(6, 6))
        after = unlearn(model, forget, method=make_method("targeted", epochs=2, stop="budget")).model
        means = [[value for name, value in net.named_buffers() if "running_mean" in name] for net in (model, after)]
        assert [torch.equal(*pair) for pair in zip(*means, strict=True)] == [frozen] * len(means[0])


@pytest.mark.parametrize("name", ["targeted", "neg_grad"])
def test_a_run_that_has_nothing_to_do_says_that_all_was_reached_from_the_start(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "layer_norm", tmp_path)
    arrangement.model = arrangement.run(stop="forgotten", epochs=400, lr=3e-3).model
    trace = arrangement.run(stop="epsilon", epsilon=50.0, epochs=5).trace
    assert (trace.steps, trace.first_step_all_reached) == (0, 0)


MAY_STAY_RIGHT = {"bad_teacher", "mu_mis", "jit", "scrub", "calibrated", "amun", "amun_retain", "falw"}
"""A teacher may be right, the losses of mu_mis, jit and amun ask for no wrong prediction, and calibrated and falw want
as many as on unseen data."""


@pytest.mark.parametrize("name", sorted(set(ON_FORGET) - MAY_STAY_RIGHT))
def test_stop_forgotten_ends_when_every_example_is_forgotten(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "layer_norm", tmp_path)
    settings = {"retain_size": 1} if name in ON_RETAIN else {}
    result = arrangement.run(stop="forgotten", epochs=400, lr=3e-3, **settings)
    assert result.trace.forget_accuracy_after == 0
    assert 0 < result.trace.steps < 400
    assert result.trace.first_step_all_reached is not None
    assert result.trace.first_step_all_reached <= result.trace.steps


def test_a_run_that_max_steps_ends_is_not_told_to_raise_epochs(tmp_path: Path) -> None:
    trace = arrange("targeted", "layer_norm", tmp_path).run(max_steps=1, stop="forgotten").trace
    assert ["max_steps" in warning for warning in trace.warnings] == [True]


def test_networks_without_normalisation_layers_are_not_told_of_them() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    forget = TensorDataset(torch.rand(9, 1, 4, 4), torch.arange(9) % 3)
    for method in (make_method("targeted", batch_size=8), make_method("masked_distillation")):
        assert not [note for note in unlearn(model, forget, method=method).trace.warnings if "normalisation" in note]


def test_a_loss_that_no_free_parameter_enters_is_told() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    forget = TensorDataset(torch.rand(4, 3), torch.arange(4) % 3)
    with pytest.raises(SettingError, match="requires_grad"):
        unlearn(model, forget, method="mu_mis")


@pytest.mark.parametrize("name", ["targeted", "neg_grad"])
def test_the_first_step_of_all_is_never_said_of_mini_batches_that_saw_different_weights(
    name: str, tmp_path: Path
) -> None:
    """A run that is cut at the step that is named has indeed reached all; in mini-batches only a look tells."""
    arrangement = arrange(name, "layer_norm", tmp_path)
    for batch_size, stop in ((2, "budget"), (2, "forgotten"), (None, "budget")):
        first = arrangement.run(batch_size=batch_size, stop=stop, epochs=60, lr=3e-3).trace.first_step_all_reached
        if (batch_size, stop) == (2, "budget"):
            assert first is None
            continue
        assert first is not None
        cut = arrangement.run(batch_size=batch_size, stop=stop, epochs=60, lr=3e-3, max_steps=first)
        assert cut.trace.forget_accuracy_after == 0
        if batch_size is None and name == "neg_grad":  # which asks for no other class in particular
            short = arrangement.run(stop=stop, epochs=60, lr=3e-3, max_steps=first - 1)
            assert short.trace.forget_accuracy_after > 0


def test_a_budget_that_ends_too_early_is_reported(tmp_path: Path) -> None:
    trace = arrange("targeted", "layer_norm", tmp_path).run(stop="forgotten", epochs=1, lr=1e-5).trace
    assert ["budget" in warning and "epochs" in warning for warning in trace.warnings] == [True]


@pytest.mark.parametrize("name", sorted(set(ON_FORGET) - UNBOUNDED))
def test_stop_epsilon_ends_below_the_threshold(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "layer_norm", tmp_path)
    whole: dict[str, Any] = {"batch_size": None}  # what is held may be more than a batch
    first = arrangement.run(epochs=1, **whole).trace.epochs[0].loss
    assert first is not None
    trace = arrangement.run(stop="epsilon", epsilon=0.9 * first, epochs=300, lr=3e-3, **whole).trace
    losses = [epoch.loss for epoch in trace.epochs if epoch.loss is not None]
    assert losses[-1] < 0.9 * first <= min(losses[:-1])
    assert trace.steps == len(losses) - 1, "Algorithm 1 makes no update once the loss is below ε"


def test_in_mini_batches_epsilon_is_held_against_the_loss_of_a_pass(tmp_path: Path) -> None:
    arrangement = arrange("targeted", "layer_norm", tmp_path)
    settings: dict[str, Any] = {"batch_size": 2, "lr": 3e-3}
    first = arrangement.run(epochs=1, **settings).trace.epochs[0].loss
    assert first is not None
    trace = arrangement.run(stop="epsilon", epsilon=0.5 * first, epochs=300, **settings).trace
    losses = [epoch.loss for epoch in trace.epochs if epoch.loss is not None]
    assert losses[-1] < 0.5 * first <= min(losses[:-1])


def test_an_epsilon_that_is_never_reached_is_told() -> None:
    model = NETWORKS["layer_norm"]()
    result = unlearn(model, pairs(5, seed=1), method=make_method("targeted", stop="epsilon", epsilon=1e-6, epochs=2))
    assert ["epsilon=1e-06" in warning for warning in result.trace.warnings] == [True]


STEADY: dict[str, dict[str, Any]] = {
    "calibrated": {"rank": "margin"},
    "salsa": {"alpha_min": 0.5, "alpha_max": 0.5},
    "scrub": {"msteps": 0},
}
"""Settings without what changes from step to step, or with the size of a batch; SCRUB's own start is at a loss of 0."""


@pytest.mark.parametrize("name", sorted({*GRADIENT} - {"jit", "mu_mis"}))  # these draw anew in every step
def test_the_loss_of_a_pass_is_of_its_examples_however_they_are_batched(name: str, tmp_path: Path) -> None:
    """Each keeps its own label and target, in whatever batch it comes."""
    arrangement = arrange(name, "tied", tmp_path, num_forget=17)
    losses = []
    settings: dict[str, Any] = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0, **STEADY.get(name, {})}
    for batch_size in (None, 4):
        trace = arrangement.run(**settings, batch_size=batch_size).trace
        losses.append(trace.epochs[0].loss)
    assert losses[0] is not None
    assert abs(losses[0]) > 1e-3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", sorted(GRADIENT))
def test_dropout_is_active_but_where_outputs_are_moved_to_given_values(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "dropout", tmp_path)
    active: list[bool] = []
    arrangement.model[3].register_forward_hook(  # type: ignore[index]
        lambda module, *_: active.append(module.training) if torch.is_grad_enabled() else None
    )
    arrangement.run()
    assert active
    assert any(active) == (name not in {"calibrated", "held_boundary", "masked_distillation"})


def test_outputs_that_are_probabilities_are_told() -> None:
    network = NETWORKS["layer_norm"]()
    forget = pairs(5, seed=1)
    told = [
        any("probabilities" in warning for warning in unlearn(model, forget, method="neg_grad").trace.warnings)
        for model in (network, nn.Sequential(network, nn.Softmax(1)))
    ]
    assert told == [False, True]


def test_finetune_has_no_goal_to_stop_at() -> None:
    with pytest.raises(SettingError, match="stop='forgotten'"):
        make_method("finetune", stop="forgotten")


@pytest.mark.parametrize("name", sorted(set(GRADIENT) | {"retrain"}))
def test_a_run_that_diverges_says_when_and_leaves_the_model(name: str, tmp_path: Path) -> None:
    arrangement = arrange(name, "layer_norm", tmp_path)
    before = state_bits(arrangement.model)
    settings: dict[str, Any] = {"lr": 1e30, "epochs": 60} | ({} if name == "retrain" else {"optimizer": "sgd"})
    with pytest.raises(NonFiniteError, match=r"step"):
        arrangement.run(**settings)
    assert state_bits(arrangement.model) == before


def test_retained_draws_are_shared_by_methods(tmp_path: Path) -> None:
    drawn = {}
    for name in ON_RETAIN:
        arrangement = arrange(name, "layer_norm", tmp_path / name)
        retain = pairs(12, seed=3)
        arrangement.retain = retain
        arrangement.run(seed=3, retain_size=4)
        drawn[name] = retain.reads
    assert all(reads == drawn["amnesiac"] for reads in drawn.values())
    assert sum(drawn["amnesiac"]) == 1 + 2 * 4  # the first one, and the draw twice, to see that it is the same again


def test_a_retained_example_that_is_to_be_forgotten_is_refused(tmp_path: Path) -> None:
    arrangement = arrange("finetune", "layer_norm", tmp_path)
    arrangement.retain = arrangement.forget
    with pytest.raises(InputError, match=r"6 .*forget"):
        arrangement.run()


def test_collapse_is_reported(tmp_path: Path) -> None:
    arrangement = arrange("neg_grad", "layer_norm", tmp_path, num_forget=12)
    warnings = arrangement.run(lr=0.5, epochs=40).trace.warnings
    assert any("collapsed" in warning for warning in warnings)


def test_retraining_counts_the_steps_and_examples_of_whole_batches(tmp_path: Path) -> None:
    """Of 12 retained examples two are left over in each of the three epochs."""
    trace = arrange("retrain", "layer_norm", tmp_path).run(epochs=3, batch_size=5).trace
    assert (trace.steps, trace.examples_seen) == (6, 30)


def test_a_factory_for_another_network_is_refused(tmp_path: Path) -> None:
    arrangement = arrange("retrain", "layer_norm", tmp_path)
    arrangement.factory = NETWORKS["dropout"]
    with pytest.raises(InputError, match="network"):
        arrangement.run()


def test_undo_gives_back_the_model_of_training_without_those_steps(tmp_path: Path) -> None:
    """With every step recorded and every example forgotten, what is left is the initial network."""
    arrangement = arrange("amnesiac_undo", "layer_norm", tmp_path)
    torch.manual_seed(1)
    initial = NETWORKS["layer_norm"]()
    everything = Pairs(
        torch.cat([arrangement.forget.inputs, arrangement.retain.inputs]),  # type: ignore[attr-defined]
        torch.cat([arrangement.forget.labels, arrangement.retain.labels]),  # type: ignore[attr-defined]
    )
    model = unlearn(arrangement.model, everything, method=AmnesiacUndo(updates=arrangement.updates)).model
    for (name, parameter), original in zip(model.named_parameters(), initial.parameters(), strict=True):
        torch.testing.assert_close(parameter, original, msg=f"{name} differs", atol=1e-6, rtol=0)


def test_updates_are_taken_back_once(tmp_path: Path) -> None:
    arrangement = arrange("amnesiac_undo", "layer_norm", tmp_path)
    first = arrangement.run()
    assert first.trace.warnings == ()
    again = unlearn(first.model, arrangement.forget, method=AmnesiacUndo(updates=arrangement.updates))
    assert (again.trace.steps, again.trace.change.l1) == (0, 0)
    steps = first.trace.steps
    assert [f"{steps} of {steps}" in warning for warning in again.trace.warnings if "updates" in warning] == [True]
    assert undone_steps(again.model) == undone_steps(first.model)
    assert undone_steps(arrangement.model) == ()


def test_undo_refuses_examples_that_were_not_recorded(tmp_path: Path) -> None:
    arrangement = arrange("amnesiac_undo", "layer_norm", tmp_path)
    arrangement.forget = pairs(3, seed=77)
    with pytest.raises(InputError, match="3 of the 3"):
        arrangement.run()


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(N, C\)"):
        unlearn(_Wide(), pairs(2, seed=0))


def test_the_default_device_is_left_alone(method: str, tmp_path: Path) -> None:
    arrangement = arrange(method, "batch_norm", tmp_path)
    expected = state_bits(arrangement.run().model)
    with torch.device("meta"):  # one that no tensor can come back from
        found = arrangement.run()
    assert state_bits(found.model) == expected


class Coded(nn.Module):
    """Columns of floats: two numbers, and a code that is looked up in a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.seen = nn.Embedding(9, 4), nn.Linear(6, 3), set[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen |= set(x[:, 2].tolist())
        logits: Tensor = self.head(torch.cat([x[:, :2], self.table(x[:, 2].long())], 1))
        return logits


@pytest.mark.parametrize("name", ["instance_wise", "jit", "amun", "calibrated", "masked_distillation", "held_boundary"])
def test_codes_in_columns_of_floats_stay_codes(name: str) -> None:
    codes = {0.0, 4.0, 8.0}
    rng = torch.Generator().manual_seed(0)
    numbers = 9 * torch.rand(90, 2, generator=rng) - 4
    rows = torch.cat([numbers, 4.0 * (torch.arange(90) % 3)[:, None]], 1)
    forget, test = (TensorDataset(rows[part], torch.arange(90)[part] % 3) for part in (slice(0, 9), slice(9, 90)))
    method = make_method(name, **SHORT[name])
    unlearned = unlearn(Coded(), forget, method=method, **read_by(method, test=test)).model
    assert unlearned.seen <= codes  # type: ignore[operator]


def test_a_code_that_a_method_makes_up_is_one_clear_line() -> None:
    """Where all columns are whole numbers, they are taken for numbers."""
    rows = torch.cat([torch.arange(18.0).view(9, 2), 4.0 * (torch.arange(9) % 3)[:, None]], 1)
    with pytest.raises(InputError, match=r"instance_wise.*codes"):
        unlearn(Coded(), TensorDataset(rows, torch.arange(9) % 3), method=make_method("instance_wise", epochs=1))
