"""Damaged files of every kind that is read: refused in a sentence, or taken. `python -m tests.fuzz` tries many more."""

import warnings
from pathlib import Path

import pytest

from tests.fuzz import KINDS, run


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_taken_or_refused(kind: str, tmp_path: Path) -> None:
    for extra in ("timm", "torchvision", "transformers"):
        if kind == "checkpoints":
            pytest.importorskip(extra, reason="the extras are not installed")
    with warnings.catch_warnings(action="ignore"):
        found, wrong = run(kind, 60 if kind == "checkpoints" else 200, 1, tmp_path)
    assert not wrong
    assert found["refused"] > 20
