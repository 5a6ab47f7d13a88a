"""Training from scratch and the update log."""

import importlib
import logging
import math
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge import progress
from expunge.data import Examples, ImageSet, digests, draw_ids
from expunge.errors import ExpungeError, InputError, NonFiniteError, SettingError
from expunge.methods import AmnesiacUndo
from expunge.models import ModelSpec, build, load_model
from expunge.trainer import train as train_command
from expunge.training import Recipe, TrainedEpoch, augmented, train
from expunge.training_state import _checked, identity
from expunge.unlearning import unlearn
from expunge.update_log import UpdateRecorder, matching_updates, watched_by
from tests.arrangements import NETWORKS, pairs, state_bits
from tests.conftest import expunge, running


def examples(size: int) -> Examples:
    made = pairs(size, seed=0)
    return Examples(made.inputs, made.labels)


def test_training_lowers_the_loss_and_is_repeatable() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = NETWORKS["batch_norm"]()
        runs.append(train(model, examples(40), Recipe(epochs=20, batch_size=8), rng=torch.Generator().manual_seed(0)))
    assert runs[0] == runs[1]
    assert runs[0][-1].loss < 0.5 * runs[0][0].loss
    assert runs[0][-1].accuracy > 0.9


@pytest.mark.parametrize("more", [{"precision": "bf16"}, {"optimizer": "adam", "lr": 0.01, "momentum": 0.9}], ids=str)
def test_bf16_autocast_and_adam_train_too(more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    recipe = Recipe(epochs=20, batch_size=8, **more)
    history = train(NETWORKS["batch_norm"](), examples(40), recipe, rng=torch.Generator().manual_seed(0))
    assert history[-1].accuracy > 0.9


def test_sgd_under_the_one_cycle_schedule_is_that_of_its_formulas() -> None:
    """Along half cosines lr rises from lr / 25 and falls to 1e-4 of that, and momentum dips by 0.1 and comes back."""
    draw = np.random.default_rng(0)
    x, y, weight = draw.normal(size=(7, 3)), draw.integers(0, 4, 7), draw.normal(size=(4, 3))
    model = nn.Linear(3, 4, bias=False).double()
    model.weight.data = torch.tensor(weight)
    recipe = Recipe(epochs=4, batch_size=2, lr=0.3, momentum=0.9, weight_decay=0.01, warmup=0.3)
    history = train(model, Examples(torch.tensor(x), torch.tensor(y)), recipe, rng=torch.Generator().manual_seed(0))

    def along(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    order, velocity, step = torch.Generator().manual_seed(0), np.zeros_like(weight), 0
    top, last = 0.3 * 13 - 1, 12  # of 12 updates, and one step more
    for epoch in history:
        losses, right = [], []
        for batch in torch.randperm(7, generator=order).numpy()[:6].reshape(3, 2):
            if step <= top:
                lr, momentum = along(0.3 / 25, 0.3, step / top), along(0.9, 0.8, step / top)
            else:
                share = (step - top) / (last - top)
                lr, momentum = along(0.3, 0.3 / 25 / 1e4, share), along(0.8, 0.9, share)
            z = x[batch] @ weight.T
            p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
            losses.append(-np.log(p[range(2), y[batch]]).mean())
            right.append((z.argmax(1) == y[batch]).mean())
            slope = (p - np.eye(4)[y[batch]]).T @ x[batch] / 2 + 0.01 * weight
            velocity = momentum * velocity + slope
            weight = weight - lr * (slope + momentum * velocity)
            step += 1
        assert (epoch.loss, epoch.accuracy) == pytest.approx((np.mean(losses), np.mean(right)), rel=1e-6)
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("epochs", range(1, 11))
@pytest.mark.parametrize("warmup", [0.1, 0.2, 0.25, 0.5])
def test_few_steps_are_no_trouble(epochs: int, warmup: float) -> None:
    """One-cycle schedules of as many steps as the warm-up has shares divide by zero."""
    recipe = Recipe(epochs=epochs, batch_size=8, lr=0.01, warmup=warmup)
    assert len(train(NETWORKS["layer_norm"](), examples(8), recipe, rng=torch.Generator())) == epochs


@pytest.mark.parametrize(
    "more", [{}, {"augment": "flip_shift"}, {"optimizer": "adam", "lr": 0.01, "momentum": 0.9}], ids=str
)
def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(more: dict[str, Any], tmp_path: Path) -> None:
    """With dropout, which draws from PyTorch's own generator, and a layer that draws from Python's and NumPy's.

    It also has a buffer that changes, and that no state dict holds.
    """

    class Wavers(nn.Module):
        runs: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("runs", torch.zeros(()), persistent=False)

        def forward(self, inputs: Tensor) -> Tensor:
            self.runs += 1
            inputs = inputs * (1 + 0.1 * self.runs.sin())
            return inputs * (random.uniform(0.9, 1.1) if np.random.random() < 0.5 else 1.0)  # noqa: S311

    recipe, state = Recipe(epochs=5, batch_size=8, **more), tmp_path / "new" / "state.pt"

    def run(idle: Callable[[], None] | None, state: Path | None, seed: int = 0) -> tuple[nn.Module, list[TrainedEpoch]]:
        for begin in (torch.manual_seed, random.seed, np.random.seed):
            begin(0)
        model = nn.Sequential(NETWORKS["batch_norm"](), nn.Dropout(0.2), Wavers())
        with progress.checked(idle) if idle else nullcontext():
            return model, train(model, examples(40), recipe, rng=torch.Generator().manual_seed(seed), state=state)

    calls = iter(range(1, 100))

    def stop() -> None:
        if next(calls) > 1:
            raise KeyboardInterrupt

    whole, history = run(None, None)
    with pytest.raises(KeyboardInterrupt):
        run(stop, state)
    assert len(torch.load(BytesIO(_checked(state)), weights_only=True)["told"]["history"]) == 3
    with pytest.raises(InputError, match="seed"):
        run(None, state, seed=1)
    for _ in range(2):  # the second time there is nothing left to train
        again, told = run(None, state)
        assert told == history
        assert state_bits(again) == state_bits(whole)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        run(None, state)


def test_a_stop_after_the_last_epoch_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> float:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"settings": {"epochs": 2, "width": 4}, "state": tmp_path / "state.pt"}
    module = importlib.import_module("expunge.trainer")
    with monkeypatch.context() as patch:
        patch.setattr(module, "accuracy", stop)
        with pytest.raises(KeyboardInterrupt):
            train_command("sample", "small_resnet", tmp_path / "out", **given)
    assert len(torch.load(BytesIO(_checked(given["state"])), weights_only=True)["told"]["history"]) == 2
    resumed = train_command("sample", "small_resnet", tmp_path / "out", **given)
    plain = train_command("sample", "small_resnet", tmp_path / "plain", settings=given["settings"])
    assert resumed.history == plain.history
    assert state_bits(load_model(tmp_path / "out")[0]) == state_bits(load_model(tmp_path / "plain")[0])
    assert not given["state"].exists()


def test_a_state_is_of_one_network_also_where_its_tensors_do_not_show_it() -> None:
    pytest.importorskip("timm", reason="the extra vision is not installed")
    held = examples(4)
    described = ModelSpec(
        architecture="vit", num_classes=4, in_channels=1, image_size=8, mean=(0.5,), std=(0.2,),
        options={"num_heads": 3, "depth": 1},
    )  # fmt: skip

    def identified(spec: ModelSpec) -> str:
        torch.manual_seed(0)
        return identity(build(spec), held, {}, 0)

    known = identified(described)
    assert identified(described) == known
    assert identified(replace(described, options={"num_heads": 6, "depth": 1})) != known
    assert identified(replace(described, mean=(0.4,))) != known
    plain = [nn.Sequential(nn.Linear(4, 4), activation) for activation in (nn.ReLU(), nn.Tanh(), nn.ReLU())]
    for network in plain[1:]:
        network.load_state_dict(plain[0].state_dict())
    found = [identity(network, held, {}, 0) for network in plain]
    assert found[0] == found[2] != found[1]


def test_a_training_whose_network_makes_tensors_as_it_runs_says_that_it_cannot_be_gone_on_with(tmp_path: Path) -> None:
    class Lazy(nn.Module):
        scale: Tensor

        def forward(self, inputs: Tensor) -> Tensor:
            if not hasattr(self, "scale"):
                self.register_buffer("scale", torch.ones(1))
            return inputs * self.scale

    def run(epochs: int) -> None:
        calls = iter(range(1, 100))

        def stop() -> None:
            if next(calls) > epochs:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        recipe = Recipe(epochs=3, batch_size=4)
        with progress.checked(stop):
            train(nn.Sequential(NETWORKS["layer_norm"](), Lazy()), examples(40), recipe, rng=rng(), state=state)

    def rng() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(1)
    assert state.exists()
    with pytest.raises(InputError, match=r"state\.pt.*resumed"):
        run(9)


def test_a_killed_training_is_gone_on_with_by_the_command(tmp_path: Path) -> None:
    options = ("train", "--data", "sample", "--model", "small_resnet", "--set", "width=4", "--set", "epochs=4")
    state = tmp_path / "state.pt"
    with running(*options, "--out", tmp_path / "cut", "--state", state) as process:
        while not state.exists():
            assert process.poll() is None, "it ended before it kept anything"
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (tmp_path / "cut").exists()
    for name, more in (("resumed", ("--state", state)), ("whole", ())):
        done = expunge(*options, "--out", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    assert not state.exists()
    first, second = (load_model(str(tmp_path / name))[0] for name in ("resumed", "whole"))
    assert state_bits(first) == state_bits(second)
    refused = expunge(*options, "--out", tmp_path / "new", "--state", state, "--record-updates", "all")
    assert (refused.returncode, "updates" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("channels", "last"), [(4, False), (16, True)])
def test_images_lie_channels_last_unless_that_would_write_past_a_buffer(channels: int, last: bool) -> None:
    seen = []
    narrow = nn.Conv2d(channels, 8, kernel_size=1, stride=2)
    narrow.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), narrow, nn.Flatten(), nn.Linear(8 * 16, 2))
    examples = Examples(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
    train(network, examples, Recipe(epochs=2, batch_size=8), rng=torch.Generator())
    assert seen == [last, last]


def test_divergence_is_an_error_that_names_the_step() -> None:
    with pytest.raises(NonFiniteError, match="step"):
        train(NETWORKS["dropout"](), examples(40), Recipe(epochs=30, lr=1e30), rng=torch.Generator())


@given(st.integers(0, 200), st.integers(8, 20))
def test_shifted_images_hold_the_original_or_zero(seed: int, side: int) -> None:
    images = torch.arange(1, 2 * side * side + 1, dtype=torch.float32).view(2, 1, side, side)
    moved = augmented(images, "shift", torch.Generator().manual_seed(seed))
    assert moved.shape == images.shape
    reach = side // 8
    candidates = {
        tuple(nn.functional.pad(images[0, 0], (reach,) * 4)[d : d + side, r : r + side].flatten().tolist())
        for d in range(2 * reach + 1)
        for r in range(2 * reach + 1)
    }
    assert tuple(moved[0, 0].flatten().tolist()) in candidates


def test_mirrored_images_are_mirrored_half_of_the_time() -> None:
    images = torch.zeros(4000, 1, 4, 4)
    images[:, :, :, 0] = 1
    moved = augmented(images, "flip_shift", torch.Generator().manual_seed(0))  # a side below 8 shifts by nothing
    mirrored = (moved[:, 0, 0, 3] == 1).double().mean()
    assert torch.equal(moved.sum((1, 2, 3)), torch.full((4000,), 4.0))
    assert 0.45 < mirrored < 0.55
    assert torch.equal(augmented(images, "none", torch.Generator()), images)


def test_the_log_is_as_large_as_expected(tmp_path: Path) -> None:
    data = examples(40)
    model = NETWORKS["layer_norm"]()
    recipe = Recipe(epochs=30, batch_size=4)
    watched = frozenset(digests(data.inputs[:3]))
    recorder = UpdateRecorder(tmp_path / "log", watched)
    train(model, data, recipe, rng=torch.Generator().manual_seed(0), updates=recorder)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    recorded = len(list((tmp_path / "log").glob("*.safetensors"))) * size
    assert recorder.expected_bytes(model, 40, 4, 30) == pytest.approx(recorded, rel=0.25)
    assert UpdateRecorder(tmp_path).expected_bytes(model, 40, 4, 30) == 300 * size


def test_a_log_that_would_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"1000000000\.0 GB"):
        UpdateRecorder(tmp_path / "log").check_room(10**18)
    assert not (tmp_path / "log").exists()


