"""Examples whose labels nobody knows: what reads them, what is left out of them, and that they are held."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import expunge
from expunge.data import Examples, ImageSet, load_unlabelled
from expunge.errors import ExpungeWarning, InputError, SettingError
from expunge.methods import METHODS, Needs, make_method
from expunge.methods._distilling import drawn, others_of
from expunge.methods._task import Task
from tests.arrangements import NUM_CLASSES, SHORT, pairs
from tests.conftest import expunge as run_expunge

READERS = [name for name, method in METHODS.items() if Needs.UNLABELLED in method.needs]
MODEL_SHAPE = (1, 8, 8)


class Inputs(Dataset[Any]):
    """Inputs alone, as tensors, arrays or tuples of one."""

    def __init__(self, inputs: Tensor, form: str) -> None:
        self.inputs, self.form = inputs, form

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        value = self.inputs[index]
        return {"tensor": value, "array": value.numpy(), "tuple": (value,), "labelled": (value, "a name")}[self.form]


class Noting(nn.Module):
    """A network that notes what it is run on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))
        self.seen: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Noting":
        other = Noting()
        other.network.load_state_dict(self.network.state_dict())
        other.seen = self.seen
        return other

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits: Tensor = self.network(x)
        return logits


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))


def some(num: int, seed: int) -> Tensor:
    return pairs(num, seed=seed, shape=MODEL_SHAPE).inputs


def short(name: str) -> Any:
    return make_method(name, **{**SHORT[name], "epochs": 2, "stop": "budget"})


@pytest.mark.parametrize("form", ["tensor", "array", "tuple", "labelled"])
@pytest.mark.parametrize("name", READERS)
def test_they_are_run_on_as_they_are_and_counted(name: str, form: str) -> None:
    model, forget, unlabelled = Noting(), pairs(24, seed=1, shape=MODEL_SHAPE), some(5, seed=2)
    done = expunge.unlearn(model, forget, method=short(name), unlabelled=Inputs(unlabelled, form))
    assert done.trace.num_unlabelled == 5
    seen = torch.cat(model.seen).flatten(1)
    assert all(bool((seen == one.flatten()).all(1).any()) for one in unlabelled)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(READERS)))
def test_other_methods_refuse_them(name: str) -> None:
    with pytest.raises(SettingError, match=r"unlabelled|needs"):
        expunge.unlearn(
            network(), pairs(4, seed=1, shape=MODEL_SHAPE), method=name, unlabelled=Inputs(some(5, 2), "tensor")
        )


def test_test_and_unlabelled_examples_are_held_together_with_the_models_own_labels() -> None:
    forget, test = (
        Examples(given.inputs, given.labels) for given in (pairs(n, seed=n, shape=MODEL_SHAPE) for n in (3, 4))
    )
    more, model = some(5, seed=9), network()
    task = Task(forget=forget, forget_digests=(), forget_logits=torch.zeros(3, NUM_CLASSES))
    assert others_of(task, model) is None
    both = Task(
        forget=forget, forget_digests=(), forget_logits=torch.zeros(3, NUM_CLASSES), calibration=test, unlabelled=more
    )
    others = others_of(both, model)
    assert others is not None
    assert torch.equal(others.inputs, torch.cat([test.inputs, more]))
    assert torch.equal(others.labels, torch.cat([test.labels, model(more).argmax(1)]))


def test_what_is_held_of_few_others_is_filled_up_from_the_forget_set() -> None:
    forget, others = (
        Examples(torch.full((num, 40), value), torch.zeros(num, dtype=torch.int64))
        for num, value in ((6, 1.0), (2, 5.0))
    )
    held = drawn(forget, others, 8, torch.Generator().manual_seed(0), "paste")
    assert held.shape == (16, 40)
    assert [len(row.unique()) for row in held] == [1, 1, 2, 2, *[1] * 12]


