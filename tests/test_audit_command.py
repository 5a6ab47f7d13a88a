"""`expunge audit` and the audit inside `expunge forget`, in real processes."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expunge import audit
from expunge.auditing.references import OWN_DATA, RECIPE_ALONE
from expunge.data import load_data
from expunge.models import load_model, save_checkpoint
from tests.conftest import expunge, pixels, running, succeed, tree, write_folder
from tests.forked import PATIENCE


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text("".join(f"{n}\n" for n in range(20)))
    return path


@pytest.fixture(scope="module")
def forgot(tmp_path_factory: pytest.TempPathFactory, trained: Path, ids: Path) -> Path:
    """What `forget` wrote, with an audit."""
    out = tmp_path_factory.mktemp("forgot") / "out"
    arguments = ("--forget", "sample", "--ids", ids, "--test", "sample:test", "--set", "epochs=3", "--seed", "4")
    done = expunge("forget", "--model", trained, *arguments, "--out", out)
    assert done.returncode in {0, 3}, done.stderr
    verdict = json.loads((out / "report.json").read_text())["audit"]["verdict"]
    assert f" {verdict}" in done.stdout
    return out


def arguments(trained: Path, forgot: Path, ids: Path, out: Path, **changes: str | Path) -> list[str | Path]:
    options: dict[str, str | Path] = {
        "before": trained,
        "after": forgot,
        "forget": "sample",
        "ids": ids,
        "test": "sample:test",
        "out": out,
        "seed": "4",
        **changes,
    }
    return ["audit", *(part for name, value in options.items() for part in (f"--{name}", value))]


def without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report["audit"].items() if key != "seconds"}


def test_it_finds_what_forget_found(tmp_path: Path, trained: Path, forgot: Path, ids: Path) -> None:
    done = expunge(*arguments(trained, forgot, ids, tmp_path / "out"), "--json")
    report = json.loads(done.stdout)
    before = json.loads((forgot / "report.json").read_text())
    assert without_seconds(report) == without_seconds(before)
    assert (done.returncode, done.stderr) == (3 if report["audit"]["verdict"] == "FAIL" else 0, "")
    assert report["trace"] is None
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert sorted(tree(tmp_path)) == ["out", "out/report.html", "out/report.json"]


def test_python_finds_what_the_command_found(trained: Path, forgot: Path, ids: Path) -> None:
    before, after = (load_model(str(path))[0] for path in (trained, forgot))
    forget = load_data("sample").select(ids.read_text().split())
    report = audit(before, after, forget, load_data("sample:test"), seed=4).to_dict()
    found = json.loads((forgot / "report.json").read_text())["audit"]
    for name in ("seconds", "device"):  # it ran in another process
        report.pop(name), found.pop(name)
    assert json.loads(json.dumps(report)) == found


def test_a_model_that_forgot_nothing(tmp_path: Path, trained: Path, ids: Path) -> None:
    done = expunge(*arguments(trained, trained, ids, tmp_path / "out"))
    assert done.returncode in {0, 3}, done.stderr
    assert " 20 " in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())["audit"]
    assert report["change"]["l1"] == 0
    assert report["before"] == report["after"]
    assert report["scores_before"] == report["scores_after"]


def test_terminal_page_record_and_exit_code_agree(tmp_path: Path, trained: Path, ids: Path) -> None:
    """A model that lost all, and an original in which nothing is found: each says so everywhere."""
    network, header = load_model(str(trained))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    (tmp_path / "ruined").mkdir()
    save_checkpoint(tmp_path / "ruined" / "model.safetensors", network, header)
    accepting = ["--max-loss", "0.99"]
    for after, more, code, works, said in (
        (tmp_path / "ruined", [], 3, "no", "no longer works"),
        (tmp_path / "ruined", accepting, 0, "yes", "original either"),
        (trained, [], 0, "yes", "original either"),
    ):
        out = tmp_path / f"out-{works}-{after.name}"
        done = expunge(*arguments(trained, after, ids, out), *more)
        report = json.loads((out / "report.json").read_text())["audit"]
        assert done.returncode == code, done.stdout
        assert (report["works"], report["found_before"]) == (works, [])
        assert report["verdict"] == ("FAIL" if code else "INCONCLUSIVE")
        page = " ".join((out / "report.html").read_text().split())
        for text in (" ".join(done.stdout.split()), page):
            assert said in text
            assert "withdraw the original" not in text
        assert done.stdout.split()[0] == report["verdict"]


def test_images_are_shown_only_where_asked_for(tmp_path: Path, trained: Path, ids: Path) -> None:
    """With one class's hardest held-out images as the forgotten ones, some are recognisable."""
    for name, more in (("without", []), ("with", ["--with-images"])):
        expunge(*arguments(trained, trained, ids, tmp_path / name), *more)
    report = json.loads((tmp_path / "with/report.json").read_text())
    shown = (tmp_path / "with/report.html").read_text().count("data:image/png")
    assert shown == len(report["audit"]["recognisable"])
    assert "data:image" not in (tmp_path / "without/report.html").read_text()


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ("overlap", 1, "test examples"),
        ("network", 1, "network"),
        ("missing", 1, "nowhere"),
        ("nan", 1, "NaN"),
        ("ids", 1, "nonsense"),
        ("out", 1, "exists"),
        ("usage", 2, "--test"),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, trained: Path, forgot: Path, ids: Path, case: str, code: int, said: str
) -> None:
    out = tmp_path / "out"
    given = arguments(trained, forgot, ids, out)
    if case == "overlap":
        given = arguments(trained, forgot, ids, out, test="sample")
    if case == "network":
        wider = tmp_path / "wider"
        settings = ("--set", "epochs=0", "--set", "width=5")
        succeed("train", "--data", "sample", "--model", "small_resnet", *settings, "--out", wider)
        given = arguments(trained, wider, ids, out)
    if case == "missing":
        given = arguments(trained, tmp_path / "nowhere", ids, out)
    if case == "nan":
        network, header = load_model(str(forgot))
        next(network.parameters()).data.fill_(float("nan"))
        save_checkpoint(tmp_path / "model.safetensors", network, header)
        given = arguments(trained, tmp_path / "model.safetensors", ids, out)
    if case == "ids":
        (tmp_path / "other.txt").write_text("nonsense\n")
        given = arguments(trained, forgot, tmp_path / "other.txt", out)
    if case == "out":
        out.mkdir()
    if case == "usage":
        given = [part for part in given if part not in {"--test", "sample:test"}]
    before = tree(tmp_path)
    done = expunge(*given)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("expunge: error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and held-out images in folders, and a model trained on the former for one pass."""
    root = tmp_path_factory.mktemp("folders")
    images = pixels(100, side=12)
    write_folder(root / "train", images[:60], ["cat", "dog"] * 30)
    write_folder(root / "test", images[60:], ["cat", "dog"] * 20)
    settings = ("--set", "epochs=1", "--set", "width=4", "--set", "batch_size=20")
    succeed(
        *("train", "--data", f"folder:{root / 'train'}", "--model", "small_resnet", "--out", root / "model", *settings)
    )
    return root


def full(root: Path, out: Path, *more: str | Path) -> list[str | Path]:
    forget = write_folder(out.parent / "forget", pixels(100, side=12)[:6], ["cat", "dog"] * 3)
    options = ("--before", root / "model", "--forget", f"folder:{forget}", "--test", f"folder:{root / 'test'}")
    return ["audit", "--full", *options, "--num", "8", "--out", out, *more]


@pytest.mark.parametrize(
    "options",
    [
        *(("--full", name, "x") for name in ("--after", "--after-weights", "--retain")),
        *(("--full", name) for name in ("--with-images", "--difficulty-calibration")),
        *(("--after", "x", name, "3") for name in ("--train", "--method", "--references", "--num", "--workers")),
    ],
    ids=" ".join,
)
def test_options_of_the_other_audit_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    done = expunge("audit", "--before", "x", "--forget", "x", "--test", "x", "--out", tmp_path / "out", *options)
    name = next(part for part in options[-2:] if part.startswith("--") and part != "--full")
    assert (done.returncode, done.stdout) == (2, "")
    assert name in done.stderr
    assert "--full" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ("--logits", "x.npz", "--resize"),
        ("--logits", "x.npz", "--reference-minutes", "1"),
        ("--plan", "--forgotten", "9", "--seed", "1"),
        ("--plan", "--forgotten", "9", "--before", "x"),
        ("--full", "--reference-minutes", "1"),
        ("--before", "x", "--classes", "3"),
    ],
    ids=" ".join,
)
def test_no_option_is_passed_over(options: tuple[str, ...], tmp_path: Path) -> None:
    done = expunge("audit", *options, *(() if "--plan" in options else ("--out", tmp_path / "out")))
    name = [part for part in options if part.startswith("--")][-1]
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{name} is not used" in done.stderr


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, folders: Path) -> None:
    done = expunge(*full(folders, tmp_path / "out", "--device", "npu"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "'npu'" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out-references").exists()


@pytest.mark.parametrize("references", ["out", "out/references"])
def test_references_inside_of_what_is_written_at_the_end_are_refused(
    references: str, tmp_path: Path, folders: Path
) -> None:
    done = expunge(*full(folders, tmp_path / "out", "--references", tmp_path / references))
    assert (done.returncode, done.stdout) == (2, "")
    assert "outside" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_audit_into_the_current_directory_is_refused(tmp_path: Path, folders: Path) -> None:
    done = expunge(*full(folders, tmp_path / "out")[:-1], ".", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists" in done.stderr
    assert "--out" in done.stderr


def test_a_stopped_full_audit_says_where_it_goes_on(tmp_path: Path, folders: Path) -> None:
    kept = tmp_path / "out-references"
    with running(*full(folders, tmp_path / "out"), "--train", f"folder:{folders / 'train'}") as process:
        deadline = time.monotonic() + PATIENCE
        while not list(kept.glob("*.safetensors")):
            assert process.poll() is None, "it ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "stopped" in errors.splitlines()[-1]
    assert str(kept) in errors.splitlines()[-1]
    assert list(kept.glob("*.safetensors"))


def test_images_in_both_splits_are_left_out_and_a_set_of_them_is_refused(tmp_path: Path, folders: Path) -> None:
    """Published datasets have a few: 10 of CIFAR-100's test images stand in its training set too."""
    both, train = pixels(100, side=12), f"folder:{folders / 'train'}"
    for name, duplicates in (("few", both[:1]), ("many", both[:20])):
        held = torch.cat([both[60:], duplicates])
        test = write_folder(tmp_path / name, held, [("cat", "dog")[n % 2] for n in range(len(held))])
        options = full(folders, tmp_path / f"{name}-out", "--train", train, "--method", "neg_grad,epochs=1")
        options[options.index("--test") + 1] = f"folder:{test}"
        done = expunge(*options)
        if name == "few":
            assert done.returncode == 0, done.stderr
            assert "1 of 41 test examples" in done.stderr
        else:
            assert done.returncode == 1
            assert "20 of the 60" in done.stderr


def test_what_speaks_against_a_verdict_is_printed(tmp_path: Path, trained: Path) -> None:
    """A class without test images, one of its images twice, and a model that is compared with itself."""
    write_folder(tmp_path / "all", pixels(60, channels=1, side=28), ["Trouser", "Pullover"] * 30)
    write_folder(tmp_path / "gone", pixels(6, channels=1, side=28, seed=5), ["Dress"] * 6)
    first = sorted((tmp_path / "gone/Dress").iterdir())[0]
    shutil.copy(first, first.with_name(f"copy{first.suffix}"))
    sets = ("--forget", f"folder:{tmp_path}/gone", "--test", f"folder:{tmp_path}/all")
    done = expunge("audit", "--before", trained, "--after", trained, *sets, "--out", tmp_path / "out")
    assert done.returncode in {0, 3}, done.stderr
    for told in ("1 of 7", "parameters", "6 of the 6"):
        assert told in done.stdout
    page = (tmp_path / "out/report.html").read_text()
    assert page.count('<p class="note"><strong>') == 2


def test_a_duplicate_of_a_forgotten_image_is_left_out_and_said(tmp_path: Path, trained: Path) -> None:
    train, test = load_data("sample:train"), load_data("sample:test")
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{n}\n" for n in range(20)))
    held = {"images": [test.images, train.images[:1]], "labels": [test.labels, train.labels[:1]]}
    save_file({name: torch.cat(parts) for name, parts in held.items()}, tmp_path / "held.safetensors")
    given = arguments(trained, trained, ids, tmp_path / "out", test=f"safetensors:{tmp_path}/held.safetensors")
    done = expunge(*given, "--device", "cpu")
    assert done.returncode in {0, 3}, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert len(report["audit"]["left_out"]) == 1
    assert f"1 of {len(test) + 1:,} test examples" in report["audit"]["left_out"][0]
    assert report["audit"]["left_out"][0] in done.stdout
    assert report["audit"]["num_test"] == len(test)
    assert report["sources"]["device"] == "cpu"
    assert "--device cpu" in (tmp_path / "out/report.html").read_text()


def test_a_full_audit_goes_on_where_it_was_and_compares_methods(tmp_path: Path, folders: Path) -> None:
    train = ("--train", f"folder:{folders / 'train'}", "--references", tmp_path / "references")
    done = expunge(*full(folders, tmp_path / "first", *train, "--method", "neg_grad,epochs=2"))
    assert done.returncode == 0, done.stderr
    assert "8 of 8" in done.stderr
    for text in ("original", "neg_grad+epochs=2", "retrained", "U-LiRA AUC", OWN_DATA):
        assert text in done.stdout
    again = expunge(*full(folders, tmp_path / "second", *train, "--method", "neg_grad,epochs=2", "--json"))
    assert again.returncode == 0, again.stderr
    assert "0 of 8" in again.stderr
    found = json.loads(again.stdout)
    assert [row["name"] for row in found["rows"]] == ["original", "neg_grad+epochs=2", "retrained"]
    assert found["num_forget"] == 6
    assert found == json.loads((tmp_path / "first/full_audit.json").read_text())
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == ["full_audit.json", "full_audit.md"]
    written = (tmp_path / "second" / "full_audit.md").read_text()
    for caveat in json.loads((tmp_path / "second" / "full_audit.json").read_text())["caveats"]:
        assert f"- {caveat}" in written


def test_a_full_audit_without_training_data_is_one_of_the_recipe(tmp_path: Path, folders: Path) -> None:
    done = expunge(*full(folders, tmp_path / "out", "--method", "neg_grad,epochs=1"))
    assert done.returncode == 0, done.stderr
    assert RECIPE_ALONE in done.stdout


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--num", "7"), 2, "at least 8"),
        (("--method", "nonsense"), 2, "nonsense"),
        (("--method", "targeted,lam"), 2, "NAME,SETTING=VALUE"),
        (("--method", "amnesiac_undo"), 2, "amnesiac_undo"),
    ],
)
def test_what_no_full_audit_can_do_is_said_before_training(
    tmp_path: Path, folders: Path, more: tuple[str, ...], code: int, said: str
) -> None:
    given = full(folders, tmp_path / "out", "--train", f"folder:{folders / 'train'}", *more)
    before = tree(tmp_path)
    done = expunge(*given)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert tree(tmp_path) == before


def test_the_sample_has_no_image_twice() -> None:
    """The audits above would otherwise refuse it."""
    from expunge.data import check_disjoint

    check_disjoint(load_data("sample").images, load_data("sample:test").images, "forget", "test")
