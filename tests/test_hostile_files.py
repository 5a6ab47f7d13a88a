"""Files that somebody made to harm: no code, no large memory, no waiting, and a flipped bit is noticed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from expunge.errors import ExpungeError, InputError
from expunge.models import Header, ModelSpec, build, load_model, save_checkpoint
from expunge.tensor_files import write_tensors
from expunge.training_state import OtherTrainingError, keep, restore
from tests.arrangements import state_bits
from tests.test_models import hugging_face

SPEC = ModelSpec(
    architecture="small_resnet",
    num_classes=5,
    in_channels=1,
    image_size=28,
    mean=(0.3,),
    std=(0.2,),
    options={"width": 4},
)
NAMES = ("zero", "one", "two", "three", "four")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint of 27 kB."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build(SPEC).eval(), Header(spec=SPEC, class_names=NAMES))
    return path


def describe(path: Path, **changes: Any) -> None:
    """Writes the checkpoint again, as whoever wants to harm would: with another description, and its digest."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    told = json.loads(metadata["expunge"])
    told["spec"].update(changes)
    told["class_names"] = []
    write_tensors(load_file(path), path, {**metadata, "expunge": json.dumps(told)})


VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
}
CODE: dict[str, dict[str, Any]] = {
    "code": {"auto_map": {"AutoConfig": "theirs.Config", "AutoModelForImageClassification": "theirs.Model"}},
    "code of an unknown kind": {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}},
    "another repository": {"_name_or_path": "theirs/model", "auto_map": {"AutoConfig": "theirs--model.Config"}},
    "a kernel": {"_attn_implementation": "theirs/kernel"},
    "quantised": {"quantization_config": {"quant_method": "theirs"}},
    "a timm network": {"model_type": "timm_wrapper", "architecture": "hf-hub:theirs/model"},
    "a backbone": {"backbone": "theirs/model", "use_pretrained_backbone": True},
    "a path": {"hidden_act": "/opt/theirs.so"},
    "an address": {"hidden_act": "https://example.org/x"},
    "an object": {"hidden_act": {"name": "x"}},
    "no kind": {"model_type": None},
}


@pytest.mark.parametrize("name", CODE)
def test_a_description_brings_no_code(written: Path, tmp_path: Path, monkeypatch: Any, name: str) -> None:
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run code"))
    (tmp_path / "theirs.py").write_text("raise SystemExit('their code ran')\n")
    monkeypatch.chdir(tmp_path)
    describe(written, architecture="hf", options={"config": {**VIT, **CODE[name]}})
    with pytest.raises(InputError, match="cannot be built"):
        load_model(written)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps({**VIT, **CODE[name]}))
    with pytest.raises(InputError, match="cannot load"):
        load_model(f"hf:{tmp_path}/hf")


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "x.pth"},
        {"pretrained": True},
        {"pretrained_cfg": {"url": "https://example.org/x"}},
        {"pretrained_strict": False},
        {"cache_dir": "/opt"},
        {"act_layer": "/opt/x.so"},
        {"norm_layer": {"class": "x"}},
        {"depth": "hf-hub:theirs/model"},
    ],
)
def test_a_description_reads_no_files(written: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("timm", reason="the extra vision is not installed")
    describe(written, architecture="timm:resnet10t", options=options)
    with pytest.raises(InputError, match="cannot be built"):
        load_model(written)


LARGE: dict[str, dict[str, Any]] = {
    "wide": {"options": {"width": 10_000}},
    "wider": {"options": {"width": 10**12}},
    "many classes": {"num_classes": 1_000_000},
    "endless classes": {"num_classes": 10**15},
    "large images": {"image_size": 10**9},
    "deep": {"architecture": "vit", "options": {"depth": 1_000_000}},
    "wide transformer": {"architecture": "vit", "options": {"embed_dim": 999_999}},
    "giant": {"architecture": "timm:vit_giant_patch14_224", "in_channels": 3, "image_size": 224, "options": {}},
    "deep hf": {"architecture": "hf", "options": {"config": {**VIT, "num_hidden_layers": 1_000_000}}},
    "wide hf": {"architecture": "hf", "options": {"config": {**VIT, "hidden_size": 900_000}}},
    "window": {
        "architecture": "timm:swin_tiny_patch4_window7_224",
        "in_channels": 3,
        "image_size": 224,
        "options": {"window_size": 4096, "img_size": 8192},
    },
}

LIMITED = """
import resource, sys, time
from expunge.errors import ExpungeError
from expunge.models import load_model
import timm, transformers
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
for path in sys.argv[1:]:
    try:
        load_model(path)
    except ExpungeError as error:
        assert "\\n" not in str(error)
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(path, round(time.monotonic() - started, 2), (now - before) // 1024, str(error), file=sys.stderr)
        assert time.monotonic() - started < 20 and now - before < 600_000
        before, started = now, time.monotonic()
    else:
        raise SystemExit("it was loaded")
"""


def test_a_small_file_takes_little_memory_and_time(written: Path, tmp_path: Path) -> None:
    """In a process of its own, whose highest memory is measured."""
    pytest.importorskip("timm", reason="the extra vision is not installed")
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    paths = []
    for name, changes in LARGE.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(written.read_bytes())
        describe(path, **changes)
        paths.append(str(path))
    done = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SIZES: dict[str, dict[str, Any]] = {
    "deep": {"num_hidden_layers": 1_000_000},
    "wide": {"hidden_size": 900_000, "num_attention_heads": 1},
    "wide between": {"intermediate_size": 1_000_000},
    "many patches": {"image_size": 1_000_000, "patch_size": 1},
    "many classes": {"id2label": {str(n): str(n) for n in range(300_000)}, "hidden_size": 4_096},
    "more classes": {"id2label": {str(n): str(n) for n in range(7)}},
}

LIMITED_DIRECTORIES = LIMITED.replace("load_model(path)", "load_model(f'hf:{path}')")


def test_sizes_of_a_model_directory_are_compared_with_its_weights_first(tmp_path: Path) -> None:
    """A few bytes of config.json ask for gigabytes, or for minutes; each is refused in a process that is measured."""
    whole = hugging_face(tmp_path / "whole").config.to_dict()
    paths = []
    for name, changes in SIZES.items():
        paths.append(str(tmp_path / name))
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({**whole, **changes}))
    done = subprocess.run([sys.executable, "-c", LIMITED_DIRECTORIES, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(SIZES)
    assert all("cannot load hf:" in line for line in lines)
    assert "is (5," in lines[-1]
    assert "(7," in lines[-1]


def test_nothing_of_a_large_model_directory_is_built_before_it_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    hugging_face(tmp_path / "hf")
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, **SIZES["more classes"]}))
    kind = transformers.AutoModelForImageClassification
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("the library was asked"))
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(f"hf:{tmp_path}/hf")


