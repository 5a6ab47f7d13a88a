"""Rows of a table: texts, or columns of numbers, each with a label and an id."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from expunge.data.examples import ImageSet, check_labels
from expunge.data.folder import decode_all
from expunge.data.ids import positions_of
from expunge.errors import InputError, SettingError, one_line, optional
from expunge.files import is_regular

LABELS = ("label", "labels", "target", "targets", "y", "cls", "class")
"""What the column of labels may be called where nobody says."""

UNNAMED = "Unnamed: "
"""What pandas calls a column without a name, before its position."""

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
        notes: sentences on how they were read.
        columns: which ones the inputs are, in their order.
    """

    inputs: Sequence[Any]
    labels: Tensor
    class_names: tuple[str, ...]
    ids: tuple[str, ...] = field(repr=False)
    name: str
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

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
        """The same with what a tokenizer of transformers makes of the texts, cut at `most` tokens; a note says so."""
        whole = tokenizer(list(self.inputs), verbose=False)["input_ids"]
        read = tokenizer(list(self.inputs), truncation=True, max_length=most)
        long, names = sum(len(ids) > most for ids in whole), list(read.keys())
        inputs = [{key: read[key][n] for key in names} for n in range(len(self))]
        notes = (f"{long:,} of {len(self):,} texts of {self.name} were cut at {most} tokens",) if long else ()
        return replace(self, inputs=inputs, notes=notes)


def load_table(
    kind: str,
    path: str,
    columns: Columns,
    *,
    class_names: tuple[str, ...] | None = None,
    labelled: bool = True,
    **form: Any,
) -> "RowSet | ImageSet":
    """Reads a `csv` or `parquet` file with a header: texts, columns of numbers, or images as bytes.

    Args:
        kind, path: the kind of file, and the file.
        columns: which columns are meant.
        class_names: the model's: labels that are names are matched to them.
        labelled: whether there must be a column of labels.
        **form: of images, as of `load_examples`.

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
    other = next((sign for sign in ";\t|" if kind == "csv" and len(held) == 1 and sign in next(iter(held))), None)
    if other is not None:
        raise InputError(f"{name} seems to be separated by {other!r}: write it with commas")
    lists = {key: value.tolist() for key, value in held.items()}
    return of_columns(lists, name, columns, class_names, labelled=labelled, **form)


def of_columns(
    held: dict[str, list[Any]],
    name: str,
    columns: Columns,
    class_names: tuple[str, ...] | None,
    *,
    own_names: tuple[str, ...] = (),
    labelled: bool = True,
    **form: Any,
) -> "RowSet | ImageSet":
    """What a table's columns come to, as of `load_table`.

    `own_names` are the names of its classes, where their column tells them.
    """
    found = [key for key in LABELS if key in held]
    label = columns.label
    if label is None and (labelled or found):
        label = _only(found, held, name, "label", "--label-column")
    for wanted in (label, columns.id, *columns.inputs):
        if wanted is not None and wanted not in held:
            raise InputError(f"{name} has no column {wanted!r}; it has {', '.join(map(repr, held))}")
    num = len(next(iter(held.values()), ()))
    if not num:
        raise InputError(f"{name} is empty")
    ids = tuple(map(str, held[columns.id] if columns.id is not None else range(num)))
    inputs = columns.inputs or tuple(key for key in held if key not in {label, columns.id})
    if not inputs:
        raise InputError(f"{name} has no column beside {label!r} that could be the input")
    kind, used = _used({key: held[key] for key in inputs}, name, bool(columns.inputs))
    for key in (*([] if label is None else [label]), *used):
        missing = next((n for n, value in enumerate(held[key]) if _is_missing(value)), None)
        if missing is not None:
            raise InputError(f"{name}: example {missing} has no {key!r}; remove it, or fill it in")
    labels, names = torch.zeros(num, dtype=torch.int64, device="cpu"), class_names or ("",)
    if label is not None and labelled:
        labels, names = _labels(held[label], name, own_names, class_names)
    if kind == "image":
        files = held[used[0]]
        made = decode_all(num, lambda n: (_bytes(files[n]), f"{name} example {n}"), **form)
        return ImageSet(made, labels, names, ids if columns.id is not None else (), name)
    left = ", ".join(repr(key) for key in inputs if key not in used)
    notes = (f"{used[0]!r} of {name} is the input, and {left} is not used",) if left else ()
    if kind == "text":
        return RowSet(list(held[used[0]]), labels, names, ids, name, notes, tuple(used))
    if not columns.inputs and any(key.startswith(UNNAMED) for key in used):
        raise InputError(
            f"{name} has a column without a name, as pandas writes its index: write it by to_csv(index=False), or say "
            "by --input-columns what the input is"
        )
    with np.errstate(over="ignore"):  # it is refused below
        numbers = torch.from_numpy(np.asarray([held[key] for key in used]).astype(np.float32).T.copy())
    if not bool(torch.isfinite(numbers).all()):
        raise InputError(f"{name} holds infinity, or numbers too large for float32; repair or remove the rows")
    return RowSet(list(numbers), labels, names, ids, name, columns=tuple(used))


def _used(held: dict[str, list[Any]], name: str, named: bool) -> tuple[str, list[str]]:
    """The kind of the input, and the columns that are it: one of images, else one of texts, else all, of numbers.

    Raises `InputError` where that cannot be told, and where columns were `named` of which not all are it.
    """
    kinds = {key: _kind(values) for key, values in held.items()}
    for kind in ("image", "text"):
        found = [key for key, other in kinds.items() if other == kind]
        if found:
            used = [_only(found, held, name, f"{kind}s", "--input-columns")]
            if named and len(held) > 1:
                raise InputError(f"{name}: a column of {kind}s is an input by itself: name it alone")
            return kind, used
    odd = next((key for key, kind in kinds.items() if kind is None), None)
    if odd is not None:
        raise InputError(f"{name}: {odd!r} is not of texts, numbers or images alone; name others by --input-columns")
    return "number", list(kinds)


def _only(found: list[str], held: dict[str, Any], name: str, what: str, option: str) -> str:
    if len(found) != 1:
        which = f"{' and '.join(map(repr, found))} may be" if found else "none is called or looks like"
        raise InputError(
            f"{name} has the columns {', '.join(map(repr, held))}, and {which} the {what}: say it by {option}"
        )
    return found[0]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kind(values: Sequence[Any]) -> str | None:
    """`image`, `text` or `number`: what all values of a column are, missing ones apart; None: something else."""
    kinds = {_kind_of(value) for value in values if not _is_missing(value)}
    return kinds.pop() if len(kinds) == 1 else None


def _kind_of(value: Any) -> str | None:
    if isinstance(value, bytes) or (isinstance(value, dict) and {"bytes", "path"} & set(value)):
        return "image"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, int | float | np.number) else None


def _bytes(value: Any) -> BytesIO | Path:
    """An image's file: as bytes, or as Hugging Face stores it."""
    if isinstance(value, bytes):
        return BytesIO(value)
    return BytesIO(value["bytes"]) if value.get("bytes") is not None else Path(str(value.get("path")))


