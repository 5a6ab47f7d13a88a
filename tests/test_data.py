"""DATA specs: every form, from real files on disk, good and damaged; the embedded sample."""

import gzip
import os
import pickle
import struct
import subprocess
import sys
import unicodedata
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset

import expunge.data
from expunge.data import (
    Columns,
    ImageSet,
    check_disjoint,
    digests,
    download,
    draw_ids,
    load_data,
    load_examples,
    load_unlabelled,
    materialise,
    read_ids,
)
from expunge.data.named import FASHION_MNIST_CLASSES, cache_dir
from expunge.errors import ExpungeError, InputError, SettingError
from tests.conftest import pixels, write_folder, write_image

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
real_files = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")


def image_set(size: int = 6, seed: int = 0) -> ImageSet:
    return ImageSet(pixels(size, side=4, seed=seed), torch.arange(size) % 3, ("a", "b", "c"), name="made")


# --- Fashion-MNIST ---------------------------------------------------------------------------------------------------


def idx(array: "np.ndarray[Any, np.dtype[np.uint8]]") -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.tobytes()


def write_idx(folder: Path, size: int = 7, packed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    folder.mkdir(parents=True)
    images, labels = pixels(size)[:, 0], torch.arange(size, dtype=torch.uint8) % 10
    for stem in ("train", "t10k"):
        for name, tensor in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            content = idx(tensor.numpy())
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)
    return images, labels


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("base", ["environment", "cache"])
def test_fashion_mnist_is_found_wherever_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, folder: str, packed: bool
) -> None:
    root = tmp_path / "data" if base == "environment" else cache_dir() / "data"
    if base == "environment":
        monkeypatch.setenv("EXPUNGE_DATA", str(root))
    images, labels = write_idx(root / folder, packed=packed)
    for spec in ("fashion-mnist", "fashion-mnist:train", "fashion-mnist:test"):
        loaded = load_data(spec)
        assert torch.equal(loaded.images, images[:, None])
        assert torch.equal(loaded.labels, labels.long())
        assert loaded.class_names == FASHION_MNIST_CLASSES
        assert loaded.ids == tuple(map(str, range(7)))


@real_files
def test_the_real_fashion_mnist() -> None:
    for split, size in (("train", 60_000), ("test", 10_000)):
        loaded = load_data(f"fashion-mnist:{split}")
        assert loaded.images.shape == (size, 1, 28, 28)
        assert loaded.labels.bincount().tolist() == [size // 10] * 10


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-1], "truncated"),
        (lambda content: content + b"\0", "damaged"),
        (lambda content: content[:6], "truncated"),
        (lambda content: b"", "IDX"),
        (lambda content: b"\0\0\x0d" + content[3:], "IDX"),
        (lambda content: b"\x80\x04" + content, "IDX"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "data"))
    write_idx(tmp_path / "data")
    path = tmp_path / "data/train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=said):
        load_data("fashion-mnist")


@pytest.mark.parametrize("cut", ["end", "middle"])
def test_damaged_gzip_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "data"))
    write_idx(tmp_path / "data", packed=True)
    path = tmp_path / "data/train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-20] if cut == "end" else content[:40] + b"\xff" * 40 + content[80:])
    with pytest.raises(InputError, match="again"):
        load_data("fashion-mnist")


def test_images_and_labels_must_be_as_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "data"))
    write_idx(tmp_path / "data")
    (tmp_path / "data/train-labels-idx1-ubyte").write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(InputError, match=r"7 .*6 "):
        load_data("fashion-mnist")
    (tmp_path / "data/train-labels-idx1-ubyte").write_bytes(idx(np.full(7, 10, np.uint8)))
    with pytest.raises(InputError, match=r"label 10 .* \[0, 10\)"):
        load_data("fashion-mnist")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    with pytest.raises(InputError, match=f"expunge data get {name}") as caught:
        load_data(name)
    assert str(tmp_path) in str(caught.value)


# --- CIFAR -----------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes bytes and text as the `str` of Python 2, and arrays under NumPy's old names: as the official files."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def _save_str(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)  # type: ignore[attr-defined]
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[str] = _save_str
    dispatch[bytes] = _save_str

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = {"numpy._core.multiarray": "numpy.core.multiarray"}.get(value.__module__, value.__module__)
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[type] = save_global
    dispatch[type(len)] = save_global
    dispatch[type(lambda: None)] = save_global