def test_weights_in_several_files_are_compared_too(tmp_path: Path) -> None:
    images = torch.rand(2, 1, 28, 28)
    expected = hugging_face(tmp_path / "hf").eval()
    index = tmp_path / "hf/model.safetensors.index.json"
    expected.save_pretrained(tmp_path / "hf", max_shard_size="2KB")
    if not index.exists():  # one file still
        pytest.fail("the model is too small to be split")
    (tmp_path / "hf/model.safetensors").unlink(missing_ok=True)
    model, _ = load_model(f"hf:{tmp_path}/hf")
    with torch.no_grad():
        assert torch.allclose(model(images), expected((images - 0.25) / 0.5).logits, atol=1e-5)
    told = json.loads(index.read_text())
    odd: list[Any] = [{"x": "../theirs.safetensors"}, {"x": "theirs.bin"}, {"x": "none.safetensors"}, {}, [], None]
    for places in odd:
        index.write_text(json.dumps({**told, "weight_map": places}))
        with pytest.raises(InputError, match="take another copy"):
            load_model(f"hf:{tmp_path}/hf")


def test_an_adapter_which_names_another_model_is_refused(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf")
    (tmp_path / "hf/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "theirs/model"}))
    with pytest.raises(InputError, match="adapter"):
        load_model(f"hf:{tmp_path}/hf")


def test_a_flipped_bit_of_a_checkpoint_is_noticed(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 8 * len(whole), (150,), generator=rng).tolist()
    header = 8 * (8 + int.from_bytes(whole[:8], "little"))
    bits += torch.randint(0, header, (150,), generator=rng).tolist()
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        written.write_bytes(flipped)
        with pytest.raises(ExpungeError):
            load_model(written)
    written.write_bytes(whole)
    load_model(written)


def test_checkpoints_from_before_there_were_digests_still_load(written: Path) -> None:
    model, header = load_model(written)
    metadata = {"format": "expunge-checkpoint/1", "expunge": json.dumps(header.to_dict())}
    save_file(load_file(written), written, metadata=metadata)
    again, told = load_model(written)
    assert state_bits(again) == state_bits(model)
    assert told == header


WRITING = """
import sys, torch
from tests.test_hostile_files import NAMES, SPEC
from expunge.models import Header, build, save_checkpoint
torch.manual_seed(0)
save_checkpoint(sys.argv[1], build(SPEC), Header(spec=SPEC, class_names=NAMES, recipe={"b": 1, "a": 2}))
"""


def test_the_same_weights_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    for seed in "123":
        command = [sys.executable, "-c", WRITING, str(tmp_path / seed)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert len({(tmp_path / seed).read_bytes() for seed in "123"}) == 1


def test_a_flipped_bit_of_a_training_state_is_noticed(tmp_path: Path) -> None:
    path, rng = tmp_path / "state", torch.Generator().manual_seed(0)
    parts = {"model": torch.nn.Linear(3, 2)}
    keep(path, "this", parts, rng, {"history": []})
    assert restore(path, "this", parts, rng) == {"history": []}
    whole = path.read_bytes()
    for bit in torch.randint(0, 8 * len(whole), (200,), generator=torch.Generator().manual_seed(1)).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(OtherTrainingError):
            restore(path, "this", parts, rng)
    path.write_bytes(whole[whole.index(b"PK") :])  # as it was before there were digests
    assert restore(path, "this", parts, rng) == {"history": []}
