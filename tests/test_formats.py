"""What is written loads back where it came from, to the bit: by the loaders of timm, torchvision and transformers."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.grid.measuring import model_digest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from expunge.cli.audit import run as audit_run
from expunge.cli.forget import run as forget_run
from expunge.cli.sources import Sources
from expunge.errors import ExpungeWarning, InputError, SettingError
from expunge.models import (
    Classifier,
    Header,
    ModelSpec,
    build,
    calibration_seeds,
    load_model,
    logits_of,
    save_checkpoint,
    save_model,
)
from expunge.tensor_files import write_tensors
from tests.arrangements import state_bits
from tests.conftest import expunge, pixels, write_folder

ENTRY = {
    "did": "forget",
    "method": "calibrated",
    "num_forget": 12,
    "verdict": "PASS",
    "test_accuracy": [0.914, 0.905],
    "calibration_seeds": [7],
    "undone_steps": [],
}
SIDE = 32

Sizes = dict[str, Any]

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
    "image_size": SIDE,
}
DINO = {**{key: value for key, value in ENCODER.items() if key != "intermediate_size"}, "mlp_ratio": 2}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4, "image_size": SIDE}
STAGES = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
RESIDUAL = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}

TRANSFORMERS: dict[str, Sizes] = {
    "vit": ENCODER,
    "deit": {**ENCODER, "architectures": ["DeiTForImageClassification"]},
    "beit": {**ENCODER, "num_hidden_layers": 2},
    "data2vec-vision": {**ENCODER, "num_hidden_layers": 2},
    "vit_msn": ENCODER,
    "ijepa": ENCODER,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "convnext": STAGES,
    "convnextv2": STAGES,
    "poolformer": STAGES,
    "segformer": {**STAGES, "decoder_hidden_size": 8},
    "resnet": {**RESIDUAL, "layer_type": "basic"},
    "regnet": {**RESIDUAL, "groups_width": 8},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 7, "num_attention_heads": 2},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "siglip": {"vision_config": ENCODER},
}
"""Tiny classifiers of transformers, by their kind."""


def hugging_face(directory: Path, kind: str, **more: Any) -> Any:
    transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
    names = {n: f"kind {n}" for n in range(5)}
    labels: Sizes = {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **TRANSFORMERS[kind], **labels, **more)
    model = transformers.AutoModelForImageClassification.from_config(config)
    model.save_pretrained(directory)
    processor = {"image_mean": [0.25] * 3, "image_std": [0.5] * 3, "size": {"height": SIDE, "width": SIDE}}
    processor["image_processor_type"] = "ViTImageProcessor"
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.eval()


def changed(model: nn.Module) -> nn.Module:
    """Another set of weights, as an unlearning leaves them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.eval()


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_hugging_face_directory_comes_out_as_one(tmp_path: Path, kind: str) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
    hugging_face(tmp_path / "in", kind)
    model, header = load_model(f"hf:{tmp_path}/in")
    assert isinstance(model, Classifier)
    changed(model)
    out = tmp_path / "out"
    out.mkdir()
    save_model(out, model, replace(header, history=(ENTRY,)), tmp_path / "in")
    theirs, info = transformers.AutoModelForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    images = pixels(2, channels=3, side=SIDE)
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=model.normalise(images)).logits
    assert torch.equal(logits_of(model, images), expected)
    transformers.AutoImageProcessor.from_pretrained(out)
    for spec in (f"hf:{out}", str(out), str(out / "model.safetensors")):
        again, told = load_model(spec)
        assert torch.equal(logits_of(again, images), expected)
        assert state_bits(again) == state_bits(model)
        assert told.spec == header.spec
        assert told.history == (ENTRY,)
        assert calibration_seeds(again) == (7,)


def saved(directory: Path, source: Path) -> Path:
    """A tiny Hugging Face model, with one request in its record, written beside what it came from."""
    hugging_face(source, "resnet")
    model, header = load_model(f"hf:{source}")
    directory.mkdir()
    save_model(directory, model, replace(header, history=(ENTRY,)), source)
    return directory