@pytest.mark.parametrize("with_test", [False, True])
def test_forgotten_and_test_examples_among_them_are_left_out_with_a_warning(with_test: bool) -> None:
    forget, test = (pairs(num, seed=num, shape=MODEL_SHAPE) for num in (30, 60))
    unlabelled = Inputs(torch.cat([forget.inputs[:3], test.inputs[:4], some(5, 9)]), "tensor")
    given: dict[str, Any] = {"test": test} if with_test else {}
    with pytest.warns(ExpungeWarning) as told:
        done = expunge.forget(network(), forget, unlabelled=unlabelled, method=short("held_boundary"), **given)
    assert done.trace.num_unlabelled == (5 if with_test else 9)
    said = " ".join(str(each.message) for each in told)
    assert "3 of 12 unlabelled" in said
    assert ("4 of 12 unlabelled" in said) == with_test
    assert any("unlabelled" in line for line in done.left_out)
    with pytest.warns(ExpungeWarning, match="3 of 12 unlabelled"):
        made = expunge.unlearn(network(), forget, unlabelled=unlabelled, method=short("held_boundary"), **given)
    assert made.trace.num_unlabelled == done.trace.num_unlabelled


@pytest.mark.parametrize(
    ("unlabelled", "said"),
    [
        (Inputs(pairs(4, seed=1, shape=MODEL_SHAPE).inputs, "tensor"), "no unlabelled example is left"),
        (Inputs(torch.zeros(0, 1, 8, 8), "tensor"), "empty"),
        (Inputs(torch.zeros(3, 1, 9, 8), "tensor"), "shape"),
        (Inputs(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), "tensor"), "0 to 255"),
        (Inputs(torch.full((3, 1, 8, 8), torch.nan), "tensor"), "NaN"),
        (TensorDataset(), "length|empty"),
        ([{"input": object()}], "none holds numbers"),
    ],
)
def test_what_cannot_be_used_is_refused(unlabelled: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        expunge.unlearn(network(), pairs(4, seed=1, shape=MODEL_SHAPE), unlabelled=unlabelled)


def test_random_transforms_are_refused() -> None:
    class Shaken(Inputs):
        def __getitem__(self, index: int) -> Any:
            return self.inputs[index] + torch.rand(())

    with pytest.raises(InputError, match="random"):
        expunge.unlearn(network(), pairs(4, seed=1, shape=MODEL_SHAPE), unlabelled=Shaken(some(5, 2), "tensor"))


def images_in(directory: Path, places: list[str]) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for place in places:
        path = directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)


def test_a_folder_of_images_needs_no_classes(tmp_path: Path) -> None:
    images_in(tmp_path / "traffic", ["a.png", "b.png", "monday/c.png", "monday/deep/d.png", ".trash/e.png"])
    found = load_unlabelled(f"folder:{tmp_path / 'traffic'}", channels=1)
    assert found.ids == ("a.png", "b.png", "monday/c.png", "monday/deep/d.png")
    assert isinstance(found, ImageSet)
    assert found.images.shape == (4, 1, 28, 28)
    (tmp_path / "traffic" / "f.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"f\.gif"):
        load_unlabelled(f"folder:{tmp_path / 'traffic'}")


def test_the_command_takes_images_of_any_class(tmp_path: Path, trained: Path) -> None:
    images_in(tmp_path / "traffic", [f"{n}.png" for n in range(6)])
    (tmp_path / "ids").write_text("\n".join(map(str, range(8))))
    arguments: list[str | Path] = ["forget", "--model", trained, "--forget", "sample:train", "--ids", tmp_path / "ids"]
    done = run_expunge(
        *arguments,
        "--unlabelled",
        f"folder:{tmp_path / 'traffic'}",
        "--out",
        tmp_path / "out",
        "--set",
        "epochs=1",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["trace"]["num_unlabelled"] == 6
    assert report["trace"]["method"] == "held_boundary"
    assert report["sources"]["unlabelled"] == f"folder:{tmp_path / 'traffic'}"
    refused = run_expunge(
        *arguments, "--unlabelled", f"folder:{tmp_path / 'traffic'}", "--out", tmp_path / "no", "--method", "delete"
    )
    assert refused.returncode == 2
    assert "unlabelled" in refused.stderr
    assert not (tmp_path / "no").exists()
