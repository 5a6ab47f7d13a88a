"""How a model's own library resizes and crops images, before they are scaled and normalised."""

import json
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import numpy as np

from expunge.errors import optional
from expunge.files import scratch_directory
from expunge.models.building import ModelSpec
from expunge.models.checkpoint import Header
from expunge.models.vision import torchvision_weights

Fit = Callable[[Any], Any]
"""From an image of Pillow, upright, of mode L or RGB, to one of the model's size: Pillow's or uint8, (H, W[, C])."""


def own_fit(header: Header) -> Fit | None:
    """What the model's library does to images: timm's or torchvision's evaluation transform, or an image processor.

    None for a model that expunge trained or that a factory builds, and where the library cannot do it here.
    """
    try:
        made = _FITS.get(header.spec.architecture.partition(":")[0], _no_fit)(header)
        if made is not None and np.asarray(made(_blank(header.spec))).shape[:2] == (header.spec.image_size,) * 2:
            return made
    except Exception:  # their code, and any of their versions
        return None
    return None


def _blank(spec: ModelSpec) -> Any:
    image = optional("PIL.Image", "reading image files needs Pillow", "vision")
    return image.new("L" if spec.in_channels == 1 else "RGB", (2 * spec.image_size, spec.image_size + 9))


def _timm_fit(header: Header) -> Fit | None:
    if header.recipe:  # trained here, on images as they are
        return None
    timm = optional("timm", "this model needs timm", "vision")
    data = optional("timm.data", "this model needs timm", "vision")
    spec = header.spec
    told = timm.get_pretrained_cfg(spec.architecture.removeprefix("timm:")).to_dict()
    shape = (spec.in_channels, spec.image_size, spec.image_size)
    config = data.resolve_data_config({"input_size": shape}, pretrained_cfg=told)
    # Scaling and normalising is the network's.
    steps = list(
        takewhile(lambda step: "ToTensor" not in type(step).__name__, data.create_transform(**config).transforms)
    )

    def fit(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    return fit


def _torchvision_fit(header: Header) -> Fit | None:
    spec = header.spec
    form = torchvision_weights(spec.architecture.removeprefix("torchvision:")).transforms()
    if header.recipe or form.crop_size != [spec.image_size]:  # trained here, or on images of another size
        return None
    functional = optional("torchvision.transforms.functional", "this model needs torchvision", "vision")

    def fit(image: Any) -> Any:
        resized = functional.resize(image, form.resize_size, interpolation=form.interpolation)
        return functional.center_crop(resized, form.crop_size)

    return fit


def _no_fit(_header: Header) -> None:
    return None


def _hf_fit(header: Header) -> Fit | None:
    if not header.processor:
        return None
    transformers = optional("transformers", "hf: models need transformers", "hf")
    with scratch_directory() as place:  # the library takes a directory, and finds the class by both files
        (place / "preprocessor_config.json").write_text(json.dumps(dict(header.processor)), encoding="utf-8")
        (place / "config.json").write_text(json.dumps(header.spec.options["config"]), encoding="utf-8")
        processor = transformers.AutoImageProcessor.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )

    def fit(image: Any) -> Any:
        found = processor(images=image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
        array = np.asarray(found)
        if array.dtype != np.uint8 and not np.array_equal(array, array.round().clip(0, 255)):
            raise ValueError("its images are no pixels of 8 bits")
        return array.astype(np.uint8).transpose(1, 2, 0)

    return fit


_FITS: dict[str, Callable[[Header], Fit | None]] = {"timm": _timm_fit, "torchvision": _torchvision_fit, "hf": _hf_fit}
