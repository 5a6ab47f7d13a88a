"""Files with random damage: each is taken, or refused by an `ExpungeError`, in little time and memory.

    python -m tests.fuzz [--num 2000] [--seed 0] [KIND …]

Damage is of the structure (entries removed, replaced, put within each other, huge numbers, deep nesting) or of bytes.
"""

import argparse
import copy
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from expunge.errors import ExpungeError
from expunge.models import Header, ModelSpec, build, load_model, save_checkpoint
from expunge.records import Trace
from expunge.tensor_files import write_tensors
from expunge.training_state import keep, restore
from expunge.unlearning import unlearn
from expunge.update_log import UpdateRecorder, matching_updates, watched_by
from tests.arrangements import NETWORKS, pairs

SECONDS = 10.0
"""The longest that one file may take of the processor: the machine may be busy with more."""

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 10**6, 10**18, 10**30, -(10**400), 1e308, float("inf"), float("nan")),
    *("", "x", "\0", "../x", "a" * 100_000, "hf-hub:a/b", "/dev/zero", "\ud800"),
    *([], {}, [[]], [None], {"a": {}}, [1] * 10_000, ["x", 1], {"": 0}),
)


def damaged(content: Any, rng: random.Random) -> Any:
    """The content with one to three changes of its structure."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        inner, key = rng.choice(_places(content) or [({"": content}, "")])
        change = rng.randrange(5)
        if change == 0:
            del inner[key]
        elif change == 1:
            inner[key] = copy.deepcopy(rng.choice(ODD))
        elif change == 2:
            inner[key] = {"x": inner[key]} if rng.random() < 0.5 else [inner[key], inner[key]]
        elif change == 3 and isinstance(inner, dict):
            inner[rng.choice(["x", "auto_map", "__class__", "", f"{key}x"])] = inner.pop(key)
        else:
            places = _places(content)
            inner[key] = copy.deepcopy(rng.choice([one[name] for one, name in places])) if places else None
    return content


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every (list or object, key) in the content, at any depth."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    return [place for key in keys for place in [(content, key), *_places(content[key])]]


def damaged_text(content: Any, rng: random.Random) -> bytes:
    """JSON with damage of structure, of depth or of bytes."""
    how = rng.randrange(10)
    if how < 6:
        return json.dumps(damaged(content, rng)).encode()
    text = json.dumps(content).encode()
    if how == 6:
        deep = rng.choice([40, 5_000, 200_000])
        at = rng.choice([n for n, letter in enumerate(text) if letter in b"[{"])
        return text[:at] + b"[" * deep + b"]" * deep + text[at:] if rng.random() < 0.5 else b'{"a":' * deep
    return damaged_bytes(text, rng)


def damaged_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Bytes that are flipped, cut off, doubled or put in."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) or 1)
        change = rng.randrange(4)
        if change == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif change == 1:
            del content[at : at + rng.randint(1, 50)]
        elif change == 2:
            content[at:at] = content[at : at + rng.randint(1, 50)]
        else:
            content[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(content)


Case = Callable[[random.Random], None]


def checkpoints(folder: Path) -> Case:
    """Headers of checkpoints with the right digest, and files with damaged bytes."""
    spec = ModelSpec(
        architecture="small_resnet", num_classes=5, in_channels=1, image_size=28, mean=(0.3,), std=(0.2,),
        options={"width": 2},
    )  # fmt: skip
    for extra in ("timm", "torchvision", "transformers"):  # what they take is no file's doing
        import_module(extra)
    path = folder / "model.safetensors"
    history = ({"did": "forget", "calibration_seeds": [1], "undone_steps": [2], "settings": {"lr": 0.1}},)
    names = ("a", "b", "c", "d", "e")
    save_checkpoint(path, build(spec), Header(spec=spec, class_names=names, recipe={"lr": 0.1}, history=history))
    whole, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["expunge"])
    others = [
        ("small_resnet", {"width": 2}),
        ("resnet18", {"stem": "small"}),
        ("vit", {"depth": 1, "patch_size": 7}),
        ("timm:resnet10t", {"drop_rate": 0.1}),
        ("hf", {"config": {"model_type": "vit", "hidden_size": 4, "id2label": {"0": "a"}, "hidden_act": "gelu"}}),
    ]

    def case(rng: random.Random) -> None:
        if rng.random() < 0.3:
            path.write_bytes(damaged_bytes(whole[: 8 + int.from_bytes(whole[:8], "little")], rng) + whole[-5000:])
        elif rng.random() < 0.2:
            path.write_bytes(damaged_bytes(whole, rng))
        else:
            architecture, options = rng.choice(others)
            content = {**told, "spec": {**told["spec"], "architecture": architecture, "options": options}}
            text = damaged_text(content, rng).decode(errors="replace")
            write_tensors(tensors, path, {"format": "expunge-checkpoint/2", "expunge": text})
        load_model(path)

    return case


def traces(_folder: Path) -> Case:
    """JSON of traces."""
    done = unlearn(NETWORKS["batch_norm"](), pairs(4, 0), method="targeted")
    content = json.loads(done.trace.to_json())

    def case(rng: random.Random) -> None:
        text: Any = damaged_text(content, rng)
        Trace.from_json(text.decode(errors="replace")).to_json()

    return case


def result_lines(folder: Path) -> Case:
    """Lines of results of `python -m experiments run`."""
    from experiments.grid.results import read_results

    lines = sorted((Path(__file__).parents[1] / "results").rglob("*.jsonl"))
    content = json.loads(next(line for path in lines for line in path.open() if '"model_digest"' in line))

    def case(rng: random.Random) -> None:
        (folder / "x.jsonl").write_bytes(damaged_text(content, rng).replace(b"\n", b" ") + b"\n")
        read_results(folder)

    return case


def grids(folder: Path) -> Case:
    """Grids of experiments, as TOML."""
    import tomllib

    from experiments.grid import load_grid

    text = (Path(__file__).parents[1] / "grids/smoke.toml").read_bytes()
    content = tomllib.loads(text.decode())

    def case(rng: random.Random) -> None:
        how, path = rng.random(), folder / "grid.toml"
        if how < 0.1:
            deep = rng.choice([40, 5_000, 100_000])
            path.write_bytes(text + b"\nx = " + rng.choice([b"[" * deep, b"{a=" * deep]) + b"\n")
        elif how < 0.15:
            path.write_bytes(b".".join([b"a"] * rng.choice([50, 20_000])) + b" = 1\n" + text)
        elif how < 0.4:
            path.write_bytes(damaged_bytes(text, rng))
        else:
            entries = [f"{json.dumps(str(k))} = {_toml(v)}" for k, v in damaged(content, rng).items()]
            path.write_text("\n".join(entries), encoding="utf-8", errors="replace")
        for profile in load_grid(path).profiles:
            load_grid(path).cells(profile)

    return case


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return {float("inf"): "inf", None: '""'}.get(value, json.dumps(value).replace("NaN", "nan"))


def training_states(folder: Path) -> Case:
    """States of trainings: their structure with the right digest, and their bytes."""
    import expunge.training_state as states

    model, rng_of_training = torch.nn.Linear(3, 2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    path = folder / "state"
    keep(path, "this", parts, rng_of_training, {"history": [[0.5, 0.5]]})
    whole = path.read_bytes()
    content = torch.load(BytesIO(whole[len(states.MARK) + 65 :]), weights_only=True)

    def case(rng: random.Random) -> None:
        if rng.random() < 0.4:
            path.write_bytes(damaged_bytes(whole, rng))
        elif rng.random() < 0.3:
            path.write_bytes(damaged_bytes(whole[len(states.MARK) + 65 :], rng))
        else:
            torch.save(damaged(content, rng), path)
        restore(path, "this", parts, rng_of_training)

    return case


def update_logs(folder: Path) -> Case:
    """Update logs: `watched.json` and the files of steps."""
    log, digest = folder / "updates", b"0123456789abcdef"
    recorder = UpdateRecorder(log)
    recorder.begin([digest])
    model = torch.nn.Linear(3, 2)
    with recorder.recording(model, 0, [digest]):
        pass
    watched, step = log / "watched.json", log / "00000000.safetensors"
    content, whole, tensors = json.loads(watched.read_text()), step.read_bytes(), load_file(step)
    good = watched.read_bytes()

    def case(rng: random.Random) -> None:
        watched.write_bytes(good)
        step.write_bytes(whole)
        how = rng.random()
        if how < 0.4:
            unsigned = {key: value for key, value in content.items() if key != "sha256"}
            watched.write_bytes(damaged_text(unsigned, rng))
        elif how < 0.6:
            step.write_bytes(damaged_bytes(whole, rng))
        else:
            told = {"format": "expunge-update/1", "step": "0", "examples": json.dumps([digest.hex()])}
            changed = rng.choice(list(told))
            told[changed] = damaged_text([digest.hex()], rng).decode(errors="replace")
            write_tensors(tensors, step, told)
        watched_by(log)
        matching_updates(log, [digest])

    return case


def full_audits(_folder: Path) -> Case:
    """JSON of full audits."""
    from expunge.auditing import FullAudit, full_audit
    from tests.test_audit_full import invented

    content = json.loads(full_audit(invented(8), num_bootstrap=5).to_json())

    def case(rng: random.Random) -> None:
        found = FullAudit.from_json(damaged_text(content, rng).decode(errors="replace"))
        found.table()
        found.to_json()

    return case


def references(folder: Path) -> Case:
    """Reference models: manifests whose files carry the right tags, and files of outputs."""
    from expunge.auditing._reference_files import FORMAT, SETS, file_of, tag_of
    from expunge.auditing.full_audit import scores_of
    from expunge.auditing.references import load_references

    settings = {
        "spec": {"architecture": "small_resnet", "options": {"width": 4}},
        "recipe": {"lr": 0.1},
        **dict.fromkeys(("data", *SETS), "0" * 64),
        "seed": 0,
        "relearn": {"max_steps": 10, "lr": 0.1},
        "subject": "fuzz",
    }
    content = {"format": FORMAT, "settings": settings, "methods": {"mine": {"method": "targeted", "settings": {}}}}
    said: dict[str, Any] = {name: torch.randn(4, 3) for name in SETS}
    said["relearn_steps"] = torch.tensor(2.0, dtype=torch.float64)
    labels: dict[str, Any] = {name: torch.tensor([0, 1, 2, 0]) for name in SETS}
    labels["audited"] = torch.tensor([True, False, True, True])
    odd: tuple[Any, ...] = (
        torch.zeros(0),
        torch.zeros(4, 3).long(),
        torch.zeros(4, 2),
        torch.zeros(3, 4, dtype=torch.float16),
    )
    odd += (torch.tensor(float("nan")), torch.full((4, 3), float("nan")), torch.tensor([0, 1, 2, -1]), torch.ones(4))
    odd += (torch.tensor([0, 1, 2, 10**12]), torch.zeros(4, dtype=torch.bool), torch.zeros(4, 0))

    def write(told: Any, row: str, tensors: dict[str, Any]) -> Path:
        path = file_of(folder, row, 0)
        write_tensors(tensors, path, {"digest": tag_of(told["settings"], told["methods"].get(row))})
        return path

    def case(rng: random.Random) -> None:
        text, told = json.dumps(content).encode(), content
        if (how := rng.random()) < 0.6:
            text = damaged_text(content, rng)
            with suppress(Exception):  # a manifest that cannot be read in any way
                told = json.loads(text)
                tag_of(told["settings"], told["methods"].get("mine"))
        (folder / "manifest.json").write_bytes(text)
        write_tensors(labels, folder / "labels.safetensors", {})
        with suppress(Exception):
            paths = [write(told, row, said) for row in ("original", "retrained", "mine")]
            if 0.6 <= how < 0.75:
                path = rng.choice([*paths, folder / "labels.safetensors"])
                path.write_bytes(damaged_bytes(path.read_bytes(), rng))
            elif how >= 0.75 and rng.random() < 0.5:
                write(told, "mine", said | {rng.choice(list(said)): rng.choice(odd).clone()})
            elif how >= 0.75:
                other = labels | {rng.choice(list(labels)): rng.choice(odd).clone()}
                write_tensors(other, folder / "labels.safetensors", {})
        found = load_references(folder)
        for logits in found.logits.values():
            for name in SETS:
                scores_of(logits[name], found.labels[name])

    return case


def hugging_face_models(folder: Path) -> Case:
    """Directories that `save_pretrained` wrote: their configuration, that of the image processor, and their weights."""
    from tests.test_models import hugging_face

    hugging_face(folder / "hf")
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    whole = {name: (folder / "hf" / name).read_bytes() for name in names}
    processor = {"do_resize": True, "crop_size": 28, "do_rescale": True, "rescale_factor": 0.01, "include_top": False}
    contents = {name: json.loads(whole[name]) for name in names[:2]}
    contents["preprocessor_config.json"] |= processor

    def case(rng: random.Random) -> None:
        for name in names:
            (folder / "hf" / name).write_bytes(whole[name])
        name = rng.choice([*names, *names[:2]])
        made = damaged_text(contents[name], rng) if name in contents else damaged_bytes(whole[name], rng)
        (folder / "hf" / name).write_bytes(made)
        load_model(f"hf:{folder}/hf")

    return case


def outputs(folder: Path) -> Case:
    """Files of `--logits`."""
    import numpy as np
    from safetensors.numpy import save_file

    from expunge.auditing import audit_outputs
    from expunge.data.outputs import load_outputs

    numbers, arrays = np.random.default_rng(0), dict[str, Any]()
    for name, size in (("forget", 8), ("test", 12)):
        arrays |= {f"{when}_{name}": numbers.normal(size=(size, 3)) for when in ("before", "after")}
        arrays[f"labels_{name}"] = np.arange(size) % 3
    odd: tuple[Any, ...] = (
        np.zeros(0),
        np.zeros((8, 0)),
        np.zeros((8, 1)),
        np.full((8, 3), np.nan),
        np.zeros((2, 8, 3)),
        np.array(1),
    )
    odd += (np.arange(8.0), np.arange(8) - 1, np.full(8, 2**62), np.zeros(8, bool), np.array(["a"] * 8))
    odd += (np.full((8, 3), 1e308), np.zeros((8, 3), np.complex64))

    def write(path: Path, given: dict[str, Any]) -> None:
        if path.suffix == ".npz":
            np.savez(path, **given)
        else:
            save_file({name: each for name, each in given.items() if each.dtype.kind != "U"}, path)

    def case(rng: random.Random) -> None:
        path = folder / f"x{rng.choice(['.npz', '.safetensors'])}"
        given = dict(arrays)
        if (how := rng.random()) < 0.5:
            name = rng.choice([*given, "ids", "labels_retain", "x", "before_"])
            given[name] = rng.choice(odd)
        elif how < 0.6:
            del given[rng.choice(list(given))]
        write(path, given)
        if how >= 0.6:
            path.write_bytes(damaged_bytes(path.read_bytes(), rng))
        before, after, labels, ids = load_outputs(path)
        audit_outputs(before, after, labels, ids=ids)

    return case


KINDS: dict[str, Callable[[Path], Case]] = {
    "checkpoints": checkpoints,
    "traces": traces,
    "result_lines": result_lines,
    "grids": grids,
    "training_states": training_states,
    "update_logs": update_logs,
    "full_audits": full_audits,
    "references": references,
    "hugging_face_models": hugging_face_models,
    "outputs": outputs,
}


def run(kind: str, num: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """How often files were taken, refused, and met with another error or slowly; and what is wrong, in words."""
    case, found, wrong = KINDS[kind](folder), Counter[str](), []
    for n in range(num):
        started = time.process_time()
        try:
            case(random.Random(f"{kind} {seed} {n}"))  # noqa: S311
            found["taken"] += 1
        except ExpungeError:
            found["refused"] += 1
        except BaseException as error:
            found["foreign"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            wrong.append(f"{kind} {n}: {type(error).__name__}: {str(error)[:100]} at {last.filename}:{last.lineno}")
            if isinstance(error, KeyboardInterrupt):
                raise
        if time.process_time() - started > SECONDS:
            found["slow"] += 1
            wrong.append(f"{kind} {n}: {time.process_time() - started:.1f} s")
    return found, wrong


def main() -> None:
    """Prints the counts, and exits with 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import resource
    import warnings

    warnings.simplefilter("ignore")
    failed = False
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as name:
            found, wrong = run(kind, given.num, given.seed, Path(name))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{kind}: {dict(found)}, highest memory so far {peak:.2f} GB", flush=True)
        for line in wrong[:20]:
            print("  ", line)
        failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
