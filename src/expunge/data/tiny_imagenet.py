"""Tiny-ImageNet (Le and Yang 2015) from its official tree."""

import torch

from expunge.data.examples import ImageSet
from expunge.data.folder import decode_all
from expunge.data.locations import find
from expunge.errors import InputError


def load_tiny_imagenet(split: str) -> ImageSet:
    """Tiny-ImageNet: 100,000 `train` images, or as `test` the 10,000 labelled validation images; 3 × 64 × 64.

    The published test images have no labels, so the validation images serve as the test set. Classes are in the
    order of `wnids.txt`; ids are file names.
    """
    root = find("tiny-imagenet", ("tiny-imagenet-200", "tiny-imagenet"), "wnids.txt")
    try:
        class_names = tuple((root / "wnids.txt").read_text(encoding="utf-8").split())
        if split == "train":
            folders = [(root / "train" / name / "images", name) for name in class_names]
            files = [(path, name) for folder, name in folders for path in sorted(folder.iterdir())]
        else:
            lines = (root / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
            rows = [line.split("\t") for line in lines if line]
            files = [(root / "val" / "images" / row[0], row[1]) for row in rows]
    except (OSError, IndexError) as error:
        raise InputError(f"{root} is not Tiny-ImageNet as published: {error}; get it again") from error
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for _, name in files if name not in label_of]
    if unknown or not files:
        raise InputError(f"{root} is not Tiny-ImageNet as published: unknown classes {unknown[:1]}; get it again")
    images = decode_all([path for path, _ in files], channels=3)
    labels = torch.tensor([label_of[name] for _, name in files], device="cpu")
    ids = tuple(path.name for path, _ in files)
    return ImageSet(images, labels, class_names, ids, f"tiny-imagenet:{split}")
