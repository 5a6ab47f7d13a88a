"""Image files on disk: a folder a class."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.examples import ImageSet
from expunge.data.whole_images import check_whole
from expunge.errors import ExpungeError, InputError, optional
from expunge.files import is_utf8
from expunge.progress import track

Size = int | Callable[[Any], Any] | None
"""The side that images get, or what makes them of a model's size (`models.own_fit`); None: they stay as they are."""

GREY = frozenset({"1", "L", "LA"})
"""Pillow's names of modes without colour."""
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
OTHERS = {
    ".gif", ".tif", ".tiff", ".jpe", ".jfif", ".jif", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jxl",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpeg2000", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm",
    ".tga", ".ico", ".icns", ".cur", ".dib", ".pcx", ".dcx", ".psd", ".exr", ".hdr", ".qoi", ".dds", ".svg",
    ".sgi", ".rgb", ".xbm", ".xpm", ".apng", ".mpo", ".dcm", ".nef", ".cr2", ".cr3", ".arw", ".dng", ".raw",
    ".orf", ".rw2",
}  # fmt: skip
"""Suffixes of images that are not read. Such a file is refused: left out, it would not be forgotten."""
HEADS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
)
"""What files of PNG, JPEG, GIF, TIFF, JPEG XL and JPEG 2000 begin with, whatever they are called."""
BRANDS = (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftypmif1")
"""What comes after four bytes in AVIF and HEIF."""
SPLITS = {"train", "training", "trainset", "test", "testing", "testset", "val", "valid", "validation", "dev", "eval"}
"""What the parts of a dataset are called. Several folders that all have such names are not classes."""
MAX_PIXELS = 50_000_000
"""The largest image that is decoded, in pixels: a 177-byte PNG can claim 81 million."""


def load_folder(
    folder: str,
    *,
    size: Size = None,
    channels: int | None = None,
    labelled: bool = True,
    upright: bool = True,
) -> ImageSet:
    """A directory with one sub-directory a class, or any depth of it below; ids are paths relative to `folder`.

    Where they are not `labelled`, images may lie anywhere in it, and all are of one class. Hidden files and
    directories, whose names begin with a dot, and files that are no images are left out. With `size` images become
    size × size (bilinear, antialiased), or what a function makes of them; without it they must be alike. They have 1
    or 3 `channels`; without it 3 if any image has colour. They are turned as their EXIF orientation says, unless
    `upright` is False.

    Raises:
        InputError: no such directory, no images, sub-directories that are called `train` and `test`, a corrupt or
            oversized image, images of different sizes, or one that would be left out: outside of any class, of a
            format that is not read, without a suffix that names its format, or below a linked directory.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no directory {folder}; give one that holds a folder a class")
    class_names: tuple[str, ...] = ("",)
    if labelled:
        entries = [entry for entry in sorted(root.iterdir()) if not _hidden(entry, root)]
        class_names = tuple(entry.name for entry in entries if entry.is_dir())
        if not class_names:
            raise InputError(f"{folder} has no sub-directories; put the images into one folder a class")
        if len(class_names) > 1 and SPLITS.issuperset(name.casefold() for name in class_names):
            raise InputError(
                f"{folder} holds the parts {' and '.join(class_names)} of a dataset, not folders of classes; give one "
                f"of them, such as folder:{root / class_names[0]}"
            )
        loose = [path for path in entries if path.suffix.lower() in SUFFIXES | OTHERS and path.is_file()]
        _refuse(folder, loose, "put it into the folder of its class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        there = sorted(path for path in _below(root / name) if not _hidden(path, root))
        found = [path for path in there if path.suffix.lower() in SUFFIXES and not path.is_dir()]
        special = [path for path in found if path.exists() and not path.is_file()]
        _refuse(folder, special, "a pipe or a device is no image: remove it")
        others = [path for path in there if path.suffix.lower() in OTHERS and not path.is_dir()]
        _refuse(folder, others, "convert it to PNG or remove it")
        unnamed = [path for path in there if path.suffix.lower() not in SUFFIXES | OTHERS and _begins_as_image(path)]
        _refuse(folder, unnamed, "give it the suffix of its format, such as .png, or remove it")
        linked = [path for path in there if path.is_symlink() and path.is_dir()]
        _refuse(folder, linked, "links to directories are not followed: put the images there")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise InputError(f"{folder} holds no images; it reads {', '.join(sorted(SUFFIXES))}")
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    odd = next((name for name in (*class_names, *ids) if not is_utf8(name)), None)
    if odd is not None:  # they go into reports and digests
        raise InputError(f"{folder}: the name {odd!r} is not UTF-8; rename it")
    images = decode_all(len(paths), lambda n: (paths[n], str(paths[n])), size=size, channels=channels, upright=upright)
    return ImageSet(images, torch.tensor(labels, device="cpu"), class_names, ids, f"folder:{folder}")


def _refuse(folder: str, paths: Sequence[Path], advice: str) -> None:
    """Refuses what would be left out of a folder without a word."""
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise InputError(f"{folder}: {paths[0].relative_to(folder)}{more} would be left out; {advice}")


def _below(folder: Path) -> Iterator[Path]:
    """All files and directories below `folder`; links to directories are not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): what it holds would be left out")

    for place, directories, files in os.walk(folder, onerror=refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]  # they are left out: see _hidden
        yield from (Path(place) / name for name in (*directories, *files))


