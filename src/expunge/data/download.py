"""Getting the named datasets from where they are published (extra: vision; needs the internet)."""

from pathlib import Path

from expunge.data.locations import cache_dir
from expunge.data.specs import NAMED
from expunge.errors import ExpungeError, MissingExtraError, SettingError

TINY_IMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
"""Address and MD5 digest of the official archive."""


def download(name: str) -> Path:
    """Downloads a named dataset into the cache directory, checks its digest, and returns that directory.

    Raises:
        SettingError: no such dataset, or `sample`, which comes with the package.
        MissingExtraError: torchvision is not installed.
        ExpungeError: it could not be downloaded.
    """
    if name not in NAMED:
        raise SettingError(f"unknown dataset {name!r}; there are {', '.join(NAMED)}")
    root = cache_dir() / "data"
    if name == "sample":
        raise SettingError("sample comes with expunge: nothing is to be downloaded, sample:train is there")
    try:
        from torchvision import datasets
        from torchvision.datasets.utils import download_and_extract_archive
    except ImportError as error:
        raise MissingExtraError(
            "downloading needs torchvision: pip install '.[vision]' in expunge's sources"
        ) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name == "tiny-imagenet":
            address, md5 = TINY_IMAGENET
            download_and_extract_archive(address, str(root), md5=md5)
        else:
            sources = {
                "fashion-mnist": datasets.FashionMNIST,
                "cifar10": datasets.CIFAR10,
                "cifar100": datasets.CIFAR100,
            }
            sources[name](str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise ExpungeError(
            f"cannot download {name}: {error}; without internet, put its files into a directory and set "
            "EXPUNGE_DATA to it"
        ) from error
    return root
