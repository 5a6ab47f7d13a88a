"""Bad input: one clear line, the right exit code, no traceback, and nothing written."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from expunge.data import load_data
from expunge.errors import ExpungeError, InputError, NonFiniteError, SettingError
from expunge.methods import make_method
from expunge.tensor_files import write_tensors
from expunge.unlearning import unlearn
from tests.arrangements import NETWORKS, pairs, state_bits
from tests.conftest import expunge, pixels, running, starting, succeed, tree, write_folder, write_image
from tests.forked import PATIENCE, Started

FACTORY = "def model():\n    from expunge.models.building import small_resnet\n    return small_resnet(10, width=4)\n"


@dataclass(frozen=True)
class Place:
    """A directory of a test's own, with a trained model and the beginnings of a command line in it."""

    root: Path
    trained: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    def forget(self, *more: str | Path, model: str | Path | None = None, data: str = "sample") -> list[str | Path]:
        """A command line that would work, but for what `more` adds or the others change."""
        ids: list[str | Path] = []
        if data == "sample" and "--ids" not in more:
            ids = ["--ids", self.ids("0", "1", "2")]
        return ["forget", "--model", model or self.trained, "--forget", data, *ids, "--out", self.out, *more]

    def train(self, *more: str | Path, data: str = "sample", model: str = "small_resnet") -> list[str | Path]:
        return ["train", "--data", data, "--model", model, "--out", self.out, *more]

    def ids(self, *ids: str) -> Path:
        path = self.root / "ids.txt"
        path.write_text("".join(f"{i}\n" for i in ids))
        return path

    def checkpoint(self, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Path:
        """A copy of the trained checkpoint with its tensors and header changed."""
        path = self.root / "changed.safetensors"
        with safe_open(self.trained / "model.safetensors", framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(self.trained / "model.safetensors")
        change(tensors, metadata)
        write_tensors(tensors, path, metadata)
        return path

    def file(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.write_bytes(content)
        return path

    def tensors(self, **tensors: torch.Tensor) -> str:
        save_file(tensors, self.root / "data.safetensors")
        return f"safetensors:{self.root}/data.safetensors"

    def folder(self, num: int = 2, *, channels: int = 1, side: int = 28) -> Path:
        return write_folder(self.root / "images", pixels(num, channels=channels, side=side), ["Bag"] * num)

    def factory(self) -> str:
        (self.root / "their_model.py").write_text(FACTORY)
        return "py:their_model:model"

    def network_state(self) -> dict[str, torch.Tensor]:
        """The trained weights under the names that the user's own network gives them."""
        state = load_file(self.trained / "model.safetensors")
        return {name.removeprefix("network."): value for name, value in state.items()}


@pytest.fixture
def place(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Place(tmp_path, trained)


Arrange = Callable[[Place], list[str | Path]]
CASES: dict[str, tuple[Arrange, int, str]] = {}


def case(code: int, said: str) -> Callable[[Arrange], Arrange]:
    """Adds a case: how to arrange it and its command line, the exit code, and what the message says (a pattern)."""

    def add(arrange: Arrange) -> Arrange:
        assert arrange.__name__ not in CASES
        CASES[arrange.__name__] = (arrange, code, said)
        return arrange

    return add


def simple(name: str, code: int, said: str, arrange: Arrange) -> None:
    assert name not in CASES
    CASES[name] = (arrange, code, said)


# --- The model -------------------------------------------------------------------------------------------------------

simple("missing checkpoint", 1, "nowhere", lambda p: p.forget(model=p.root / "nowhere"))


@case(1, "safetensors")
def truncated_checkpoint(place: Place) -> list[str | Path]:
    whole = (place.trained / "model.safetensors").read_bytes()
    return place.forget(model=place.file("cut.safetensors", whole[:-100]))


@case(1, "--weights")
def foreign_safetensors(place: Place) -> list[str | Path]:
    save_file({"weight": torch.ones(3)}, place.root / "foreign.safetensors")
    return place.forget(model=place.root / "foreign.safetensors")


@case(1, "pickle")
def pickle_named_safetensors(place: Place) -> list[str | Path]:
    torch.save(place.network_state(), place.root / "model.safetensors")
    return place.forget(model=place.root / "model.safetensors")


@case(1, "pickle")
def pickle_as_safetensors_weights(place: Place) -> list[str | Path]:
    torch.save(place.network_state(), place.root / "weights.safetensors")
    return place.forget("--weights", place.root / "weights.safetensors", "--allow-pickle", model=place.factory())


@case(1, "--allow-pickle")
def pickle_not_allowed(place: Place) -> list[str | Path]:
    torch.save(place.network_state(), place.root / "weights.pt")
    return place.forget("--weights", place.root / "weights.pt", model=place.factory())


class Hostile:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.mark,)


@case(1, "weights_only")
def hostile_pickle(place: Place) -> list[str | Path]:
    torch.save({"weight": Hostile(str(place.root / "it ran"))}, place.root / "weights.pt")
    return place.forget("--weights", place.root / "weights.pt", "--allow-pickle", model=place.factory())


@case(1, "weights_only")
def hostile_bare_pickle(place: Place) -> list[str | Path]:
    path = place.file("weights.pt", pickle.dumps(Hostile(str(place.root / "it ran"))))
    return place.forget("--weights", path, "--allow-pickle", model=place.factory())


@case(1, "fit")
def weights_that_do_not_fit_their_spec(place: Place) -> list[str | Path]:
    def widen(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        told = json.loads(metadata["expunge"])
        told["spec"]["options"]["width"] = 8
        metadata["expunge"] = json.dumps(told)

    return place.forget(model=place.checkpoint(widen))


def _poison(tensor: torch.Tensor, value: float) -> None:
    tensor.view(-1)[-1] = value


@case(1, "NaN or infinity")
def nan_in_weights(place: Place) -> list[str | Path]:
    return place.forget(model=place.checkpoint(lambda t, _: _poison(t["0.weight"], float("nan"))))


@case(1, "NaN or infinity")
def infinity_in_a_buffer(place: Place) -> list[str | Path]:
    return place.forget(model=place.checkpoint(lambda t, _: _poison(t["1.running_mean"], float("inf"))))


simple("weights for a model that has its own", 2, "--weights", lambda p: p.forget("--weights", "x.safetensors"))
simple("py model without weights", 2, "--weights", lambda p: p.forget(model=p.factory()))
simple(
    "missing weights",
    1,
    "x.safetensors",
    lambda p: p.forget("--weights", "x.safetensors", model=p.factory()),
)

# --- The data --------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1])

simple("empty ids file", 1, "empty", lambda p: p.forget("--ids", p.ids()))
simple("missing ids file", 1, "ids", lambda p: p.forget("--ids", p.root / "none.txt"))
simple("unknown id", 1, "'77777'.*'1999'", lambda p: p.forget("--ids", p.ids("1", "77777")))
simple("duplicate id", 1, "'4' .*once", lambda p: p.forget("--ids", p.ids("4", "5", "4")))
simple("unknown data", 1, "'mnist'", lambda p: p.forget(data="mnist"))
simple("unknown split", 2, "train .*'valid'", lambda p: p.forget(data="sample:valid"))
simple("data that is not here", 1, "expunge data get cifar10", lambda p: p.forget(data="cifar10"))
simple(
    "wrong channels",
    1,
    "3 × 28 × 28 .* 1 × 28 × 28",
    lambda p: p.forget(data=p.tensors(images=pixels(2, channels=3), labels=LABELS)),
)
simple("wrong size", 1, "1 × 20 × 20 .* --resize", lambda p: p.forget(data=f"folder:{p.folder(side=20)}"))
simple(
    "label outside",
    1,
    r"label 10 .* \[0, 10\)",
    lambda p: p.forget(data=p.tensors(images=pixels(2), labels=LABELS + 9)),
)
simple(
    "float labels",
    1,
    "integers",
    lambda p: p.forget(data=p.tensors(images=pixels(2), labels=LABELS + 0.5)),
)
simple(
    "no examples in the file",
    1,
    "forget set .*empty",
    lambda p: p.forget(data=p.tensors(images=pixels(0), labels=LABELS[:0])),
)
simple("training on nothing", 1, "images|empty", lambda p: p.train(data=p.tensors(images=pixels(0), labels=LABELS[:0])))
simple("training on one class", 1, "two classes", lambda p: p.train(data=f"folder:{p.folder()}"))
simple(
    "forget overlaps test",
    1,
    "3 of the 2000 .*forget",
    lambda p: p.forget("--test", "sample"),
)
simple(
    "retain is all forgotten",
    1,
    "every .*forget",
    lambda p: p.forget("--retain", f"folder:{p.folder()}", "--method", "finetune", data=f"folder:{p.folder()}"),
)
simple(
    "retain not given",
    2,
    "finetune .*--retain",
    lambda p: p.forget("--method", "finetune"),
)
simple("updates not given", 1, "update log", lambda p: p.forget("--method", "amnesiac_undo"))
simple("more ids than examples", 1, "5000 .*2000", lambda p: ["data", "ids", "sample", "--num", "5000"])


@case(1, "no images")
def empty_folder(place: Place) -> list[str | Path]:
    (place.root / "images/Bag").mkdir(parents=True)
    return place.forget(data=f"folder:{place.root}/images")


@case(1, "'Boat'")
def unknown_class(place: Place) -> list[str | Path]:
    write_image(place.folder().with_name("images") / "Boat/1.png", pixels(1)[0])
    return place.forget(data=f"folder:{place.root}/images")


@case(1, r"Bag/bad\.png")
def corrupt_image(place: Place) -> list[str | Path]:
    folder = place.folder()
    whole = (folder / "Bag/0000.png").read_bytes()
    (folder / "Bag/bad.png").write_bytes(whole[: len(whole) // 2])
    return place.forget(data=f"folder:{folder}")


@case(1, "square")
def oblong_images(place: Place) -> list[str | Path]:
    return place.train(data=place.tensors(images=pixels(4)[:, :, :20].contiguous(), labels=torch.tensor([0, 1, 0, 1])))


# --- Settings and usage ----------------------------------------------------------------------------------------------

simple(
    "unknown method",
    2,
    "'targetted'.*'targeted'",
    lambda p: p.forget("--method", "targetted"),
)
simple("unknown setting", 2, "'lamda'.*'lam'", lambda p: p.forget("--method", "targeted", "--set", "lamda=3"))
simple("setting of another type", 2, "lam='three'", lambda p: p.forget("--method", "targeted", "--set", "lam=three"))
simple("setting out of range", 2, "delta=2.0", lambda p: p.forget("--method", "targeted", "--set", "delta=2"))
simple("malformed setting", 2, "NAME=VALUE.*'lam'", lambda p: p.forget("--set", "lam"))
simple(
    "unknown preset",
    2,
    "'nobody2024'.*paper",
    lambda p: p.forget("--method", "targeted", "--preset", "nobody2024"),
)
simple("preset of no method", 2, "--method", lambda p: p.forget("--preset", "paper"))
simple("unknown device", 2, "'gpu'", lambda p: p.forget("--device", "gpu"))
simple("device without data", 2, "'meta'", lambda p: p.train("--device", "meta"))
simple("unknown option", 2, "--metod", lambda p: p.forget("--metod", "targeted"))
simple("missing option", 2, "Missing.*--model", lambda p: ["forget", "--forget", "sample", "--out", p.out])
simple("negative seed", 2, "--seed.* 0", lambda p: p.forget("--seed", "-1"))
simple("seed that is no number", 2, "--seed.*integer", lambda p: p.forget("--seed", "one"))
simple("unknown command", 2, "'forgot'", lambda p: ["forgot"])
simple("surplus argument", 2, "extra argument", lambda p: ["methods", "targeted", "now"])
simple("unknown dataset to get", 2, "'mnist'", lambda p: ["data", "get", "mnist"])
simple("unknown architecture", 2, "'resnet19'", lambda p: p.train(model="resnet19"))
simple("unknown training setting", 2, "epohs.*'epochs'", lambda p: p.train("--set", "epohs=1"))
simple("training setting out of range", 2, "epochs=-1", lambda p: p.train("--set", "epochs=-1"))
simple("missing ids to record", 1, "ids", lambda p: p.train("--record-updates", p.root / "none"))

# --- Running and writing ---------------------------------------------------------------------------------------------


@case(1, r"\d+ steps.*lr")
def loss_becomes_nan(place: Place) -> list[str | Path]:
    return place.forget("--method", "neg_grad", "--set", "lr=1e30", "--set", "optimizer=sgd")


@case(1, r"step \d+.*lr")
def training_loss_becomes_nan(place: Place) -> list[str | Path]:
    return place.train("--set", "lr=1e30", "--set", "epochs=2", "--set", "width=4")


@case(1, r"--out .*exists already.*choose another")
def out_in_use(place: Place) -> list[str | Path]:
    place.out.mkdir()
    return place.forget()


@case(1, r"--out .*exists already.*choose another")
def out_is_a_file(place: Place) -> list[str | Path]:
    place.out.write_text("mine")
    return place.train()


@case(1, r"file/out")
def parent_is_a_file(place: Place) -> list[str | Path]:
    place.file("file", b"mine")
    return place.forget("--out", place.root / "file/out")


def check_failure(done: "subprocess.CompletedProcess[str]", code: int, said: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("expunge: error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, place: Place) -> None:
    arrange, code, said = CASES[name]
    arguments = arrange(place)
    before = tree(place.root)
    done = expunge(*arguments, cwd=place.root)
    check_failure(done, code, said)
    assert tree(place.root) == before


def test_the_same_command_lines_work_otherwise(place: Place) -> None:
    """What the cases start from is sound, and --allow-pickle takes a sound .pt file."""
    succeed(*place.forget("--method", "targeted"))
    shutil.rmtree(place.out)
    torch.save(place.network_state(), place.root / "weights.pt")
    weights = ("--weights", place.root / "weights.pt", "--allow-pickle")
    done = expunge(*place.forget(*weights, "--method", "targeted", model=place.factory()), cwd=place.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in place.out.iterdir()) == ["model.safetensors", "report.html", "report.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(place: Place) -> None:
    closed = place.root / "closed"
    closed.mkdir(mode=0o500)
    before = tree(place.root)
    done = expunge(*place.forget("--out", closed / "out"))
    check_failure(done, 1, "closed/out.*Permission denied")
    assert tree(place.root) == before


@pytest.mark.parametrize("command", ["train", "record", "state", "forget"])
def test_a_full_disk(place: Place, command: str) -> None:
    """No file may grow over 8 kB; the checkpoint has 27."""
    if command == "forget":
        arguments = place.forget("--method", "targeted")
    else:
        arguments = place.train("--set", "epochs=1", "--set", "width=4")
        arguments += ["--record-updates", place.ids("0", "1")] if command == "record" else []
        arguments += ["--state", place.root / "state"] if command == "state" else []
    before = tree(place.root)
    done = expunge(*arguments, largest_file=8192)
    if command == "record":
        announced, _, done.stderr = done.stderr.partition("\n")
        assert announced.startswith("the update log will take")
    check_failure(done, 1, "disk")
    assert tree(place.root) == before


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str] | Started") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the command ended before it could be stopped"
        assert time.monotonic() < deadline, "the command did not start in time"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("train", signal.SIGINT),
        ("train", signal.SIGHUP),
        ("forget", signal.SIGTERM),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_stopped_command_leaves_nothing(place: Place, command: str, number: signal.Signals) -> None:
    endless = ["--set", "epochs=100000"]
    # Forgetting ends by itself once all is forgotten, unless told to use up its budget.
    arguments = place.forget(*endless, "--set", "stop=budget") if command == "forget" else place.train(*endless)
    before = tree(place.root)
    with running(*arguments) as process:
        wait_for(lambda: bool(list(place.root.glob(".out.*.part"))), process)
        time.sleep(0.5)  # into the work
        for _ in range(20):  # an impatient user: into the work, the cleaning up and the way out
            process.send_signal(number)
            time.sleep(0.01)
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (1, "", "expunge: error: stopped; nothing was written\n")
    assert tree(place.root) == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what a process has loaded")
def test_a_signal_during_the_start_leaves_nothing(place: Place) -> None:
    arguments = place.forget()
    before = tree(place.root)
    with starting(*arguments) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(lambda: "libtorch" in maps.read_text(), process)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert (output, errors) == ("", "expunge: error: stopped; nothing was written\n")
    assert tree(place.root) == before


# --- The same from Python --------------------------------------------------------------------------------------------


class Labelled(Dataset[Any]):
    """Four images, each with the label that it is given."""

    def __init__(self, label: object) -> None:
        self.label = label

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, object]:
        return torch.rand(1, 6, 6), self.label


def poisoned() -> nn.Module:
    model = NETWORKS["batch_norm"]()
    next(model.parameters()).data[0] = float("nan")
    return model


IMAGES = torch.rand(4, 1, 6, 6)
ZEROS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("model", "forget", "error", "said"),
    [
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES, ZEROS + 0.5), InputError, "float"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES, ZEROS + 2.0), InputError, r"labels\.long\(\)"),
        (NETWORKS["batch_norm"](), range(4), InputError, r"Subset\(training_data, numbers\)"),
        (NETWORKS["batch_norm"](), ["a.png", "b.png"], InputError, r"Subset\(training_data, numbers\)"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES.byte(), ZEROS), InputError, "pixels are integers"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES, ZEROS.bool()), InputError, "bool"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES, ZEROS + 4), InputError, r"label 4 .* \[0, 4\)"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES, ZEROS - 1), InputError, r"label -1 .* \[0, 4\)"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES * float("nan"), ZEROS), InputError, "NaN"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES / 0, ZEROS), InputError, "infinity"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES[:0], ZEROS[:0]), InputError, "forget.*empty"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES), InputError, "pair"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES, IMAGES, IMAGES), InputError, "3 parts"),
        (NETWORKS["batch_norm"](), Labelled("cat"), InputError, "str"),
        (NETWORKS["batch_norm"](), Labelled(None), InputError, "NoneType"),
        (NETWORKS["batch_norm"](), iter(pairs(3, 0)), InputError, "only once"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES[..., :5], ZEROS), InputError, "take"),
        (NETWORKS["batch_norm"](), TensorDataset(IMAGES[:, 0, 0, 0], ZEROS), InputError, "take"),
        (poisoned(), pairs(4, 0), InputError, "NaN .*'0.weight'"),
        (nn.Flatten(), pairs(4, 0), InputError, "parameters"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), pairs(4, 0), InputError, r"\[0, 2\)"),
        (nn.Conv2d(1, 4, 1), pairs(4, 0), InputError, r"logits \(N, C\)"),
    ],
)
def test_unlearn_refuses(model: nn.Module, forget: Any, error: type[ExpungeError], said: str) -> None:
    before = state_bits(model)
    with pytest.raises(error, match=said) as caught:
        unlearn(model, forget)
    assert "\n" not in str(caught.value)
    assert state_bits(model) == before


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_loss_that_becomes_nan_names_the_step_and_leaves_the_model(optimizer: str) -> None:
    model = NETWORKS["batch_norm"]()
    before = state_bits(model)
    with pytest.raises(NonFiniteError, match=r"\d+ steps"):
        unlearn(model, pairs(6, 0), method=make_method("neg_grad", lr=1e30, optimizer=optimizer, epochs=20))
    assert state_bits(model) == before