def test_only_what_holds_no_weights_is_taken_over(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    old = ("pytorch_model.bin", "tf_model.h5", "optimizer.pt", "model-00001-of-00002.safetensors", "training_args.bin")
    for name in (*old, "LICENSE", "tokenizer.json"):
        (source / name).write_text("{}")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    out = saved(tmp_path / "out", source)
    assert {file.name for file in out.iterdir()} == {
        *("LICENSE", "tokenizer.json", "README.md", "config.json", "preprocessor_config.json"),
        *("model.safetensors", "expunge.json"),
    }
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# Mine\n")
    assert "| calibrated | PASS | 12 | 91.4% | 90.5% |" in card


def test_the_card_has_a_row_for_each_request_and_nothing_that_others_wrote(tmp_path: Path) -> None:
    out = saved(tmp_path / "out", tmp_path / "in")
    model, header = load_model(f"hf:{out}")
    odd = {"did": "forget", "method": "<script>", "num_forget": "a | b", "test_accuracy": ["x", 1]}
    (tmp_path / "again").mkdir()
    save_model(tmp_path / "again", model, replace(header, history=(ENTRY, {"did": "train"}, odd)), out)
    card = (tmp_path / "again/README.md").read_text()
    assert card.count("## Forgotten examples") == 1
    assert [line for line in card.splitlines() if line.startswith("| ")][1:] == [
        "| calibrated | PASS | 12 | 91.4% | 90.5% |",
        "| unknown | none | unknown | not measured | not measured |",
    ]


def test_the_record_outlasts_a_library_that_writes_the_weights_anew(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
    out = saved(tmp_path / "out", tmp_path / "in")
    transformers.AutoModelForImageClassification.from_pretrained(out).save_pretrained(out)
    model, told = load_model(f"hf:{out}")
    assert (calibration_seeds(model), told.history) == ((7,), (ENTRY,))
    (out / "expunge.json").write_text("{}")
    with pytest.raises(InputError, match=r"expunge\.json.*damaged"):
        load_model(f"hf:{out}")
    (out / "expunge.json").unlink()
    model, told = load_model(f"hf:{out}")
    assert (calibration_seeds(model), told.history) == ((), ())


def test_damage_to_what_expunge_wrote_is_seen_in_a_hugging_face_directory_too(tmp_path: Path) -> None:
    out = saved(tmp_path / "out", tmp_path / "in")
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="digest"):
        load_model(f"hf:{out}")


def test_the_same_model_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    first = saved(tmp_path / "first", tmp_path / "in")
    second = saved(tmp_path / "second", tmp_path / "in")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_a_hugging_face_model_without_expunges_record_is_asked_for_as_one(tmp_path: Path) -> None:
    hugging_face(tmp_path / "in", "resnet")
    for spec in (tmp_path / "in", tmp_path / "in/model.safetensors"):
        with pytest.raises(InputError, match=r"hf:.*in"):
            load_model(spec)
    (tmp_path / "in/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"give hf:.*in"):
        load_model(tmp_path / "in")


def test_the_commands_read_what_they_wrote_as_a_hugging_face_model(tmp_path: Path) -> None:
    hugging_face(tmp_path / "in", "resnet")
    names = [f"kind {n}" for n in range(5)]
    forget = f"folder:{write_folder(tmp_path / 'forget', pixels(10, channels=3, side=SIDE), names * 2)}"
    test = f"folder:{write_folder(tmp_path / 'test', pixels(100, channels=3, side=SIDE, seed=2), names * 20)}"
    sources, out = Sources(model=f"hf:{tmp_path}/in", forget=forget, test=test), tmp_path / "out"
    forget_run(sources, out, settings={"epochs": 1}, reference_minutes=0)
    for n, after in enumerate((f"hf:{out}", str(out))):
        report = audit_run(sources, after, tmp_path / str(n), reference_minutes=0)
        assert report.audit is not None
        assert any("calibrated" in line for line in report.audit.cautions)


SMALL_VIT = "img_size=32,patch_size=16,embed_dim=24,depth=1,num_heads=2"
TIMM = {
    "resnet10t": "",
    "resnet18": "",
    "vit_tiny_patch16_224": SMALL_VIT,
    "deit_tiny_patch16_224": SMALL_VIT,
    "beit_base_patch16_224": f"{SMALL_VIT},mlp_ratio=1",
    "vit_small_patch14_dinov2": "img_size=28,patch_size=14,embed_dim=24,depth=1,num_heads=2",
    "efficientnet_b0": "",
    "mobilenetv3_small_050": "",
    "convnext_atto": "",
    "regnetx_002": "",
    "ghostnet_050": "",
    "edgenext_xx_small": "",
    "mobilevit_xxs": "",
    "lcnet_035": "",
}


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_model_comes_out_as_its_state_dict(tmp_path: Path, name: str) -> None:
    timm: Any = pytest.importorskip("timm", reason="the extra vision is not installed")
    options = dict(pair.split("=") for pair in ["num_classes=5", *filter(None, TIMM[name].split(","))])
    given = {key: int(value) for key, value in options.items()}
    save_file(timm.create_model(name, **given).state_dict(), tmp_path / "weights.safetensors")
    spec = ",".join([f"timm:{name}", *(f"{key}={value}" for key, value in options.items())])
    side = given.get("img_size", SIDE)
    model, header = load_model(f"{spec},image_size={side}", weights=tmp_path / "weights.safetensors")
    assert isinstance(model, Classifier)
    images = pixels(2, channels=3, side=side)
    expected = logits_of(changed(model), images)
    save_model(tmp_path, model, replace(header, history=(ENTRY,)))
    theirs = timm.create_model(name, checkpoint_path=tmp_path / "model.safetensors", **given).eval()
    with torch.no_grad():
        assert torch.equal(theirs(model.normalise(images)), expected)
    for where, weights in ((spec, tmp_path / "model.safetensors"), (str(tmp_path), None)):
        again, told = load_model(where, weights=weights)
        assert torch.equal(logits_of(again, images), expected)
        assert told == replace(header, history=(ENTRY,))
        assert calibration_seeds(again) == (7,)


TORCHVISION = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "densenet121",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
)


def narrow(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes a large network of torchvision a small one of its kind."""
    library: Any = pytest.importorskip("torchvision.models", reason="the extra vision is not installed")
    made: Any = {
        "convnext_tiny": lambda **given: library.convnext.ConvNeXt(
            [library.convnext.CNBlockConfig(8, None, 2)], **given
        ),
        "swin_t": lambda **given: library.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], **given),
        "vit_b_16": lambda image_size, num_classes: library.VisionTransformer(
            image_size, 16, 1, 2, 16, 16, num_classes=num_classes
        ),
    }
    if name in made:

        def build(weights: None = None, **given: Any) -> nn.Module:
            network: nn.Module = made[name](**given)
            return network

        build.__module__ = "torchvision.models.theirs"
        monkeypatch.setitem(library._api.BUILTIN_MODELS, name, build)


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_torchvision_model_comes_out_as_its_state_dict(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library: Any = pytest.importorskip("torchvision.models", reason="the extra vision is not installed")
    spec = f"torchvision:{name},num_classes=5,image_size={SIDE}"
    weights = library.get_model_weights(name)
    narrow(monkeypatch, name)
    monkeypatch.setattr(library, "get_model_weights", lambda _: weights)
    network = library.get_model(name, num_classes=5, **({"image_size": SIDE} if name == "vit_b_16" else {}))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    model, header = load_model(spec, weights=tmp_path / "weights.safetensors")
    assert isinstance(model, Classifier)
    assert (header.spec.mean, header.spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = pixels(2, channels=3, side=SIDE)
    expected = logits_of(changed(model), images)
    save_model(tmp_path, model, replace(header, history=(ENTRY,)))
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(network.eval()(model.normalise(images)), expected)
    for where, file in ((spec, tmp_path / "model.safetensors"), (str(tmp_path), None)):
        again, told = load_model(where, weights=file)
        assert torch.equal(logits_of(again, images), expected)
        assert told == replace(header, history=(ENTRY,))


def as_before(path: Path, prefix: str) -> None:
    """Writes a checkpoint as it was when names began with what expunge puts around a network."""
    with safe_open(path, framework="pt") as file:
        told = file.metadata()["expunge"]
    write_tensors(prefixed(prefix, load_file(path)), path, {"format": "expunge-checkpoint/2", "expunge": told})


@pytest.mark.parametrize("kind", ["own", "timm", "hf"])
def test_files_of_before_load_still(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "old" / "model.safetensors"
    path.parent.mkdir()
    if kind == "hf":
        hugging_face(tmp_path / "in", "resnet")
        model, header = load_model(f"hf:{tmp_path}/in")
    else:
        pytest.importorskip("timm", reason="the extra vision is not installed")
        spec = ModelSpec(
            architecture="small_resnet" if kind == "own" else "timm:resnet10t",
            num_classes=5,
            in_channels=3,
            image_size=SIDE,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )
        model, header = build(spec).eval(), Header(spec=spec, class_names=tuple("abcde"))
    save_checkpoint(path, model, replace(header, history=(ENTRY,)))
    digest = model_digest(path)
    as_before(path, "network.model." if kind == "hf" else "network.")
    if kind != "hf":
        assert model_digest(path) == digest
    again, told = load_model(path.parent)
    assert told == replace(header, history=(ENTRY,))
    assert state_bits(again) == state_bits(model)
    assert calibration_seeds(again) == (7,)
    if kind == "timm":
        again, told = load_model("timm:resnet10t,num_classes=5", weights=path)
        assert state_bits(again) == state_bits(model)
    out = tmp_path / "out"
    out.mkdir()
    save_model(out, again, told, path.parent)
    assert ("config.json" in {file.name for file in out.iterdir()}) == (kind == "hf")
    again, told = load_model(f"hf:{out}" if kind == "hf" else out)
    assert (state_bits(again), told.history) == (state_bits(model), (ENTRY,))


# --- What comes in ---------------------------------------------------------------------------------------------------

FACTORY = """
from torch import nn


def make():
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), nn.Linear(6, 3))
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """The network that `py:their_nets:make` builds, with weights that are to be found again."""
    (tmp_path / "their_nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    import their_nets  # type: ignore[import-not-found]

    yield their_nets.make()
    del sys.modules["their_nets"]


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def read(path: Path, key: str | None = None) -> dict[str, bytes]:
    model, _ = load_model("py:their_nets:make", weights=path, allow_pickle=True, weights_key=key)
    assert isinstance(model, Classifier)
    return state_bits(model.own)


def in_middle(word: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("1.", f"1.{word}.", 1) if name[0] == "1" else name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": Namespace(lr=0.1, data="x")},
        lambda state: {"arch": "resnet", "state_dict": state, "args": Namespace(sub=Namespace(a=1)), "metric": 0.9},
        lambda state: {"state_dict": prefixed("model.", state), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
        lambda state: {"state_dict": prefixed("net.", state), "loops": {}, "optimizer_states": [{"state": {}}]},
        lambda state: {"net": state, "acc": 91.2, "epoch": 7},
        lambda state: {"network": prefixed("module.", state)},
        lambda state: prefixed("_orig_mod.", state),
        lambda state: prefixed("module._orig_mod.", state),
        lambda state: {"state_dict": prefixed("model._orig_mod.", state)},
        lambda state: in_middle("_orig_mod", state),
        lambda state: in_middle("module", state),
        lambda state: {"state_dict": prefixed("model.", in_middle("_orig_mod.module", state))},
        lambda state: AveragedModel(_of(state)).state_dict(),
    ],
)
def test_checkpoints_of_trainings_are_taken(
    tmp_path: Path, network: nn.Module, content: Callable[[Any], dict[str, Any]]
) -> None:
    torch.save(content(network.state_dict()), tmp_path / "w.ckpt")
    assert read(tmp_path / "w.ckpt") == state_bits(network)


def _of(state: Mapping[str, Tensor]) -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), nn.Linear(6, 3))
    made.load_state_dict(state)
    return made


