"""Outputs of models as a file: what `expunge audit --logits` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from expunge.errors import ExpungeError, InputError, one_line, optional

Arrays = Mapping[str, NDArray[Any]]

MAX_GROWTH = 50
"""Times its size that a compressed file may grow to: logits are as good as random, and hardly grow at all."""
COLUMNS = ("set", "label", "before", "after")
"""Of a Parquet file, which may have `id` too."""


def load_outputs(path: Path) -> tuple[Arrays, Arrays, Arrays, tuple[str, ...] | None]:
    """The logits before and after and the labels, each by set, and the forgotten examples' ids.

    Args:
        path: `.npz` or `.safetensors` with the arrays `before_forget`, `after_forget`, `labels_forget`, the same for
            `test` and, where you like, for `retain`; an `.npz` may hold `ids`, text. Or `.parquet` with a row an
            example and the columns `set`, `label`, `before` and `after` (lists of logits) and, where you like, `id`.

    Raises:
        InputError: no such file, another suffix, or a file that is damaged or lacks something.
        MissingExtraError: Parquet needs pyarrow.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        if path.suffix == ".parquet":
            arrays = _parquet(path)
        elif path.suffix == ".npz":
            _check_zip(path)
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        elif path.suffix == ".safetensors":
            arrays = load_file(path)
        else:
            raise InputError(f"--logits reads .npz, .safetensors and .parquet files, not {path.name}")
    except ExpungeError:
        raise
    except Exception as error:  # of damaged files, the libraries raise many types
        raise InputError(f"{path} cannot be read: {one_line(error)}; write it anew") from error
    ids = arrays.pop("ids", None)
    if ids is not None and ids.ndim != 1:
        raise InputError(f"{path}: ids must be one a forgotten example, not of shape {ids.shape}")
    found: dict[str, dict[str, NDArray[Any]]] = {"before": {}, "after": {}, "labels": {}}
    for name, array in arrays.items():
        kind, _, of = name.partition("_")
        if kind not in found:
            raise InputError(f"{path} holds {name!r}; its arrays are called before_SET, after_SET and labels_SET")
        found[kind][of] = array
    return found["before"], found["after"], found["labels"], None if ids is None else tuple(map(str, ids.tolist()))


def _check_zip(path: Path) -> None:
    """Raises `InputError` for a compressed file that would grow to many times its size."""
    with ZipFile(path) as file:
        size = sum(part.file_size for part in file.infolist())
    if size > MAX_GROWTH * path.stat().st_size + 2**20:
        raise InputError(f"{path} would grow to {size / 1e9:.1f} GB, which no logits do; write it without compression")


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    parquet = optional("pyarrow.parquet", "a Parquet file needs pyarrow", "hf")
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow's own errors are of many kinds
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise InputError(f"{path} lacks the column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    rows = table.to_pylist()
    arrays: dict[str, NDArray[Any]] = {}
    for name in sorted({str(row["set"]) for row in rows}):
        here = [row for row in rows if row["set"] == name]
        arrays[f"labels_{name}"] = np.array([row["label"] for row in here])
        for when in ("before", "after"):
            arrays[f"{when}_{name}"] = np.array([row[when] for row in here], dtype=np.float64)
    if "id" in table.column_names:
        arrays["ids"] = np.array([str(row["id"]) for row in rows if row["set"] == "forget"])
    return arrays
