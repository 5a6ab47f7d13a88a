"""Models and datasets as users bring them: odd ones work, or are refused in one line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import expunge
from expunge.audit import audit
from expunge.audit.difficulty import difficulty_of
from expunge.audit.forward import outputs_of
from expunge.data import Examples, ImageSet, calibration_side
from expunge.errors import InputError, NonFiniteError, SettingError
from expunge.methods import METHODS, make_method
from expunge.models import load_weights
from expunge.training import Recipe
from expunge.unlearning import unlearn
from tests.arrangements import SHORT, pairs, state_bits

IMAGES = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(300) % 4
FORGET, TEST = (TensorDataset(IMAGES[part], LABELS[part]) for part in (slice(0, 9), slice(9, 300)))
RETAIN = pairs(24, 7)


class Network(nn.Module):
    """A small classifier; what is odd about one is its `prepare`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(36, 16), nn.Linear(16, 4)

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs - 0.5) / 0.25

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.hidden(self.prepare(inputs).flatten(1))))
        return logits


class InPlace(Network):
    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs.sub_(0.5).div_(0.25)


class Masked(Network):
    """Adds -inf where nothing may attend, as transformers do."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs + self.mask).softmax(-1)


class Lazy(Network):
    """Makes a buffer when it first runs."""

    scale: Tensor

    def prepare(self, inputs: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.full((1,), 4.0))
        return (inputs - 0.5) * self.scale


class Versioned(Network):
    """Keeps more than tensors in its state."""

    def get_extra_state(self) -> Mapping[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def run(model: nn.Module, method: str, **more: Any) -> nn.Module:
    settings = {**SHORT[method], **more}
    return unlearn(
        model, FORGET, method=make_method(method, **settings), retain=RETAIN, heldout=TEST, factory=type(model)
    ).model


RUNNABLE = sorted(set(METHODS) - {"amnesiac_undo"})
"""All but the one that needs a log of the model's training."""


@pytest.mark.parametrize("method", RUNNABLE)
def test_a_model_may_normalise_its_input_in_place(method: str) -> None:
    given = [data.clone() for data in (*FORGET.tensors, *TEST.tensors, RETAIN.inputs)]
    assert state_bits(run(InPlace(), method)) == state_bits(run(Network(), method))
    for before, after in zip(given, (*FORGET.tensors, *TEST.tensors, RETAIN.inputs), strict=True):
        assert torch.equal(before, after)


def test_the_audit_of_a_model_that_normalises_in_place() -> None:
    reports = []
    for kind in (Network, InPlace):
        held = [Examples(*data.tensors) for data in (FORGET, TEST)]
        copies = [examples.inputs.clone() for examples in held]
        report = audit(kind(), run(kind(), "targeted"), *held)
        reports.append({**report.to_dict(), "seconds": 0})
        assert all(torch.equal(examples.inputs, copy) for examples, copy in zip(held, copies, strict=True))
    assert reports[0] == reports[1]


@pytest.mark.parametrize("network", [Masked, Lazy, Versioned])
@pytest.mark.parametrize("method", RUNNABLE)
def test_odd_networks_are_unlearned_and_audited(method: str, network: type[Network]) -> None:
    after = run(network(), method)
    assert audit(network(), after, FORGET, TEST).num_forget == 9
    if network is Lazy:
        assert isinstance(after.scale, Tensor)


def test_a_mask_is_sound_and_other_infinities_are_not(tmp_path: Any) -> None:
    model = Masked()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "m.safetensors")
    load_weights(model, tmp_path / "m.safetensors")
    for name, value in (("mask", torch.inf), ("mask", torch.nan), ("hidden.bias", -torch.inf)):
        bad = Masked()
        bad.state_dict()[name].view(-1)[0] = value
        with pytest.raises(InputError, match=f"NaN or infinity in '{name}'"):
            run(bad, "targeted")
        save_file({key: part.contiguous() for key, part in bad.state_dict().items()}, tmp_path / "bad.safetensors")
        with pytest.raises(InputError, match=f"'{name}' holds NaN or infinity"):
            load_weights(Masked(), tmp_path / "bad.safetensors")


