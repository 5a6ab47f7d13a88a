"""Images that would be seen in part: animations, and files that hold less than they claim or have been damaged."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data import load_data, read_ids
from expunge.errors import InputError
from tests.conftest import pixels, write_folder, write_image


def saved(form: str, seed: int = 0, **options: Any) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels(1, channels=3, seed=seed)[0].permute(1, 2, 0).numpy()).save(file, form, **options)
    return file.getvalue()


def animated(form: str) -> bytes:
    from PIL import Image

    return saved(form, save_all=True, append_images=[Image.open(BytesIO(saved("PNG", seed=1)))])


def folder_of(root: Path, name: str, content: bytes) -> str:
    folder = write_folder(root / "images", pixels(1, channels=3), ["Bag"])
    (folder / "Bag" / name).write_bytes(content)
    return f"folder:{folder}"


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF"])
def test_animations_are_refused(tmp_path: Path, form: str) -> None:
    with pytest.raises(InputError, match=rf"x\.{form.lower()}"):
        load_data(folder_of(tmp_path, f"x.{form.lower()}", animated(form)))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_with_less_than_it_claims_is_refused(tmp_path: Path, progressive: bool, mode: str) -> None:
    from PIL import Image

    file = BytesIO()
    image = Image.open(BytesIO(saved("PNG"))).convert(mode)
    image.save(file, "JPEG", progressive=progressive)
    whole = file.getvalue()
    load_data(folder_of(tmp_path / "whole", "x.jpg", whole))
    load_data(folder_of(tmp_path / "more", "x.jpg", whole + b"what a camera adds"))
    with pytest.raises(InputError, match=r"x\.jpg"):
        load_data(folder_of(tmp_path / "open", "x.jpg", whole[: len(whole) * 2 // 3]))
    if not progressive:  # that one lacks detail, and no pixel
        with pytest.raises(InputError, match=r"x\.jpg"):
            load_data(folder_of(tmp_path / "cut", "x.jpg", whole[: len(whole) * 2 // 3] + b"\xff\xd9"))


def test_a_png_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    whole = saved("PNG")
    for bit in torch.randint(8 * 8, 8 * len(whole), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError):
            load_data(folder_of(tmp_path / str(bit), "x.png", bytes(flipped)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write_image(tmp_path / "images/Bag/1.png", pixels(1)[0])
    for name in ("images/Bag/2.png", "ids"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"2\.png"):
        load_data(f"folder:{tmp_path}/images")
    for path in (tmp_path / "ids", Path("/dev/zero"), tmp_path / "a\0b", tmp_path / ("x" * 3000)):
        with pytest.raises(InputError, match="list of ids"):
            read_ids(path)
    with pytest.raises(InputError):
        load_data(f"safetensors:{tmp_path}/ids")
