"""The installed command, in real processes: what each command prints and writes when all is well."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import __version__
from expunge.cli import demo, forget
from expunge.cli.methods import methods
from expunge.cli.printing import print_report, print_table
from expunge.cli.sources import Sources
from expunge.data import draw_ids, load_data
from expunge.errors import MissingExtraError, SettingError, printable
from expunge.methods import METHODS, GradientMethod, make_method, settings_of
from expunge.report.record import Report
from expunge.settings import is_within
from expunge.training import Recipe
from tests.audit_reports import sample, trace
from tests.conftest import COMMAND, LAUNCHER, expunge, pixels, running, succeed, tree, write_folder
from tests.forked import PATIENCE

COMMANDS = [
    [],
    ["demo"],
    ["train"],
    ["forget"],
    ["audit"],
    ["methods"],
    ["data"],
    ["data", "get"],
    ["data", "show"],
    ["data", "ids"],
]
QUICK = {
    "retrain": {"epochs": "1"},
    "amnesiac_undo": {},
    "ssd": {"alpha": "1"},
    "lfssd": {"alpha": "1"},
    **{name: {"epochs": "2", "batch_size": "16"} for name, cls in METHODS.items() if issubclass(cls, GradientMethod)},
}
QUICK["instance_wise"] |= {"adversarial": "2", "attack_steps": "3"}


def only_json(text: str) -> Any:
    """The one JSON document that `text` is. Standard JSON: no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="session")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text(succeed("data", "ids", "sample", "--num", "12", "--seed", "5"))
    return path


