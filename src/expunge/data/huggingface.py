"""Image datasets in the Hugging Face format (extra: hf)."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.data.examples import ImageSet
from expunge.data.folder import decode, has_colour
from expunge.errors import InputError, MissingExtraError
from expunge.progress import track


def load_huggingface(source: str, *, size: int | None = None, channels: int | None = None) -> ImageSet:
    """A dataset with one image column and one class-label column.

    Args:
        source: `NAME_OR_DIR:SPLIT`. A directory is read with `datasets.load_from_disk`, a name with
            `datasets.load_dataset`. The split is `train` where it is left out, or that which was saved alone.
        size: resize every image to size × size.
        channels: 1 (grey) or 3 (RGB); None takes 3 if any image has colour, else 1.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "hf: data needs Hugging Face datasets: pip install '.[hf]' in expunge's sources"
        ) from error
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
    image_columns = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    label_columns = [key for key, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(image_columns) != 1 or len(label_columns) != 1:
        raise InputError(
            f"hf:{source} must have one Image and one ClassLabel column, "
            f"not {image_columns or 'none'} and {label_columns or 'none'}"
        )
    if not len(rows):
        raise InputError(f"hf:{source} is empty")
    # As files, not as decoded by the library: the same formats, limits and messages as for a folder.
    rows = rows.cast_column(image_columns[0], datasets.Image(decode=False))
    if channels is None:
        coloured = any(has_colour(_file(row[image_columns[0]])) for row in rows if row[image_columns[0]] is not None)
        channels = 3 if coloured else 1
    images: list[Tensor] = []
    for n, row in enumerate(track(rows, "decoding images", len(rows))):
        file = row[image_columns[0]]
        if file is None:
            raise InputError(f"hf:{source} example {n} has no image; remove it")
        # As the library decodes it.
        image = decode(_file(file), f"hf:{source} example {n}", size, channels, upright=True)
        if images and image.shape != images[0].shape:
            raise InputError(f"hf:{source}: images differ in size; make them alike, or add --resize")
        images.append(image)
    given_labels = list(rows[label_columns[0]])
    if None in given_labels:
        raise InputError(f"hf:{source} example {given_labels.index(None)} has no label; remove it")
    labels = torch.tensor([int(label) for label in given_labels], device="cpu")
    class_names = tuple(rows.features[label_columns[0]].names)
    return ImageSet(torch.stack(images), labels, class_names, name=f"hf:{source}")


def _file(given: dict[str, Any]) -> BytesIO | Path:
    return BytesIO(given["bytes"]) if given["bytes"] is not None else Path(given["path"])