def test_a_buffer_that_becomes_infinite_is_told() -> None:
    class Counts(Network):
        """Its statistics overflow while it trains."""

        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def prepare(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.seen.sub_(torch.inf)
            return super().prepare(inputs)

    with pytest.raises(NonFiniteError, match="'seen'"):
        run(Counts(), "targeted")


def scripted() -> Any:
    return torch.jit.trace(Network(), IMAGES[:2])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scripted_models_are_told_what_to_give_instead() -> None:
    with pytest.raises(InputError, match="TorchScript"):
        unlearn(scripted(), FORGET, method="targeted")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"forget": TensorDataset(IMAGES[:9, :, :5], LABELS[:9])},
            InputError,
            "evaluating forget set: the model cannot take",
        ),
        (
            {"test": TensorDataset(IMAGES[9:, :, :5], LABELS[9:])},
            InputError,
            "evaluating test set: the model cannot take",
        ),
        (
            {"test": TensorDataset(IMAGES[9:].long(), LABELS[9:])},
            InputError,
            "evaluating test set: the model cannot take",
        ),
        ({"batch_size": 0}, SettingError, "batch_size"),
        ({"seed": 1.5}, SettingError, "seed must be an integer"),
        ({"seed": 2**64}, SettingError, "seed must be"),
        ({"ids": ["a"]}, InputError, "1 ids for 9 forgotten examples"),
        ({"before": nn.Flatten(), "after": nn.Flatten()}, InputError, "no parameters"),
    ],
)
def test_what_an_audit_cannot_use_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    given: dict[str, Any] = {"before": network, "after": network, "forget": FORGET, "test": TEST} | change
    with pytest.raises(error, match=message) as caught:
        audit(given.pop("before"), given.pop("after"), given.pop("forget"), given.pop("test"), **given)
    assert "\n" not in str(caught.value)


def test_a_last_layer_without_bias_on_dead_features_is_audited() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    nn.init.constant_(model[1].bias, -1e3)  # type: ignore[arg-type]
    report = audit(model, model, FORGET, TEST)
    assert report.relearning is None
    assert any("features are all zero" in caveat for caveat in report.caveats)


class Reads(Dataset[Any]):
    """A dataset whose every item is `item`."""

    def __init__(self, item: Any, size: int = 3) -> None:
        self.item, self.size = item, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.item


