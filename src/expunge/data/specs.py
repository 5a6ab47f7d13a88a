"""DATA specs: from a text such as `fashion-mnist:train` or `folder:photos` to an `ImageSet`."""

import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from expunge.data.examples import ImageSet
from expunge.data.folder import Size, load_folder
from expunge.data.named import NAMED
from expunge.data.rows import TABLES, Columns, RowSet, check_columns, load_table, of_columns
from expunge.errors import InputError, SettingError, one_line, optional
from expunge.files import is_regular

MAX_CLASSES = 1_000_000
"""The most classes that data without class names may have."""

FORMS = (
    "fashion-mnist:train, folder:DIR, hf:NAME_OR_DIR:SPLIT, csv:FILE, parquet:FILE, safetensors:FILE or "
    "py:package.module:factory"
)
KINDS = TABLES | {"folder", "hf", "safetensors", "py"}
"""What a DATA spec may begin with, apart from the named datasets."""


def load_data(spec: str, **form: Any) -> ImageSet:
    """`load_examples` of images. Raises `InputError` where the data holds texts or columns of numbers.

    >>> load_data("sample:test").class_names[:2]
    ('T-shirt/top', 'Trouser')
    """
    found = load_examples(spec, **form)
    if not isinstance(found, ImageSet):
        raise InputError(f"{spec} holds no images; give data that does")
    return found


def load_examples(
    spec: str,
    *,
    size: Size = None,
    channels: int | None = None,
    class_names: tuple[str, ...] | None = None,
    upright: bool = True,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    labelled: bool = True,
) -> ImageSet | RowSet:
    """Loads the examples that a DATA spec names.

    Args:
        spec: `NAME:train` or `NAME:test` for a named dataset (`sample`, `fashion-mnist`, `cifar10`, `cifar100`,
            `tiny-imagenet`; without a split: train), `folder:DIR`, `hf:NAME_OR_DIR:SPLIT`, `safetensors:FILE`
            (tensors `images`, uint8 (N, C, H, W), and `labels`, integers (N,)), `csv:FILE`, `parquet:FILE`, or
            `py:package.module:factory` (called without arguments; returns an `ImageSet`).
        size: resize the images of `folder:` and `hf:` to size × size, whatever their shape was; or a function from an
            image of Pillow to one of the model's size (`models.own_fit`). None takes them as they are.
        channels: 1 or 3, for `folder:` and `hf:`.
        class_names: the model's. The data's own classes are matched to them by name; those of a named dataset or a
            factory, where no name is shared, by number. Empty: the model has none, and a folder's sub-directories
            must be named by class number. None: there is no model.
        upright: turn the images of `folder:` and `hf:` as their EXIF orientation says. Where False, pixels are taken as
            they are stored, as torchvision's ImageFolder does.
        columns: which columns of a table, or of a Hugging Face dataset, are meant.
        labelled: whether texts and rows must have labels; where they need not, those that they have do not count.

    Returns:
        An `ImageSet`, or a `RowSet` of texts or numbers.

    Raises:
        SettingError: there is no such split.
        InputError: there is no such data, or it is missing, damaged, empty, or of a class unknown to the model.
    """
    _check_kind(spec)
    kind, _, rest = spec.partition(":")
    check_columns(kind, columns)
    form: dict[str, Any] = {"size": size, "channels": channels, "upright": upright}
    if kind in TABLES:
        return load_table(kind, rest, columns, class_names=class_names, labelled=labelled, **form)
    if kind in NAMED:
        if rest not in {"", "train", "test"}:
            raise SettingError(f"{kind} has the splits train and test, not {rest!r}")
        return _shared(NAMED[kind](rest or "train"), class_names)
    if kind == "folder":
        images = load_folder(rest, **form)
        return _numbered(images) if class_names == () else _to_classes(images, class_names)
    if kind == "hf":
        return load_huggingface(rest, columns, class_names, labelled=labelled, **form)
    if kind == "safetensors":
        return load_tensors(Path(rest), class_names)
    return _shared(_from_factory(rest), class_names)


def _check_kind(spec: str) -> None:
    """Raises `InputError` for what is no DATA spec: a path alone is told what it would be."""
    kind, _, rest = spec.partition(":")
    if kind in NAMED or (kind in KINDS and rest):
        return
    path, lies = Path(spec), ""
    with suppress(OSError, ValueError):  # a text may be too long for a path, or hold a NUL
        lies = "folder" if path.is_dir() else path.suffix.lower().removeprefix(".") * path.is_file()
    way = f"give {FORMS} (named: {', '.join(NAMED)})"
    if lies in KINDS - {"hf", "py"}:
        way = f"for what lies there, give {lies}:{spec}"
    raise InputError(f"unknown data {spec!r}; {way}")


def load_unlabelled(spec: str, **form: Any) -> ImageSet | RowSet:
    """Loads the examples that a DATA spec names, whatever their classes are; `folder:DIR` takes images anywhere below.

    Args and errors as of `load_examples`. The labels say nothing of the model's classes.
    """
    kind, _, rest = spec.partition(":")
    if kind == "folder" and rest:
        check_columns(kind, form.pop("columns", Columns()))
        return load_folder(rest, labelled=False, **form)
    return load_examples(spec, labelled=False, **form)


