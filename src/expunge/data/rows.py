"""Rows of a table: texts, or columns of numbers, each with a label and an id."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from expunge.data.examples import ImageSet, check_labels
from expunge.data.folder import Size, decode_all
from expunge.data.ids import positions_of
from expunge.errors import InputError, SettingError, one_line, optional
from expunge.files import is_regular

LABELS = ("label", "labels", "target", "targets", "y", "cls", "class")
"""What the column of labels may be called where nobody says."""

TABLES = {"csv", "parquet"}
"""Kinds of DATA that are tables."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are meant; None: told by their names and kinds.

    Attributes:
        label: the class, a number or a name.
        id: what names a row; without it, its position does.
        inputs: what the model takes: one column of texts or images, or some of numbers.
    """

    label: str | None = None
    id: str | None = None
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowSet(Dataset[tuple[Any, int]]):
    """Labelled rows with ids: a `torch.utils.data.Dataset` of (input, label).

    Attributes:
        inputs: one a row: a text, what a tokenizer made of it, or a float32 tensor (D,) of its numbers.
        labels: int64, shape (N,).
        class_names: one name a class; `labels` index it.
        ids: one text id a row, unique.
        name: the DATA spec that it came from.
    """

    inputs: Sequence[Any]
    labels: Tensor
    class_names: tuple[str, ...]
    ids: tuple[str, ...] = field(repr=False)
    name: str

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.class_names), self.name)
        if len(set(self.ids)) != len(self.inputs):
            raise InputError(f"{self.name}: there must be one id for each of the {len(self.inputs)} rows, all unique")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.inputs[index], int(self.labels[index])

    @property
    def holds_texts(self) -> bool:
        """Whether the inputs are texts, which a tokenizer has yet to read."""
        return len(self) > 0 and isinstance(self.inputs[0], str)

    def take(self, index: Sequence[int] | Tensor) -> "RowSet":
        """The rows at the positions `index`, in that order."""
        at = [int(n) for n in index]
        ids = tuple(self.ids[n] for n in at)
        return replace(self, inputs=[self.inputs[n] for n in at], labels=self.labels[at], ids=ids)

    def select(self, ids: Sequence[str]) -> "RowSet":
        """The rows with these ids, in this order. Raises `InputError` on unknown or repeated ids."""
        return self.take(positions_of(ids, self.ids, self.name))

    def tokenised(self, tokenizer: Callable[..., Any], most: int) -> "RowSet":
        """The same with what a tokenizer of transformers makes of the texts, cut at `most` tokens."""
        read = tokenizer(list(self.inputs), truncation=True, max_length=most)
        names = list(read.keys())
        return replace(self, inputs=[{key: read[key][n] for key in names} for n in range(len(self))])


def load_table(
    kind: str,
    path: str,
    columns: Columns,
    *,
    class_names: tuple[str, ...] | None = None,
    size: Size = None,
    channels: int | None = None,
    upright: bool = True,
) -> "RowSet | ImageSet":
    """Reads a `csv` or `parquet` file with a header: texts, columns of numbers, or images as bytes.

    `class_names` are the model's: labels that are names are matched to them. The rest is as of `load_data`.

    Raises:
        InputError: no such file, no such column, a missing value, or nothing tells what is the input.
    """
    pandas: Any = optional("pandas", f"{kind}: data needs pandas", "tables")
    name = f"{kind}:{path}"
    if not is_regular(Path(path)):
        raise InputError(f"there is no file {path}; check the path")
    try:
        # "NA" and "null" are texts, too: an empty field alone is missing.
        more = {"keep_default_na": False, "na_values": [""]} if kind == "csv" else {}
        table = getattr(pandas, f"read_{kind}")(path, **more)
    except ImportError as error:
        raise InputError(f"{name} cannot be read: {one_line(error)}") from error
    except Exception as error:  # pandas and what it reads with raise many types
        raise InputError(f"{name} is no {kind} file: {one_line(error)}") from error
    held = {str(column): table[column] for column in table.columns}
    return of_columns(
        {key: value.tolist() for key, value in held.items()}, name, columns, class_names, size, channels, upright
    )


def of_columns(
    held: dict[str, list[Any]],
    name: str,
    columns: Columns,
    class_names: tuple[str, ...] | None,
    size: Size = None,
    channels: int | None = None,
    upright: bool = True,
    own_names: tuple[str, ...] = (),
) -> "RowSet | ImageSet":
    """What a table's columns come to. `own_names` are the names of its classes, where their column tells them."""
    label = columns.label or _only([key for key in LABELS if key in held], held, name, "label", "--label-column")
    for wanted in (label, *([columns.id] if columns.id is not None else []), *columns.inputs):
        if wanted not in held:
            raise InputError(f"{name} has no column {wanted!r}; it has {', '.join(map(repr, held))}")
    num = len(held[label])
    if not num:
        raise InputError(f"{name} is empty")
    ids = tuple(map(str, held[columns.id] if columns.id is not None else range(num)))
    inputs = columns.inputs or tuple(key for key in held if key not in {label, columns.id})
    for key in (label, *inputs):
        missing = next((n for n, value in enumerate(held[key]) if value is None or value != value), None)
        if missing is not None:
            raise InputError(f"{name}: row {missing} has no {key!r}; remove the row, or fill it")
    labels, names = _labels(held[label], name, own_names, class_names)
    kinds = {key: _kind(held[key][0]) for key in inputs}
    images = [key for key, kind in kinds.items() if kind == "image"]
    texts = [key for key, kind in kinds.items() if kind == "text"]
    if images:
        image = _only(images, held, name, "images", "--input-columns")
        made = decode_all(
            num, lambda n: (_bytes(held[image][n]), f"{name} row {n}"), size=size, channels=channels, upright=upright
        )
        return ImageSet(made, labels, names, ids, name)
    if texts:
        text = _only(texts, held, name, "texts", "--input-columns")
        if columns.inputs and len(inputs) > 1:
            raise InputError(f"{name}: texts and numbers together are no input; name one column of texts")
        return RowSet([str(value) for value in held[text]], labels, names, ids, name)
    if not inputs:
        raise InputError(f"{name} has no column beside {label!r} that could be the input")
    with np.errstate(over="ignore"):  # it is refused below
        numbers = torch.from_numpy(np.asarray([held[key] for key in inputs]).astype(np.float32).T.copy())
    if not bool(torch.isfinite(numbers).all()):
        raise InputError(f"{name} holds infinity, or numbers too large for float32; repair or remove the rows")
    return RowSet(list(numbers), labels, names, ids, name)