def test_a_log_is_of_one_training(tmp_path: Path) -> None:
    data = examples(8)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(4))
    network(data.inputs)
    network = network.to(memory_format=torch.channels_last)  # its updates are laid out anew
    train(network, data, Recipe(epochs=2, batch_size=4), rng=torch.Generator(), updates=UpdateRecorder(tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    with pytest.raises(InputError, match="empty"):
        train(network, data, Recipe(epochs=1, batch_size=4), rng=torch.Generator(), updates=UpdateRecorder(tmp_path))


def test_a_log_of_other_examples_is_refused(tmp_path: Path) -> None:
    """Each of their batches may be there or not: undoing those that are would be half of the work, unsaid."""
    data = examples(12)
    names = digests(data.inputs)
    recorder = UpdateRecorder(tmp_path, frozenset(names[:6]))
    train(NETWORKS["layer_norm"](), data, Recipe(epochs=2, batch_size=4), rng=torch.Generator(), updates=recorder)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(matching_updates(tmp_path, names[:6])) > 2
    assert watched_by(tmp_path) == set(names[:6])
    with pytest.raises(InputError, match="2 of the 3"):
        matching_updates(tmp_path, names[5:8])


def test_a_log_of_another_training_of_the_same_network_is_refused(tmp_path: Path) -> None:
    """And one of this training, once the model was changed; but not where the change was its own undoing."""
    data = examples(12)
    models = []
    for seed in (0, 1):
        models.append(NETWORKS["layer_norm"]())
        updates = UpdateRecorder(tmp_path / f"{seed}")
        train(
            models[-1], data, Recipe(epochs=1, batch_size=4), rng=torch.Generator().manual_seed(seed), updates=updates
        )
    asked: dict[str, Any] = {"method": AmnesiacUndo(updates=tmp_path / "0")}
    first, second = (TensorDataset(data.inputs[part], data.labels[part]) for part in (slice(0, 2), slice(2, 4)))
    with pytest.raises(InputError, match=r"0 .*parameters"):
        unlearn(models[1], first, **asked)
    undone = unlearn(models[0], first, **asked).model
    unlearn(unlearn(undone, first, method="neg_grad").model, second, **asked)
    changed = unlearn(models[0], first, method="neg_grad").model
    with pytest.raises(InputError, match="parameters"):
        unlearn(changed, second, **asked)


def test_a_log_of_a_training_that_did_not_end_is_refused(tmp_path: Path) -> None:
    data, model = examples(12), NETWORKS["layer_norm"]()
    recipe = Recipe(epochs=9, batch_size=4, lr=1e30)
    with pytest.raises(NonFiniteError):
        train(model, data, recipe, rng=torch.Generator(), updates=UpdateRecorder(tmp_path))
    forget = TensorDataset(data.inputs[:2], data.labels[:2])
    with pytest.raises(InputError, match="end"):
        unlearn(NETWORKS["layer_norm"](), forget, method=AmnesiacUndo(updates=tmp_path))


def test_a_watched_example_that_no_step_used_has_nothing_to_undo(tmp_path: Path) -> None:
    data = examples(5)
    recipe = Recipe(epochs=1, batch_size=4)
    train(NETWORKS["layer_norm"](), data, recipe, rng=torch.Generator(), updates=UpdateRecorder(tmp_path))
    found = [matching_updates(tmp_path, [name]) for name in digests(data.inputs)]
    assert sorted(map(len, found)) == [0, 1, 1, 1, 1]


def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    data = examples(8)
    train(
        NETWORKS["layer_norm"](),
        data,
        Recipe(epochs=1, batch_size=4),
        rng=torch.Generator(),
        updates=UpdateRecorder(tmp_path),
    )
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="safetensors"):
        matching_updates(tmp_path, digests(data.inputs[:1]))
    with pytest.raises(InputError, match="absent"):
        matching_updates(tmp_path / "absent", digests(data.inputs[:1]))
    (tmp_path / "watched.json").write_text("[]")
    with pytest.raises(InputError, match=r"watched\.json"):
        matching_updates(tmp_path, digests(data.inputs[:1]))


@pytest.mark.parametrize("shape", [(1, 22, 1000), (3, 64, 16), (1, 8, 8), (2, 1, 500)])
def test_shifts_are_by_an_eighth_of_either_side(shape: tuple[int, int, int]) -> None:
    images = torch.arange(1, 65, dtype=torch.float32)[:, None, None, None].expand(64, *shape)
    moved = augmented(images, "shift", torch.Generator().manual_seed(0))
    for dim, side in ((-2, shape[1]), (-1, shape[2])):
        kept = (moved[:, 0] > 0).any(-1 if dim == -2 else -2).sum(-1)  # rows, or columns, with pixels in them
        assert side - side // 8 <= int(kept.min()) <= side - round(0.9 * (side // 8))
        assert int(kept.max()) <= side


def test_the_forget_draw_is_not_the_first_training_batch() -> None:
    """One seed for both must not tie them: the first batch of a run would be exactly what is forgotten."""
    images = ImageSet(torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), torch.zeros(1000, dtype=torch.int64), ("a",))
    first_batch = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:100]
    drawn = {int(i) for i in draw_ids(images, 100, seed=0)}
    assert len(drawn & set(first_batch.tolist())) < 30


