"""Networks from specs, self-describing checkpoints, every form of MODEL, and writing to disk whole or not at all."""

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.cli.sources import Sources, images_for, is_same_network
from expunge.data import ImageSet
from expunge.errors import ExpungeError, InputError, MissingExtraError, SettingError
from expunge.files import check_unused, new_directory, written_whole
from expunge.methods import Targeted
from expunge.models import (
    ARCHITECTURES,
    Classifier,
    Header,
    ModelSpec,
    build,
    fingerprint,
    load_model,
    load_weights,
    logits_of,
    read_header,
    save_checkpoint,
)
from expunge.tensor_files import write_tensors
from expunge.unlearning import unlearn
from tests.arrangements import NETWORKS, state_bits
from tests.conftest import pixels, succeed, write_folder

NAMES = ("zero", "one", "two", "three", "four")


def spec(architecture: str = "small_resnet", channels: int = 1, side: int = 28, **options: Any) -> ModelSpec:
    return ModelSpec(
        architecture=architecture,
        num_classes=5,
        in_channels=channels,
        image_size=side,
        mean=(0.3,) * channels,
        std=(0.2,) * channels,
        options=options,
    )


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return build(spec(width=4)).eval()


def header(described: ModelSpec) -> Header:
    entry = {"did": "train", "seed": 3}
    return Header(spec=described, class_names=NAMES, data="sample", recipe={"epochs": 2}, history=(entry,))


# --- Specs and networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "described",
    [
        spec(),
        spec(channels=3, side=32, width=8),
        spec("resnet18"),
        spec("resnet18", channels=3, side=64),
        spec("resnet50", channels=3, side=32),
        spec("vit"),
        spec("vit", channels=3, side=64, depth=2),
        spec("timm:resnet10t", channels=1, side=32),
        spec("timm:vit_tiny_patch16_224", channels=3, side=32, img_size=32, depth=1),
    ],
    ids=lambda described: f"{described.architecture}-{described.in_channels}x{described.image_size}",
)
def test_every_architecture_maps_images_to_logits(described: ModelSpec) -> None:
    model = build(described).eval()
    images = pixels(2, channels=described.in_channels, side=described.image_size)
    with torch.no_grad():
        logits = model(images)
        scaled = model(images.float() / 255)
    assert logits.shape == (2, 5)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits, scaled)
    assert model.spec == described


def test_the_list_of_architectures_is_covered_above() -> None:
    assert set(ARCHITECTURES) == {"small_resnet", "resnet18", "resnet50", "vit"}


def test_images_are_normalised_by_channel() -> None:
    described = ModelSpec(
        architecture="py:x:y", num_classes=2, in_channels=2, image_size=1, mean=(0.5, 0.25), std=(0.5, 2.0)
    )
    out = Classifier(described, nn.Flatten())(torch.tensor([[[[255]], [[0]]]], dtype=torch.uint8))
    assert out.tolist() == [[1.0, -0.125]]