class Stream(IterableDataset[Any]):
    """A stream that knows its length, as WebDataset's do."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter([(IMAGES[0], 0)] * 3)


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return IMAGES[index], 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "by position"),
        (Unsized(), "__len__"),
        (Reads((IMAGES[0], 2**63)), "label"),
        (Reads((IMAGES[0], -(2**63) - 1)), "label"),
        (Reads((np.array(["a"]), 0)), "cannot become a tensor"),
    ],
)
@pytest.mark.parametrize("role", ["forget", "retain", "heldout"])
def test_datasets_that_cannot_be_read_are_refused(data: Any, message: str, role: str) -> None:
    given = {"forget": FORGET, "retain": RETAIN, "heldout": TEST} | {role: data}
    method = "finetune" if role == "retain" else "calibrated"
    with pytest.raises(InputError, match=message) as caught:
        unlearn(Network(), given.pop("forget"), method=method, **given)
    assert role in str(caught.value)


@pytest.mark.parametrize(
    "odd",
    [
        lambda image: image[:, ::-1],
        lambda image: image.astype(">f4"),
        lambda image: np.asfortranarray(image),
        lambda image: image.tolist(),
    ],
)
def test_arrays_of_any_layout_are_read(odd: Any) -> None:
    arrays = [odd(image) for image in IMAGES[:9].numpy()]
    plain = torch.stack([torch.tensor(np.array(array, dtype=np.float32)) for array in arrays])
    method = expunge.Targeted(epochs=2)
    given = [(array, int(label)) for array, label in zip(arrays, LABELS, strict=False)]
    found = unlearn(Network(), given, method=method).model  # type: ignore[arg-type]
    assert state_bits(found) == state_bits(unlearn(Network(), TensorDataset(plain, LABELS[:9]), method=method).model)


PIXELS = (IMAGES * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PIXELS, PIXELS.float() / 255),
        (PIXELS.double() / 255, PIXELS.float() / 255),
        (IMAGES.double() * 2 - 1, (IMAGES.double() * 2 - 1).float()),
        ((IMAGES * 2 - 1).bfloat16(), IMAGES * 2 - 1),
    ],
)
def test_an_overlap_shows_in_whatever_dtype(first: Tensor, second: Tensor) -> None:
    class Any4(Network):
        def prepare(self, inputs: Tensor) -> Tensor:
            return inputs.to(self.hidden.weight.dtype)

    model = Any4()
    forget = TensorDataset(first[:9], LABELS[:9])
    with pytest.raises(InputError, match="9 of the test examples are in the forget set"):
        audit(model, model, forget, TensorDataset(second, LABELS))


def test_a_forgotten_example_on_the_audits_side_of_the_held_out_ones_is_refused() -> None:
    audited = ~calibration_side(IMAGES, 0)
    at = int(audited.nonzero()[0])
    forget = TensorDataset(IMAGES[at : at + 1], LABELS[at : at + 1])
    with pytest.raises(InputError, match="1 of the heldout examples"):
        unlearn(Network(), forget, method="calibrated", heldout=TensorDataset(IMAGES, LABELS))


@pytest.mark.parametrize("seed", [np.int64(3), torch.tensor(3)])
def test_seeds_may_be_numpys(seed: Any) -> None:
    plain = unlearn(Network(), FORGET, method="calibrated", heldout=TEST, seed=3)
    found = unlearn(Network(), FORGET, method="calibrated", heldout=TEST, seed=seed)
    assert state_bits(found.model) == state_bits(plain.model)
    assert json.loads(found.trace.to_json())["seed"] == 3
    report = audit(Network(), found.model, FORGET, TEST, seed=seed).to_dict()
    assert json.loads(json.dumps(report))["seed"] == 3


@pytest.mark.parametrize("seed", [1.5, "3", None, 2**64, -(2**63) - 1])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(SettingError, match="seed must be an integer"):
        unlearn(Network(), FORGET, method="targeted", seed=seed)
    data = Examples(*TEST.tensors)
    with pytest.raises(SettingError, match="seed must be an integer"):
        difficulty_of(Examples(*FORGET.tensors), data, factory=Network, recipe=Recipe(epochs=1), seed=seed)


def test_settings_may_be_numpys() -> None:
    settings: dict[str, Any] = {"lr": np.float32(1e-3), "epochs": np.int64(2)}
    method = expunge.Targeted(**settings)
    trace = json.loads(unlearn(Network(), FORGET, method=method).trace.to_json())
    assert (trace["settings"]["lr"], trace["settings"]["epochs"]) == (pytest.approx(1e-3), 2)


def test_a_run_on_the_cpu_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    model = Network()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    unlearn(model, FORGET, method="targeted")
    assert not seeded


def test_names_may_be_arrays_and_a_datasets_own_attributes_may_mean_something_else() -> None:
    class Named(TensorDataset):
        ids: Any = 5
        class_names: Any = None

    model, after = Network(), run(Network(), "neg_grad", epochs=30)
    plain = audit(model, after, FORGET, TEST)
    odd = Named(*FORGET.tensors)
    for ids in (5, ["one"], {"a": 1}):
        odd.ids = ids
        assert audit(model, after, odd, TEST).recognisable == plain.recognisable
    named = audit(model, after, odd, TEST, ids=np.arange(10, 19), class_names=np.array(list("abcd")))  # type: ignore[arg-type]
    assert plain.recognisable
    assert [r.id for r in named.recognisable] == [str(10 + int(r.id)) for r in plain.recognisable]
    assert {r.label for r in named.recognisable} <= set("abcd")
    assert json.loads(json.dumps(named.to_dict()))["recognisable"][0]["label"] in "abcd"


def test_a_set_of_images_names_its_own() -> None:
    images = ImageSet(PIXELS[:9], LABELS[:9], ("p", "q", "r", "s"), tuple("stuvwxyza"))
    model = nn.Sequential(nn.Flatten(), ToFloat(), nn.Linear(36, 4))
    report = audit(model, model, images, TensorDataset(PIXELS[9:], LABELS[9:]))
    assert all(found.id in "stuvwxyza" and found.label in "pqrs" for found in report.recognisable)
    assert outputs_of(model, images.examples).logits.shape == (9, 4)


class ToFloat(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.float()