def test_a_state_inside_of_what_is_written_at_the_end_is_refused(tmp_path: Path) -> None:
    for state in (tmp_path / "run" / "state.pt", tmp_path / "run", tmp_path):
        done = expunge(
            "train", "--data", "sample", "--model", "small_resnet", "--out", tmp_path / "run", "--state", state
        )
        assert done.returncode == 2
        assert "outside" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_seed_is_of_dropout_too_and_the_callers_states_are_put_back(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_file({"images": images, "labels": torch.arange(24) % 3}, tmp_path / "data.safetensors")
    settings = {"epochs": 2, "batch_size": 8, "drop_rate": 0.3, "depth": 1}
    weights = []
    for number in (1, 2):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        spec = f"safetensors:{tmp_path}/data.safetensors"
        train_command(spec, "vit", tmp_path / str(number), settings=settings, seed=3, device="cpu")
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(load_file(tmp_path / str(number) / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("seed", [2**64, 1.5])
def test_a_training_refuses_what_is_no_seed(tmp_path: Path, seed: Any) -> None:
    with pytest.raises(SettingError, match="seed"):
        train_command("sample:train", "small_resnet", tmp_path / "run", seed=seed, device="cpu")
    assert not (tmp_path / "run").exists()


def test_phases_and_epochs_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    data = Examples(torch.rand(8, 3), torch.arange(8) % 2)
    with caplog.at_level(logging.DEBUG, "expunge"):
        history = train(nn.Linear(3, 2), data, Recipe(epochs=3, batch_size=4), rng=torch.Generator().manual_seed(0))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert len(lines) == 3
    assert all(str(epoch) in line for epoch, line in zip(history, lines, strict=True))
    phases = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert [line.split()[1] for line in phases] == ["begins:", "ends:"]