def _labels(
    values: list[Any], name: str, own_names: tuple[str, ...], class_names: tuple[str, ...] | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers of classes, int64 (N,), and the classes' names: the model's, or those of the data.

    A column of whole floats is one of integers, which a missing value made floats of. `class_names` of a model that has
    none are empty, and numbers alone tell its classes.
    """
    if all(isinstance(value, float) and value.is_integer() for value in values):
        values = [int(value) for value in values]
    if all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values):
        numbered = torch.tensor([int(value) for value in values], dtype=torch.int64, device="cpu")
        generic = all(each in {str(n), f"LABEL_{n}"} for n, each in enumerate(class_names or ()))
        if not own_names or generic or own_names == class_names:
            names = class_names or own_names or tuple(str(n) for n in range(max(map(int, values)) + 1))
            return numbered, names
        check_labels(numbered, len(own_names), name)
        values = [own_names[value] for value in values]
    if class_names == () and not own_names:
        raise InputError(f"the model has no class names, so the labels in {name} must be numbers, not {values[0]!r}")
    named = [normalize("NFC", str(value)) for value in values]  # accents can be written in two ways
    known = tuple(normalize("NFC", each) for each in class_names or own_names or sorted(set(named)))
    numbers = {each: n for n, each in enumerate(known)}
    double = next((each for each in named if known.count(each) > 1), None) if len(numbers) < len(known) else None
    if double is not None:
        raise InputError(f"{name} has a class {double!r}, and the model has several of that name: rename the model's")
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
