"""--resize prepares images as the model's own library does, to the bit, or says that it does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge.cli.sources import Sources, images_for, notes_on
from expunge.data import ImageSet
from expunge.models import Header, ModelSpec, load_model, own_fit, read_header, save_checkpoint
from tests.conftest import pixels, succeed, write_folder
from tests.test_models import hugging_face

Image: Any = pytest.importorskip("PIL.Image", reason="the extra vision is not installed")


def load_for(spec: str, header: Header, resize: bool, as_stored: bool = False) -> ImageSet:
    return images_for(spec, header, Sources(model="", forget="", resize=resize, as_stored=as_stored))


def spec(architecture: str, side: int = 224, channels: int = 3, mean: float = 0.5, std: float = 0.5) -> ModelSpec:
    return ModelSpec(
        architecture=architecture,
        num_classes=2,
        in_channels=channels,
        image_size=side,
        mean=(mean,) * channels,
        std=(std,) * channels,
    )


def photos(root: Path) -> tuple[Path, list[Any]]:
    """Two images, neither square nor alike in size."""
    root = write_folder(root, pixels(1, channels=3, side=90)[..., :70], ["a"])
    write_folder(root, pixels(1, channels=3, side=50, seed=1).repeat(1, 1, 1, 2), ["b"])
    return root, [Image.open(path).convert("RGB") for path in sorted(root.rglob("*.png"))]


@pytest.mark.parametrize(("name", "side"), [("vit_tiny_patch16_224", 224), ("resnet18", 64)])
def test_timm_data_goes_through_timms_own_transform(tmp_path: Path, name: str, side: int) -> None:
    data: Any = pytest.importorskip("timm.data", reason="the extra vision is not installed")
    timm: Any = pytest.importorskip("timm")
    folder, images = photos(tmp_path / "photos")
    told = timm.get_pretrained_cfg(name).to_dict()
    config = data.resolve_data_config({"input_size": (3, side, side)}, pretrained_cfg=told)
    transform = data.create_transform(**config)
    header = Header(spec=spec(f"timm:{name}", side), class_names=("a", "b"))
    loaded = load_for(f"folder:{folder}", header, True).images
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    for made, image in zip(loaded, images, strict=True):
        assert torch.equal((made / 255 - mean) / std, transform(image))
    trained = replace(header, recipe={"epochs": 1})
    assert own_fit(trained) is None, "it was trained on images as they are"


@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_b_16"])
def test_torchvision_data_goes_through_torchvisions_own_transform(tmp_path: Path, name: str) -> None:
    models: Any = pytest.importorskip("torchvision.models", reason="the extra vision is not installed")
    folder, images = photos(tmp_path / "photos")
    transform = models.get_model_weights(name).DEFAULT.transforms()
    side = transform.crop_size[0]
    header = Header(spec=spec(f"torchvision:{name}", side), class_names=("a", "b"))
    loaded = load_for(f"folder:{folder}", header, True).images
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    for made, image in zip(loaded, images, strict=True):
        assert torch.equal((made / 255 - mean) / std, transform(image))
    assert own_fit(replace(header, recipe={"epochs": 1})) is None, "it was trained on images as they are"
    assert own_fit(replace(header, spec=spec(f"torchvision:{name}", 64))) is None, "not the size that it is made for"


def written(directory: Path, **more: Any) -> tuple[Any, Any]:
    """A tiny classifier with an image processor that resizes and crops, and that processor."""
    transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
    hugging_face(directory)
    told = {"image_mean": [0.25], "image_std": [0.5], "do_convert_rgb": False, **more}
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 28, "width": 28}, **told
    )
    processor.save_pretrained(directory)
    return transformers, transformers.AutoImageProcessor.from_pretrained(directory)


def test_hugging_face_data_goes_through_the_models_own_processor(tmp_path: Path) -> None:
    _, processor = written(tmp_path / "hf")
    folder, images = photos(tmp_path / "photos")
    names = {"a": "zero", "b": "one"}
    for old, new in names.items():
        (folder / old).rename(folder / new)
    model, header = load_model(f"hf:{tmp_path}/hf")
    loaded = load_for(f"folder:{folder}", header, True)
    for made, name in zip(loaded.images, loaded.ids, strict=True):
        image = Image.open(folder / name).convert("L")
        wanted = processor(images=image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close((made / 255 - 0.25) / 0.5, wanted, rtol=0, atol=1e-6)
        assert wanted.shape == (1, 28, 28)
    assert len(images) == 2
    save_checkpoint(tmp_path / "copy.safetensors", model, header)
    again = read_header(tmp_path / "copy.safetensors")
    assert torch.equal(load_for(f"folder:{folder}", again, True).images, loaded.images)


def test_where_the_model_has_no_preprocessing_of_its_own_it_is_said(tmp_path: Path, trained: Path) -> None:
    folder, _ = photos(tmp_path / "photos")
    header = Header(spec=spec("py:nets:make", 20), class_names=())
    given = Sources(model="py:nets:make", forget=f"folder:{folder}", resize=True)
    assert ["--resize" in line for line in notes_on(given, header)] == [True]
    assert notes_on(replace(given, resize=False), header) == ()
    own = Header(spec=spec("timm:resnet18", 64), class_names=("a", "b"))
    assert notes_on(given, own) == ()
    odd = replace(header, processor={"image_processor_type": "NoSuchProcessor"})
    assert own_fit(odd) is None
    bags = write_folder(tmp_path / "bags", pixels(3, side=40), ["Bag", "Coat", "Shirt"])
    command = ("forget", "--model", trained, "--forget", f"folder:{bags}", "--resize", "--method", "targeted")
    assert "preprocessing" in succeed(*command, "--set", "epochs=1", "--out", tmp_path / "out")


def squashed(image: Any, side: int) -> Tensor:
    return torch.from_numpy(np.asarray(image.resize((side, side), 2)).transpose(2, 0, 1).copy())


def test_without_a_transform_of_its_own_images_are_squashed(tmp_path: Path) -> None:
    folder, images = photos(tmp_path / "photos")
    header = Header(spec=spec("py:nets:make", 20), class_names=("a", "b"))
    loaded = load_for(f"folder:{folder}", header, True).images
    assert all(torch.equal(made, squashed(image, 20)) for made, image in zip(loaded, images, strict=True))


def test_images_may_be_taken_as_they_are_stored(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(1, side=8)[0, 0].numpy())
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "f" / "a").mkdir(parents=True)
    image.save(tmp_path / "f" / "a" / "0.png", exif=turned)
    header = Header(spec=spec("py:nets:make", 8, 1), class_names=("a", "b"))
    upright, stored = (
        load_for(f"folder:{tmp_path}/f", header, False, as_stored=flag).images[0, 0] for flag in (False, True)
    )
    assert np.array_equal(stored, np.asarray(image))
    assert np.array_equal(upright, np.rot90(np.asarray(image), -1))