def _only(found: list[str], held: dict[str, Any], name: str, what: str, option: str) -> str:
    if len(found) != 1:
        which = f"{' and '.join(map(repr, found))} may be" if found else "none is called or looks like"
        raise InputError(
            f"{name} has the columns {', '.join(map(repr, held))}, and {which} the {what}: say it by {option}"
        )
    return found[0]


def _kind(value: Any) -> str:
    """`image`, `text` or `number`: what a column holds, by its first value."""
    if isinstance(value, bytes) or (isinstance(value, dict) and {"bytes", "path"} & set(value)):
        return "image"
    return "number" if isinstance(value, int | float | np.number) else "text"


def _bytes(value: Any) -> BytesIO | Path:
    """An image's file: as bytes, or as Hugging Face stores it."""
    if isinstance(value, bytes):
        return BytesIO(value)
    return BytesIO(value["bytes"]) if value.get("bytes") is not None else Path(str(value.get("path")))


def _labels(
    values: list[Any], name: str, own_names: tuple[str, ...], class_names: tuple[str, ...] | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers of classes, int64 (N,), and the classes' names: the model's, or those of the data."""
    if all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values):
        if own_names and class_names and set(own_names) & set(class_names):
            values = [own_names[value] for value in values]
        else:
            names = class_names or own_names or tuple(str(n) for n in range(max(map(int, values)) + 1))
            return torch.tensor([int(value) for value in values], device="cpu"), names
    named = list(map(str, values))
    known = class_names or own_names or tuple(sorted(set(named)))
    numbers = {each: n for n, each in enumerate(known)}
    unknown = [each for each in named if each not in numbers]
    if unknown:
        raise InputError(
            f"{name} has a class {unknown[0]!r} that the model does not know; its classes are "
            f"{', '.join(known[:12])}{', …' if len(known) > 12 else ''}"
        )
    return torch.tensor([numbers[each] for each in named], device="cpu"), known


def check_columns(kind: str, columns: Columns) -> None:
    """Raises `SettingError` where columns are named of data that has none."""
    if kind not in TABLES | {"hf"} and columns != Columns():
        raise SettingError(f"{kind}: data has no columns: leave out --label-column, --id-column and --input-columns")