def test_every_command_is_tested_for_help() -> None:
    """The commands that --help lists are those in COMMANDS."""
    for group in ([], ["data"]):
        text = succeed(*group, "--help")
        listed = text[text.index("Commands:") :].splitlines()[1:]
        names = {line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "}
        assert names == {
            command[len(group)]
            for command in COMMANDS
            if len(command) == len(group) + 1 and command[: len(group)] == group
        }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_answers_at_once(command: list[str]) -> None:
    """Without importing torch, which takes seconds; and every command and option says what it is."""
    code = (
        "import sys\nfrom expunge.cli import main\nsys.argv[0] = 'expunge'\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'safetensors', 'PIL'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, env={**os.environ, **NARROW}
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.startswith(f"Usage: {' '.join(['expunge', *command])}")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"\w\.\.\.", done.stdout)
    description, _, options = done.stdout.partition("Options:")
    assert len(description.splitlines()) >= 3
    options, _, example = options.partition("Example: ")
    assert not command or command == ["data"] or example.split()[: len(command) + 1] == ["expunge", *command]
    for line in options.splitlines():
        if line.startswith("  -"):
            assert len(line.split()) >= 3, f"{line!r} has no help"


def test_the_version_is_one_everywhere() -> None:
    assert version("expunge") == __version__  # else install anew
    assert succeed("--version") == f"expunge {__version__}\n"


def test_train_writes_a_checkpoint_that_describes_itself(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    settings = ("--set", "epochs=1", "--set", "width=4", "--set", "batch-size=100")
    text = succeed("train", "--data", "sample", "--model", "small_resnet", "--out", out, "--json", *settings)
    told = only_json(text)
    assert told == json.loads((out / "training.json").read_text())
    assert told["recipe"]["batch_size"] == 100
    assert told["options"] == {"width": 4}
    assert len(told["history"]) == 1
    assert told["num_examples"] == 2_000
    assert sorted(tree(tmp_path)) == ["new", "new/out", "new/out/model.safetensors", "new/out/training.json"]


def test_train_prints_a_table_for_people(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", pixels(8, channels=3, side=16), ["cat", "dog"] * 4)
    out = tmp_path / "out"
    settings = ("--set", "epochs=1", "--set", "width=4")
    text = succeed("train", "--data", f"folder:{folder}", "--model", "small_resnet", "--out", out, *settings)
    assert "train accuracy" in text
    assert "not given" in text
    assert str(out) in text


@pytest.fixture(scope="session")
def logged(tmp_path_factory: pytest.TempPathFactory, ids: Path) -> Path:
    """Like `trained`, with an update log of the steps that saw the examples in `ids`."""
    out = tmp_path_factory.mktemp("logged") / "model"
    settings = ("--set", "epochs=1", "--set", "width=4", "--record-updates", ids)
    done = expunge("train", "--data", "sample", "--model", "small_resnet", "--out", out, *settings)
    assert done.returncode == 0, done.stderr
    assert " GB " in done.stderr
    return out


def test_recording_updates_changes_nothing(trained: Path, logged: Path) -> None:
    plain, recorded = (load_file(path / "model.safetensors") for path in (trained, logged))
    assert all(bool((plain[name] == recorded[name]).all()) for name in plain)
    assert 1 <= len(list((logged / "updates").iterdir())) <= 12


@pytest.mark.parametrize("method", METHODS)
def test_forget_with_every_method(tmp_path: Path, method: str, logged: Path, ids: Path) -> None:
    needs = [need.name for need in METHODS[method].needs]
    retain = ["--retain", "sample"] if "RETAIN" in needs else []
    audited = method in {"targeted", "retrain", "amnesiac_undo"} or "TEST" in needs  # an audit takes most of the time
    test = ["--test", "sample:test"] if audited else []
    settings = [part for key, value in QUICK[method].items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "out"
    arguments: list[str | Path] = [
        "--model",
        logged,
        "--forget",
        "sample",
        "--ids",
        ids,
        "--method",
        method,
        *retain,
        *settings,
    ]
    done = expunge("forget", *arguments, *test, "--out", out, "--json")
    report = only_json(done.stdout)
    assert (done.returncode, done.stderr) == (3 if audited and report["audit"]["verdict"] == "FAIL" else 0, "")
    assert report == json.loads((out / "report.json").read_text())
    assert sorted(tree(tmp_path)) == ["out", "out/model.safetensors", "out/report.html", "out/report.json"]
    assert ("NOT AUDITED" in (out / "report.html").read_text()) != audited
    assert report["format"] == "expunge-report/4"
    assert report["trace"]["method"] == method
    assert report["trace"]["num_forget"] == 12
    assert report["trace"]["change"]["l1"] > 0
    assert (report["before"]["test_accuracy"] is not None) == audited
    assert (report["before"]["retain_accuracy"] is not None) == bool(retain)
    if retain and audited:
        assert sum("12 of " in found and "retained" in found for found in report["audit"]["left_out"]) == 1
    before, after = (load_file(path / "model.safetensors") for path in (logged, out))
    assert before.keys() == after.keys()
    assert any(bool((before[name] != after[name]).any()) for name in before)


def test_forget_with_a_model_and_a_folder_alone(tmp_path: Path, trained: Path) -> None:
    images = load_data("sample").take(range(4))
    names = [images.class_names[label].replace("/", "_") for label in images.labels.tolist()]
    folder = write_folder(tmp_path / "images", images.images, names)
    brief = ("--set", "epochs=20", "--set", "retention_size=64")
    text = succeed("forget", "--model", trained, "--forget", f"folder:{folder}", "--out", tmp_path / "out", *brief)
    for told in ("held_boundary", "4 examples", "--test", str(tmp_path / "out")):
        assert told in text
    assert (tmp_path / "out/model.safetensors").is_file()


def test_the_seed_decides_every_bit(tmp_path: Path, trained: Path, ids: Path) -> None:
    written = []
    for n, seed in enumerate((3, 3, 4)):
        arguments = ("--forget", "sample", "--ids", ids, "--method", "random_label", "--seed", str(seed))
        succeed("forget", "--model", trained, *arguments, "--out", tmp_path / str(n))
        written.append(load_file(tmp_path / str(n) / "model.safetensors"))
    same, again, other = written
    assert all(bool((same[name] == again[name]).all()) for name in same)
    assert any(bool((same[name] != other[name]).any()) for name in same)


def test_training_follows_the_seed(tmp_path: Path, trained: Path) -> None:
    weights = [load_file(trained / "model.safetensors")]
    for seed in ("0", "1"):
        settings = ("--set", "epochs=1", "--set", "width=4", "--seed", seed)
        succeed("train", "--data", "sample", "--model", "small_resnet", "--out", tmp_path / seed, *settings)
        weights.append(load_file(tmp_path / seed / "model.safetensors"))
    fixture, same, other = weights
    assert all(bool((fixture[name] == same[name]).all()) for name in same)
    assert any(bool((same[name] != other[name]).any()) for name in same)


def test_methods_lists_every_method_and_setting() -> None:
    rows = {row["method"]: row for row in only_json(succeed("methods", "--json"))}
    assert rows.keys() == METHODS.keys()
    assert rows["targeted"]["settings"]["lam"] == METHODS["targeted"]().lam
    assert rows["bad_teacher"]["needs"] == ["forget", "retain", "factory"]
    text = succeed("methods", "targeted")
    assert all(each in text for each in (*rows["targeted"]["settings"], *rows["targeted"]["presets"]))


def test_data_show_of_nothing(tmp_path: Path) -> None:
    save_file(
        {"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
        tmp_path / "empty.safetensors",
    )
    assert "0 images" in succeed("data", "show", f"safetensors:{tmp_path}/empty.safetensors")


def test_data_show(tmp_path: Path) -> None:
    text = succeed("data", "show", "sample:test")
    for told in ("sample:test", "1,000 images", "1 × 28 × 28", "0 … 999", "Ankle boot"):
        assert told in text
    folder = write_folder(tmp_path, pixels(3, channels=3, side=9), ["cat", "dog", "dog"])
    text = succeed("data", "show", f"folder:{folder}")
    for told in ("3 images", "3 × 9 × 9", "cat/0000.png … dog/0002.png"):
        assert told in text


def test_data_ids_are_those_of_the_api() -> None:
    text = succeed("data", "ids", "sample", "--num", "3", "--seed", "7")
    assert text.split() == draw_ids(load_data("sample"), 3, 7)


def test_a_reader_that_stops_early_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {COMMAND} data ids sample --num 2000 | head -n 1"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.strip().isdigit()


def test_the_demo(tmp_path: Path) -> None:
    """As a newcomer runs it, but for the threads: 100 images are forgotten, and the audit passes."""
    done = expunge("demo", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = only_json(done.stdout)
    out = tmp_path / "expunge-demo"
    assert report == json.loads((out / "forgot/report.json").read_text())
    assert report["before"]["forget_accuracy"] >= 0.95
    assert report["before"]["test_accuracy"] >= 0.8
    assert report["trace"]["method"] == "calibrated"
    assert 0.6 <= report["after"]["forget_accuracy"] <= 0.95
    assert report["after"]["test_accuracy"] >= report["before"]["test_accuracy"] - 0.03
    assert report["after"]["retain_accuracy"] >= 0.9
    ids = (out / "ids.txt").read_text().split()
    assert len(ids) == len(set(ids)) == report["trace"]["num_forget"] == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expunge-demo"]
    assert report["audit"]["verdict"] == "PASS"
    page = (out / "forgot/report.html").read_text()
    assert "PASS" in page
    assert ".part" not in page, "the page names the directory in which the demo worked"


def test_a_path_that_is_not_utf_8_is_refused_and_can_be_printed(tmp_path: Path, trained: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    done = expunge("train", "--data", "sample", "--model", "small_resnet", "--out", odd)
    assert (done.returncode, done.stdout) == (1, "")
    for told in ("caf\\udce9", "UTF-8", "--out"):
        assert told in done.stderr
    assert not list(tmp_path.iterdir())
    odd.symlink_to(trained)
    done = expunge("forget", "--model", odd, "--forget", "sample", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    for told in ("caf\\udce9", "UTF-8", "safetensors"):
        assert told in done.stderr


def test_names_of_classes_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["cat [/old]", "dog [small]", ":cat: x", "[red]"]
    print_table("[title]", ["class", "images"], [(name, "4") for name in names])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("[title]", *names))


def test_what_the_demo_did_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.DEMO_SETTINGS, "epochs", 1)
    report = demo.run(tmp_path / "out", method="neg_grad")
    told = report.sources
    sources = Sources(model=told["model"], forget=told["forget"], ids=Path(told["ids"]), test=told["test"])
    again = forget.run(sources, tmp_path / "again", method="neg_grad")
    assert again.trace is not None
    assert report.trace is not None
    assert again.trace.change == report.trace.change


def test_a_note_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo writes the report that `forget` wrote again, with its final paths."""

    def missing(*_: object, **__: object) -> str:
        raise MissingExtraError("it needs Jinja2")

    monkeypatch.setattr("expunge.report.page.render", missing)
    monkeypatch.setitem(demo.DEMO_SETTINGS, "epochs", 1)
    report = demo.run(tmp_path / "out", method="neg_grad")
    assert sum("no report.html" in note for note in report.notes) == 1
    assert not (tmp_path / "out/forgot/report.html").exists()


def test_a_stopped_training_says_where_it_is_kept(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    options = ("--data", "sample", "--model", "small_resnet", "--set", "width=4", "--set", "epochs=1000")
    with running("train", *options, "--out", tmp_path / "out", "--state", state) as process:
        while not state.exists():
            assert process.poll() is None, "it ended before it kept anything"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, state.exists()) == (1, True)
    assert errors.startswith("expunge: error: stopped")
    assert str(state) in errors
    assert errors.count("\n") == 1


def test_retraining_takes_the_originals_recipe_with_a_preset_too(trained: Path, ids: Path, tmp_path: Path) -> None:
    recipe = json.loads((trained / "training.json").read_text())["recipe"]
    assert recipe["batch_size"] != Recipe().batch_size
    for out, more in (("plain", ()), ("paper", ("--preset", "paper"))):
        data = ("--forget", "sample", "--ids", ids, "--retain", "sample")
        done = ("--model", trained, *data, "--method", "retrain", *more, "--set", "epochs=1", "--out", tmp_path / out)
        succeed("forget", *done)
        settings = json.loads((tmp_path / out / "report.json").read_text())["trace"]["settings"]
        assert settings["batch_size"] == recipe["batch_size"]


NARROW = {"COLUMNS": "80"}
SHIFTS = {"PASS": 0.0, "FAIL": -3.0, "remembers": 3.0}


@pytest.mark.parametrize("name", SHIFTS)
def test_a_report_begins_with_the_verdict_and_wraps_at_words(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = sample(SHIFTS[name])
    sources = {"model": "net", "forget": "folder:x"}
    report = Report(
        directory="o", sources=sources, before=audit.before, after=audit.after, trace=trace(audit), audit=audit
    )
    monkeypatch.setenv("COLUMNS", "80")
    assert print_report(report, as_json=False) == (3 if audit.verdict == "FAIL" else 0)
    plain = capsys.readouterr().out
    lines = plain.splitlines()
    assert lines[0].split()[0] == audit.verdict
    assert max(map(len, lines)) <= 80
    facts = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert len(facts) == 5  # the sample has retained examples
    for share in (audit.before.test_accuracy, audit.after.test_accuracy, audit.after.forget_accuracy):
        assert f"{share:.1%}" in plain
    assert audit.unseen is not None
    assert f"{audit.unseen.accuracy:.1%}" in plain
    assert str(Path("o/report.json")) in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_report(report, as_json=False)
    coloured = capsys.readouterr().out
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert "\x1b[" in coloured.splitlines()[0]


def test_the_list_of_methods_fits_a_terminal_and_each_setting_says_what_it_may_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for given in (None, *METHODS):
        methods(given)
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 80
        assert given is not None or all(name in printed for name in METHODS)
        if given is not None:
            assert all(name in printed for name in (*settings_of(make_method(given)), *METHODS[given].presets))
        methods(given, as_json=True)
        rows = json.loads(capsys.readouterr().out)
        for row in rows if given is None else [rows]:
            for key, text in row["ranges"].items():  # a default is in its range, and what lies beyond a bound is not
                assert not isinstance(row["settings"][key], float) or is_within(row["settings"][key], text)
                for bound, number in re.findall(r"(at least|above|at most|below) ([0-9.]+)", text):
                    with pytest.raises(SettingError, match=rf"{key}=.*{re.escape(text)}"):
                        METHODS[row["method"]](**{key: int(number) + {"at least": -1, "at most": 1}.get(bound, 0)})


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200, None])
def test_a_narrow_table_folds_names_and_cuts_nothing(
    width: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [
        "model",
        "what it is",
        "test accuracy",
        "ε median / of all at once (ceiling)",
        "pass / inconclusive / fail",
    ]
    cells = [
        "a name that is longer than the terminal is wide",
        "it may wrap",
        "50.25%",
        "0.00 / 1.38 (2.10)",
        "0 / 12 / 52",
    ]
    if width is None:
        monkeypatch.delenv("COLUMNS")  # into a pipe
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    print_table("title", heads, [tuple(cells)])
    printed = capsys.readouterr().out
    for cell in cells[2:]:
        assert cell in printed
    letters = "".join(printed.split())
    for text in (*heads, cells[0], cells[1]):  # in the order of its lines, with others' between
        assert all(word[:8] in letters for word in text.split()), text
    assert "…" not in printed


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    write_folder(tmp_path, pixels(2), ["a", "x\x1b[31mred"])
    done = expunge("data", "show", f"folder:{tmp_path}")
    refused = expunge("train", "--data", f"folder:{tmp_path}", "--model", "nothing", "--out", tmp_path / "x\x1b[31mred")
    for text in (done.stdout, refused.stderr):
        assert "\x1b" not in text
    assert "x\\x1b[31mred" in done.stdout
    assert printable("\u200f\u00a0é\u200d\u3000\x07") == "\\u200f\u00a0é\u200d\u3000\\x07"


def test_training_goes_on_where_the_test_split_cannot_be_read(tmp_path: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    write_folder(tmp_path / "cifar10/train", pixels(20, channels=3, side=8), names * 2)
    options = ("--model", "small_resnet", "--set", "epochs=1", "--set", "width=4", "--set", "batch_size=4")
    data = ("--data", "cifar10", "--out", tmp_path / "out")
    done = expunge("train", *data, *options, env={"EXPUNGE_DATA": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stderr
    assert json.loads((tmp_path / "out/training.json").read_text())["test_accuracy"] is None


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", pixels(8, channels=3, side=16), ["cat", "dog"] * 4)
    (tmp_path / "data/lost+found").mkdir()
    options = ("--model", "small_resnet", "--set", "epochs=1", "--set", "width=4", "--out", tmp_path / "out")
    done = expunge("train", "--data", f"folder:{tmp_path}/data", *options)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "1 of 3" in done.stderr
    assert "lost+found" in done.stderr


@pytest.mark.parametrize(("method", "said"), [("nosuch", "nosuch"), ("amnesiac_undo", "update log")])
def test_the_demo_refuses_a_method_before_it_trains(tmp_path: Path, method: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        demo.run(tmp_path / "out", method=method)
    assert not list(tmp_path.iterdir())


def test_a_stop_after_the_work_says_that_it_was_done(trained: Path, ids: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()  # a reader that does not read, as a pager
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(1))
    os.set_blocking(writing, True)
    out = tmp_path / "out"
    options = ("--model", trained, "--forget", "sample", "--ids", ids, "--set", "epochs=1", "--json", "--out", out)
    command = [sys.executable, "-c", LAUNCHER, str(COMMAND), "forget", *map(str, options)]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + PATIENCE
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # into the printing
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=PATIENCE)[1]
    for end in (reading, writing):
        os.close(end)
    assert (out / "model.safetensors").exists()
    assert (process.returncode, errors.count("\n")) == (1, 1)
    assert errors.startswith("expunge: error: stopped")
    assert "done" in errors
