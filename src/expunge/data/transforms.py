"""Taking the random transforms off a dataset: what is forgotten must be what the model sees."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, Subset

from expunge.data.examples import items_at, size_of
from expunge.errors import InputError, caution

HOLDERS = ("transform", "transforms")
"""Attributes of datasets that hold what is done to their inputs, as torchvision calls them."""

RANDOM = ("Random", "Rand", "AutoAugment", "TrivialAugment", "AugMix", "ColorJitter", "ElasticTransform", "Gaussian")
RANDOM_TOO = ("ScaleJitter", "JPEG", "MixUp", "CutMix", "ThreeAugment", "SimpleCopyPaste", "RASampler")
"""What the names of torchvision's random transforms begin with."""


def without_transforms(dataset: Dataset[Any]) -> Dataset[Any]:
    """A copy of a dataset without the random transforms of a training; the data itself is shared.

    It looks for torchvision's attributes `transform` and `transforms`, also below `Subset` and `ConcatDataset`.
    Those of a random name go; RandomCrop and RandomResizedCrop become a crop of the centre of the same size. Everything
    else stays, such as Resize, ToTensor and Normalize, unless the examples still differ from one reading to the next:
    then whatever is not torchvision's goes too.

    Warns:
        ExpungeWarning: what was taken out that is not torchvision's.

    Raises:
        InputError: examples are random even so.
    """
    bare = _copied(dataset, lambda each: _steady(each, foreign=True))
    if _is_steady(bare):
        return bare
    gone: list[str] = []
    bare = _copied(dataset, lambda each: _steady(each, foreign=False, gone=gone))
    if not _is_steady(bare):
        raise InputError(
            f"the dataset, of {type(dataset).__name__}, is random by itself, without any transform: give one that "
            "reads an example alike each time"
        )
    caution([f"without_transforms took out {', '.join(dict.fromkeys(gone))}: see that the model takes what is left"])
    return bare


def _is_steady(dataset: Dataset[Any]) -> bool:
    """Whether the first and the last examples come out alike each time; random ones may by chance, so often."""
    size = size_of(dataset, "given")
    index = sorted({*range(min(4, size)), *range(max(size - 4, 0), size)})
    once, *others = [_read(dataset, index) for _ in range(4)]
    return all(all(map(np.array_equal, once, again)) for again in others)


def _read(dataset: Dataset[Any], index: list[int]) -> list[Any]:
    """The inputs at `index`, images of Pillow's too, as arrays."""
    items = (item for _, item in items_at(dataset, "given", index))
    return [np.asarray(item[0] if isinstance(item, tuple | list) and item else item) for item in items]


def _copied(dataset: Dataset[Any], bared: Callable[[Any], Any]) -> Dataset[Any]:
    """A shallow copy whose transforms are what `bared` makes of them."""
    if isinstance(dataset, Subset):
        return Subset(_copied(dataset.dataset, bared), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([_copied(part, bared) for part in dataset.datasets])
    made = copy.copy(dataset)
    for name in HOLDERS:
        if getattr(made, name, None) is not None:
            setattr(made, name, bared(getattr(made, name)))
    inner = getattr(made, "dataset", None)
    if isinstance(inner, Dataset):
        cast(Any, made).dataset = _copied(inner, bared)
    return made


def _steady(transform: Any, *, foreign: bool, gone: list[str] | None = None) -> Any:
    """A transform without what is random in it; None where nothing is left."""
    if transform is None:
        return None
    if hasattr(transform, "transform") and hasattr(transform, "target_transform"):  # torchvision's StandardTransform
        made = copy.copy(transform)
        made.transform = _steady(transform.transform, foreign=foreign, gone=gone)
        return made
    name = type(transform).__name__
    if name == "Compose" or name == "Sequential":
        inner = list(transform.transforms if name == "Compose" else transform)
        kept = [each for part in inner for each in _parts(part, foreign, gone)]
        if not kept:
            return None
        if name == "Sequential":
            return type(transform)(*kept)
        made = copy.copy(transform)
        made.transforms = kept
        return made
    left = list(_parts(transform, foreign, gone))
    return None if not left else left[0] if len(left) == 1 else _Chain(left)


def _parts(transform: Any, foreign: bool, gone: list[str] | None) -> Iterator[Any]:
    """What stays of one transform."""
    name, home = type(transform).__name__, type(transform).__module__
    if name in {"Compose", "Sequential"}:
        inner = _steady(transform, foreign=foreign, gone=gone)
        if inner is not None:
            yield inner
    elif name in {"RandomCrop", "RandomResizedCrop"}:
        yield from _centre(transform, home)
    elif not name.startswith((*RANDOM, *RANDOM_TOO)):
        if foreign or home.startswith("torchvision"):
            yield transform
        elif gone is not None:
            gone.append(getattr(transform, "__name__", name))


def _centre(crop: Any, home: str) -> list[Any]:
    """The crop of the centre that stands for a random one, after a resize where that resizes."""
    from torchvision.transforms import v2

    size = [int(side) for side in crop.size]
    centre = v2.CenterCrop(size)
    if type(crop).__name__ == "RandomCrop":
        return [centre]
    return [v2.Resize(min(size), interpolation=crop.interpolation, antialias=True), centre]


class _Chain:
    """Transforms one after the other."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __call__(self, value: Any) -> Any:
        for part in self.parts:
            value = part(value)
        return value
