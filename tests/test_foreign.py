"""Models and datasets as users bring them: odd ones work, or are refused in one line."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import expunge
from expunge.auditing import accuracy, audit
from expunge.auditing.difficulty import difficulty_of
from expunge.auditing.forward import outputs_of
from expunge.data import Examples, ImageSet, calibration_side, check_disjoint
from expunge.errors import InputError, NonFiniteError, SettingError
from expunge.methods import METHODS, Delete, make_method
from expunge.models import load_weights
from expunge.training import Recipe, train
from expunge.unlearning import unlearn
from expunge.update_log import UpdateRecorder
from tests.arrangements import SHORT, pairs, read_by, state_bits

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGES = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(300) % 4
PIXELS = (IMAGES * 255).round().to(torch.uint8)
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


class LazilyMasked(Network):
    """Makes its mask when it first runs."""

    mask: Tensor

    def prepare(self, inputs: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
        return (inputs + self.mask).softmax(-1)


class Rotary(Network):
    """Keeps complex numbers."""

    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(6), torch.arange(6.0)))

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs * self.turns).real


class Versioned(Network):
    """Keeps more than tensors in its state."""

    def get_extra_state(self) -> Mapping[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def anew(kind: type[nn.Module]) -> nn.Module:
    """A network of a class whose constructor always draws the same weights, with others."""
    network = kind()
    for parameter in network.parameters():
        parameter.data.mul_(0.5)
    return network


def run(model: nn.Module, method: str, **more: Any) -> nn.Module:
    chosen = make_method(method, **{**SHORT[method], **more})
    given = read_by(chosen, retain=RETAIN, test=TEST, factory=lambda: anew(type(model)))
    return unlearn(model, FORGET, method=chosen, **given).model


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


@pytest.mark.parametrize("network", [Masked, Lazy, LazilyMasked, Rotary, Versioned])
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


def test_complex_buffers_are_checked_too() -> None:
    model = Rotary()
    model.turns[0] = torch.tensor(complex("nan"))
    with pytest.raises(InputError, match="NaN or infinity in 'turns'"):
        run(model, "targeted")


@pytest.mark.parametrize("network", [Lazy, LazilyMasked])
def test_buffers_that_a_half_precision_model_makes_are_of_its_precision(network: type[Network]) -> None:
    after = run(network().bfloat16(), "targeted")
    assert {tensor.dtype for tensor in after.state_dict().values()} == {torch.bfloat16}


class Words(nn.Module):
    """Classifies seven token ids."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(ids).mean(1))
        return logits


TOKENS = torch.randint(0, 20, (300, 7), generator=torch.Generator().manual_seed(1))


def test_an_example_may_be_one_number() -> None:
    class Users(Words):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids[:, None])

    model = Users()
    model.embedding = nn.Embedding(400, 8)
    forget, held = (TensorDataset(torch.arange(300)[part], LABELS[part]) for part in (slice(0, 9), slice(9, 300)))
    after = unlearn(model, forget, method=make_method("calibrated", epochs=1), test=held).model
    assert audit(model, after, forget, held).num_forget == 9


@pytest.mark.parametrize("method", ["targeted", "finetune", "retrain"])
def test_a_cache_that_grows_on_the_first_run_is_no_other_network(method: str) -> None:
    class Cached(Network):
        cache: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(0), persistent=False)

        def prepare(self, inputs: Tensor) -> Tensor:
            if len(self.cache) != inputs.shape[-1]:
                self.cache = torch.arange(inputs.shape[-1]).to(inputs)
            return inputs + self.cache

    assert run(Cached(), method).get_buffer("cache").shape == (6,)