def test_averages_beside_raw_weights_are_still_a_question(tmp_path: Path, network: nn.Module) -> None:
    raw = network.state_dict()
    average = {name: value.clone() * 2 for name, value in raw.items()}
    for content in (
        {"state_dict": raw, "state_dict_ema": average, "args": Namespace(model="x"), "version": 2},
        {"model": in_middle("_orig_mod", raw), "model_ema": in_middle("_orig_mod", average)},
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match="--weights-key"):
            read(tmp_path / "w.pth")
        assert read(tmp_path / "w.pth", list(content)[1]) == state_bits(_of(average))


def test_what_a_training_keeps_beside_its_network_is_left_out_and_told(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    for extra in ("criterion.weight", "model.loss_fn.weight", "train_acc.total", "model.1.0.total_ops"):
        torch.save({"state_dict": prefixed("model.", state) | {extra: torch.ones(3)}}, tmp_path / "w.ckpt")
        with pytest.warns(ExpungeWarning, match=rf"left out of .*w\.ckpt.*{extra}"):
            assert read(tmp_path / "w.ckpt") == state_bits(network)


@pytest.mark.parametrize("extra", ["model.backbone.weight", "teacher.weight", "model.1.2.weight", "losses2d.bias"])
def test_what_may_be_of_the_network_is_refused_by_name(tmp_path: Path, network: nn.Module, extra: str) -> None:
    torch.save({"state_dict": prefixed("model.", network.state_dict()) | {extra: torch.ones(3)}}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=rf"1 unknown, such as '{extra}'"):
        read(tmp_path / "w.ckpt")


def test_a_pickle_that_holds_more_than_tensors_is_refused_by_name(tmp_path: Path, network: nn.Module) -> None:
    torch.save({"state_dict": network.state_dict(), "args": Path("x")}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"it holds a pathlib.*safetensors"):
        read(tmp_path / "w.pt")


def test_the_command_says_what_it_left_out(tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    save_file({**network.state_dict(), "criterion.weight": torch.ones(3)}, tmp_path / "w.safetensors")
    data = write_folder(tmp_path / "data", pixels(6, side=2), ["0", "1", "2"] * 2)
    model = ("--model", "py:their_nets:make,image_size=2,in_chans=1", "--weights", tmp_path / "w.safetensors")
    more = ("--method", "neg_grad", "--set", "epochs=1", "--out", tmp_path / "out")
    done = expunge("forget", *model, "--forget", f"folder:{data}", *more)
    assert done.returncode == 0
    assert "criterion.weight" in done.stderr


def test_torchvision_specs_that_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="the extra vision is not installed")
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    for spec, said in (
        ("torchvision:nothing", "'nothing'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "'fasterrcnn_resnet50_fpn'"),
        ("torchvision:googlenet", "py:package"),
        ("torchvision:resnet18,in_chans=1", "in_chans"),
        ("torchvision:vit_b_16,image_size=33", "33|divisible"),
    ):
        with pytest.raises(SettingError, match=said):
            load_model(spec, weights=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="missing"):
        load_model("torchvision:resnet18", weights=tmp_path / "w.safetensors")
    with pytest.raises(SettingError, match="--weights"):
        load_model("torchvision:resnet18")