@pytest.mark.parametrize(
    ("side", "options", "kernel"),
    [
        (28, {}, 3),
        (63, {}, 3),
        (64, {}, 7),
        (224, {}, 7),
        (28, {"stem": "standard"}, 7),
        (64, {"stem": "small"}, 3),
        (32, {"stem": "pooled"}, 3),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_stem_follows_the_size_of_the_images(
    side: int, options: dict[str, Any], kernel: int, channels: int
) -> None:
    network: Any = build(spec("resnet18", channels=channels, side=side, **options)).network
    assert network.conv1.kernel_size == (kernel, kernel)
    assert network.conv1.stride == ((2, 2) if kernel == 7 else (1, 1))
    assert network.conv1.in_channels == channels
    pooled = kernel == 7 or options.get("stem") == "pooled"
    assert isinstance(network.maxpool, nn.MaxPool2d if pooled else nn.Identity)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (spec("resnet19"), "'resnet19'.*small_resnet, resnet18"),
        (spec("resnet18", stem="tiny"), "stem=small"),
        (spec("resnet18", width=3), "stem=small"),
        (spec(wide=3), "small_resnet"),
        (spec(width="broad"), "small_resnet"),
        (spec(width=-4), "small_resnet"),
        (spec("vit", side=31), "8 or 7"),
        (spec("vit", heads=2), "vit"),
        (spec("vit", num_heads=5), "vit"),
        (spec("vit", norm_layer="nothing"), "vit"),
        (spec("timm:vit_tiny_patch16_224", num_heads=5), "timm"),
        (spec("timm:resnet_of_nobody"), "timm"),
        (spec("timm:resnet10t", nonsense=3), "timm"),
    ],
)
def test_what_cannot_be_built_says_why(described: ModelSpec, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        build(described)


def test_a_spec_goes_to_json_and_back() -> None:
    for described in (spec(), spec("vit", channels=3, depth=2, mlp_ratio=1.5), spec("resnet18", stem="small")):
        text = json.dumps(described.to_dict())
        assert ModelSpec.from_dict(json.loads(text)) == described


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": 3},
        {"num_classes": "5"},
        {"num_classes": -1},
        {"image_size": None},
        {"mean": 0.5},
        {"mean": ["a"]},
        {"options": []},
        {"surplus": 1},
    ],
)
def test_a_foreign_spec_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="incomplete"):
        ModelSpec.from_dict({**spec().to_dict(), **change})
    with pytest.raises(SettingError, match="incomplete"):
        ModelSpec.from_dict({"architecture": "vit"})


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def test_a_header_says_all_of_it(tmp_path: Path) -> None:
    model = tiny()
    save_checkpoint(tmp_path / "model.safetensors", model, header(spec(width=4)))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert read_header(path) == header(spec(width=4))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["expunge_format"]) == ("pt", "expunge-checkpoint/3")
    told = json.loads(metadata["expunge"])
    assert told["spec"]["options"] == {"width": 4}
    assert told["class_names"] == list(NAMES)
    assert told["history"] == [{"did": "train", "seed": 3}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["small_resnet", "vit"])
def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype, architecture: str) -> None:
    described = spec(architecture, **({"width": 4} if architecture == "small_resnet" else {"depth": 1}))
    torch.manual_seed(0)
    model = build(described)
    model.train()(pixels(8))  # moves the running statistics
    model.to(dtype).eval()
    save_checkpoint(tmp_path / "model.safetensors", model, header(described))
    loaded, told = load_model(str(tmp_path))
    assert told == header(described)
    assert state_bits(loaded) == state_bits(model)
    assert {name: v.dtype for name, v in loaded.state_dict().items()} == {
        name: v.dtype for name, v in model.state_dict().items()
    }
    images = pixels(3, seed=4)
    assert torch.equal(logits_of(loaded, images), logits_of(model, images))
    assert not loaded.training


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(784, 784, bias=False)
        self.second = nn.Linear(784, 784, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(784)
        self.again = self.norm
        self.head = nn.Linear(784, 5)
    def forward(self, x):
        return self.head(self.again(self.second(torch.relu(self.norm(self.first(x.flatten(1)))))))

def three():
    return nn.Linear(3, 3)

def wrong():
    return 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A user's own module, importable here and in the processes that a test starts."""
    (tmp_path / "their_models.py").write_text(TIED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import their_models  # type: ignore[import-not-found]

    yield their_models
    import sys

    del sys.modules["their_models"]


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path, module: Any) -> None:
    network = module.Tied().eval()
    described = ModelSpec(
        architecture="py:their_models:Tied", num_classes=0, in_channels=0, image_size=0, mean=(0.0,), std=(1.0,)
    )
    model = Classifier(described, network)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, header(described))
    assert path.stat().st_size < 1.3 * network.first.weight.numel() * 4
    loaded, _ = load_model("py:their_models:Tied", weights=path)
    assert state_bits(loaded) == state_bits(model)
    back: Any = loaded.network
    assert back.second.weight is back.first.weight
    with pytest.raises(InputError, match="code that expunge does not run on a file's word"):
        load_model(str(path))