def test_a_mask_of_the_lowest_number_may_be_made_in_half_precision() -> None:
    class LowestMasked(Network):
        mask: Tensor

        def prepare(self, inputs: Tensor) -> Tensor:
            if not hasattr(self, "mask"):
                lowest = torch.finfo(inputs.dtype).min
                self.register_buffer("mask", torch.full((6, 6), lowest, dtype=inputs.dtype).triu(1))
            return (inputs + self.mask).softmax(-1)

    assert run(LowestMasked().bfloat16(), "targeted").get_buffer("mask").dtype == torch.bfloat16


def test_what_was_infinite_before_a_training_is_no_failure_of_it() -> None:
    model = Network()
    model.register_buffer("best", torch.tensor(torch.inf))
    history = train(model, Examples(IMAGES, LABELS), Recipe(epochs=1), rng=torch.Generator())
    assert len(history) == 1


def test_a_refused_training_leaves_no_update_log(tmp_path: Any) -> None:
    updates = UpdateRecorder(tmp_path / "log")
    flat = Examples(IMAGES.flatten(1), LABELS)
    with pytest.raises(SettingError, match="images"):
        train(nn.Linear(36, 4), flat, Recipe(epochs=1, augment="shift"), rng=torch.Generator(), updates=updates)
    assert not (tmp_path / "log" / "watched.json").exists()


def test_a_grid_of_token_ids_is_not_shifted() -> None:
    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.lowest = Words(), 99

        def forward(self, ids: Tensor) -> Tensor:
            self.lowest = min(self.lowest, int(ids.min()))
            logits: Tensor = self.words(ids.flatten(1))
            return logits

    grids = torch.randint(5, 20, (300, 1, 8, 8), generator=torch.Generator().manual_seed(5))
    forget, held = (TensorDataset(grids[part], LABELS[part]) for part in (slice(0, 9), slice(9, 300)))
    result = unlearn(Sees(), forget, method=make_method("calibrated", epochs=2), test=held)
    assert result.model.lowest == 5


def test_token_ids_stay_integers_in_half_precision() -> None:
    result = unlearn(Words().bfloat16(), TensorDataset(TOKENS[:9], LABELS[:9]), method="targeted")
    assert result.model.get_parameter("head.weight").dtype == torch.bfloat16


def test_the_trace_of_a_half_precision_model_of_uint8_images_is_that_of_what_it_returns() -> None:
    class Scaled(Network):
        """Takes floats as scaled already, as this package's own models do."""

        def prepare(self, inputs: Tensor) -> Tensor:
            scale = 1 if inputs.is_floating_point() else 255
            return inputs.to(self.hidden.weight.dtype) / scale

    model, data = Scaled().bfloat16(), TensorDataset(PIXELS[:40], LABELS[:40])
    result = unlearn(model, data, method=expunge.Targeted(epochs=2))
    assert result.trace.forget_accuracy_after == outputs_of(result.model, Examples(*data.tensors)).accuracy


@pytest.mark.parametrize("method", ["boundary_shrink", "instance_wise", "mu_mis", "jit", "amun"])
def test_methods_that_change_inputs_refuse_models_that_round_them(method: str) -> None:
    class Levels(Network):
        def prepare(self, inputs: Tensor) -> Tensor:
            return inputs.to(torch.float32).round() / 255

    with pytest.raises(InputError, match=r"torch\.uint8"):
        unlearn(Levels(), TensorDataset(PIXELS[:9], LABELS[:9]), method=method)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize("method", ["calibrated", "masked_distillation"])
def test_token_ids_are_never_mixed_as_pixels_are(method: str, dtype: torch.dtype) -> None:
    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.met = Words(), set[int]()

        def forward(self, ids: Tensor) -> Tensor:
            self.met |= set(ids.flatten().tolist())
            logits: Tensor = self.words(ids.long())
            return logits

    tokens = TOKENS.to(dtype) // 2 * 2  # even, so that half of what lies between two is odd
    forget = TensorDataset(tokens[:30], LABELS[:30])
    if method == "calibrated":
        with pytest.raises(InputError, match="held-out examples"):
            unlearn(Sees(), forget, method=method)
    held = TensorDataset(tokens[30:], LABELS[30:])
    result = unlearn(Sees(), forget, method=make_method(method, epochs=2), test=held)
    assert result.trace.steps > 0
    assert isinstance(result.model, Sees)
    assert {number % 2 for number in result.model.met} == {0}