def test_overlapping_and_unfit_retain_sets_are_refused() -> None:
    model, forget = NETWORKS["batch_norm"](), pairs(4, 0)
    method = make_method("finetune", epochs=1)
    with pytest.raises(InputError, match=r"4 .*forget"):
        unlearn(model, forget, method=method, retain=pairs(4, 0))
    with pytest.raises(InputError, match="shape"):
        unlearn(model, forget, method=method, retain=pairs(4, 1, (1, 5, 5)))
    with pytest.raises(InputError, match=r"retain.*empty"):
        unlearn(model, forget, method=method, retain=pairs(0, 1))
    with pytest.raises(SettingError, match="retain"):
        unlearn(model, forget, method=method)


def test_the_examples_of_the_sample_fit_the_trained_model(trained: Path) -> None:
    """A command line from Python: errors carry the exit code that the command ends with."""
    from expunge.cli.forget import run as forget
    from expunge.cli.sources import Sources

    assert len(load_data("sample")) == 2_000
    before = sorted(trained.parent.iterdir())
    sources = Sources(model=str(trained), forget="sample:test")
    for settings, code in (({"lam": "0"}, 2), ({"lr": "1e30", "optimizer": "sgd"}, 1)):
        with pytest.raises(ExpungeError) as caught:
            forget(sources, trained.parent / "none", method="targeted", settings=settings)
        assert caught.value.exit_code == code
    assert sorted(trained.parent.iterdir()) == before
