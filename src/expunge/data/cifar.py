"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the official Python batches, or a tree of image files."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.data.examples import ImageSet
from expunge.data.folder import load_folder
from expunge.data.locations import find
from expunge.errors import InputError

_LAYOUTS = {
    "cifar10": {
        "folder": "cifar-10-batches-py",
        "train": [f"data_batch_{n}" for n in range(1, 6)],
        "test": ["test_batch"],
        "meta": "batches.meta",
        "labels": "labels",
        "names": "label_names",
        "num_classes": 10,
    },
    "cifar100": {
        "folder": "cifar-100-python",
        "train": ["train"],
        "test": ["test"],
        "meta": "meta",
        "labels": "fine_labels",
        "names": "fine_label_names",
        "num_classes": 100,
    },
}


class _Plain(pickle.Unpickler):
    """Unpickles lists, dicts, text, bytes, numbers and NumPy arrays; every other name is refused.

    The official files are pickles, and a pickle can run any code while it loads. torchvision's reader lets it.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # the function of that name, wherever this NumPy has it
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data batch never needs")
        return allowed[module, name]


def _encode(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 spells bytes; latin1 is the one encoding that it uses."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


def read_batch(path: Path) -> dict[str, Any]:
    """Reads one official batch without running code from it. Raises `InputError` if it is anything else."""
    try:
        content = _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly any type
        raise InputError(f"{path} is not a CIFAR batch: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a CIFAR batch: it holds {type(content).__name__}; get the file again")
    return content


def load_cifar(name: str, split: str) -> ImageSet:
    """`cifar10` or `cifar100` (fine labels): 50,000 `train` or 10,000 `test` images, 3 × 32 × 32.

    Read from the official Python batches where they are, else from a tree `train/CLASS/…`, `test/CLASS/…` in a
    directory `cifar10` or `cifar100`. A tree of JPEG files holds pixels that differ slightly from the original.
    """
    layout: dict[str, Any] = _LAYOUTS[name]
    spec = f"{name}:{split}"
    try:
        folder = find(name, (layout["folder"],), layout["meta"])
    except InputError as error:
        try:
            tree = find(name, (name,), split)
        except InputError:
            raise error from None
        return _load_tree(tree / split, layout["num_classes"], spec)
    parts = [read_batch(folder / batch) for batch in layout[split]]
    try:
        pixels = np.concatenate([np.asarray(part["data"], np.uint8).reshape(-1, 3, 32, 32) for part in parts])
        labels = torch.tensor([label for part in parts for label in part[layout["labels"]]], device="cpu")
        class_names = tuple(read_batch(folder / layout["meta"])[layout["names"]])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} does not hold {name} as published ({error}); get it again") from error
    return ImageSet(torch.from_numpy(pixels), labels, class_names, name=spec)


def _load_tree(folder: Path, num_classes: int, spec: str) -> ImageSet:
    images = load_folder(str(folder), channels=3)
    found = len(images.class_names)
    if found != num_classes:  # EXPUNGE_DATA may hold another dataset's `train`
        raise InputError(f"{folder} holds {found} classes, not the {num_classes} of {spec}; check EXPUNGE_DATA")
    names, labels = images.class_names, images.labels
    if all(name.isascii() and name.isdigit() for name in names):  # sorted as text, 10 comes before 2
        names = tuple(sorted(names, key=int))
        labels = torch.tensor([names.index(name) for name in images.class_names], device="cpu")[labels]
    return ImageSet(images.images, labels, names, images.ids, spec)