def test_a_model_that_cannot_take_mixtures_is_told_of_the_setting() -> None:
    class Whole(Network):
        def prepare(self, inputs: Tensor) -> Tensor:
            if bool((inputs != inputs.round()).any()):
                raise ValueError("whole numbers are wanted")
            return inputs

    codes = torch.randint(5, (300, 1, 6, 6), generator=torch.Generator().manual_seed(5)).float()
    forget, held = (TensorDataset(codes[part], LABELS[part]) for part in (slice(0, 9), slice(9, 300)))
    with pytest.raises(InputError, match=r"mixtures=false.*whole numbers are wanted"):
        unlearn(Whole(), forget, method=make_method("calibrated", rank="margin"), test=held)
    chosen = make_method("calibrated", mixtures=False, rank="margin", epochs=1)
    assert unlearn(Whole(), forget, method=chosen, test=held).trace.steps > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "values"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 4, device="meta")), "values"),
        (lambda inputs: inputs, "function"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_is_no_model_yet_is_refused(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unlearn(model, FORGET, method="targeted")


def test_a_model_that_asserts_its_input_size_is_heard() -> None:
    class Asserts(Network):
        def prepare(self, inputs: Tensor) -> Tensor:
            assert inputs.shape[-1] == 6, "\nsix columns are wanted"
            return inputs

    narrow = TensorDataset(IMAGES[9:, :, :, :5], LABELS[9:])
    with pytest.raises(InputError, match="AssertionError: six columns are wanted"):
        unlearn(Asserts(), narrow, method="targeted")
    with pytest.raises(InputError, match=r"evaluating test set: .*AssertionError: six columns"):
        audit(Asserts(), Asserts(), FORGET, narrow)


def test_a_factory_for_another_network_is_told_before_it_is_trained() -> None:
    factories: list[Any] = [
        lambda: nn.Linear(5, 4),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2)),
        lambda: None,
        {}.popitem,
    ]
    for method in ("retrain", "bad_teacher"):
        for factory in factories:
            with pytest.raises(InputError):
                unlearn(
                    Network(),
                    FORGET,
                    method=make_method(method, epochs=1),
                    retain=RETAIN,
                    factory=factory,
                )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"heldout": TensorDataset(IMAGES[9:], LABELS[9:] + 4)}, InputError, "label [4-7] "),
        ({"recipe": Recipe(epochs=1, augment="shift"), "flat": True}, SettingError, "augment='shift'"),
        ({"factory": lambda: Network().requires_grad_(False)}, SettingError, "frozen"),
        ({"factory": lambda: nn.Linear(5, 4)}, InputError, "inputs"),
        (
            {
                "heldout": TensorDataset(IMAGES[9:] * 1e9, LABELS[9:]),
                "recipe": Recipe(epochs=1, batch_size=300, lr=3e38),
            },
            NonFiniteError,
            "1 steps .*NaN",
        ),
    ],
)
def test_networks_that_cannot_be_trained_for_a_difficulty_are_told(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"forget": FORGET, "heldout": TEST, "factory": Network, "recipe": Recipe(epochs=1)}
    given |= change
    if given.pop("flat", False):
        for role in ("forget", "heldout"):
            given[role] = TensorDataset(given[role].tensors[0].flatten(1), given[role].tensors[1])
    with pytest.raises(error, match=message):
        difficulty_of(given.pop("forget"), given.pop("heldout"), **given)


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


