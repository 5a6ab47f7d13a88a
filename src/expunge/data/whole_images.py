"""Whether an image file holds all that it claims: decoders fill in what is missing, or show one frame of many."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from expunge.errors import InputError

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends the data of a JPEG's scan: neither a stuffed byte nor a restart."""
_FILLER = bytes(range(1, 255)) * 4
"""Put where the data ends: a decoder that has all it needs does not look at it."""


def check_whole(image: Any, source: Path | BytesIO, name: str) -> None:
    """Raises `InputError` where only a part of a file would be seen.

    That is an animation, a PNG with a wrong checksum, or a JPEG with fewer pixels than it claims.

    Args:
        image: as Pillow opened it, not yet decoded.
        source: its file, or the bytes of it.
        name: for the message.
    """
    if image.format in {"PNG", "WEBP"} and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is an animation of {image.n_frames} images; save each as a file, or remove it")
    if image.format not in {"PNG", "JPEG", "MPO"}:
        return
    content = source.getvalue() if isinstance(source, BytesIO) else source.read_bytes()
    from PIL import Image

    if image.format == "PNG":
        with Image.open(BytesIO(content), formats=("PNG",)) as copy:
            copy.verify()  # Pillow raises where a checksum is wrong
        return
    end = _end_of_jpeg(content)
    with Image.open(BytesIO(content[:end] + _FILLER + content[end:]), formats=("JPEG",)) as filled:
        if not np.array_equal(np.asarray(filled), np.asarray(image)):
            raise InputError(f"{name} holds fewer pixels than it claims; repair or remove it")


def _end_of_jpeg(content: bytes) -> int:
    """Where the marker of the end of the first image is: before it, segments and scans follow each other."""
    at = 2
    while at + 2 <= len(content):
        kind = content[at + 1]
        if kind == 0xD9:
            return at
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if kind == 0xDA:  # data without a length follows
            found = _MARKER.search(content, at)
            at = found.start() if found else len(content)
    return len(content)
