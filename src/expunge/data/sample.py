"""The embedded sample: real images that come with the package.

The first 2,000 training and the first 1,000 test images of Fashion-MNIST (Han Xiao, Kashif Rasul, Roland Vollgraf,
2017; MIT licence, see NOTICE), cut by `scripts/make_sample.py`.
"""

from importlib.resources import as_file, files

from safetensors.torch import load_file

from expunge.data.examples import ImageSet
from expunge.data.idx import FASHION_MNIST_CLASSES


def load_sample(split: str) -> ImageSet:
    """The embedded sample: 2,000 `train` or 1,000 `test` images of Fashion-MNIST, 1 × 28 × 28.

    >>> len(load_sample("train")), tuple(load_sample("test").images.shape)
    (2000, (1000, 1, 28, 28))
    """
    with as_file(files("expunge.data") / "sample.safetensors") as path:
        tensors = load_file(path)
    return ImageSet(
        tensors[f"{split}_images"],
        tensors[f"{split}_labels"].long(),
        FASHION_MNIST_CLASSES,
        name=f"sample:{split}",
    )