def exported() -> Any:
    return torch.export.export(Network(), (IMAGES[:2],)).module()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_programs_are_told_what_to_give_instead() -> None:
    frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()))
    for model, said in (
        (scripted(), "TorchScript"),
        (frozen, "TorchScript"),
        (exported(), r"torch\.export"),
        (nn.Sequential(exported()), r"torch\.export"),
        (torch.export.export(Network(), (IMAGES[:2],)), "ExportedProgram"),
    ):
        for call in (
            lambda model: unlearn(model, FORGET, method="targeted"),
            lambda model: expunge.forget(model, FORGET, test=TEST, method="targeted"),
        ):
            with pytest.raises(InputError, match=said):
                call(model)
    pairs: tuple[tuple[Any, Any], ...] = ((exported(), Network()), (Network(), exported()), (Network(), "a path"))
    for before, after in pairs:
        with pytest.raises(InputError, match=r"export|Module"):
            audit(before, after, FORGET, TEST)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "detach"])
def test_a_forward_that_takes_no_gradients_is_told(how: str) -> None:
    class Deployed(Network):
        def forward(self, inputs: Tensor) -> Tensor:
            with torch.set_grad_enabled(how == "detach"), torch.inference_mode(how == "inference_mode"):
                return super().forward(inputs).detach()

    with pytest.raises(SettingError, match="no_grad and detach out of the model's forward"):
        unlearn(Deployed(), FORGET, method="targeted")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"forget": TensorDataset(IMAGES[:9, :, :5], LABELS[:9])},
            InputError,
            "forget set",
        ),
        (
            {"test": TensorDataset(IMAGES[9:, :, :5], LABELS[9:])},
            InputError,
            "test set",
        ),
        (
            {"test": TensorDataset(IMAGES[9:].long(), LABELS[9:])},
            InputError,
            "test set",
        ),
        ({"seed": 1.5}, SettingError, "seed"),
        ({"seed": 2**64}, SettingError, "seed"),
        ({"before": nn.Flatten(), "after": nn.Flatten()}, InputError, "parameters"),
    ],
)
def test_what_an_audit_cannot_use_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    given: dict[str, Any] = {"before": network, "after": network, "forget": FORGET, "test": TEST} | change
    with pytest.raises(error, match=message) as caught:
        audit(given.pop("before"), given.pop("after"), given.pop("forget"), given.pop("test"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 2.5])
def test_other_batch_sizes_are_refused(size: Any) -> None:
    with pytest.raises(SettingError, match="batch_size"):
        accuracy(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), FORGET, batch_size=size)


def test_a_last_layer_without_bias_on_dead_features_is_audited() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    nn.init.constant_(model[1].bias, -1e3)  # type: ignore[arg-type]
    report = audit(model, model, FORGET, TEST)
    assert report.relearning is None
    assert any("features" in caveat for caveat in report.caveats)


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