def write_batch(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


def batch(rows: torch.Tensor, key: str, labels: list[int]) -> dict[str, Any]:
    names = [f"image_{n}.png" for n in range(len(labels))]
    return {"batch_label": "a batch", key: labels, "data": rows.flatten(1).numpy(), "filenames": names}


def write_cifar10(folder: Path) -> torch.Tensor:
    rows = pixels(12, channels=3, side=32)
    for n in range(5):
        write_batch(folder / f"data_batch_{n + 1}", batch(rows[2 * n : 2 * n + 2], "labels", [2 * n, 2 * n + 1]))
    write_batch(folder / "test_batch", batch(rows[10:], "labels", [3, 4]))
    names = [f"class {n}" for n in range(10)]
    write_batch(folder / "batches.meta", {"label_names": names, "num_cases_per_batch": 2, "num_vis": 3072})
    return rows


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-py"])
def test_official_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    rows = write_cifar10(tmp_path / folder)
    train, test = load_data("cifar10"), load_data("cifar10:test")
    assert torch.equal(train.images, rows[:10])
    assert train.labels.tolist() == list(range(10))
    assert torch.equal(test.images, rows[10:])
    assert test.labels.tolist() == [3, 4]
    assert train.class_names == test.class_names == tuple(f"class {n}" for n in range(10))


def test_official_cifar100_takes_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    rows = pixels(5, channels=3, side=32)
    for name, part, labels in (("train", rows[:3], [99, 0, 7]), ("test", rows[3:], [5, 6])):
        content = batch(part, "fine_labels", labels) | {"coarse_labels": [1] * len(labels)}
        write_batch(tmp_path / "cifar-100-python" / name, content)
    names = {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": ["coarse"] * 20}
    write_batch(tmp_path / "cifar-100-python/meta", names)
    train = load_data("cifar100:train")
    assert torch.equal(train.images, rows[:3])
    assert train.labels.tolist() == [99, 0, 7]
    assert train.class_names[7] == "fine 7"
    assert load_data("cifar100:test").labels.tolist() == [5, 6]


def test_batches_pickled_by_python_3_load_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    rows = write_cifar10(tmp_path)
    content = batch(rows[10:], "labels", [8, 9]) | {"note": b"bytes \xff"}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    assert torch.equal(load_data("cifar10:test").images, rows[10:])


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_batch_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    write_cifar10(tmp_path)
    mark = tmp_path / "it ran"
    content = pickle.dumps({"data": Hostile(mark), "labels": []}, protocol=2)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(InputError, match=r"posix\.mkdir"):
        load_data("cifar10")
    assert not mark.exists()
    pickle.loads(content)  # noqa: S301  (it is hostile indeed)
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "list"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "labels"),
        ({"data": np.zeros((2, 99), np.uint8), "labels": [0, 1]}, "published"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "2 .*1 "),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "outside"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [1.5]}, "integers"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, "published"),
    ],
)
def test_foreign_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    write_cifar10(tmp_path)
    write_batch(tmp_path / "test_batch", content)
    with pytest.raises(InputError, match=said):
        load_data("cifar10:test")


