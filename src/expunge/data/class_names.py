"""Labels by the names of classes: a dataset and a model may number the same classes in other orders."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from expunge.data.examples import ImageSet, size_of
from expunge.errors import InputError


class Renumbered(Dataset[Any]):
    """A dataset of (input, label) with other numbers for its labels."""

    def __init__(self, dataset: Dataset[Any], numbers: Sequence[int], class_names: Sequence[str]) -> None:
        self.dataset = dataset
        self.numbers = tuple(numbers)
        self.class_names = tuple(class_names)
        self.ids = getattr(dataset, "ids", ())

    def __len__(self) -> int:
        return size_of(self.dataset, "given")

    def __getitem__(self, index: int) -> tuple[Any, int]:
        value, label = self.dataset[index]
        if not 0 <= int(label) < len(self.numbers):
            raise IndexError(f"label {int(label)} has no name among the dataset's {len(self.numbers)} classes")
        return value, self.numbers[int(label)]


def names_of(dataset: object) -> tuple[str, ...]:
    """The names of a dataset's classes, in the order of its labels; () where it has none.

    They are its `class_names`, torchvision's `classes` or `class_to_idx`, or those of what a `Subset` is taken from.
    """
    if isinstance(dataset, ConcatDataset):
        found = {names_of(part) for part in dataset.datasets}
        return found.pop() if len(found) == 1 else ()
    numbers = getattr(dataset, "class_to_idx", None)
    if isinstance(numbers, dict) and sorted(numbers.values()) == list(range(len(numbers))):
        return tuple(map(str, sorted(numbers, key=lambda name: numbers[name])))
    for given in (getattr(dataset, "class_names", None), getattr(dataset, "classes", None)):
        if isinstance(given, list | tuple) and given and all(isinstance(name, str) for name in given):
            return tuple(given)
    return names_of(dataset.dataset) if isinstance(dataset, Subset) else ()


def as_numbered(
    dataset: Dataset[Any], class_names: Sequence[str], name: str, whose: str = "the model"
) -> tuple[Dataset[Any], list[str]]:
    """The dataset with its classes numbered as in `class_names`, and a sentence where that changes any.

    `whose` names they are is said then: those of the model, or of another set.

    Where one of both has no names, or no name is in both, the numbers count.

    Raises:
        InputError: some names are in both with other numbers, and others are not in `class_names`.
    """
    own = names_of(dataset)
    number = {each: n for n, each in enumerate(class_names)}
    if len(number) != len(class_names) or all(number.get(each, n) == n for n, each in enumerate(own)):
        return dataset, []
    unknown = [each for each in own if each not in number]
    if unknown:
        raise InputError(
            f"the {name} set numbers its classes otherwise than {whose}, and has a class {unknown[0]!r} that is not "
            "there: number its labels as the model does"
        )
    numbers = [number[each] for each in own]
    said = [f"The labels of the {name} set were matched by name to the classes of {whose}, which have another order."]
    if isinstance(dataset, ImageSet):
        labels = torch.tensor(numbers, device="cpu")[dataset.labels]
        return ImageSet(dataset.images, labels, tuple(class_names), dataset.ids, dataset.name), said
    return Renumbered(dataset, numbers, class_names), said