class Uncounted(Unsized):
    def __len__(self) -> int:
        raise TypeError("the length is known only online")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Uncounted(), "length.*TypeError: the length is known only online"),
        (Unsized(), "__len__"),
        (Reads((IMAGES[0], 2**63)), "label"),
        (Reads((IMAGES[0], -(2**63) - 1)), "label"),
        (Reads((np.array(["a"]), 0)), "tensor"),
        (dict.fromkeys(range(1, 4), (IMAGES[0], 0)), "no column is called label"),
        ([(IMAGES[0], 0), (PIXELS[1], 0)], r"example 1 .*torch.uint8.*torch.float32"),
    ],
)
@pytest.mark.parametrize("role", ["forget", "retain", "test"])
def test_datasets_that_cannot_be_read_are_refused(data: Any, message: str, role: str) -> None:
    given = {"forget": FORGET, "retain": RETAIN, "test": TEST} | {role: data}
    method = make_method("finetune" if role == "retain" else "calibrated")
    forget = given.pop("forget")
    with pytest.raises(InputError, match=message) as caught:
        unlearn(Network(), forget, method=method, **read_by(method, **given))
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
    found = unlearn(Network(), given, method=method).model
    assert state_bits(found) == state_bits(unlearn(Network(), TensorDataset(plain, LABELS[:9]), method=method).model)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PIXELS, PIXELS.float() / 255),
        (PIXELS.double() / 255, PIXELS.float() / 255),
        (IMAGES.double() * 2 - 1, (IMAGES.double() * 2 - 1).float()),
        ((IMAGES * 2 - 1).bfloat16(), IMAGES * 2 - 1),
        (PIXELS, (PIXELS.float() / 255).half()),
        (PIXELS, (PIXELS.float() / 255).bfloat16()),
        (PIXELS, PIXELS.float() * (1 / 255)),
        (PIXELS, (PIXELS.float() / 255).double()),
        (PIXELS, PIXELS.float()),
        (PIXELS.int() * 1000, PIXELS.long() * 1000),
        (PIXELS.short(), PIXELS),
        (torch.zeros(300, 1, 6, 6) - IMAGES.round(), -(IMAGES.round())),
    ],
)
def test_an_overlap_shows_in_whatever_dtype(first: Tensor, second: Tensor) -> None:
    class Any4(Network):
        def prepare(self, inputs: Tensor) -> Tensor:
            return inputs.to(self.hidden.weight.dtype)

    model = Any4()
    forget = TensorDataset(first[:9], LABELS[:9])
    with pytest.raises(InputError, match=r"9 of the 300 .*forget"):
        audit(model, model, forget, TensorDataset(second, LABELS))


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(300, 5, generator=torch.Generator().manual_seed(2)) * 1e-9,
        torch.softmax(torch.randn(300, 4, generator=torch.Generator().manual_seed(3)) * 10, 1),
        torch.rand(300, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 1e-4 + 0.2,
    ],
)
def test_inputs_that_are_no_images_are_told_apart_however_small_they_are(values: Tensor) -> None:
    assert len(values.unique(dim=0)) == len(values)
    check_disjoint(values[:50], values[50:], "forget", "test")
    assert 100 < int(calibration_side(values, 0).sum()) < 200


def test_a_forgotten_example_on_the_audits_side_of_the_held_out_ones_is_refused() -> None:
    audited = ~calibration_side(IMAGES, 0)
    at = int(audited.nonzero()[0])
    forget = TensorDataset(IMAGES[at : at + 1], LABELS[at : at + 1])
    with pytest.raises(InputError, match=r"1 .*test"):
        unlearn(Network(), forget, method="calibrated", test=TensorDataset(IMAGES, LABELS))


@pytest.mark.parametrize("seed", [np.int64(3), torch.tensor(3)])
def test_seeds_may_be_numpys(seed: Any) -> None:
    plain = unlearn(Network(), FORGET, method="calibrated", test=TEST, seed=3)
    found = unlearn(Network(), FORGET, method="calibrated", test=TEST, seed=seed)
    assert state_bits(found.model) == state_bits(plain.model)
    assert json.loads(found.trace.to_json())["seed"] == 3
    report = audit(Network(), found.model, FORGET, TEST, seed=seed).to_dict()
    assert json.loads(json.dumps(report))["seed"] == 3


@pytest.mark.parametrize("seed", [1.5, "3", None, 2**64, -(2**63) - 1])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(SettingError, match="seed"):
        unlearn(Network(), FORGET, method="targeted", seed=seed)
    data = Examples(*TEST.tensors)
    with pytest.raises(SettingError, match="seed"):
        difficulty_of(Examples(*FORGET.tensors), data, factory=Network, recipe=Recipe(epochs=1), seed=seed)