def test_truncated_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    write_cifar10(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    for size in (0, 1, 30, len(whole) - 2):
        (tmp_path / "test_batch").write_bytes(whole[:size])
        with pytest.raises(InputError, match="CIFAR"):
            load_data("cifar10:test")


def test_cifar_as_a_tree_of_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    names = [f"class{n}" for n in range(10)]
    flat = torch.full((10, 3, 32, 32), 7, dtype=torch.uint8) * torch.arange(1, 11, dtype=torch.uint8).view(-1, 1, 1, 1)
    write_folder(tmp_path / "cifar10/train", flat, names, ".jpg")
    write_folder(tmp_path / "cifar10/test", flat[:, :, :16], names, ".jpg")
    train = load_data("cifar10")
    assert (train.name, train.class_names) == ("cifar10:train", tuple(names))
    assert train.ids[:2] == ("class0/0000.jpg", "class1/0001.jpg")
    assert int((train.images.int() - flat.int()).abs().max()) <= 2  # JPEG loses a little
    assert load_data("cifar10:test").images.shape[2:] == (16, 32)


def test_a_tree_of_something_else_is_not_taken_for_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    write_folder(tmp_path / "train", pixels(2, channels=3), ["cat", "dog"])
    with pytest.raises(InputError, match=r"2 classes.*10 .*cifar10:train"):
        load_data("cifar10")


# --- Tiny-ImageNet ---------------------------------------------------------------------------------------------------


def write_tiny_imagenet(root: Path) -> torch.Tensor:
    """Three classes of two training images, and three validation images, in the official tree. wnids is unsorted."""
    images = pixels(9, channels=3, side=64)
    names = ["n03", "n01", "n02"]
    for n in range(6):
        name = names[n // 2]
        write_image(root / "train" / name / "images" / f"{name}_{n}.JPEG", images[n], "PNG")
        (root / "train" / name / f"{name}_boxes.txt").write_text("0\t0\t63\t63\n")
    lines = []
    for n in range(3):
        write_image(root / "val/images" / f"val_{n}.JPEG", images[6 + n], "PNG")
        lines.append(f"val_{n}.JPEG\t{names[2 - n]}\t0\t0\t63\t63\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    return images


@pytest.mark.parametrize("folder", [".", "tiny-imagenet-200", "tiny-imagenet"])
def test_tiny_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    images = write_tiny_imagenet(tmp_path / folder)
    train, test = load_data("tiny-imagenet"), load_data("tiny-imagenet:test")
    assert torch.equal(train.images, images[:6])
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.ids[2] == "n01_2.JPEG"
    assert torch.equal(test.images, images[6:])
    assert test.labels.tolist() == [2, 1, 0]
    assert train.class_names == test.class_names == ("n03", "n01", "n02")


@pytest.mark.parametrize("missing", ["train/n01/images", "val/val_annotations.txt", "val/images/val_1.JPEG"])
def test_an_incomplete_tiny_imagenet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    write_tiny_imagenet(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=missing):
        load_data(f"tiny-imagenet:{'train' if missing.startswith('train') else 'test'}")


def test_a_class_that_wnids_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    write_tiny_imagenet(tmp_path)
    (tmp_path / "wnids.txt").write_text("n01\nn02\n")
    with pytest.raises(InputError, match="classes"):
        load_data("tiny-imagenet:test")


# --- Folders and image files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG", ".webp", ".jpg"])
def test_a_folder(tmp_path: Path, suffix: str, channels: int) -> None:
    images = torch.full((3, channels, 8, 8), 40, dtype=torch.uint8) + 60 * torch.arange(3, dtype=torch.uint8).view(
        3, 1, 1, 1
    )
    write_folder(tmp_path, images, ["b", "a", "b"], suffix)
    (tmp_path / "b/notes.txt").write_text("not an image")
    (tmp_path / "readme.txt").write_text("not a class")
    loaded = load_data(f"folder:{tmp_path}", channels=channels)
    assert loaded.class_names == ("a", "b")
    assert loaded.ids == (f"a/0001{suffix}", f"b/0000{suffix}", f"b/0002{suffix}")
    assert loaded.labels.tolist() == [0, 1, 1]
    assert int((loaded.images.int() - images[[1, 0, 2]].int()).abs().max()) <= 2


def test_what_is_hidden_in_a_folder_is_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, pixels(2), ["a", "b"])
    plain = load_data(f"folder:{tmp_path}")
    write_folder(tmp_path, pixels(1), [".ipynb_checkpoints"])
    write_folder(tmp_path / "a", pixels(1), [".thumbnails"])
    (tmp_path / "b" / "._0.png").write_bytes(b"what macOS leaves beside files")
    again = load_data(f"folder:{tmp_path}")
    assert (again.class_names, again.ids) == (plain.class_names, plain.ids)
    assert torch.equal(again.images, plain.images)


def test_an_image_that_would_be_left_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", pixels(2), ["a", "b"])
    (tmp_path / "one/a/notes.txt").write_text("no image")
    assert len(load_data(f"folder:{tmp_path}/one")) == 2
    for name, said in (("0.png", "the folder of its class"), ("a/1.GIF", "convert it"), ("b/x/1.tiff", "convert it")):
        path = tmp_path / "one" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        with pytest.raises(InputError, match=f"{name} would be left out; .*{said}"):
            load_data(f"folder:{tmp_path}/one")
        path.unlink()
    for name in ("a/2", "b/3.png.bak"):  # images by their content
        (tmp_path / "one" / name).write_bytes((tmp_path / "one/a/0000.png").read_bytes())
        with pytest.raises(InputError, match=f"{name} .*suffix"):
            load_data(f"folder:{tmp_path}/one")
        (tmp_path / "one" / name).unlink()
    write_folder(tmp_path, pixels(1), ["more"])
    (tmp_path / "one/a/linked").symlink_to(tmp_path / "more", target_is_directory=True)
    with pytest.raises(InputError, match=r"a/linked .*links"):
        load_data(f"folder:{tmp_path}/one")


@pytest.mark.parametrize("name", ["k.tga", "k.ico", "k.jxl", "k.jpeg2000", "k.pbm", "k.HEIC"])
def test_images_of_rare_formats_are_refused(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, pixels(2), ["a", "b"])
    (tmp_path / "a" / name).write_bytes(b"whatever")
    with pytest.raises(InputError, match=f"a/{name} .*convert"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("form", ["BMP", "AVIF", "JPEG2000", "heic", "jxl"])
def test_images_of_rare_formats_without_their_suffix_are_refused(tmp_path: Path, form: str) -> None:
    from PIL import Image, features

    write_folder(tmp_path, pixels(2), ["a", "b"])
    if form == "heic":
        (tmp_path / "a/k").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    elif form == "jxl":
        (tmp_path / "a/k").write_bytes(b"\xff\x0a" + bytes(20))
    elif form == "AVIF" and not features.check("avif"):
        (tmp_path / "a/k").write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0")
    else:
        Image.fromarray(pixels(1)[0, 0].numpy()).convert("RGB").save(tmp_path / "a/k", form)
    with pytest.raises(InputError, match=r"a/k .*suffix"):
        load_data(f"folder:{tmp_path}")


def test_what_cannot_be_read_of_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, pixels(3), ["a", "b", "b"])
    (tmp_path / "b/x.png").mkdir()  # no image
    (tmp_path / "b/notes").write_text("image")
    assert len(load_data(f"folder:{tmp_path}")) == 3
    write_folder(tmp_path / "b", pixels(1), ["session.raw"])
    assert len(load_data(f"folder:{tmp_path}")) == 4
    (tmp_path / "b/.hidden_b").mkdir()
    for call in ("hidden", "scandir", "open"):  # root, whom tests may run as, may read all
        owner, name = (Path, "open") if call == "open" else (os, "scandir")
        real = getattr(owner, name)

        denied = "/.hidden_b" if call == "hidden" else ("/b", "notes")

        def refusing(path: Any, *rest: Any, real: Any = real, denied: str | tuple[str, ...] = denied) -> Any:
            if str(path).endswith(denied):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refusing)
            if call == "hidden":
                assert len(load_data(f"folder:{tmp_path}")) == 4
                continue
            with pytest.raises(InputError, match=r"Permission denied"):
                load_data(f"folder:{tmp_path}")


def test_class_names_are_one_however_their_accents_are_written(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for folder, model in ((composed, decomposed), (decomposed, composed)):
        write_folder(tmp_path / folder, pixels(2), [folder, "b"])
        assert load_data(f"folder:{tmp_path / folder}", class_names=("a", "b", model)).labels.tolist() == [1, 2]


def test_a_user_without_a_home_reads_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    write_folder(tmp_path, pixels(3), ["a", "b", "b"])
    assert len(load_data(f"folder:{tmp_path}")) == 3
    with pytest.raises(InputError, match="cifar10"):
        load_data("cifar10")
    with pytest.raises(ExpungeError, match="home"):
        download("cifar10")


def test_a_cache_that_one_may_not_look_into_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.stat

    def refusing(path: Path, **rest: Any) -> os.stat_result:
        if "closed" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **rest)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed"))
    monkeypatch.setattr(Path, "stat", refusing)
    write_folder(tmp_path / "images", pixels(3), ["a", "b", "b"])
    assert len(load_data(f"folder:{tmp_path}/images")) == 3
    with pytest.raises(InputError, match="cifar10"):
        load_data("cifar10")


def test_named_data_is_matched_by_name_to_the_models_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_data("sample:test")
    names = tuple(sorted(plain.class_names))
    assert names != plain.class_names
    loaded = load_data("sample:test", class_names=names)
    assert [names[n] for n in loaded.labels.tolist()] == [plain.class_names[n] for n in plain.labels.tolist()]
    numbers = tuple(map(str, range(10)))
    assert torch.equal(load_data("sample:test", class_names=numbers).labels, plain.labels)
    with pytest.raises(InputError, match="model"):
        load_data("sample:test", class_names=names[:9])


def test_a_tree_of_numbered_classes_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    write_folder(tmp_path / "cifar100/train", pixels(100, channels=3, side=4), [str(n) for n in range(100)])
    loaded = load_data("cifar100")
    assert loaded.class_names == tuple(map(str, range(100)))
    assert [int(name.partition("/")[0]) for name in loaded.ids] == loaded.labels.tolist()


def test_a_folders_classes_are_matched_by_name_to_the_models(tmp_path: Path) -> None:
    write_folder(tmp_path, pixels(3), ["T-shirt_top", "Bag", "Bag"])
    loaded = load_data(f"folder:{tmp_path}", class_names=FASHION_MNIST_CLASSES)
    assert loaded.labels.tolist() == [8, 8, 0]
    with pytest.raises(InputError, match=r"'Bag'.*one, two"):
        load_data(f"folder:{tmp_path}", class_names=("one", "two"))


def test_a_class_name_that_two_of_the_models_classes_have_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, pixels(2), ["crane", "b"])
    for names, number in ((("crane", "b", "crane"), 2), (("a", "b", "crane"), 0)):
        if number:
            with pytest.raises(InputError, match=f"has a class 'crane', and the model has {number} classes of that"):
                load_data(f"folder:{tmp_path}", class_names=names)
        else:
            assert load_data(f"folder:{tmp_path}", class_names=names).labels.tolist() == [1, 2]


