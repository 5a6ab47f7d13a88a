"""Datasets whose random transforms were left on: refused, and freed of them by one call."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

import expunge
from expunge.errors import ExpungeWarning, InputError
from expunge.methods import make_method
from tests.conftest import pixels, write_folder

vision: Any = pytest.importorskip("torchvision", reason="the extra vision is not installed")
T: Any = pytest.importorskip("torchvision.transforms", reason="the extra vision is not installed")
V2: Any = pytest.importorskip("torchvision.transforms.v2", reason="the extra vision is not installed")

NORMALISE = T.Normalize([0.5] * 3, [0.2] * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", pixels(12, channels=3, side=24), ["a", "b"] * 6)


def shaken(root: Path, *more: Any) -> Any:
    steps = [T.RandomResizedCrop(16), T.RandomHorizontalFlip(), *more, T.ToTensor(), NORMALISE]
    return vision.datasets.ImageFolder(str(root), T.Compose(steps))


def inputs(dataset: Dataset[Any]) -> Tensor:
    return torch.stack([dataset[n][0] for n in range(len(dataset))])  # type: ignore[arg-type]


def test_random_transforms_are_taken_off_and_the_rest_stays(folder: Path) -> None:
    data = shaken(folder, T.ColorJitter(0.5), T.RandomApply([T.GaussianBlur(3)]))
    plain = vision.datasets.ImageFolder(
        str(folder), T.Compose([T.Resize(16), T.CenterCrop(16), T.ToTensor(), NORMALISE])
    )
    wanted = inputs(plain)
    assert torch.equal(inputs(expunge.without_transforms(data)), wanted)
    both: Dataset[Any] = ConcatDataset([Subset(data, range(4)), Subset(data, range(4, 12))])
    assert torch.equal(inputs(expunge.without_transforms(both)), wanted)
    assert len(data.transform.transforms) == 6, "the dataset itself is as it was"
    assert not torch.equal(inputs(data), inputs(data))


def test_the_newer_transforms_are_taken_off_too(folder: Path) -> None:
    crop = V2.RandomCrop(24, padding=4)
    scaled = [V2.ToImage(), V2.ToDtype(torch.float32, scale=True)]
    data = vision.datasets.ImageFolder(str(folder), nn.Sequential(crop, V2.RandAugment(), *scaled))
    plain = vision.datasets.ImageFolder(str(folder), V2.Compose(scaled))
    assert torch.equal(inputs(expunge.without_transforms(data)), inputs(plain))
    alone = vision.datasets.ImageFolder(str(folder), T.RandomResizedCrop(16))
    assert np.asarray(expunge.without_transforms(alone)[0][0]).shape == (16, 16, 3)
    none = vision.datasets.ImageFolder(str(folder), T.Compose([T.RandomHorizontalFlip()]))
    assert np.asarray(expunge.without_transforms(none)[0][0]).shape == (24, 24, 3)


def test_transforms_of_ones_own_stay_where_they_are_steady(folder: Path) -> None:
    data = shaken(folder, lambda image: image.rotate(90))
    plain = shaken(folder)
    turned = inputs(expunge.without_transforms(data))
    assert not torch.equal(turned, inputs(expunge.without_transforms(plain)))
    noisy = shaken(folder, lambda image: image.rotate(torch.randint(4, ()).item() * 90))
    with pytest.warns(ExpungeWarning, match="lambda"):
        bare = expunge.without_transforms(noisy)
    assert torch.equal(inputs(bare), inputs(expunge.without_transforms(plain)))


class Noisy(Dataset[Any]):
    def __init__(self, size: int, seed: int) -> None:
        self.x = torch.rand(size, 3, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        return self.x[n] + torch.rand(3), n % 3


def test_a_dataset_that_is_random_by_itself_is_refused() -> None:
    with pytest.raises(InputError, match="random by itself"):
        expunge.without_transforms(Noisy(20, 0))


@pytest.mark.parametrize(("name", "method"), [("retain", "finetune"), ("unlabelled", "calibrated"), ("test", None)])
def test_random_transforms_are_refused_in_every_set(name: str, method: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3))
    steady = torch.utils.data.TensorDataset(torch.rand(20, 3), torch.arange(20) % 3)
    test = torch.utils.data.TensorDataset(torch.rand(90, 3), torch.arange(90) % 3)
    given: dict[str, Any] = {} if name != "unlabelled" else {"test": test}
    for run in (expunge.unlearn, expunge.forget):
        chosen = method if method is None else make_method(method, epochs=1)
        with pytest.raises(InputError, match=rf"{name} set.*without_transforms"):
            run(model, steady, method=chosen, **(given | {name: Noisy(60, 1)}))
    drawn = make_method("bad_teacher", retain_size=9)
    if name == "retain":
        with pytest.raises(InputError, match="without_transforms"):
            expunge.unlearn(model, steady, method=drawn, retain=Noisy(60, 1), factory=lambda: nn.Sequential())
