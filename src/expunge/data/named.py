"""The named datasets: where they lie on this machine, how they are read, and how those that are not there are had."""

import gzip
import io
import math
import os
import pickle
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from expunge.data.examples import ImageSet
from expunge.data.folder import decode_all, load_folder
from expunge.errors import ExpungeError, InputError, SettingError, optional

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
TINY_IMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
"""Address and MD5 digest of the official archive."""

_CIFAR = {
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


def cache_dir() -> Path:
    """The directory that expunge keeps data in: $XDG_CACHE_HOME/expunge, else ~/.cache/expunge.

    Raises `ExpungeError` where the user has no home directory, as in some containers.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "expunge"
    except RuntimeError as error:
        raise ExpungeError("this user has no home directory to keep data in; set XDG_CACHE_HOME") from error


def download(name: str) -> Path:
    """Downloads a named dataset into the cache directory, checks its digest, and returns that directory.

    Raises:
        SettingError: no such dataset, or `sample`, which comes with the package.
        MissingExtraError: torchvision is not installed.
        ExpungeError: it could not be downloaded.
    """
    if name not in NAMED:
        raise SettingError(f"unknown dataset {name!r}; there are {', '.join(NAMED)}")
    root = cache_dir() / "data"
    if name == "sample":
        raise SettingError("sample comes with expunge: nothing is to be downloaded, sample:train is there")
    datasets = optional("torchvision.datasets", "downloading needs torchvision", "vision")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name == "tiny-imagenet":
            address, md5 = TINY_IMAGENET
            datasets.utils.download_and_extract_archive(address, str(root), md5=md5)
        else:
            kinds = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
            getattr(datasets, kinds[name])(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise ExpungeError(
            f"cannot download {name}: {error}; without internet, put its files into a directory and set "
            "EXPUNGE_DATA to it"
        ) from error
    return root


def find(name: str, folders: Iterable[str], marker: str, system: Iterable[Path] = ()) -> Path:
    """The first directory that holds a file or folder called `marker`.

    Looked through in this order: $EXPUNGE_DATA and its sub-directories `folders`, the cache directory's `data`
    and the same sub-directories of it, then the directories in `system`. Raises `InputError` where none holds it.
    """
    bases = [Path(os.environ["EXPUNGE_DATA"])] if os.environ.get("EXPUNGE_DATA") else []
    with suppress(ExpungeError):
        bases.append(cache_dir() / "data")
    candidates = [base / folder for base in bases for folder in (*folders, ".")] + list(system)
    for candidate in candidates:
        with suppress(OSError):  # a directory that one may not look into has it not
            if (candidate / marker).exists() or (candidate / f"{marker}.gz").exists():
                return candidate
    raise InputError(
        f"{name} is not on this machine: `expunge data get {name}` downloads it, or set EXPUNGE_DATA to the "
        f"directory that holds {marker} (sought in {', '.join(str(base) for base in bases)})"
    )


def load_sample(split: str) -> ImageSet:
    """The embedded sample: the first 2,000 `train` or 1,000 `test` images of Fashion-MNIST, 1 × 28 × 28.

    Cut by `scripts/make_sample.py`; MIT licence, see NOTICE.

    >>> len(load_sample("train")), tuple(load_sample("test").images.shape)
    (2000, (1000, 1, 28, 28))
    """
    with as_file(files("expunge.data") / "sample.safetensors") as path:
        tensors = load_file(path)
    images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"].long()
    return ImageSet(images, labels, FASHION_MNIST_CLASSES, name=f"sample:{split}")


def load_fashion_mnist(split: str) -> ImageSet:
    """Fashion-MNIST (Xiao et al. 2017; MIT licence): 60,000 `train` or 10,000 `test` images, 1 × 28 × 28.

    From IDX files, plain or gzipped, as published and as Debian packages them. torchvision reads only unpacked files
    in a folder of its own layout.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    folders = ("fashion-mnist", "FashionMNIST/raw")
    system = (Path("/usr/share/datasets/fashion-mnist"),)
    folder = find("fashion-mnist", folders, f"{stem}-images-idx3-ubyte", system)
    images = torch.from_numpy(_read_idx(folder / f"{stem}-images-idx3-ubyte"))
    labels = torch.from_numpy(_read_idx(folder / f"{stem}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1:
        raise InputError(f"{folder}: expected images (N, H, W) and labels (N,), not {tuple(images.shape)}")
    return ImageSet(images[:, None], labels.long(), FASHION_MNIST_CLASSES, name=f"fashion-mnist:{split}")


def _read_idx(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Reads an IDX file of unsigned bytes. `path` may lack the `.gz` that the file on disk has."""
    packed = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; get the file again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{path} is not an IDX file of unsigned bytes; get the file again")
    head = 4 + 4 * content[3]
    sizes = content[4:head]
    shape = tuple(int.from_bytes(sizes[n : n + 4], "big") for n in range(0, len(sizes), 4))
    if len(content) != head + math.prod(shape):
        raise InputError(f"{path} is truncated or damaged: its header promises {shape}; get the file again")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape).copy()


def load_cifar(name: str, split: str) -> ImageSet:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009; fine labels): 50,000 `train` or 10,000 `test` images, 3 × 32 × 32.

    Read from the official Python batches where they are, else from a tree `train/CLASS/…`, `test/CLASS/…` in a
    directory `cifar10` or `cifar100`. A tree of JPEG files holds pixels that differ slightly from the original.
    """
    layout: dict[str, Any] = _CIFAR[name]
    spec = f"{name}:{split}"
    try:
        folder = find(name, (layout["folder"],), layout["meta"])
    except InputError as error:
        try:
            tree = find(name, (name,), split)
        except InputError:
            raise error from None
        return _load_tree(tree / split, layout["num_classes"], spec)
    parts = [_read_batch(folder / batch) for batch in layout[split]]
    try:
        pixels = np.concatenate([np.asarray(part["data"], np.uint8).reshape(-1, 3, 32, 32) for part in parts])
        labels = torch.tensor([label for part in parts for label in part[layout["labels"]]], device="cpu")
        class_names = tuple(_read_batch(folder / layout["meta"])[layout["names"]])
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


def _read_batch(path: Path) -> dict[str, Any]:
    """Reads one official batch without running code from it. Raises `InputError` if it is anything else."""
    try:
        content = _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly any type
        raise InputError(f"{path} is not a CIFAR batch: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a CIFAR batch: it holds {type(content).__name__}; get the file again")
    return content


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


def load_tiny_imagenet(split: str) -> ImageSet:
    """Tiny-ImageNet (Le and Yang 2015): 100,000 `train` images, or as `test` the 10,000 validation images; 3 × 64 × 64.

    The published test images have no labels, so the validation images serve as the test set. Classes are in the
    order of `wnids.txt`; ids are file names.
    """
    root = find("tiny-imagenet", ("tiny-imagenet-200", "tiny-imagenet"), "wnids.txt")
    try:
        class_names = tuple((root / "wnids.txt").read_text(encoding="utf-8").split())
        if split == "train":
            folders = [(root / "train" / name / "images", name) for name in class_names]
            found = [(path, name) for folder, name in folders for path in sorted(folder.iterdir())]
        else:
            lines = (root / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
            rows = [line.split("\t") for line in lines if line]
            found = [(root / "val" / "images" / row[0], row[1]) for row in rows]
    except (OSError, IndexError) as error:
        raise InputError(f"{root} is not Tiny-ImageNet as published: {error}; get it again") from error
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for _, name in found if name not in label_of]
    if unknown or not found:
        raise InputError(f"{root} is not Tiny-ImageNet as published: unknown classes {unknown[:1]}; get it again")
    images = decode_all(len(found), lambda n: (found[n][0], str(found[n][0])), channels=3)
    labels = torch.tensor([label_of[name] for _, name in found], device="cpu")
    return ImageSet(images, labels, class_names, tuple(path.name for path, _ in found), f"tiny-imagenet:{split}")


NAMED: dict[str, Callable[[str], ImageSet]] = {
    "sample": load_sample,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": lambda split: load_cifar("cifar10", split),
    "cifar100": lambda split: load_cifar("cifar100", split),
    "tiny-imagenet": load_tiny_imagenet,
}
"""The named datasets. Each takes `train` or `test`."""
