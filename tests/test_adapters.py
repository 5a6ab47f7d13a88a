"""LoRA adapters of Hugging Face image classifiers: only the adapter changes, and it is written as one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.errors import InputError
from expunge.models import calibration_seeds, class_names_of, load_model, logits_of, save_model
from expunge.unlearning import unlearn
from tests.arrangements import state_bits
from tests.conftest import pixels, succeed, write_folder
from tests.test_formats import ENTRY, SIDE, changed, hugging_face

peft: Any = pytest.importorskip("peft", reason="the extra hf is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LAYERS = ["query", "value", "q_proj", "v_proj"]
"""Of attention, as transformers of several versions call them."""


def adapter(directory: Path, base: Path, classes: int = 5, **more: Any) -> Any:
    """An adapter as PEFT writes it, of a base model in a directory of its own."""
    transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
    hugging_face(base, "vit")
    network = transformers.AutoModelForImageClassification.from_pretrained(
        base, **({} if classes == 5 else {"num_labels": classes, "ignore_mismatched_sizes": True})
    )
    torch.manual_seed(3)
    config = peft.LoraConfig(**{"r": 2, "target_modules": LAYERS, "modules_to_save": ["classifier"], **more})
    model = peft.get_peft_model(network, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("classes", [5, 7])
def test_an_adapter_comes_out_as_one(tmp_path: Path, classes: int) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
    original = adapter(tmp_path / "in", tmp_path / "base", classes)
    (tmp_path / "in/README.md").write_text("# Mine\n")
    model, header = load_model(f"hf:{tmp_path}/in")
    images = pixels(2, channels=3, side=SIDE)
    with torch.no_grad():
        expected = original(pixel_values=model.normalise(images)).logits  # type: ignore[operator]
    assert torch.equal(logits_of(model, images), expected)
    assert header.spec.num_classes == classes
    assert header.class_names == (tuple("0123456") if classes == 7 else tuple(f"kind {n}" for n in range(5)))
    assert class_names_of(model) == (() if classes == 7 else tuple(f"kind {n}" for n in range(5)))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"lora" in name or "classifier" in name for name in trainable} == {True}
    with torch.no_grad():
        for name in trainable:
            model.get_parameter(name).add_(0.1)
    expected = logits_of(model, images)
    for out in (tmp_path / "out", tmp_path / "twice"):
        out.mkdir()
        save_model(out, model, replace(header, history=(ENTRY,)), tmp_path / "in")
    names = {file.name for file in out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "expunge.json"} <= names
    assert not names & {"model.safetensors", "config.json"}
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert (out / "README.md").read_text().startswith("# Mine\n")
    base = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=classes, ignore_mismatched_sizes=True
    )
    theirs = peft.PeftModel.from_pretrained(base, out).eval()
    with torch.no_grad():
        assert torch.equal(theirs(pixel_values=model.normalise(images)).logits, expected)  # type: ignore[operator]
    again, told = load_model(f"hf:{out}")
    assert told == replace(header, history=(ENTRY,))
    one, other = (
        {name: bits for name, bits in state_bits(each).items() if "original_module" not in name}
        for each in (again, model)
    )
    assert one == other
    assert state_bits(again) == state_bits(load_model(f"hf:{out}")[0])
    assert calibration_seeds(again) == (7,)


def test_the_command_changes_the_adapter_alone(tmp_path: Path) -> None:
    adapter(tmp_path / "in", tmp_path / "base")
    base = (tmp_path / "base/model.safetensors").read_bytes()
    names = [f"kind {n}" for n in range(5)]
    data = write_folder(tmp_path / "images", pixels(5, channels=3, side=SIDE), names)
    out = tmp_path / "out"
    given = ("--method", "neg_grad", "--set", "epochs=2", "--set", "lr=0.01", "--out", out)
    succeed("forget", "--model", f"hf:{tmp_path}/in", "--forget", f"folder:{data}", *given)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    assert (tmp_path / "base/model.safetensors").read_bytes() == base
    assert "| neg_grad | none | 5 | not measured | not measured |" in (out / "README.md").read_text()


class Logits(nn.Module):
    """What users wrap a model of transformers in."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


@pytest.mark.parametrize("method", ["calibrated", "targeted"])
def test_in_python_only_the_adapter_changes(tmp_path: Path, method: str) -> None:
    model = Logits(adapter(tmp_path / "in", tmp_path / "base"))
    images = torch.rand(80, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(80) % 5
    forget, test = TensorDataset(images[:10], labels[:10]), TensorDataset(images[10:], labels[10:])
    after = unlearn(model, forget, method=method, test=test if method == "calibrated" else None).model
    moved = {name for name, value in after.named_parameters() if not torch.equal(value, model.get_parameter(name))}
    assert moved
    assert moved <= {name for name, value in model.named_parameters() if value.requires_grad}
    assert isinstance(after.model, peft.PeftModel)


def test_adapters_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "in", tmp_path / "base")
    config, weights = tmp_path / "in/adapter_config.json", tmp_path / "in/adapter_model.safetensors"
    plain, state = json.loads(config.read_text()), load_file(weights)
    for change, said in (
        ({"auto_map": {"AutoModel": "theirs.Model"}}, "'auto_map'"),
        ({"trust_remote_code": True}, "'trust_remote_code'"),
        ({"megatron_config": {"a": 1}}, "'megatron_config'"),
        ({"peft_type": "IA3"}, "LoRA"),
        ({"target_modules": "/etc/passwd"}, "target_modules"),
        ({"rank_pattern": {"../x": 3}}, "rank_pattern"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"base_model_name_or_path": "google/vit-base-patch16-224"}, "'google/vit-base-patch16-224'.*directory"),
        ({"base_model_name_or_path": None}, "directory"),
        ({"r": 3}, "shape"),
        ({"r": 500_000}, "rank 500000"),
        ({"rank_pattern": {"query": 500_000}}, "rank 500000"),
        ({"target_modules": ["nothing"]}, "peft cannot put the adapter into"),
    ):
        config.write_text(json.dumps({**plain, **change}))
        with pytest.raises(InputError, match=said):
            load_model(f"hf:{tmp_path}/in")
    config.write_text(json.dumps(plain))
    name = next(iter(state))
    for broken, said in (({**state, name: state[name] / 0}, "NaN"), ({**state, "more": state[name].clone()}, "'more'")):
        save_file(broken, weights)
        with pytest.raises(InputError, match=said):
            load_model(f"hf:{tmp_path}/in")
    weights.unlink()
    with pytest.raises(InputError, match="adapter_model"):
        load_model(f"hf:{tmp_path}/in")


def test_the_base_of_an_adapter_may_lie_beside_it(tmp_path: Path) -> None:
    adapter(tmp_path / "in", tmp_path / "base")
    config = tmp_path / "in/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "../base"}))
    model, header = load_model(f"hf:{tmp_path}/in")
    (tmp_path / "out").mkdir()
    save_model(tmp_path / "out", changed(model), header, tmp_path / "in")
    again, _ = load_model(f"hf:{tmp_path}/out")
    for spec in (tmp_path / "out", tmp_path / "out/adapter_model.safetensors"):
        assert state_bits(load_model(spec)[0]) == state_bits(again)
    with pytest.raises(InputError, match=r"--model hf:.*in,"):
        load_model(tmp_path / "in")
    assert header.spec == load_model(f"hf:{tmp_path}/out")[1].spec
    assert again.training is False
