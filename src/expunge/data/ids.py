"""Lists of ids, and what they mean."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from torch.utils.data import Subset

from expunge.errors import InputError
from expunge.parsing import read_text


def read_ids(path: str | Path) -> list[str]:
    """Reads a list of ids: one id a line, blank lines ignored. Raises `InputError` if it cannot be read."""
    try:
        text = read_text(Path(path))
    except InputError as error:
        raise InputError(f"the list of ids cannot be read: {error}") from error
    return [line for line in text.split("\n") if line.strip()]


def ids_of(dataset: Any) -> tuple[str, ...]:
    """One id an example, as a dataset tells them; () where it has none.

    They are its `ids`, the paths of torchvision's ImageFolder below its root, or, of a `Subset`, those of the dataset
    that it is taken from, or the positions there.
    """
    if isinstance(dataset, Subset):
        whole = ids_of(dataset.dataset)
        return tuple(whole[n] if whole else str(n) for n in dataset.indices)
    own, files = getattr(dataset, "ids", ()), getattr(dataset, "samples", None)
    if (isinstance(own, list | tuple) or (isinstance(own, np.ndarray) and own.ndim == 1)) and len(own):
        return tuple(map(str, own))
    root = getattr(dataset, "root", None)
    if isinstance(files, list) and files and isinstance(files[0], tuple) and isinstance(root, str | Path):
        return tuple(Path(os.path.relpath(str(path), root)).as_posix() for path, *_ in files)
    return ()


def meant_ids(listed: Sequence[str], known: Sequence[str]) -> list[str]:
    """The known id that each listed one means, or what is listed where there is none.

    It has the same characters, but for blanks at either end, or the same with accents written otherwise: file systems
    differ in that. Raises `InputError` where two ids are meant.
    """
    exact, composed = set(known), dict[str, list[str]]()
    for own in known:
        composed.setdefault(normalize("NFC", own), []).append(own)

    def meant(given: str) -> str:
        for wanted in (given, given.strip()):  # a file's name may begin or end with a blank
            alike = [wanted] if wanted in exact else composed.get(normalize("NFC", wanted), [])
            if len(alike) > 1:
                raise InputError(
                    f"id {wanted!r} means two examples, {alike[0]!a} and {alike[1]!a}, which look the same: rename one"
                )
            if alike:
                return alike[0]
        return given.strip()

    return [meant(str(given)) for given in listed]


def positions_of(listed: Sequence[str], known: Sequence[str], name: str) -> list[int]:
    """Where the listed ids (`meant_ids`) stand among those of the set `name`.

    Raises `InputError` where one is unknown or repeated, or there are none.
    """
    position = {own: n for n, own in enumerate(known)}
    ids = meant_ids(listed, known)
    repeated = [i for i, count in Counter(ids).items() if count > 1]
    if repeated:
        raise InputError(f"id {repeated[0]!r} is listed more than once; list each id once")
    unknown = [i for i in ids if i not in position]
    if unknown:
        run = f"run from {known[0]!r} to {known[-1]!r}" if known else "are none"
        raise InputError(
            f"{name} has no example {unknown[0]!r} ({len(unknown)} of {len(ids)} ids are unknown); its ids {run}"
        )
    if not ids:
        raise InputError("the list of ids is empty; give at least one")
    return [position[i] for i in ids]