def load_tensors(path: Path, class_names: tuple[str, ...] | None = None) -> ImageSet:
    """Reads `images` (uint8, N × C × H × W) and `labels` (integers, N) from a safetensors file."""
    if not is_regular(path):
        raise InputError(f"there is no file {path}; check the path")
    try:
        tensors = load_file(path)
        images, labels = tensors["images"], tensors["labels"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} is not a safetensors file with images and labels: {error}") from error
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim != 1:
        raise InputError(
            f"{path}: labels must be integers, one an example, not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = labels.long()
    if not class_names:
        if len(labels) and int(labels.max()) >= MAX_CLASSES:  # a name is made up for each
            raise InputError(f"{path}: label {int(labels.max())} is too large; labels number the classes from 0")
        class_names = tuple(str(n) for n in range(int(labels.max()) + 1)) if len(labels) else ()
    return ImageSet(images, labels, class_names, name=f"safetensors:{path}")


def load_huggingface(
    source: str, columns: Columns, class_names: tuple[str, ...] | None = None, *, labelled: bool = True, **form: Any
) -> ImageSet | RowSet:
    """The Hugging Face dataset `NAME_OR_DIR:SPLIT`, of images, texts or numbers; the rest is as of `load_table`.

    A directory is read with `datasets.load_from_disk`, a name with `datasets.load_dataset`. The split is `train` where
    it is left out, or that which was saved alone.
    """
    datasets = optional("datasets", "hf: data needs Hugging Face datasets", "hf")
    name, _, split = source.rpartition(":") if ":" in source else (source, "", "train")
    try:
        rows: Any
        if Path(name).is_dir():
            rows = datasets.load_from_disk(name)
            alone = not isinstance(rows, datasets.DatasetDict)
            splits = [str(rows.split or "train")] if alone else list(rows)
            if split not in splits and not (alone and ":" not in source):
                raise InputError(f"hf:{name} has no split {split!r}; it has {', '.join(splits)}")
            rows = rows if alone else rows[split]
        else:
            rows = datasets.load_dataset(name, split=split)
    except InputError:
        raise
    except Exception as error:  # the library raises its own, the hub's and the network's types
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot load hf:{source}: {first_line}") from error
    classes = {}
    for key, kind in rows.features.items():
        if isinstance(kind, datasets.ClassLabel):
            classes[key] = tuple(kind.names)
        if isinstance(kind, datasets.Image):  # as files, not as decoded by the library: the same limits as for a folder
            rows = rows.cast_column(key, datasets.Image(decode=False))
    if columns.label is None and len(classes) == 1:
        columns = replace(columns, label=next(iter(classes)))
    held = {str(key): list(rows[key]) for key in rows.column_names}
    own = classes.get(columns.label or "", ())
    return of_columns(held, f"hf:{source}", columns, class_names, own_names=own, labelled=labelled, **form)


def import_factory(path: str) -> Callable[[], Any]:
    """The callable that `package.module:factory` names; `InputError` when there is none, and of what it raises."""
    module, _, name = path.partition(":")
    try:
        factory = getattr(import_module(module), name)
    except Exception as error:  # the module's own code runs here, and may raise anything
        raise InputError(f"cannot import py:{path}: {error}; write py:package.module:factory") from error
    if not callable(factory):
        raise InputError(f"py:{path} is not callable; name a function that returns what is needed")

    def made() -> Any:
        try:
            return factory()
        except Exception as error:  # their code too
            raise InputError(f"py:{path} failed: {one_line(error)}") from error

    return made


def _from_factory(path: str) -> ImageSet:
    made = import_factory(path)()
    if not isinstance(made, ImageSet):
        raise InputError(f"py:{path} returned {type(made).__name__}; it must return an expunge.ImageSet")
    return made


def _shared(images: ImageSet, class_names: tuple[str, ...] | None) -> ImageSet:
    """`_to_classes` where a name is shared; else the numbers count, as with a model whose classes are numbers."""
    known = {alias for name in class_names or () for alias in _aliases(name)}
    return images if known.isdisjoint(map(_composed, images.class_names)) else _to_classes(images, class_names)


def _composed(name: str) -> str:
    """The name with composed letters: file systems differ in how they write accents."""
    return unicodedata.normalize("NFC", name)


def _aliases(name: str) -> set[str]:
    """What a folder of the class may be called."""
    return {_composed(name), _composed(name).replace("/", "_")}


def _to_classes(images: ImageSet, class_names: tuple[str, ...] | None) -> ImageSet:
    """Renumbers the labels by class name, so that a folder with some of the classes fits the model."""
    if not class_names or images.class_names == class_names:
        return images
    labels_of: dict[str, set[int]] = {}
    for label, name in enumerate(class_names):
        for alias in _aliases(name):
            labels_of.setdefault(alias, set()).add(label)
    names = [_composed(name) for name in images.class_names]
    unknown = [name for name in names if name not in labels_of]
    if unknown:
        raise InputError(
            f"{images.name} has a class {unknown[0]!r} that the model does not know; name the folders after its "
            f"classes: {', '.join(class_names[:12])}{', …' if len(class_names) > 12 else ''}"
        )
    double = [name for name in names if len(labels_of[name]) > 1]
    if double:
        raise InputError(
            f"{images.name} has a class {double[0]!r}, and the model has {len(labels_of[double[0]])} classes of that "
            "name: rename the model's classes, so that each has a name of its own"
        )
    renumber = torch.tensor([min(labels_of[name]) for name in names], device="cpu")
    return ImageSet(images.images, renumber[images.labels], class_names, images.ids, images.name)


def _numbered(images: ImageSet) -> ImageSet:
    """Takes sub-directory names as class numbers: some of the classes alone must not be counted from 0."""
    wrong = [name for name in images.class_names if not (name.isascii() and name.isdigit()) or int(name) >= MAX_CLASSES]
    if wrong:
        raise InputError(
            f"the model has no class names, so the folders in {images.name} must be named by class number, "
            f"0, 1, …, not {wrong[0]!r}"
        )
    numbers = torch.tensor([int(name) for name in images.class_names], device="cpu")
    names = tuple(str(n) for n in range(int(numbers.max()) + 1))
    return ImageSet(images.images, numbers[images.labels], names, images.ids, images.name)
