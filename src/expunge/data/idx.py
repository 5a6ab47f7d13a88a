"""Fashion-MNIST from its IDX files, plain or gzipped, as published and as Debian packages them.

torchvision reads only unpacked files in a folder of its own layout, and the core does without torchvision.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from expunge.data.examples import ImageSet
from expunge.data.locations import find
from expunge.errors import InputError

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_STEMS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Reads an IDX file of unsigned bytes. `path` may lack the `.gz` that the file on disk has.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each size as a big-endian
    32-bit integer, then the values in row-major order.

    Raises:
        InputError: missing, not IDX, or not as long as its header says.
    """
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


def load_fashion_mnist(split: str) -> ImageSet:
    """Fashion-MNIST (Xiao et al. 2017; MIT licence): 60,000 `train` or 10,000 `test` images, 1 × 28 × 28."""
    folder = find(
        "fashion-mnist",
        ("fashion-mnist", "FashionMNIST/raw"),
        f"{_STEMS[split]}-images-idx3-ubyte",
        (Path("/usr/share/datasets/fashion-mnist"),),
    )
    images = torch.from_numpy(read_idx(folder / f"{_STEMS[split]}-images-idx3-ubyte"))
    labels = torch.from_numpy(read_idx(folder / f"{_STEMS[split]}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1:
        raise InputError(f"{folder}: expected images (N, H, W) and labels (N,), not {tuple(images.shape)}")
    return ImageSet(images[:, None], labels.long(), FASHION_MNIST_CLASSES, name=f"fashion-mnist:{split}")
