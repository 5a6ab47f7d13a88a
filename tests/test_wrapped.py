"""Models in wrappers, and with layers that compute their weights: they work, or one line says what to give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

from expunge.auditing import audit
from expunge.errors import InputError
from expunge.methods import METHODS, make_method
from expunge.models import copied, logits_of
from expunge.unlearning import unlearn
from tests.arrangements import SHORT, pairs, read_by, state_bits

INPUTS = torch.rand(150, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(150) % 4
FORGET, TEST = (TensorDataset(INPUTS[part], LABELS[part]) for part in (slice(0, 9), slice(9, 150)))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def normed() -> nn.Module:
    network = plain()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(network[1])
    return network


def pruned() -> nn.Module:
    network = plain()
    prune.l1_unstructured(network[1], "weight", 0.5)
    return network


def spectral() -> nn.Module:
    network = plain()
    nn.utils.spectral_norm(network[1])
    return network


def just_run(make: Callable[[], nn.Module]) -> nn.Module:
    """A model that a step of training has left gradients and computed weights in."""
    network = make()
    network(INPUTS[:2]).sum().backward()
    return network


class Averaging(nn.Module):
    """Averages that are kept beside a network, as timm's ModelEmaV2 does, and cannot be run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model


class GradSampleModule(nn.Module):
    """As Opacus's, by its name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._module = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self._module(inputs)
        return logits


class Distributed(nn.parallel.DistributedDataParallel):
    """Without the processes that the real one waits for."""

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = model


def compiled() -> Any:
    return torch.compile(plain(), backend="eager")


COMPUTED = {"weight_norm": normed, "pruned": pruned, "spectral_norm": spectral}
WRAPPED: dict[str, Callable[[], Any]] = {
    "compiled": compiled,
    "compiled within": lambda: nn.Sequential(compiled()),
    "DataParallel": lambda: nn.DataParallel(plain()),
    "AveragedModel": lambda: AveragedModel(plain()),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_copy_has_the_weights_that_layers_compute(kind: str) -> None:
    for model in (COMPUTED[kind](), just_run(COMPUTED[kind])):
        before = state_bits(model)
        own = copied(model)
        own.eval(), model.eval()
        assert torch.equal(logits_of(own, INPUTS[:9]), logits_of(model, INPUTS[:9]))
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(1)
        assert state_bits(model) == before


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"amnesiac_undo"}))
def test_models_that_compute_their_weights_forget_and_are_audited(method: str, kind: str) -> None:
    model = just_run(COMPUTED[kind])
    before = state_bits(model)
    chosen = make_method(method, **SHORT[method])
    given = read_by(chosen, retain=pairs(24, 7, (1, 4, 4)), test=TEST, factory=lambda: fresh(COMPUTED[kind]))
    after = unlearn(model, FORGET, method=chosen, **given).model
    assert state_bits(model) == before
    assert state_bits(after) != before
    if kind == "pruned":
        mask = after.get_buffer("1.weight_mask")
        logits_of(after, INPUTS[:2])
        assert bool((after.get_submodule("1").weight[mask == 0] == 0).all())  # type: ignore[index]
    if method == "targeted":
        assert audit(model, after, FORGET, TEST).num_forget == 9


def fresh(make: Callable[[], nn.Module]) -> nn.Module:
    network = make()
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_models_forget_as_what_is_in_them(kind: str) -> None:
    bare = unlearn(plain(), FORGET, method=make_method("targeted", epochs=3)).model
    model = WRAPPED[kind]()
    after = unlearn(model, FORGET, method=make_method("targeted", epochs=3)).model
    assert type(after) is type(model)
    assert torch.equal(logits_of(after, INPUTS[:9]), logits_of(bare, INPUTS[:9]))


@pytest.mark.parametrize(
    ("wrap", "way"),
    [
        (GradSampleModule, r"GradSampleModule: give model\.to_standard_module\(\)"),
        (lambda model: nn.Sequential(GradSampleModule(model)), r"to_standard_module"),
        (Distributed, r"give model\.module$"),
        (Averaging, r"no forward: give the network in it, model\.module"),
    ],
)
def test_what_cannot_be_worked_on_alone_is_refused_with_the_way(
    wrap: Callable[[nn.Module], nn.Module], way: str
) -> None:
    with pytest.raises(InputError, match=way) as caught:
        unlearn(wrap(plain()), FORGET, method="targeted")
    assert "\n" not in str(caught.value)