@pytest.mark.parametrize("kind", [lambda value: value, np.array, torch.tensor, str])
def test_settings_may_be_numpys(kind: Any) -> None:
    settings: dict[str, Any] = {"lr": kind(1e-3), "epochs": kind(2)}
    method = expunge.Targeted(**settings)
    trace = json.loads(unlearn(Network(), FORGET, method=method).trace.to_json())
    assert (trace["settings"]["lr"], trace["settings"]["epochs"]) == (pytest.approx(1e-3), 2)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (expunge.Targeted, {"max_steps": 2.5}, "max_steps=2.5"),
        (expunge.Targeted, {"epochs": torch.tensor(2.5)}, "is not a whole number"),
        (expunge.Targeted, {"batch_size": "many"}, "batch_size='many'"),
        (expunge.Targeted, {"epochs": Fraction(5, 2)}, "is not a whole number"),
        (Delete, {"lr": None}, "lr=None"),
        (expunge.Targeted, {"lr": np.inf}, "lr=inf"),
        (expunge.Targeted, {"stop": 3}, "stop=3"),
        (expunge.Amnesiac, {"retain_size": 2.5}, "retain_size=2.5"),
        (expunge.SSD, {"alpha": "x"}, "alpha='x'"),
        (Recipe, {"epochs": 1.5}, "epochs=1.5"),
        (Recipe, {"lr": float("inf")}, "lr=inf"),
    ],
)
def test_settings_of_another_type_are_refused_when_they_are_made(kind: Any, settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        kind(**settings)


@dataclass(frozen=True, kw_only=True)
class Own(expunge.Targeted):
    layers: "Sequence[str]" = ()
    weights: object = None


def test_a_users_own_method_may_have_fields_of_any_type() -> None:
    own = Own(weights=[1], epochs=np.int64(1), stop="budget")  # type: ignore[arg-type]
    assert (own.weights, type(own.epochs)) == ([1], int)
    assert unlearn(Network(), FORGET, method=own).trace.steps == 1


@pytest.mark.parametrize(("value", "meant"), [(1, True), (0.0, False), (torch.tensor(True), True), ("false", False)])
def test_truth_may_be_told_by_numbers(value: Any, meant: bool) -> None:
    assert expunge.BadTeacher(divide_by_classes=value).divide_by_classes is meant


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
        classes: Any = None

    model, after = Network(), run(Network(), "neg_grad", epochs=30)
    plain = audit(model, after, FORGET, TEST)
    odd = Named(*FORGET.tensors)
    for ids in (5, ["one"], {"a": 1}):
        odd.ids = ids
        assert audit(model, after, odd, TEST).recognisable == plain.recognisable
    odd.ids, odd.class_names = np.arange(10, 19), np.array(list("abcd"))
    own = audit(model, after, odd, TEST).recognisable
    odd.class_names, odd.classes = None, list("abcd")  # torchvision's name for them
    named = audit(model, after, odd, TEST)
    assert plain.recognisable
    assert own == named.recognisable
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


class ScalesBytes(Network):
    """Scales 8-bit integers and takes all else as it is."""

    def prepare(self, inputs: Tensor) -> Tensor:
        assert inputs.dtype == torch.uint8, "bytes are wanted"
        return inputs / 255


@pytest.mark.parametrize("method", ["calibrated", "amnesiac", "finetune", "bad_teacher"])
def test_integers_of_another_type_are_given_as_the_forgotten_ones_are(method: str) -> None:
    images, labels = PIXELS.long(), LABELS
    given: dict[str, Any] = {"retain": TensorDataset(images[9:], labels[9:]), "factory": lambda: anew(ScalesBytes)}
    given = {"test": TensorDataset(images[9:], labels[9:])} if method == "calibrated" else given
    given = read_by(make_method(method), **given)
    result = unlearn(ScalesBytes(), TensorDataset(PIXELS[:9], labels[:9]), method=method, **given)
    assert result.trace.steps > 0
    name = "test" if method == "calibrated" else "retain"
    given[name] = TensorDataset(images[9:] + 256, labels[9:])
    with pytest.raises(InputError, match=r"torch\.int64 .*torch\.uint8"):
        unlearn(ScalesBytes(), TensorDataset(PIXELS[:9], labels[:9]), method=method, **given)
