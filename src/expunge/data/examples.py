"""Sets of labelled examples: `ImageSet` as loaded from a DATA spec, `Examples` as a method receives them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from hashlib import blake2b
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from expunge.data.ids import meant_ids
from expunge.errors import InputError, one_line
from expunge.randomness import stream

SCALE = 255
"""What 8-bit images are divided by where they become floats."""

STEADY = 8
"""Examples that are read twice, to see whether they come out alike."""

CHUNK = 256
"""Inputs that are looked at together."""


@dataclass(frozen=True)
class Examples:
    """Inputs and labels side by side, in memory.

    Attributes:
        inputs: any dtype, shape (N, ...): what the model takes as a batch.
        labels: int64, shape (N,), each in [0, C).
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Examples":
        """The examples at `index`: int64, shape (K,)."""
        return Examples(self.inputs[index], self.labels[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Examples":
        """On `device`; floating-point inputs become `dtype`, integer inputs (uint8 images) stay as they are."""
        inputs = self.inputs.to(device)
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return Examples(inputs, self.labels.to(device))


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
        position = {i: n for n, i in enumerate(self.ids)}
        ids = meant_ids(ids, self.ids)
        repeated = [i for i, count in Counter(ids).items() if count > 1]
        if repeated:
            raise InputError(f"id {repeated[0]!r} is listed more than once; list each id once")
        unknown = [i for i in ids if i not in position]
        if unknown:
            run = f"run from {self.ids[0]!r} to {self.ids[-1]!r}" if self.ids else "are none"
            raise InputError(
                f"{self.name} has no example {unknown[0]!r} ({len(unknown)} of {len(ids)} ids are unknown); "
                f"its ids {run}"
            )
        if not ids:
            raise InputError("the list of ids is empty; give at least one")
        return self.take([position[i] for i in ids])

    def without(self, other: "ImageSet") -> "ImageSet":
        """This set less every image that `other` holds too, compared by pixels."""
        gone = set(digests(other.images))
        return self.take([n for n, digest in enumerate(digests(self.images)) if digest not in gone])


def draw_ids(images: ImageSet, num: int, seed: int) -> list[str]:
    """The ids of the first `num` images of a permutation that depends on `seed` alone, so that draws are nested."""
    if not 1 <= num <= len(images):
        raise InputError(f"cannot draw {num} of the {len(images)} examples of {images.name}")
    order = torch.randperm(len(images), generator=stream("ids", seed), device="cpu")
    return [images.ids[i] for i in order[:num].tolist()]


def digests(inputs: Tensor) -> list[bytes]:
    """A 16-byte BLAKE2b digest of each input's shape, dtype and values; equal inputs have equal digests."""
    array = inputs.detach().cpu().contiguous()
    head = f"{array.dtype}{tuple(array.shape[1:])}".encode()
    if array.dtype == torch.bfloat16:  # NumPy has no bfloat16; its bits serve as well
        array = array.view(torch.int16)
    rows = array.reshape(len(array), prod(array.shape[1:])).numpy()
    return [blake2b(head + row.tobytes(), digest_size=16).digest() for row in rows]


def content_digests(inputs: Tensor) -> list[bytes]:
    """As `digests`, but one digest for the forms that an 8-bit image takes, and one for integers of any dtype.

    The forms are any dtype with values of 0 to 255, and floats k/255 as their dtype rounds them (what torchvision's
    ToTensor makes of it). Floats that are all 0 or 1 are read as the latter.
    """
    if inputs.dtype == torch.uint8 or inputs.is_complex():
        return digests(inputs)
    found: list[bytes] = []
    for part in inputs.detach().split(CHUNK):  # a few at a time: they are held in float64
        pixels, are_pixels = _as_pixels(part.cpu())
        own = digests(part + 0.0 if part.is_floating_point() else part.long())  # adding 0 makes −0 a 0
        found += [digests(pixels[n : n + 1])[0] if are_pixels[n] else own[n] for n in range(len(part))]
    return found


def _as_pixels(inputs: Tensor) -> tuple[Tensor, list[bool]]:
    """The values of 0 to 255 that each input stands for, uint8, and which inputs stand for such values throughout."""
    values = inputs.double()
    held = values.clamp(0, SCALE).round()
    same = _rows(values == held)
    if not inputs.is_floating_point():
        return held.to(torch.uint8), same.all(1).tolist()
    levels = (values * SCALE).clamp(0, SCALE).round()
    exact = (levels / SCALE).to(inputs.dtype).double()
    # Where they were multiplied by 1/255, or rounded to float32 on the way, they may be off by the last bits of those.
    slack = 0.0 if inputs.dtype in {torch.float16, torch.bfloat16} else 2 * torch.finfo(torch.float32).eps
    scaled = _rows((values - exact).abs() <= slack * exact).all(1)
    raw = same.all(1) & _rows(values > 1).any(1)
    chosen = torch.where(raw.view(-1, *[1] * (values.ndim - 1)), held, levels)
    return chosen.to(torch.uint8), (scaled | raw).tolist()


def _rows(values: Tensor) -> Tensor:
    """As a matrix, a row an example, also where an example is one number."""
    return values.reshape(len(values), prod(values.shape[1:]))


def shared(first: Tensor, second: Tensor) -> Tensor:
    """Which inputs of the second set stand in the first, too, by `content_digests`: bool, (N,), on the CPU."""
    if first.is_floating_point() and second.is_floating_point():  # floats are compared in the coarser dtype
        coarser = min(first.dtype, second.dtype, key=lambda dtype: -torch.finfo(dtype).eps)
        first, second = first.to(coarser), second.to(coarser)
    seen = set(content_digests(first))
    return torch.tensor([digest in seen for digest in content_digests(second)], dtype=torch.bool, device="cpu")


def apart_from(inputs: Tensor, name: str, others: Mapping[str, Tensor]) -> tuple[Tensor, list[str]]:
    """The inputs that stand in none of the other sets (`shared`), and one sentence on those of each that do.

    Raises `InputError` where none is left.
    """
    said, num = [], len(inputs)
    for other, there in others.items():
        both = shared(there, inputs)
        inputs = inputs[~both.to(inputs.device)]
        if len(inputs) == 0:
            raise InputError(f"no {name} example is left that is not in the {other} set too; give others")
        if both.any():
            said.append(f"Left out {int(both.sum()):,} of {num:,} {name} examples: they are in the {other} set.")
    return inputs, said


def first_copies(inputs: Tensor) -> Tensor:
    """Positions of the inputs that equal no earlier one (`content_digests`), ascending: int64, (M,), on the CPU.

    >>> first_copies(torch.tensor([[1], [2], [1]])).tolist()
    [0, 1]
    """
    seen: dict[bytes, int] = {}
    for n, digest in enumerate(content_digests(inputs)):
        seen.setdefault(digest, n)
    return torch.tensor(list(seen.values()), dtype=torch.int64, device="cpu")


def check_disjoint(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    """Raises `InputError` when an input stands in both sets (`shared`)."""
    if num := int(shared(first, second).sum()):
        raise InputError(
            f"{num} of the {second_name} examples are in the {first_name} set too; "
            f"take them out of the {second_name} set, which must share nothing with it"
        )


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
        one = " (of one logit: wrap it, expunge.TwoClasses(model))" if tuple(shape[1:]) in {(), (1,)} else ""
        raise InputError(f"the model must return logits (N, C) with C ≥ 2, not shape {tuple(shape)}{one}")
    check_labels(labels, shape[1], name)


def materialise(dataset: "Dataset[Any]", name: str, index: Iterable[int] | None = None) -> Examples:
    """Reads a dataset of (tensor or array, integer label), or the positions `index` of it, into memory, each once.

    Raises:
        InputError: it is empty, an item is not (input, label), shapes differ, a label is not an integer, or an
            input holds NaN or infinity.
    """
    size = size_of(dataset, name)
    if isinstance(dataset, ImageSet):
        return dataset.examples if index is None else dataset.examples.take(torch.tensor(list(index), device="cpu"))
    inputs: list[Tensor] = []
    labels: list[int] = []
    for n, item in items_at(dataset, name, range(size) if index is None else index):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"{name} example {n} is not a pair (input, label)")
        inputs.append(_as_input(item[0], f"{name} example {n}", inputs))
        labels.append(as_label(item[1], f"{name} example {n}"))
    return Examples(torch.stack(inputs), torch.tensor(labels, dtype=torch.int64, device="cpu"))


def materialise_inputs(dataset: "Dataset[Any]", name: str) -> Tensor:
    """Reads the inputs of a dataset, whose items are an input or a tuple that begins with one: shape (N, ...).

    Raises:
        InputError: as `materialise` of inputs, or they come out otherwise each time.
    """
    size = size_of(dataset, name)
    if isinstance(dataset, ImageSet):
        return dataset.images
    reads: list[list[Tensor]] = [[], []]
    for inputs, num in zip(reads, (size, min(STEADY, size)), strict=True):
        for n, item in items_at(dataset, name, range(num)):
            value = item[0] if isinstance(item, tuple | list) and item else item
            inputs.append(_as_input(value, f"{name} example {n}", inputs))
    _check_same(torch.stack(reads[0][: len(reads[1])]), torch.stack(reads[1]), name)
    return torch.stack(reads[0])


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


def _as_input(given: object, name: str, earlier: Sequence[Tensor]) -> Tensor:
    """An input as a tensor of its own, of the shape and kind of the earlier ones."""
    value = given
    try:
        if not isinstance(value, Tensor):  # a tensor of its own from an array of any strides and byte order
            array = np.asarray(value)
            value = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: its input, of {type(given).__name__}, cannot become a tensor") from error
    value = value.to_dense() if value.layout != torch.strided else value
    first = earlier[0] if earlier else value
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
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name}: the label must be an integer class, not {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise InputError(f"{name}: label {value} is outside of any classes")
    return value