def tampered(path: Path, **changes: Any) -> None:
    """Writes a checkpoint again with another header."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    told = json.loads(metadata["expunge"])
    told["spec"].update(changes.pop("spec", {}))
    told.update(changes)
    write_tensors(tensors, path, {**metadata, "expunge": json.dumps(told)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spec": {"num_classes": 6}, "class_names": []}, "fit"),
        ({"spec": {"num_classes": 6}}, "header"),
        ({"spec": {"options": {"width": 8}}}, "fit"),
        ({"spec": {"architecture": "resnet18", "options": {}}}, "missing"),
        ({"spec": {"architecture": "nonsense"}}, "'nonsense'"),
        ({"spec": {"num_classes": "5"}}, "header"),
        ({"spec": {"surplus": 1}}, "header"),
        ({"recipe": []}, "header"),
        ({"history": [1]}, "header"),
        ({"history": [{"calibration_seeds": None}]}, "header"),
        ({"history": [{"undone_steps": ["1"]}]}, "header"),
        ({"class_names": 7}, "header"),
    ],
)
def test_a_tampered_header_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny(), header(spec(width=4)))
    tampered(path, **changes)
    with pytest.raises(InputError, match=said):
        load_model(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, name: str) -> None:
    model = tiny()
    model.state_dict()[f"network.{name}"].view(-1)[0] = value
    save_checkpoint(tmp_path / "model.safetensors", model, header(spec(width=4)))
    with pytest.raises(InputError, match=f"'{name}' holds NaN or infinity"):
        load_model(str(tmp_path))


# --- MODEL specs -----------------------------------------------------------------------------------------------------


def test_timm_models_take_foreign_weights(tmp_path: Path) -> None:
    timm: Any = pytest.importorskip("timm", reason="the extra vision is not installed")
    network = timm.create_model("resnet10t", num_classes=5, in_chans=1).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    model, told = load_model("timm:resnet10t,num_classes=5,in_chans=1", weights=tmp_path / "weights.safetensors")
    assert isinstance(model, Classifier)
    assert state_bits(model.network) == state_bits(network)
    assert told.class_names == ("0", "1", "2", "3", "4")
    assert (told.spec.in_channels, told.spec.num_classes) == (1, 5)
    assert model.spec.mean[0] == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    with pytest.raises(InputError, match="fit"):
        load_model("timm:resnet10t", weights=tmp_path / "weights.safetensors")
    with pytest.raises(SettingError, match="--weights"):
        load_model("timm:resnet10t")
    smaller, told = load_model(
        "timm:resnet10t,num_classes=5,in_chans=1,image_size=28", weights=tmp_path / "weights.safetensors"
    )
    assert told.spec.image_size == 28
    assert smaller(torch.zeros(1, 1, 28, 28)).shape == (1, 5)
    with pytest.raises(SettingError, match=r"224 .*img_size=28"):
        load_model("timm:vit_tiny_patch16_224,image_size=28", weights=tmp_path / "weights.safetensors")
    with pytest.raises(SettingError, match="timm:NAME"):
        load_model("timm:resnet10t,num_classes=five", weights=tmp_path / "weights.safetensors")
    with pytest.raises(SettingError, match=r"timm .*'nothing'"):
        load_model("timm:nothing", weights=tmp_path / "weights.safetensors")


def test_timm_models_of_ours_are_normalised_as_they_were_trained(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the extra vision is not installed")
    described = spec("timm:resnet10t", side=32)
    model = build(described).eval()
    save_checkpoint(tmp_path / "model.safetensors", model, header(described))
    given = "timm:resnet10t,num_classes=5,in_chans=1"
    again, told = load_model(given, weights=tmp_path / "model.safetensors")
    images = pixels(3, side=32)
    assert torch.equal(logits_of(again, images), logits_of(model, images))
    assert told == header(described)
    with pytest.raises(SettingError, match=r"num_classes=7.* num_classes=5"):
        load_model("timm:resnet10t,num_classes=7,in_chans=1", weights=tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="timm:resnet10t"):
        load_model("timm:resnet18", weights=tmp_path / "model.safetensors")


def test_a_missing_package_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = spec("timm:resnet10t", side=32)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="timm"):
        build(described)
    monkeypatch.setattr("expunge.models.building.small_resnet", lambda **_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        build(spec())


@pytest.mark.parametrize("options", [{"checkpoint_path": "x.pth"}, {"pretrained": True}, {"pretrained_cfg": {}}])
def test_a_description_cannot_have_timm_read_other_files(tmp_path: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("timm", reason="the extra vision is not installed")
    described = spec("timm:resnet10t", side=32)
    save_checkpoint(tmp_path / "model.safetensors", build(described), header(replace(described, options=options)))
    with pytest.raises(InputError, match="files"):
        load_model(tmp_path)
    for name in ("hf-hub:someone/something", "local-dir:/tmp"):
        with pytest.raises(SettingError, match="files"):
            build(spec(f"timm:{name}"))
        with pytest.raises(SettingError, match="files"):
            load_model(f"timm:{name}", weights=tmp_path / "model.safetensors")


def test_weights_under_a_wrappers_names_are_taken(tmp_path: Path, module: Any) -> None:
    network = module.Tied().eval()
    state, images = network.state_dict(), torch.rand(4, 1, 28, 28)
    for n, content in enumerate(
        (
            {f"module.{name}": value for name, value in state.items()},
            {"model_state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
            {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3},
        )
    ):
        torch.save(content, tmp_path / f"{n}.pt")
        model, _ = load_model("py:their_models:Tied", weights=tmp_path / f"{n}.pt", allow_pickle=True)
        assert torch.equal(logits_of(model, images), logits_of(network, images))
    first, others = "head.weight", [name for name in state if name != "head.weight"]
    torch.save({f"net.{first}": state[first], **{name: state[name] for name in others}}, tmp_path / "mixed.pt")
    with pytest.raises(InputError, match=f"1 missing, such as '{first}', and 1 unknown, such as 'net.{first}'"):
        load_model("py:their_models:Tied", weights=tmp_path / "mixed.pt", allow_pickle=True)
    torch.save(state | {first: state[first].to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(InputError, match=f"'{first}' is sparse"):
        load_model("py:their_models:Tied", weights=tmp_path / "sparse.pt", allow_pickle=True)


class Sharing(nn.Module):
    """Buffers that share their memory, wholly, in part, and with themselves."""

    shift: Tensor
    scale: Tensor
    same: Tensor
    part: Tensor
    one: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        both = torch.linspace(0.5, 1, 16).view(2, 8)
        for name, buffer in (("shift", both[0]), ("scale", both[1]), ("same", both[1]), ("part", both[1, :3])):
            self.register_buffer(name, buffer)
        self.register_buffer("one", torch.tensor(0.5).expand(8))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head((x - self.shift) * self.scale * self.one + self.same) + self.part.sum()
        return logits


def test_weights_of_another_of_our_networks_are_refused(tmp_path: Path, module: Any) -> None:
    save_checkpoint(tmp_path / "model.safetensors", tiny(), header(spec(width=4)))
    with pytest.raises(InputError, match="small_resnet"):
        load_model("py:their_models:Tied", weights=tmp_path / "model.safetensors")


def test_buffers_that_share_memory_come_back(tmp_path: Path) -> None:
    described = replace(spec(), architecture="py:tests.test_models:Sharing")
    network = Sharing()
    model = Classifier(described, network)
    save_checkpoint(tmp_path / "model.safetensors", model, header(described))
    with torch.no_grad():
        network.shift += 1
        network.head.weight += 1
    save_checkpoint(tmp_path / "changed.safetensors", model, header(described))
    again, _ = load_model("py:tests.test_models:Sharing", weights=tmp_path / "changed.safetensors")
    assert state_bits(again) == state_bits(model)


def test_a_second_request_to_a_model_of_ones_own_knows_all_of_its_classes(tmp_path: Path, module: Any) -> None:
    save_file({k: v.clone() for k, v in module.Tied().state_dict().items()}, tmp_path / "weights.safetensors")
    weights, settings = tmp_path / "weights.safetensors", ("--method", "neg_grad", "--set", "epochs=1")
    for name in ("0", "2", "4"):  # each folder holds one of the five classes
        data = f"folder:{write_folder(tmp_path / name / 'images', pixels(2, seed=int(name)), [name, name])}"
        model = ("--model", "py:their_models:Tied,image_size=28,in_chans=1", "--weights", weights, "--resize")
        succeed("forget", *model, "--forget", data, "--out", tmp_path / name / "out", *settings)
        weights = tmp_path / name / "out/model.safetensors"
    assert len(read_header(weights).history) == 3


def test_factories_take_foreign_weights(tmp_path: Path, module: Any) -> None:
    network = module.Tied().eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "nested.pt")
    images = torch.rand(4, 1, 28, 28)
    for name in ("weights.safetensors", "weights.pt", "nested.pt"):
        model, _ = load_model("py:their_models:Tied", weights=tmp_path / name, allow_pickle=name.endswith("pt"))
        assert torch.equal(logits_of(model, images), logits_of(network, images)), name
    with pytest.raises(InputError, match="--allow-pickle"):
        load_model("py:their_models:Tied", weights=tmp_path / "weights.pt")
    with pytest.raises(InputError, match="fit"):
        load_model("py:their_models:three", weights=tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"int.*nn"):
        load_model("py:their_models:wrong", weights=tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="py:their_models:none"):
        load_model("py:their_models:none", weights=tmp_path / "weights.safetensors")


def hugging_face(directory: Path, kind: str = "vit") -> Any:
    """A tiny image classifier, as `save_pretrained` writes it."""
    transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
    names = dict(enumerate(NAMES))
    torch.manual_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=28,
            patch_size=7,
            num_channels=1,
            id2label=names,
            label2id={name: n for n, name in names.items()},
        )
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ResNetConfig(
            num_channels=1,
            embedding_size=8,
            hidden_sizes=[8, 8],
            depths=[1, 1],
            layer_type="basic",
            id2label=names,
            label2id={name: n for n, name in names.items()},
        )
        model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(directory)
    processor = {"image_mean": [0.25], "image_std": [0.5], "size": {"height": 28, "width": 28}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.eval()


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"do_normalize": False}, lambda images: images / 255),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0], "image_std": 2}, lambda images: (images / 127.5 - 1) / 2),
        ({"do_rescale": False, "image_mean": [9.0], "image_std": [50.0]}, lambda images: (images - 9) / 50),
        ({}, lambda images: (images / 255 - 0.5) / 0.5),
    ],
)
def test_inputs_of_a_hugging_face_model_are_scaled_as_its_processor_says(
    tmp_path: Path, processor: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    original = hugging_face(tmp_path / "hf")
    (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps(processor))
    images = pixels(3)
    with torch.no_grad():
        logits = original(expected(images.float())).logits
    torch.testing.assert_close(logits_of(load_model(f"hf:{tmp_path}/hf")[0], images), logits)


def test_a_hugging_face_processor_that_scales_twice_is_followed(tmp_path: Path) -> None:
    original = hugging_face(tmp_path / "hf")
    images = pixels(3)
    told = {"image_mean": [0.25], "image_std": [0.5]}
    twice = {"image_processor_type": "EfficientNetImageProcessorFast"}
    for more, std in (({"include_top": True}, 0.25), (twice, 0.25), (twice | {"include_top": False}, 0.5)):
        (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps(told | more))
        with torch.no_grad():
            logits = original((images.float() / 255 - 0.25) / std).logits
        torch.testing.assert_close(logits_of(load_model(f"hf:{tmp_path}/hf")[0], images), logits)


@pytest.mark.parametrize(
    ("processor", "side"),
    [
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}, 28),
        ({"size": {"shortest_edge": 32}, "crop_size": 28, "do_center_crop": True}, 28),
        ({"size": {"height": 32, "width": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": False}, 32),
        ({"size": 48}, 48),
        ({"size": {"height": 48, "width": 48}, "do_resize": False}, 28),
        ({"image_processor_type": "PerceiverImageProcessor", "size": 48, "crop_size": 56}, 48),
        ({}, 28),
    ],
)
def test_a_hugging_face_models_images_are_of_the_size_that_its_processor_makes(
    tmp_path: Path, processor: dict[str, Any], side: int
) -> None:
    hugging_face(tmp_path / "hf")
    (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps(processor))
    assert load_model(f"hf:{tmp_path}/hf")[1].spec.image_size == side


def test_hugging_face_models_whose_inputs_cannot_be_made_are_refused(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf")
    told, config = tmp_path / "hf/preprocessor_config.json", tmp_path / "hf/config.json"
    for processor, said in (
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean .*3 .*1"),
    ):
        told.write_text(json.dumps(processor))
        with pytest.raises(InputError, match=said):
            load_model(f"hf:{tmp_path}/hf")
    told.write_text("{}")
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | {"image_size": [28, 28]}))
    assert load_model(f"hf:{tmp_path}/hf")[1].spec.image_size == 28
    config.write_text(json.dumps(plain | {"image_size": [28, 14], "patch_size": [7, 14]}))
    with pytest.raises(InputError):
        load_model(f"hf:{tmp_path}/hf")
    config.write_text(json.dumps(plain))
    told.unlink()
    with pytest.raises(InputError, match="preprocessor_config"):
        load_model(f"hf:{tmp_path}/hf")


def test_weights_of_several_precisions_are_taken_as_the_widest(tmp_path: Path) -> None:
    network = NETWORKS["layer_norm"]()
    state = network.state_dict()
    mixed = {name: value.half() if "1." in name else value for name, value in state.items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    load_weights(network, tmp_path / "mixed.safetensors")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    for dtype in (torch.int8, torch.float8_e4m3fn):
        save_file({name: value.to(dtype) for name, value in state.items()}, tmp_path / "odd.safetensors")
        with pytest.raises(InputError, match="16 bits"):
            load_weights(network, tmp_path / "odd.safetensors")


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_hugging_face_models(tmp_path: Path, kind: str) -> None:
    original = hugging_face(tmp_path / "hf", kind)
    model, told = load_model(f"hf:{tmp_path}/hf")
    images = pixels(3)
    with torch.no_grad():
        expected = original((images.float() / 255 - 0.25) / 0.5).logits
    torch.testing.assert_close(logits_of(model, images), expected)
    assert told.class_names == NAMES
    assert (told.spec.num_classes, told.spec.in_channels, told.spec.image_size) == (5, 1, 28)
    json.dumps(told.to_dict())
    save_checkpoint(tmp_path / "model.safetensors", model, told)
    again, _ = load_model(str(tmp_path / "model.safetensors"))
    assert state_bits(again) == state_bits(model)
    assert torch.equal(logits_of(again, images), logits_of(model, images))


def test_hugging_face_directories_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/config\.json"):
        load_model(f"hf:{tmp_path}/none")
    original = hugging_face(tmp_path / "hf")
    weights = tmp_path / "hf/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(InputError, match="not a whole safetensors"):
        load_model(f"hf:{tmp_path}/hf")
    state = {name: value for name, value in original.state_dict().items() if not name.startswith("classifier")}
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"'classifier\.bias'"):
        load_model(f"hf:{tmp_path}/hf")
    weights.unlink()
    torch.save(original.state_dict(), tmp_path / "hf/pytorch_model.bin")
    with pytest.raises(InputError, match="hf:"):
        load_model(f"hf:{tmp_path}/hf")


def test_code_that_a_model_directory_brings_along_is_not_run(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    config["model_type"] = "theirs"
    config["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModelForImageClassification": "theirs.Model"}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    (tmp_path / "hf/theirs.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="hf:"):
        load_model(f"hf:{tmp_path}/hf")
    assert not (tmp_path / "it ran").exists()


def test_weights_are_given_where_they_are_needed_and_nowhere_else(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", tiny(), header(spec(width=4)))
    with pytest.raises(SettingError, match="--weights"):
        load_model(str(tmp_path), weights=tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["directory", "file", "timm", "py", "hf"])
def test_what_forget_writes_from_each_kind_of_model_loads_again(tmp_path: Path, kind: str, module: Any) -> None:
    """One after the other: forget, then forget again from what was written, in real processes."""
    images = pixels(5, seed=8)
    digits = [str(n) for n in range(5)]
    names: list[str] = digits if kind in {"timm", "py"} else sorted(NAMES)
    data = f"folder:{write_folder(tmp_path / 'images', images, names)}"
    weights: list[str | Path] = []
    if kind in {"directory", "file"}:
        save_checkpoint(tmp_path / "model.safetensors", tiny(), header(spec(width=4)))
        model = str(tmp_path if kind == "directory" else tmp_path / "model.safetensors")
    elif kind == "hf":
        hugging_face(tmp_path / "hf")
        model = f"hf:{tmp_path}/hf"
    else:
        if kind == "timm":
            timm: Any = pytest.importorskip("timm", reason="the extra vision is not installed")
            model = "timm:vit_tiny_patch16_224,num_classes=5,in_chans=1,img_size=28,patch_size=14,depth=1,embed_dim=24"
            sizes = {"img_size": 28, "patch_size": 14, "depth": 1, "embed_dim": 24}
            network = timm.create_model("vit_tiny_patch16_224", num_classes=5, in_chans=1, **sizes)
        else:
            model = "py:their_models:Tied"
            network = module.Tied()
        save_file({k: v.clone() for k, v in network.state_dict().items()}, tmp_path / "weights.safetensors")
        weights = ["--weights", tmp_path / "weights.safetensors"]
    first, second = tmp_path / "first", tmp_path / "second"
    settings = ("--set", "epochs=2", "--set", "lr=1e-3")
    succeed("forget", "--model", model, *weights, "--forget", data, "--out", first, *settings)
    again: list[str | Path] = [first]
    if kind == "py":
        again = [model, "--weights", first / "model.safetensors"]
    succeed("forget", "--model", *again, "--forget", data, "--out", second, *settings)
    told = read_header(second)
    assert [entry["did"] for entry in told.history][-2:] == ["forget", "forget"]
    source = model if kind == "py" else str(second)
    loaded, _ = load_model(source, weights=second / "model.safetensors" if kind == "py" else None)
    assert logits_of(loaded, images).shape == (5, 5)
    report = json.loads((second / "report.json").read_text())
    before = json.loads((first / "report.json").read_text())
    assert report["before"]["forget_accuracy"] == before["after"]["forget_accuracy"]


def test_retraining_a_model_whose_file_tells_no_recipe_is_noted(tmp_path: Path, module: Any) -> None:
    images = write_folder(tmp_path / "images", pixels(4, seed=8), [str(n) for n in range(4)])
    rest = write_folder(tmp_path / "rest", pixels(6, seed=9), [str(n % 5) for n in range(6)])
    save_file({k: v.clone() for k, v in module.Tied().state_dict().items()}, tmp_path / "weights.safetensors")
    model = ("--model", "py:their_models:Tied", "--weights", tmp_path / "weights.safetensors")
    data = ("--forget", f"folder:{images}", "--retain", f"folder:{rest}", "--out", tmp_path / "out")
    succeed("forget", *model, *data, "--method", "retrain", "--set", "epochs=1")
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert notes == ["the model's file tells no recipe: it is retrained by the package's own; --set gives yours"]


@pytest.mark.parametrize("kind", ["py", "timm", "hf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_foreign_weights_of_other_precisions_can_forget(
    tmp_path: Path, kind: str, dtype: torch.dtype, module: Any
) -> None:
    path = tmp_path / "weights.safetensors"
    if kind == "hf":
        hugging_face(tmp_path / "hf", "resnet").to(dtype).save_pretrained(tmp_path / "hf")
        model, _ = load_model(f"hf:{tmp_path}/hf")
    elif kind == "timm":
        timm: Any = pytest.importorskip("timm", reason="the extra vision is not installed")
        save_file(timm.create_model("resnet10t", num_classes=5, in_chans=1).to(dtype).state_dict(), path)
        model, _ = load_model("timm:resnet10t,num_classes=5,in_chans=1", weights=path)
    else:
        save_file({name: value.clone().to(dtype) for name, value in module.Tied().state_dict().items()}, path)
        model, _ = load_model("py:their_models:Tied", weights=path)
    assert {p.dtype for p in model.parameters()} == {dtype}
    forget = ImageSet(pixels(4), torch.tensor([0, 1, 2, 3]), NAMES)
    result = unlearn(model, forget, method=Targeted(epochs=1, stop="budget"))
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.trace.steps == 1


def test_copies_of_a_hugging_face_model_are_one_network(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf", "resnet")
    shutil.copytree(tmp_path / "hf", tmp_path / "copy")
    model, told = load_model(f"hf:{tmp_path}/hf")
    assert load_model(f"hf:{tmp_path}/copy")[1].spec == told.spec
    save_checkpoint(tmp_path / "model.safetensors", model, told)
    assert read_header(tmp_path / "model.safetensors").spec == told.spec


def test_resizing_needs_to_know_the_models_size(tmp_path: Path, module: Any) -> None:
    save_file({name: value.clone() for name, value in module.Tied().state_dict().items()}, tmp_path / "w.safetensors")
    _, told = load_model("py:their_models:Tied", weights=tmp_path / "w.safetensors")
    with pytest.raises(SettingError, match="py:their_models:Tied,image_size=224"):
        images_for("sample", told, Sources(model="", forget="", resize=True))
    write_folder(tmp_path / "images", pixels(2, side=40), ["0", "1"])
    model, told = load_model("py:their_models:Tied,image_size=28,in_chans=1", weights=tmp_path / "w.safetensors")
    images = images_for(f"folder:{tmp_path}/images", told, Sources(model="", forget="", resize=True)).images
    assert images.shape == (2, 1, 28, 28)
    assert logits_of(model, images).shape == (2, 5)
    with pytest.raises(InputError, match="1 × 28 × 28"):
        images_for(f"folder:{tmp_path}/images", told, Sources(model="", forget=""))
    assert is_same_network(told.spec, replace(told.spec, image_size=0, in_channels=0))
    assert not is_same_network(told.spec, replace(told.spec, architecture="py:their_models:Other"))
    for wrong in ("size=28", "image_size=big", "image_size"):
        with pytest.raises(SettingError, match=r"py:package\.module:factory,image_size=224"):
            load_model(f"py:their_models:Tied,{wrong}", weights=tmp_path / "w.safetensors")


def test_half_precision_checkpoints_can_forget(tmp_path: Path) -> None:
    model = tiny().bfloat16()
    save_checkpoint(tmp_path / "model.safetensors", model, header(spec(width=4)))
    loaded, told = load_model(str(tmp_path))
    forget = ImageSet(pixels(4), torch.tensor([0, 1, 2, 3]), NAMES)
    result = unlearn(loaded, forget, method="targeted")
    save_checkpoint(tmp_path / "after.safetensors", result.model, told)
    again, _ = load_model(str(tmp_path / "after.safetensors"))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert state_bits(again) == state_bits(result.model)


# --- Writing whole or not at all -------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    for before in (None, b"what was there"):
        if before is not None:
            target.write_bytes(before)
        with pytest.raises(error), written_whole(target) as temporary:  # noqa: PT012
            temporary.write_bytes(b"half")
            assert temporary.parent.parent == tmp_path  # on the same file system, out of sight
            assert temporary.parent.name.startswith(".")
            raise error
        assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["file"])
        assert before is None or target.read_bytes() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_directory_that_was_not_finished(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_directory(tmp_path / "new/parents/out") as temporary:  # noqa: PT012
        (temporary / "sub").mkdir()
        (temporary / "sub/file").write_bytes(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for name in ("out", "link", "file"):
        with pytest.raises(InputError, match="exists"), new_directory(tmp_path / name):
            pytest.fail("it went on")
        with pytest.raises(InputError, match="exists"):
            check_unused(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "out"]


def test_a_directory_that_another_process_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExpungeError, match="write"), new_directory(out) as temporary:  # noqa: PT012
        (temporary / "mine").write_text("")
        out.mkdir()
        (out / "theirs").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        with written_whole(tmp_path / "file") as temporary:
            temporary.write_text("whole")
        with new_directory(tmp_path / "out") as temporary:
            (temporary / "inside").write_text("whole")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o666 & ~mask, "out": 0o777 & ~mask, "inside": 0o666 & ~mask}
    assert (tmp_path / "out/inside").read_text() == "whole"


def test_written_whole_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with written_whole(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "file").read_text() == "new"


def test_a_checkpoint_is_written_over_only_when_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny(), header(spec(width=4)))
    before = path.read_bytes()
    unwritable = Header(spec=spec(width=4), class_names=NAMES, recipe={"lr": object()})
    with pytest.raises(TypeError):
        save_checkpoint(path, tiny(), unwritable)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight: Tensor = nn.Parameter(torch.zeros(3, device="meta"))

    with pytest.raises((RuntimeError, NotImplementedError, ExpungeError)):
        save_checkpoint(path, Odd(), header(spec(width=4)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_fingerprint_is_of_every_tensor_and_survives_saving(tmp_path: Path) -> None:
    network = NETWORKS["batch_norm"]()
    told = fingerprint(network)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    again = NETWORKS["batch_norm"]()
    assert fingerprint(again) != told
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert fingerprint(again) == told
    for name, tensor in again.state_dict().items():
        kept = tensor.clone()
        tensor.add_(1)
        assert fingerprint(again) != told, name
        tensor.copy_(kept)
    assert fingerprint(again) == told


@pytest.mark.parametrize("name", ["small_resnet", "timm:resnet10t"])
def test_a_fingerprint_is_that_of_the_network_within(name: str, tmp_path: Path) -> None:
    """The deployed one is mostly loaded by its own library, without what expunge puts around it."""
    network = build(spec(architecture=name, **({"width": 4} if name == "small_resnet" else {})))
    assert isinstance(network, Classifier)
    assert fingerprint(network) == fingerprint(network.own)