def test_a_folder_is_grey_only_where_all_of_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path, pixels(2), ["a", "a"])
    assert load_data(f"folder:{tmp_path}").images.shape == (2, 1, 28, 28)
    write_image(tmp_path / "a/0002.png", pixels(1, channels=3)[0])
    assert load_data(f"folder:{tmp_path}").images.shape == (3, 3, 28, 28)
    assert load_data(f"folder:{tmp_path}", channels=1).images.shape == (3, 1, 28, 28)


def test_resizing(tmp_path: Path) -> None:
    write_folder(tmp_path, torch.full((1, 1, 40, 40), 200, dtype=torch.uint8), ["a"])
    write_image(tmp_path / "a/1.png", torch.full((1, 20, 30), 100, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"30 × 20 .*0000\.png .*40 × 40"):
        load_data(f"folder:{tmp_path}")
    loaded = load_data(f"folder:{tmp_path}", size=28)
    assert loaded.images.shape == (2, 1, 28, 28)
    assert loaded.images.flatten(1).unique(dim=1).tolist() == [[200], [100]]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    for make, said in (
        (tmp_path / "none", "directory"),
        (tmp_path / "empty", "sub-directories"),
        (tmp_path / "classes", "images"),
    ):
        if make.name != "none":
            make.mkdir()
        if make.name == "classes":
            (make / "a").mkdir()
        with pytest.raises(InputError, match=said):
            load_data(f"folder:{make}")


def png(width: int, height: int, *, depth: int = 8) -> bytes:
    """A tiny PNG that claims a size and holds no such pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 10_000, 60_000])
def test_a_tiny_file_that_claims_a_huge_image_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/bomb.png").write_bytes(png(side, side))
    with pytest.raises(InputError, match=r"bomb.png .*50,000,000"):
        load_data(f"folder:{tmp_path}")


def test_unreadable_images_are_refused_by_name(tmp_path: Path) -> None:
    good = write_image(tmp_path / "a/0.png", pixels(1, side=64)[0]).read_bytes()
    for content in (b"", b"no image at all", good[:200], good[:-30], png(4, 4)):
        (tmp_path / "a/1.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a/1.png .*PNG/JPEG/BMP/WEBP"):
            load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_whatever_their_suffix(tmp_path: Path, form: str) -> None:
    write_image(tmp_path / "a/0.png", pixels(1)[0], form)
    with pytest.raises(InputError, match="readable"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_colours_of_16_bits_are_refused_rather_than_cut(tmp_path: Path, kind: int) -> None:
    """PNGs of colour, of grey with transparency, and of both, which Pillow opens as if they had 8 bits."""
    size = {2: 3, 4: 2, 6: 4}[kind] * 2
    head = struct.pack(">IIBBBBB", 2, 2, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress((b"\0" + b"\0\xff" * size) * 2)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(InputError, match="8 bits"):
        load_data(f"folder:{tmp_path}")


def test_images_of_16_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "a/0.png")
    with pytest.raises(InputError, match="8 bits"):
        load_data(f"folder:{tmp_path}")


def test_broken_links_and_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, pixels(2, side=4), ["a", "b"])
    (tmp_path / "a/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="readable"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "a/gone.png").unlink()
    (tmp_path / os.fsdecode(b"a/\xff.png")).write_bytes((tmp_path / "a/0000.png").read_bytes())
    with pytest.raises(InputError, match="UTF-8"):
        load_data(f"folder:{tmp_path}")


def test_nothing_of_what_is_read_is_kept_on_disk(tmp_path: Path) -> None:
    """A copy would outlive the images that are to be deleted."""
    load_data(f"folder:{write_folder(tmp_path / 'images', pixels(1200, side=2), ['a', 'b'] * 600)}")
    assert not cache_dir().exists()


# --- Hugging Face, safetensors, factories ----------------------------------------------------------------------------


def hf_dataset(images: torch.Tensor, labels: list[int], names: list[str]) -> Any:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    from PIL import Image

    kinds = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=names)})
    arrays = [image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy() for image in images]
    rows = {"picture": [Image.fromarray(array) for array in arrays], "kind": labels}
    return datasets.Dataset.from_dict(rows, features=kinds)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_hugging_face_dataset(tmp_path: Path, channels: int) -> None:
    images = pixels(4, channels=channels)
    hf_dataset(images, [1, 0, 1, 2], ["x", "y", "z"]).save_to_disk(tmp_path / "saved")
    loaded = load_data(f"hf:{tmp_path}/saved:train")
    assert torch.equal(loaded.images, images)
    assert loaded.labels.tolist() == [1, 0, 1, 2]
    assert loaded.class_names == ("x", "y", "z")
    renamed = load_data(f"hf:{tmp_path}/saved", class_names=("z", "y", "x"))
    assert renamed.labels.tolist() == [1, 2, 1, 0]


def test_a_hugging_face_dataset_is_grey_only_where_all_of_it_is(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    grey, coloured = hf_dataset(pixels(1), [0], ["x"]), hf_dataset(pixels(2, channels=3), [0, 0], ["x"])
    datasets.concatenate_datasets([grey, coloured]).save_to_disk(tmp_path / "saved")
    assert load_data(f"hf:{tmp_path}/saved").images.shape == (3, 3, 28, 28)


def test_the_split_of_a_saved_dataset_dict(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    images = pixels(3)
    parts = {"train": hf_dataset(images[:2], [0, 1], ["x", "y"]), "test": hf_dataset(images[2:], [1], ["x", "y"])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert torch.equal(load_data(f"hf:{tmp_path}/saved:test").images, images[2:])
    assert torch.equal(load_data(f"hf:{tmp_path}/saved").images, images[:2])
    with pytest.raises(InputError, match=r"'valid'.*train, test"):
        load_data(f"hf:{tmp_path}/saved:valid")
    with pytest.raises(InputError, match=r"'test'.*train"):  # one that was saved alone
        load_data(f"hf:{tmp_path}/saved/train:test")


def test_images_are_turned_as_their_files_say_wherever_they_lie(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(pixels(1, side=8)[0, 0].numpy()[:, :6])
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "f" / "x").mkdir(parents=True)
    image.save(tmp_path / "f" / "x" / "0.png", exif=turned)
    upright = np.rot90(np.asarray(image), -1)
    assert np.array_equal(load_data(f"folder:{tmp_path}/f").images[0, 0], upright)
    assert np.array_equal(load_unlabelled(f"folder:{tmp_path}/f")[0][0][0], upright)
    for load in (load_data, load_unlabelled):
        assert np.array_equal(load(f"folder:{tmp_path}/f", upright=False)[0][0][0], np.asarray(image))


def test_the_parts_of_a_dataset_are_no_classes(tmp_path: Path) -> None:
    for n, names in enumerate((["train", "test"], ["Train", "val", "TEST"])):
        root = write_folder(tmp_path / str(n), pixels(len(names)), names)
        with pytest.raises(InputError, match=rf"parts.*folder:{root}/[tT]"):
            load_data(f"folder:{root}")
    both = write_folder(tmp_path / "both", pixels(2), ["train", "tram"])
    assert load_data(f"folder:{both}").class_names == ("train", "tram")
    one = write_folder(tmp_path / "one", pixels(1), ["train"])
    assert load_data(f"folder:{one}", class_names=("train", "tram")).labels.tolist() == [0]


def test_ids_are_one_however_their_accents_are_written() -> None:
    nfd, nfc = (unicodedata.normalize(form, "a/café.png") for form in ("NFD", "NFC"))
    for given, wanted in ((nfd, nfc), (nfc, nfd), (nfc, f" {nfd} "), (nfd, nfd)):
        assert ImageSet(pixels(2), torch.tensor([0, 0]), ("a",), ("x", given)).select([wanted]).ids == (given,)
    both = ImageSet(pixels(2), torch.tensor([0, 0]), ("a",), (nfd, nfc))
    assert [both.select([i]).ids for i in (nfd, nfc)] == [(nfd,), (nfc,)]
    alike = ("a/c\u0327afe\u0301.png", "a/\u00e7afe\u0301.png")
    with pytest.raises(InputError, match="two examples"):
        ImageSet(pixels(2), torch.tensor([0, 0]), ("a",), alike).select(["a/\u00e7af\u00e9.png"])
    with pytest.raises(InputError, match="more than once"):
        ImageSet(pixels(2), torch.tensor([0, 0]), ("a",), ("x", nfd)).select([nfc, nfd])


def test_a_hugging_face_image_is_upright_and_has_a_label(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    from PIL import Image

    image = Image.fromarray(pixels(1, side=8)[0, 0].numpy()[:, :6])
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x"])})
    content = BytesIO()
    image.save(content, "PNG", exif=turned)
    rows = {"image": [{"bytes": content.getvalue(), "path": None}], "label": [0]}
    saved = datasets.Dataset.from_dict(rows, features=kinds)
    saved.save_to_disk(tmp_path / "turned")
    loaded = load_data(f"hf:{tmp_path}/turned").images[0, 0]
    assert loaded.shape == (6, 8)
    assert np.array_equal(loaded.numpy(), np.asarray(saved[0]["image"]))
    datasets.Dataset.from_dict(rows | {"label": [None]}, features=kinds).save_to_disk(tmp_path / "bare")
    with pytest.raises(InputError, match=r"example 0 .*label"):
        load_data(f"hf:{tmp_path}/bare")


def test_hugging_face_images_have_the_same_limits_as_files(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x"])})
    for n, (content, said) in enumerate(((png(20_000, 20_000), "over the limit"), (b"junk", "not a readable"))):
        rows = {"image": [{"bytes": content, "path": None}], "label": [0]}
        datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / str(n))
        with pytest.raises(InputError, match=f"example 0 .*{said}"):
            load_data(f"hf:{tmp_path}/{n}:train")


def test_a_hugging_face_dataset_without_labels_is_refused(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hf is not installed")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(InputError, match="--label-column"):
        load_data(f"hf:{tmp_path}/text:train")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_safetensors_file(tmp_path: Path, dtype: torch.dtype) -> None:
    images = pixels(4)
    save_file({"images": images, "labels": torch.tensor([2, 0, 1, 2], dtype=dtype)}, tmp_path / "d.safetensors")
    loaded = load_data(f"safetensors:{tmp_path}/d.safetensors")
    assert torch.equal(loaded.images, images)
    assert loaded.labels.tolist() == [2, 0, 1, 2]
    assert loaded.class_names == ("0", "1", "2")
    with pytest.raises(InputError, match=r"label 2 .* \[0, 2\)"):
        load_data(f"safetensors:{tmp_path}/d.safetensors", class_names=("a", "b"))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"images": pixels(2)}, "labels"),
        ({"images": pixels(2), "labels": torch.tensor([0.0, 1.0])}, "integers"),
        ({"images": pixels(2), "labels": torch.tensor([True, False])}, "integers"),
        ({"images": pixels(2), "labels": torch.tensor([0, -1])}, "label -1 "),
        ({"images": pixels(2), "labels": torch.tensor([0, 10**12])}, "large"),
        ({"images": pixels(2), "labels": torch.tensor([[0], [1]])}, "one an example"),
        ({"images": pixels(2), "labels": torch.tensor(1)}, "one an example"),
        ({"images": pixels(2), "labels": torch.tensor([0j, 1j])}, "integers"),
        ({"images": pixels(2)[:, :0], "labels": torch.tensor([0, 1])}, "no pixels"),
        ({"images": pixels(2), "labels": torch.tensor([0])}, "2 .*1 "),
        ({"images": pixels(2)[:, 0], "labels": torch.tensor([0, 1])}, "uint8"),
        ({"images": torch.rand(2, 1, 4, 4), "labels": torch.tensor([0, 1])}, "uint8"),
    ],
)
def test_unfit_tensors_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "d.safetensors")
    with pytest.raises(InputError, match=said):
        load_data(f"safetensors:{tmp_path}/d.safetensors")


def test_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text(
        "import torch\nfrom expunge import ImageSet\n"
        "def make(): return ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ('a', 'b'))\n"
        "def wrong(): return [1]\n"
        "def broken(): return {}['images']\n"
        "constant = 3\n"
    )
    (tmp_path / "their_broken_data.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_data("py:their_data:make").class_names == ("a", "b")
    for spec, said in (
        ("py:their_data:wrong", "list"),
        ("py:their_data:broken", "py:their_data:broken .*KeyError: 'images'"),
        ("py:their_data:constant", "callable"),
        ("py:their_data:none", "import"),
        ("py:their_data", "import"),
        ("py:no_such_module:make", "import"),
        ("py:their_broken_data:make", "division by zero"),
    ):
        with pytest.raises(InputError, match=said):
            load_data(spec)


@pytest.mark.parametrize("where", ["class", "file"])
def test_a_folder_with_a_name_that_is_not_utf_8_is_refused(where: str, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    names = {"class": f"{odd}/1.png", "file": f"a/{odd}.png"}
    for name in ("b/2.png", names[where]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_image(path, pixels(1, side=8)[0])
    with pytest.raises(InputError, match=r"caf\\udce9.* is not UTF-8; rename it"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("path", "meant"),
    [("photos", "folder"), ("table.CSV", "csv"), ("a b.parquet", "parquet"), ("x.safetensors", "safetensors")],
)
@pytest.mark.parametrize("columns", [Columns(), Columns(label="kind")], ids=["", "with columns"])
def test_a_path_alone_is_told_what_it_would_be(path: str, meant: str, columns: Columns, tmp_path: Path) -> None:
    place = tmp_path / path
    place.write_text("") if place.suffix else place.mkdir()
    with pytest.raises(InputError) as caught:
        load_examples(str(place), columns=columns)
    assert str(caught.value).endswith(f"give {meant}:{place}")
    assert "\n" not in str(caught.value)
    (tmp_path / "make.py").write_text("")
    with pytest.raises(InputError, match=r"give fashion-mnist:train, folder:DIR"):
        load_examples(str(tmp_path / "make.py"))


@pytest.mark.parametrize(
    "spec", ["x" * 5000, "a\0b", "", "mnist", "folder", "folder:", "cifar", "sample/train", "http://x/y"]
)
def test_unknown_data(spec: str) -> None:
    with pytest.raises(InputError, match="unknown data"):
        load_data(spec)
    with pytest.raises(SettingError, match=r"train .*'valid'"):
        load_data("sample:valid")


# --- The embedded sample ---------------------------------------------------------------------------------------------


@real_files
def test_the_sample_is_the_first_real_images() -> None:
    for split, size in (("train", 2_000), ("test", 1_000)):
        sample, whole = load_data(f"sample:{split}"), load_data(f"fashion-mnist:{split}")
        assert digests(sample.images) == digests(whole.images[:size])
        assert torch.equal(sample.labels, whole.labels[:size])
        assert sample.class_names == whole.class_names


def test_the_sample_is_small_and_no_pickle() -> None:
    path = Path(expunge.data.__file__).with_name("sample.safetensors")
    assert path.stat().st_size <= 4_000_000
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert path.read_bytes()[8 : 8 + length].strip().startswith(b"{")


def test_the_sample_needs_no_network_and_no_pickle() -> None:
    code = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event.startswith(('socket.', 'pickle.')): raise SystemExit(f'it did {event} {arguments}')\n"
        "from expunge import load_data\n"
        "sys.addaudithook(watch)\n"
        "print(len(load_data('sample:train')), len(load_data('sample:test')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2000 1000\n", "")


# --- Sets of examples ------------------------------------------------------------------------------------------------


def test_select_take_and_without() -> None:
    images = image_set()
    chosen = images.select(["4", "1"])
    assert chosen.ids == ("4", "1")
    assert torch.equal(chosen.images, images.images[[4, 1]])
    assert chosen.labels.tolist() == [1, 1]
    assert images.take([0, 0][:1]).ids == ("0",)
    assert images.take(torch.tensor([False, True, False, False, True, False])).ids == ("1", "4")
    assert len(images.take([])) == 0
    with pytest.raises(InputError, match=r"integers.*torch\.float32"):
        images.take(torch.tensor([1.7]))
    with pytest.raises(InputError, match=r"mask of 2 .*6 "):
        images.take(torch.tensor([True, False]))
    with pytest.raises(InputError, match="'9'"):
        images.select([9])  # type: ignore[list-item]
    with torch.device("meta"):
        assert images.without(images.take([1, 2])).ids == ("0", "3", "4", "5")
    spaced = ImageSet(images.images, images.labels, images.class_names, (" 0", "1", "2", "3", "4", "5 "))
    assert spaced.select([" 0", " 1 ", "5 "]).ids == (" 0", "1", "5 ")
    rest = images.without(chosen)
    assert rest.ids == ("0", "2", "3", "5")
    assert len(images.without(images)) == 0
    assert images[3][1] == 0
    assert torch.equal(images[3][0], images.images[3])


@pytest.mark.parametrize(
    ("ids", "said"),
    [(["9"], "no example '9'.*run from '0' to '5'"), (["1", "1"], "'1' .*once"), ([], "empty")],
)
def test_bad_ids_are_refused(ids: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        image_set().select(ids)


@pytest.mark.parametrize(
    ("images", "labels", "ids", "said"),
    [
        (torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), (), "uint8"),
        (pixels(2)[0], torch.tensor([0, 1]), (), "shape"),
        (pixels(2), torch.tensor([0, 3]), (), "label 3 "),
        (pixels(2), torch.tensor([0, -1]), (), "label -1 "),
        (pixels(2), torch.tensor([0.0, 1.0]), (), "integers"),
        (pixels(2), torch.tensor([0]), (), "2 .*1"),
        (pixels(2), torch.tensor([0, 1]), ("a",), "id "),
        (pixels(2), torch.tensor([0, 1]), ("a", "a"), "unique"),
    ],
)
def test_an_image_set_is_checked(images: torch.Tensor, labels: torch.Tensor, ids: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ImageSet(images, labels, ("a", "b", "c"), ids)


def test_ids_files(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_bytes("\ufeff3\r\n\n  a/b c.png \n".encode())
    assert image_set().select(read_ids(file)[:1]).ids == ("3",)
    assert [line.strip() for line in read_ids(str(file))] == ["3", "a/b c.png"]
    file.write_text("3\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"is not UTF-8 .*; save it as such"):
        read_ids(file)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="ids"):
            read_ids(path)


def test_drawn_ids_are_nested_and_follow_the_seed() -> None:
    images = image_set(50)
    assert draw_ids(images, 10, 1) == draw_ids(images, 40, 1)[:10]
    assert draw_ids(images, 10, 1) != draw_ids(images, 10, 2)
    assert sorted(draw_ids(images, 50, 3)) == sorted(images.ids)
    for num in (0, 51):
        with pytest.raises(InputError, match=f"cannot draw {num} of the 50"):
            draw_ids(images, num, 0)


def test_digests_tell_values_shapes_and_dtypes_apart() -> None:
    zeros = torch.zeros(1, 4)
    others = [zeros.view(1, 2, 2), zeros.int(), zeros + 1e-45, zeros.bfloat16(), zeros.half()]
    assert len({digests(tensor)[0] for tensor in [zeros, *others]}) == 6
    assert digests(torch.arange(6.0).view(2, 3).T.contiguous().T) == digests(torch.arange(6.0).view(2, 3))


def test_sets_that_share_an_image_are_refused() -> None:
    a, b = pixels(5, seed=1), pixels(5, seed=2)
    check_disjoint(a, b, "forget", "test")
    with pytest.raises(InputError, match=r"1 .*forget"):
        check_disjoint(a, torch.cat([b, a[2:3]]), "forget", "test")


class Listed(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_materialise_takes_tensors_arrays_and_every_kind_of_integer() -> None:
    items = [(torch.ones(2), 1), (np.ones(2, np.float32), np.int64(2)), [[1.0, 1.0], torch.tensor(0)]]
    made = materialise(Listed(items), "forget")
    assert made.inputs.tolist() == [[1.0, 1.0]] * 3
    assert made.labels.tolist() == [1, 2, 0]
    assert materialise(Listed(items), "forget", [2, 0]).labels.tolist() == [0, 1]
    assert materialise(image_set(), "forget", [5]).labels.tolist() == [2]


GOOD = torch.ones(2)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "forget.*empty"),
        ([GOOD], "example 0 .*pair"),
        ([(GOOD, 1), (GOOD, 1, 2)], "example 1 .*pair"),
        ([{"image": GOOD, "label": 1}], "pair"),
        ([(GOOD, 1), (torch.ones(3), 1)], r"example 1 .*\(3,\).*\(2,\)"),
        ([(GOOD * float("nan"), 1)], "NaN"),
        ([(GOOD * float("inf"), 1)], "infinity"),
        ([(GOOD, 1.5)], "float"),
        ([(GOOD, torch.tensor(2.0))], "float"),
        ([(GOOD, True)], "bool"),
        ([(GOOD, torch.tensor(True))], "bool"),
        ([(GOOD, "cat")], "str"),
        ([(GOOD, torch.tensor([0, 1]))], "2 values"),
        ([("a path", 1)], "of str, cannot become a tensor"),
        ([(None, 1)], "NoneType"),
    ],
)
def test_materialise_refuses(items: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        materialise(Listed(items), "forget")


def test_materialise_refuses_what_is_no_dataset() -> None:
    with pytest.raises(InputError, match=r"__len__ .*generator"):
        materialise((pair for pair in [(GOOD, 1)]), "forget")  # type: ignore[arg-type]


def test_a_model_without_class_names_takes_folders_named_by_number(tmp_path: Path) -> None:
    """Classes 2 and 10 alone are 2 and 10, not 0 and 1 in the order of their names."""
    folder = write_folder(tmp_path / "a", pixels(3, channels=1, side=9), ["10", "2", "10"])
    images = load_data(f"folder:{folder}", class_names=())
    assert [images.labels[n].item() for n in range(3)] == [int(i.split("/")[0]) for i in images.ids]
    assert len(images.class_names) == 11
    named = write_folder(tmp_path / "b", pixels(2, channels=1, side=9), ["cat", "dog"])
    with pytest.raises(InputError, match="class number"):
        load_data(f"folder:{named}", class_names=())