def _begins_as_image(path: Path) -> bool:
    """Whether the first bytes of a file are those of an image. Raises `InputError` where they cannot be read."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): it may be an image, and left out") from error
    bitmap = head.startswith(b"BM") and int.from_bytes(head[2:6], "little") in {0, path.stat().st_size}
    webp = head.startswith(b"RIFF") and head.endswith(b"WEBP")
    return bitmap or webp or head.startswith(HEADS) or head[4:].startswith(BRANDS)


def _hidden(path: Path, root: Path) -> bool:
    """Whether a name below `root` begins with a dot: what other programs leave behind, such as .ipynb_checkpoints."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def decode_all(
    num: int,
    source: Callable[[int], tuple[Path | BytesIO, str]],
    *,
    size: Size = None,
    channels: int | None = None,
    upright: bool = True,
) -> Tensor:
    """One uint8 tensor (`num`, channels, height, width) of image files, or their bytes, each with its name in errors.

    `upright` turns them as their EXIF orientation says. Nothing is cached: a copy would outlive images to be deleted.
    """
    if channels is None:
        channels = 3 if any(has_colour(source(n)[0]) for n in range(num)) else 1
    first = decode(*source(0), size, channels, upright)
    images = torch.empty((num, *first.shape), dtype=torch.uint8, device="cpu")
    for n in track(range(num), "decoding images", num):
        file, name = source(n)
        image = decode(file, name, size, channels, upright)
        if image.shape != first.shape:
            raise InputError(
                f"{name} is {image.shape[2]} × {image.shape[1]} pixels, {Path(source(0)[1]).name} is {first.shape[2]} "
                f"× {first.shape[1]}; make all images the same size (expunge forget and audit: --resize)"
            )
        images[n] = image
    return images


def has_colour(source: Path | BytesIO) -> bool:
    """Whether an image file, by its header, is of more than grey; False where it cannot be read: `decode` tells."""
    try:
        from PIL import Image

        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=FORMATS) as image:
            return image.mode not in GREY
    except Exception:
        return False


def decode(source: Path | BytesIO, name: str, size: Size, channels: int, upright: bool) -> Tensor:
    """One image file, or its bytes, as uint8 (channels, height, width), of the size that `size` says.

    Raises:
        InputError: it is corrupt, of a format that is not in `FORMATS`, over `MAX_PIXELS` or not of 8 bits.
    """
    ops = optional("PIL.ImageOps", "reading image files needs Pillow", "vision")
    too_large = f"over the limit of {MAX_PIXELS:,}; remove it, or make it smaller"
    try:
        # Pillow warns of oversized images on standard error, and of odd metadata; the limit here is lower than its own.
        with warnings.catch_warnings(action="ignore"), ops.Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{name} claims {image.width} × {image.height} pixels, {too_large}")
            check_whole(image, source, name)
            # Of 16-bit channels of colour, Pillow would give the upper eight bits.
            if image.mode.startswith(("I", "F")) or any(str(tile[-1]).endswith(";16B") for tile in image.tile):
                raise InputError(f"{name} has more than 8 bits a channel; convert it to 8 bits")
            pixels = ops.exif_transpose(image) if upright else image
            pixels = pixels.convert("L" if channels == 1 else "RGB")
            if callable(size):
                pixels = size(pixels)
            elif size is not None and pixels.size != (size, size):
                pixels = pixels.resize((size, size), ops.Image.Resampling.BILINEAR)
            array = np.asarray(pixels)
            array = array[..., None] if array.ndim == 2 else array
            return torch.from_numpy(array[..., :channels].transpose(2, 0, 1).copy())
    except ExpungeError:
        raise
    except ops.Image.DecompressionBombError as error:
        raise InputError(f"{name} claims a number of pixels {too_large}") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise InputError(f"{name} is not a readable {'/'.join(FORMATS)} image; repair or remove it") from error
