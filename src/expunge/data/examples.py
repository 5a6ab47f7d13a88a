"""Sets of labelled examples: `ImageSet` as loaded from a DATA spec, `Examples` as a method receives them."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from expunge.data.content import digests
from expunge.data.ids import positions_of
from expunge.data.memory import empty, stacked
from expunge.errors import InputError, one_line
from expunge.randomness import stream

if TYPE_CHECKING:
    from expunge.data.rows import RowSet

STEADY = 8
"""Examples that are read twice, to see whether they come out alike."""


@dataclass(frozen=True)
class Examples(Dataset[tuple[Tensor, int]]):
    """Inputs and labels side by side, in memory: a `torch.utils.data.Dataset` of (input, label).

    Attributes:
        inputs: any dtype, shape (N, ...): what the model takes as a batch.
        labels: int64, shape (N,), each in [0, C).
        ids: one text id an example, or none.
        class_names: one name a class, or none.
    """

    inputs: Tensor
    labels: Tensor
    ids: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    class_names: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.labels[index])

    def take(self, index: Tensor) -> "Examples":
        """The examples at `index`: int64, shape (K,)."""
        ids = tuple(self.ids[n] for n in index.tolist()) if self.ids else ()
        index = index.to(self.inputs.device)
        inputs = empty((len(index), *self.inputs.shape[1:]), self.inputs.dtype, self.inputs.device)
        torch.index_select(self.inputs, 0, index, out=inputs)
        return replace(self, inputs=inputs, labels=self.labels[index.to(self.labels.device)], ids=ids)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Examples":
        """On `device`; floating-point inputs become `dtype`, integer inputs (uint8 images) stay as they are."""
        inputs = self.inputs.to(device)
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return replace(self, inputs=inputs, labels=self.labels.to(device))


@dataclass(frozen=True)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Decoded images with labels and ids: a `torch.utils.data.Dataset` of (uint8 image, label).

    Attributes:
        images: uint8, shape (N, channels, height, width), values 0 to 255. The model normalises them.
        labels: int64, shape (N,).
        class_names: one name a class; `labels` index it.
        ids: one text id an example, unique. The position ("0", "1", …) where the source has no names.
        name: the DATA spec that it came from.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    ids: tuple[str, ...] = field(default=(), repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InputError(
                f"{self.name}: images must be uint8 of shape (N, channels, height, width), "
                f"not {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if min(self.images.shape[1:]) < 1:
            raise InputError(f"{self.name}: images of shape {tuple(self.images.shape[1:])} have no pixels")
        check_labels(self.labels, len(self.class_names), self.name)
        if len(self.images) != len(self.labels):
            raise InputError(f"{self.name}: {len(self.images)} images but {len(self.labels)} labels")
        if not self.ids:
            object.__setattr__(self, "ids", tuple(map(str, range(len(self.images)))))
        if len(self.ids) != len(self.images) or len(set(self.ids)) != len(self.ids):
            raise InputError(f"{self.name}: there must be one id for each of the {len(self.images)} images, all unique")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    @property
    def examples(self) -> Examples:
        """The same images and labels, without a copy."""
        return Examples(self.images, self.labels)

    def take(self, index: Sequence[int] | Tensor, name: str | None = None) -> "ImageSet":
        """The examples at the positions `index`, in that order, or those where a mask `index` (N,) is true."""
        at = index if isinstance(index, Tensor) else torch.as_tensor(index, device="cpu")
        if at.is_floating_point() and len(at):
            raise InputError(f"positions are integers, not {at.dtype}")
        if at.dtype == torch.bool and len(at) != len(self):
            raise InputError(f"a mask of {len(at)} is not of {len(self)} images")
        at = at.nonzero()[:, 0] if at.dtype == torch.bool else at.long()
        ids = tuple(self.ids[i] for i in at.tolist())
        return ImageSet(self.images[at], self.labels[at], self.class_names, ids, name or self.name)

    def select(self, ids: Sequence[str]) -> "ImageSet":
        """The examples with these ids, in this order. Raises `InputError` on unknown or repeated ids.

        Where no id has the same characters, one that has them with its accents written otherwise is meant: file systems
        differ in that. Two such are refused.
        """
        return self.take(positions_of(ids, self.ids, self.name))

    def without(self, other: "ImageSet") -> "ImageSet":
        """This set less every image that `other` holds too, compared by pixels."""
        gone = set(digests(other.images))
        return self.take([n for n, digest in enumerate(digests(self.images)) if digest not in gone])


def draw_ids(images: "ImageSet | RowSet", num: int, seed: int) -> list[str]:
    """The ids of the first `num` images of a permutation that depends on `seed` alone, so that draws are nested."""
    if not 1 <= num <= len(images):
        raise InputError(f"cannot draw {num} of the {len(images)} examples of {images.name}")
    order = torch.randperm(len(images), generator=stream("ids", seed), device="cpu")
    return [images.ids[i] for i in order[:num].tolist()]


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Raises `InputError` unless `labels` is int64, one-dimensional and within [0, num_classes)."""
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise InputError(
            f"{name}: labels must be integers, one an example, not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        bad = labels[(labels < 0) | (labels >= num_classes)][0]
        raise InputError(f"{name}: label {int(bad)} is outside [0, {num_classes}): there is no such class")


def check_logits(shape: Sequence[int], labels: Tensor, name: str) -> None:
    """Raises `InputError` unless logits have a `shape` (N, C), C ≥ 2, and all labels of the set are in [0, C)."""
    if len(shape) != 2 or shape[1] < 2:
        raise InputError(f"the model must return logits (N, C), not shape {tuple(shape)}")
    check_labels(labels, shape[1], name)


def materialise(dataset: "Dataset[Any]", name: str, index: Iterable[int] | None = None) -> Examples:
    """Reads a dataset of (tensor or array, integer label), or the positions `index` of it, into memory, each once.

    Raises:
        InputError: it is empty, an item is not (input, label), shapes differ, a label is not an integer, or an
            input holds NaN or infinity.
    """
    size = size_of(dataset, name)
    if isinstance(dataset, ImageSet | Examples):
        held = dataset.examples if isinstance(dataset, ImageSet) else dataset
        if held.inputs.is_floating_point() and not all(bool(each.isfinite().all()) for each in held.inputs):
            raise InputError(f"the {name} set holds NaN or infinity; repair or remove it")
        return held if index is None else held.take(torch.tensor(list(index), device="cpu"))
    labels: list[int] = []

    def inputs() -> Iterator[Tensor]:
        first = None
        for n, item in items_at(dataset, name, range(size) if index is None else index):
            if not isinstance(item, tuple | list) or len(item) != 2:
                number = isinstance(item, int | np.integer | str)
                way = ": of numbers or ids, give torch.utils.data.Subset(training_data, numbers)" * number
                raise InputError(f"{name} example {n} is not a pair (input, label){way}")
            value = _as_input(item[0], f"{name} example {n}", first)
            first = value if first is None else first
            labels.append(as_label(item[1], f"{name} example {n}"))
            yield value

    together = stacked(inputs(), size if index is None else len(list(index)))
    return Examples(together, torch.tensor(labels, dtype=torch.int64, device="cpu"))


def materialise_inputs(dataset: "Dataset[Any]", name: str) -> Tensor:
    """Reads the inputs of a dataset, whose items are an input or a tuple that begins with one: shape (N, ...).

    Raises:
        InputError: as `materialise` of inputs, or they come out otherwise each time.
    """
    size = size_of(dataset, name)
    if isinstance(dataset, ImageSet | Examples):
        return dataset.images if isinstance(dataset, ImageSet) else dataset.inputs

    def inputs(num: int) -> Iterator[Tensor]:
        first = None
        for n, item in items_at(dataset, name, range(num)):
            given = item[0] if isinstance(item, tuple | list) and item else item
            value = _as_input(given, f"{name} example {n}", first)
            first = value if first is None else first
            yield value

    together, again = (stacked(inputs(num), num) for num in (size, min(STEADY, size)))
    _check_same(together[: len(again)], again, name)
    return together


def items_at(dataset: "Dataset[Any]", name: str, index: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """The positions `index` and what the dataset has there."""
    for n in index:
        try:
            item = dataset[n]
        except NotImplementedError as error:
            kind = type(dataset).__name__
            raise InputError(f"the {name} set, of {kind}, cannot be read by position; give a list of it") from error
        except Exception as error:  # the dataset's own code runs here, and may raise anything
            raise InputError(f"{name} example {n} cannot be read: {one_line(error)}") from error
        yield n, item


def _as_input(given: object, name: str, first: Tensor | None) -> Tensor:
    """An input as a tensor of its own, of the shape and kind of the first one."""
    value = given
    try:
        if not isinstance(value, Tensor):  # a tensor of its own from an array of any strides and byte order
            array = np.asarray(value)
            value = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: its input, of {type(given).__name__}, cannot become a tensor") from error
    value = value.to_dense() if value.layout != torch.strided else value
    first = value if first is None else first
    if value.shape != first.shape:
        shapes = tuple(value.shape), tuple(first.shape)
        raise InputError(f"{name} has shape {shapes[0]}, the first one {shapes[1]}; all must be alike")
    if value.is_floating_point() != first.is_floating_point():
        raise InputError(f"{name} is {value.dtype}, the first one {first.dtype}; all must be alike")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} holds NaN or infinity; repair or remove it")
    return value.detach()


def as_examples(dataset: "Examples | Dataset[Any]", name: str) -> Examples:
    """Examples in memory as they are, any other dataset read into it. Raises `InputError` for none, and bad ones."""
    if isinstance(dataset, Examples):
        examples = dataset
    else:
        examples = materialise(dataset, name)
        check_steady(dataset, examples, name)
    if len(examples) == 0:
        raise InputError(f"the {name} set is empty; give it at least one example")
    return examples


def check_steady(dataset: "Dataset[Any]", examples: Examples, name: str, index: Sequence[int] | None = None) -> None:
    """Raises `InputError` where the first of what was read, `examples`, differ from what the dataset gives now.

    `index`: the positions that were read; None: all.
    """
    first = range(min(STEADY, len(examples))) if index is None else index[:STEADY]
    _check_same(examples.inputs[: len(first)], materialise(dataset, name, first).inputs, name)


def _check_same(once: Tensor, again: Tensor, name: str) -> None:
    if not torch.equal(once, again):
        raise InputError(
            f"the {name} set gives examples otherwise each time it is read: take out its random transforms, such as by "
            "expunge.without_transforms(dataset)"
        )


def size_of(dataset: "Dataset[Any]", name: str) -> int:
    """How many examples there are. Raises `InputError` for none, and for what is no dataset with a length."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(f"the {name} set must be a dataset with __len__ and __getitem__, not {type(dataset).__name__}")
    try:
        size = len(cast(Sized, dataset))
    except Exception as error:  # the dataset's own code runs here, and may raise anything
        raise InputError(f"the {name} set cannot tell its length: {one_line(error)}") from error
    if size == 0:
        raise InputError(f"the {name} set is empty; give it at least one example")
    return size


def as_label(value: object, name: str) -> int:
    """`value` as an int. Raises `InputError` unless it is an integer (Python, NumPy or a 0-d tensor)."""
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim == 1 and len(value) > 1:
            raise InputError(
                f"{name}: the label must be one integer class, not {len(value)} values. Of several labels an example, "
                "forget one at a time: expunge.TwoClasses(model, label), with examples labelled 0 or 1"
            )
        value = value.item() if value.ndim == 0 or value.shape == (1,) else value
    if isinstance(value, np.integer) or (
        isinstance(value, float) and value in {0.0, 1.0}
    ):  # as losses of one logit take
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        way = {
            "bool": "; where True is class 1, give labels.astype(int)",
            "float": "; if all are whole, give labels.long(), or labels.astype(int)",
            "str": '; number the names as the model does, such as labels.map({"cat": 0, "dog": 1})',
        }.get(type(value).__name__.removesuffix("_"), "")
        raise InputError(f"{name}: the label must be an integer class, not {type(value).__name__}{way}")
    if not -(2**63) <= value < 2**63:
        raise InputError(f"{name}: label {value} is outside of any classes")
    return value
