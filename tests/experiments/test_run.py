"""`python -m experiments run`: every cell once whatever happens, nothing old reused, the same draws for all methods."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from experiments.grid import Cell, Grid, Original, Result, current, load_grid, measuring, only, read_results
from experiments.grid.cells import BEFORE
from experiments.grid.engine import Engine
from experiments.grid.measuring import Outcome, Stage, Task, failed, measure, model_digest
from experiments.grid.results import opened
from experiments.grid.run import bench_run
from experiments.grid.runner import run_cells
from experiments.grid.summary import BenchSummary
from experiments.paper.printed import ROWS

from expunge.data import audit_side, digests, draw_ids, load_data
from expunge.errors import ExpungeError, InputError, MissingExtraError, SettingError
from expunge.methods import make_method, settings_of
from expunge.models import load_model, save_checkpoint
from expunge.trainer import train
from expunge.unlearning import unlearn
from expunge.update_log import matching_updates
from tests import forked
from tests.conftest import experiments, running, tree
from tests.forked import PATIENCE

GRIDS = Path(__file__).parents[2] / "grids"
SMOKE = GRIDS / "smoke.toml"
FILE = "sample-small_resnet.jsonl"


class Inline:
    """An engine without processes."""

    device = "cpu"

    def __init__(self) -> None:
        self.done: list[Cell] = []

    def train(self, original: Original, directory: Path, idle: Callable[[], None], record: Path | None = None) -> None:
        train(
            f"{original.dataset}:train",
            original.architecture,
            directory,
            settings=original.settings,
            seed=original.seed,
            device="cpu",
            record_updates=None if record is None else str(record),
        )

    def run(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Task, Outcome]]:
        for task in tasks:
            idle()
            self.done += task.cells
            yield task, measure(task)

    def close(self) -> None:
        pass


def do(cells: Sequence[Cell], out: Path, models: Path, **more: Any) -> tuple[BenchSummary, list[Cell]]:
    """Runs cells in this process; tells which were run."""
    engine = Inline()
    return run_cells(cells, out, models, engine, **more), engine.done


def grid_with(path: Path, rows: Sequence[str], *, sizes: str = "[4]", seeds: str = "[0]") -> Path:
    """A grid on the sample with rows such as `method = "neg_grad", settings = { lr = 1.0 }`."""
    text = SMOKE.read_text()
    head, tail = text[: text.index("[[rows]]")], text[text.index("[profiles]") :]
    head = head.replace("sizes = [4, 16]", f"sizes = {sizes}").replace("seeds = [0, 1]", f"seeds = {seeds}")
    tables = [f'[[rows]]\nname = "row_{n}"\n' + row.replace(", settings", "\nsettings") for n, row in enumerate(rows)]
    path.write_text("\n\n".join([head, *tables, tail]))
    return path


FOREVER = 'method = "targeted", settings = { epochs = 100000000, stop = "budget" }'
QUICK = 'method = "neg_grad", settings = { epochs = 1 }'


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke grid, done by the installed command; the originals are beside it."""
    out = tmp_path_factory.mktemp("bench") / "results"
    done = experiments("run", SMOKE, "--out", out, "--workers", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    originals = out.with_name("results-originals")
    said = [line for line in done.stderr.splitlines() if line.startswith("training")]  # and each minute how far it is
    assert said == [f"training sample-small_resnet into {originals / 'sample-small_resnet'}"]
    assert "28 results in" in done.stdout
    assert "0 cells left." in done.stdout
    return out


@pytest.fixture(scope="module")
def models(smoke: Path) -> Path:
    return smoke.with_name("results-originals")


def children(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they started."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found: list[int] = []
    front = [pid]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_for(condition: Callable[[], Any], process: forked.Started, seconds: float = 400) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_the_papers_grid_is_2520_cells() -> None:
    grid = load_grid(GRIDS / "paper.toml")
    for profile in ("cpu", "gpu"):
        cells = grid.cells(profile)
        assert len(cells) == len({cell.key for cell in cells}) == len({cell.id for cell in cells}) == 2_520
        names = [cell.original.name for cell in cells]
        assert [name for n, name in enumerate(names) if names[n - 1] != name] == list(dict.fromkeys(names))
        assert names[:210] == ["fashion-mnist-resnet18"] * 210
        assert [cell.seed for cell in cells[:210]] == sorted(cell.seed for cell in cells[:210])
        measured = {(cell.retain_subset, cell.test_subset, cell.row == "before") for cell in cells}
        subset = 5_000 if profile == "cpu" else None
        assert measured == {(None, None, True), (subset, subset, False)}
        assert {cell.conditions.get("precision") for cell in cells} == {"bf16" if profile == "cpu" else None}
    assert Counter(cell.row for cell in cells) == dict.fromkeys(
        ("before", "neg_grad", "random_label", "bad_teacher", "amnesiac", "targeted1", "targeted3"), 360
    )
    assert {(row.name, row.settings["lam"]) for row in grid.rows if row.method == "targeted"} == {
        ("targeted1", 1.0),
        ("targeted3", 3.0),
    }
    assert tuple(row.name for row in grid.rows) == tuple(ROWS)  # as tables, figures and claims look them up
    for row in grid.rows[1:]:  # the paper's: Adam, 1e-4, 1e-5, the same budget for all
        shared = {key: row.settings[key] for key in ("optimizer", "lr", "weight_decay", "epochs", "stop", "batch_size")}
        assert shared == {
            "optimizer": "adam",
            "lr": 1e-4,
            "weight_decay": 1e-5,
            "epochs": 20,
            "stop": "forgotten",
            "batch_size": 32,
        }
    assert len([o for o in grid.originals if set(o.target) == {"retain_accuracy", "test_accuracy"}]) == 12


def test_every_cell_is_one_line_with_all_its_fields(smoke: Path) -> None:
    cells = load_grid(SMOKE).cells("cpu")
    results = read_results(smoke)
    assert [path.name for path in smoke.iterdir()] == [FILE]  # nothing else: no lock, no temporary file
    assert Counter(r.cell for r in results) == dict.fromkeys((cell.id for cell in cells), 1)
    for result in results:
        assert result.failed is None
        for name in ("forget_accuracy", "retain_accuracy", "test_accuracy"):
            assert 0 <= getattr(result, name) <= 1
        assert result.retain_measured == 500
        assert result.evaluated_in in {"fp32", "bf16"}  # what the machine is quicker in, where both agree
        assert result.audit_verdict in {"PASS", "FAIL", "INCONCLUSIVE"}
        assert (result.delta_l1 == result.delta_l2 == result.steps == 0) == (result.method == "before")
        assert result.commit
        assert set(result.versions) == {"expunge", "torch", "python"}
        assert result.num_parameters
        if result.method != "before":
            assert result.settings["epochs"] == result.steps == 3
            assert result.delta_l1 is not None
            assert 0 < (result.delta_l1_last_layer or 0) < result.delta_l1 < (result.original_l1 or 0)
    by_id = current(cells, results)
    assert [by_id[cell.id].row for cell in cells] == [cell.row for cell in cells]


def test_all_methods_share_the_forgotten_and_the_retained_examples(smoke: Path) -> None:
    results = read_results(smoke)
    forgotten = {(r.seed, r.forget_size): set[str | None]() for r in results}
    for r in results:
        forgotten[r.seed, r.forget_size].add(r.forget_digest)
    images = load_data("sample:train")
    for (seed, size), found in forgotten.items():  # the first of a permutation that the seed draws
        assert found == {sha256("\n".join(draw_ids(images, size, seed)).encode()).hexdigest()}
    retained = {(r.seed, r.forget_size): set[str | None]() for r in results}
    for r in results:
        if r.method in {"bad_teacher", "amnesiac"}:
            retained[r.seed, r.forget_size].add(r.retain_digest)
        else:
            assert r.retain_digest is None
    assert all(len(digests) == 1 for digests in retained.values())
    for size in (4, 16):
        (digest,) = retained[0, size]
        assert (digest or "")[:12] == "8a6bdfbec407"  # the same for all sizes, here: none of the 20 is forgotten


def test_a_cell_is_what_the_command_forget_does(smoke: Path, models: Path, tmp_path: Path) -> None:
    result = next(r for r in read_results(smoke) if (r.row, r.seed, r.forget_size) == ("targeted3", 1, 16))
    (tmp_path / "ids").write_text("\n".join(draw_ids(load_data("sample:train"), 16, 1)))
    from expunge.cli.forget import run as forget
    from expunge.cli.sources import Sources

    sources = Sources(
        model=str(models / "sample-small_resnet"), forget="sample", ids=tmp_path / "ids", test="sample:test"
    )
    settings = {"epochs": 3, "lam": 3}
    report = forget(
        sources, tmp_path / "out", method="targeted", preset="paper", settings=settings, seed=1, device="cpu"
    )
    exact = result.evaluated_in == "fp32"
    assert report.after.test_accuracy == pytest.approx(result.test_accuracy, abs=1e-9 if exact else 0.005)
    assert report.after.forget_accuracy == result.forget_accuracy
    assert report.trace is not None
    assert report.audit is not None
    assert report.audit.verdict == result.audit_verdict
    assert report.audit.scores_after.a1 == pytest.approx(result.audit_a1, abs=1e-9 if exact else 0.01)
    assert report.audit.scores_after.auc == pytest.approx(result.audit_auc, abs=1e-9 if exact else 0.01)
    assert report.trace.change.l1 == pytest.approx(result.delta_l1, rel=1e-4)  # another number of threads


@pytest.mark.parametrize("row", ["before", "targeted3"])
def test_bf16_changes_no_accuracy_by_much_and_is_taken_only_then(
    models: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    cell = next(c for c in load_grid(SMOKE).cells("cpu") if (c.row, c.forget_size) == (row, 16))
    checkpoint = models / "sample-small_resnet" / "model.safetensors"
    found = {}
    for quick, tolerance, precision in ((False, 1.0, "fp32"), (True, 1.0, "bf16"), (True, -1.0, "fp32")):
        monkeypatch.setattr(measuring, "computes_in_bf16", lambda device, quick=quick: quick)
        monkeypatch.setattr(measuring, "TOLERANCE", tolerance)
        stage = measuring.Stage("sample", checkpoint, "cpu")
        assert stage.precision == precision
        found[quick, tolerance] = measured = stage.measured(cell)
        assert measured["evaluated_in"] == ("fp32" if row == "before" else precision)
    exact, rounded, refused = found.values()
    for name in ("retain_accuracy", "test_accuracy", "audit_a1"):
        assert abs(rounded[name] - exact[name]) < 0.005 + 1e-9  # five of 1,000 images
        assert refused[name] == exact[name]


def test_a_row_of_retraining_takes_the_originals_recipe(models: Path, tmp_path: Path) -> None:
    cells = load_grid(grid_with(tmp_path / "grid.toml", ['method = "retrain"'])).cells("cpu")
    assert [dict(cell.settings) for cell in cells] == [dict(cells[0].original.recipe)]
    do(cells, tmp_path / "out", models)
    (result,) = read_results(tmp_path / "out")
    assert (result.failed, result.method, result.settings["epochs"]) == (None, "retrain", 1)
    assert result.steps == (2_000 - 4) // result.settings["batch_size"]


def test_a_row_of_undone_updates_has_its_original_trained_with_a_log(models: Path, tmp_path: Path) -> None:
    path = grid_with(tmp_path / "grid.toml", ['method = "amnesiac_undo"', QUICK], seeds="[0, 1]")
    cells = load_grid(path).cells("cpu")
    assert [cell.reads_updates for cell in cells] == [True, False, True, False]
    # An original without a log: the other row is measured, and those left say what to do.
    summary, done = do(cells, tmp_path / "out", models)
    assert [cell.row for cell in done] == ["row_1", "row_1"]
    assert summary.originals[0].left == 2
    assert re.match("there is no update log in .*; with a new --models ", summary.originals[0].why)
    # None yet: it is trained with one, to the same bits, of exactly the batches that the draws are in.
    own = tmp_path / "models"
    local = Engine(workers=1, device="cpu", train=train)
    summary = run_cells(cells, tmp_path / "out", own, local)
    assert (summary.originals[0].left, summary.problems) == (0, ())
    name = "sample-small_resnet/model.safetensors"
    assert measuring.model_digest(own / name) == measuring.model_digest(models / name)
    images = load_data("sample:train")
    found = {result.seed: result for result in read_results(tmp_path / "out") if result.row == "row_0"}
    log = own / "sample-small_resnet" / "updates"
    steps = set()
    for seed, result in found.items():
        forget = images.select(draw_ids(images, 4, seed))
        undone = unlearn(load_model(str(own / name))[0], forget, method=make_method("amnesiac_undo", updates=log))
        assert result.failed is None
        assert (result.steps, result.delta_l1) == (undone.trace.steps, undone.trace.change.l1)
        steps |= {step for step, _ in matching_updates(log, digests(forget.images))}
    assert len(list(log.glob("*.safetensors"))) == len(steps) < 2_000 // 64
    # Another draw's batches are there in part, and it is left rather than undone in part.
    path.write_text(path.read_text().replace("seeds = [0, 1]", "seeds = [1, 2]"))
    summary, done = do(load_grid(path).cells("cpu"), tmp_path / "out", own)
    assert [(cell.row, cell.seed) for cell in done] == [("row_1", 2)]
    assert "was recorded for other examples; with a new --models" in summary.originals[0].why
    # A training with a log cannot be gone on with, and says so.
    path.write_text(path.read_text().replace("recipe = { epochs = 1 }", "recipe = { epochs = 1000 }"))
    summary = run_cells(load_grid(path).cells("cpu"), tmp_path / "out2", tmp_path / "long", local, limit=2)
    assert summary.originals[0].why == "its training was cut off; it needs a longer --limit"
    assert list(tmp_path.glob("long/*")) == []


def test_a_grid_with_held_out_examples_is_measured_on_the_audit_side(models: Path, tmp_path: Path) -> None:
    rows = ['method = "before"', QUICK, 'method = "calibrated", settings = { epochs = 2 }']
    path = grid_with(tmp_path / "grid.toml", rows, seeds="[0, 1]")
    plain = load_grid(path).cells("cpu")
    path.write_text(path.read_text().replace("retain_size", "heldout = true\nretain_size", 1))
    cells = load_grid(path).cells("cpu")
    assert not {cell.id for cell in plain} & {cell.id for cell in cells}
    do(cells, tmp_path / "out", models)
    test = load_data("sample:test")
    results = read_results(tmp_path / "out")
    assert len(results) == 6
    for result in results:
        assert result.failed is None
        left = audit_side(test.images, [result.seed])
        assert result.test_measured == int(left.sum())
        if result.method == "before":
            network, _ = load_model(str(models / "sample-small_resnet"))
            right = network(test.images[left]).argmax(1) == test.labels[left]
            assert result.test_accuracy == pytest.approx(float(right.double().mean()))


def test_a_row_can_withhold_held_out_examples_from_a_method_that_would_read_them(models: Path, tmp_path: Path) -> None:
    rows = ['method = "calibrated", settings = { epochs = 2 }'] * 2
    path = grid_with(tmp_path / "grid.toml", rows, sizes="[20]")
    text = path.read_text() + "\n"
    path.write_text(text.replace("retain_size", "heldout = true\nretain_size", 1))
    with pytest.raises(InputError, match="the rows 'row_0' and 'row_1' are the same method with the same settings"):
        load_grid(path)
    text = path.read_text().replace('name = "row_1"', 'name = "row_1"\nwithheld = true')
    path.write_text(text)
    given, without = load_grid(path).cells("cpu")
    assert given.id != without.id
    do([given, without], tmp_path / "out", models)
    results = {r.cell: r for r in read_results(tmp_path / "out")}
    assert results[given.id].test_measured == results[without.id].test_measured
    said = [any("no test examples" in w for w in results[cell.id].warnings) for cell in (given, without)]
    assert said == [False, True]
    for old, new in (("heldout = true", "heldout = false"), ('method = "calibrated"', 'method = "neg_grad"')):
        path.write_text(text.replace(old, new))
        with pytest.raises(SettingError, match="withheld is true or false"):
            load_grid(path)


def test_retain_accuracy_is_of_all_that_is_left(models: Path, tmp_path: Path) -> None:
    cells = [c for c in load_grid(SMOKE).cells("gpu") if c.row in {"before", "neg_grad"} and c.forget_size == 16]
    do(cells, tmp_path / "out", models)
    for result in read_results(tmp_path / "out"):
        assert result.retain_subset is None
        assert result.retain_measured == 2_000 - 16
        assert (result.retain_accuracy or 0) * 1984 == pytest.approx(round((result.retain_accuracy or 0) * 1984))


def test_a_second_run_does_only_what_is_missing(smoke: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(smoke, out)
    cells = load_grid(SMOKE).cells("cpu")
    before = tree(out)
    summary, done = do(cells, out, models)
    assert (done, tree(out)) == ([], before)
    assert (summary.originals[0].left, summary.originals[0].new) == (0, 0)
    kept = lines_of(out / FILE)[5:]
    (out / FILE).write_text("\n".join(kept) + "\n")
    _, done = do(cells, out, models)
    assert len(done) == 5
    assert {r.cell for r in read_results(out)} == {cell.id for cell in cells}
    # Without the originals, results that are complete are not done again, and nothing is trained.
    _, done = do(cells, out, tmp_path / "elsewhere")
    assert done == []
    assert not (tmp_path / "elsewhere").exists()


def test_a_changed_setting_is_never_answered_by_an_old_result(smoke: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(smoke, out)
    (tmp_path / "grid.toml").write_text(SMOKE.read_text().replace("lam = 3.0", "lam = 2.5"))
    _, done = do(load_grid(tmp_path / "grid.toml").cells("cpu"), out, models)
    assert {(cell.row, cell.settings["lam"]) for cell in done} == {("targeted3", 2.5)}
    assert len(done) == 4
    assert len(current(load_grid(SMOKE).cells("cpu"), read_results(out))) == 28
    # Another measure of retain accuracy, another size of the retained set, another original.
    assert not {c.id for c in load_grid(SMOKE).cells("gpu")} & {r.cell for r in read_results(out)}
    (tmp_path / "grid.toml").write_text(SMOKE.read_text().replace("retain_size = 20", "retain_size = 10"))
    assert {c.row for c in load_grid(tmp_path / "grid.toml").cells("cpu")} - {
        c.row for c in load_grid(tmp_path / "grid.toml").cells("cpu") if c.id in {r.cell for r in read_results(out)}
    } == {"bad_teacher", "amnesiac"}
    (tmp_path / "grid.toml").write_text(SMOKE.read_text().replace("width = 4", "width = 5"))
    changed = load_grid(tmp_path / "grid.toml").cells("cpu")
    assert not {c.id for c in changed} & {r.cell for r in read_results(out)}
    with pytest.raises(InputError, match=r"was trained with options=.*choose another --models"):
        do(changed, out, models)
    summary, done = do(changed[:2], out, tmp_path / "others")
    assert len(done) == 2
    other = {r.cell: r.model_digest for r in read_results(out)}
    assert other[changed[0].id] != other[load_grid(SMOKE).cells("cpu")[0].id]
    assert set(summary.originals[0].reached) == {"retain_accuracy", "test_accuracy"}


def test_another_original_is_measured_where_a_seed_of_the_earlier_one_is_not_whole(
    smoke: Path, models: Path, tmp_path: Path
) -> None:
    out, changed = tmp_path / "out", tmp_path / "models"
    shutil.copytree(smoke, out)
    shutil.copytree(models, changed)
    path = changed / "sample-small_resnet" / "model.safetensors"
    network, header = load_model(str(path))
    next(network.parameters()).data.add_(1e-4)
    save_checkpoint(path, network, header)
    cells = only(load_grid(SMOKE).cells("cpu"), ["method=before"])
    assert do(cells, out, changed)[1] == []
    (file,) = out.iterdir()
    lines = file.read_text().splitlines(keepends=True)
    gone = next(line for line in lines if (found := Result.from_line(line)).row == "before" and found.seed == 1)
    file.write_text("".join(line for line in lines if line != gone))
    _, done = do(cells, out, changed)
    assert len(done) == 2
    digests_of = {
        seed: {r.model_digest for r in current(cells, read_results(out)).values() if r.seed == seed} for seed in (0, 1)
    }
    assert digests_of == {0: {Result.from_line(gone).model_digest}, 1: {read_results(out)[-1].model_digest}}
    assert digests_of[0] != digests_of[1]


def test_failures_are_recorded_and_retried_only_on_request(models: Path, tmp_path: Path) -> None:
    rows = ['method = "neg_grad", settings = { optimizer = "sgd", lr = 1e30, epochs = 5 }', QUICK]
    grid = grid_with(tmp_path / "grid.toml", rows, sizes="[4, 5000]")
    out = tmp_path / "out"
    cells = load_grid(grid).cells("cpu")
    summary, _ = do(cells, out, models)
    assert (summary.originals[0].new, summary.originals[0].failed, summary.originals[0].left) == (4, 3, 0)
    found = {(r.row, r.forget_size): r for r in read_results(out)}
    assert "the loss became" in (found["row_0", 4].failed or "")
    assert found["row_0", 5000].failed == "cannot draw 5000 of the 2000 examples of sample:train"
    assert found["row_1", 4].failed is None
    assert found["row_0", 4].forget_accuracy is None
    assert found["row_0", 4].commit
    assert do(cells, out, models)[1] == []
    again = do(cells, out, models, retry_failed=True)[1]
    assert [(cell.row, cell.forget_size) for cell in again] == [("row_0", 4), ("row_0", 5000), ("row_1", 5000)]
    assert len(read_results(out)) == 7


def test_data_that_is_not_there_is_no_failure_of_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path / "nowhere"))
    text = SMOKE.read_text().replace('["sample"]', '["cifar10", "sample"]')
    (tmp_path / "grid.toml").write_text(text)
    cells = only(load_grid(tmp_path / "grid.toml").cells("cpu"), ["method=before,seed=0"])
    summary, done = do(cells, tmp_path / "out", tmp_path / "models")
    assert {cell.original.dataset for cell in done} == {"sample"}  # the rest goes on
    assert "cifar10 is not on this machine" in summary.problems[0]
    assert summary.problems[0].startswith("cifar10-small_resnet: 2 cells are left")
    summary, done = do(cells, tmp_path / "other", tmp_path / "none", train_missing=False)
    assert (done, [o.left for o in summary.originals]) == ([], [2, 2])
    assert "there is no" in summary.problems[1]


class Scripted(Inline):
    """Answers with what the test says, a task after the other, and measures where that is None."""

    def __init__(self, *answers: str | None) -> None:
        super().__init__()
        self.answers = list(answers)

    def run(self, tasks: Sequence[Task], idle: Callable[[], None]) -> Iterator[tuple[Task, Outcome]]:
        for task in tasks:
            answer = self.answers.pop(0)
            self.done += task.cells
            yield task, measure(task) if answer is None else failed(task, answer)


def test_deaths_in_a_row_are_the_machines_fault_and_no_results(models: Path, tmp_path: Path) -> None:
    cells = load_grid(grid_with(tmp_path / "grid.toml", [QUICK], seeds="[0, 1, 2, 3]")).cells("cpu")
    out = tmp_path / "out"
    with pytest.raises(ExpungeError, match=r"3 tasks in a row failed: killed; .* run it again to go on"):
        run_cells(cells, out, models, Scripted(None, "killed", "killed", "killed"))
    assert [r.failed for r in read_results(out)] == [None]
    engine = Scripted("killed", None, "killed")
    summary = run_cells(cells, out, models, engine)
    assert [cell.seed for cell in engine.done] == [1, 2, 3]
    assert {r.seed: r.failed for r in read_results(out)} == {0: None, 1: "killed", 2: None, 3: "killed"}
    assert (summary.originals[0].new, summary.originals[0].failed, summary.originals[0].left) == (3, 2, 0)


def test_what_keeps_a_stage_from_loading_is_no_cells_failure(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measuring, "Stage", full)
    measuring._stage.cache_clear()
    path = models / "sample-small_resnet/model.safetensors"
    cells = tuple(load_grid(SMOKE).cells("cpu")[:1])
    task = Task(cells=cells, model=path, model_digest=model_digest(path), device="cpu", commit="none")
    assert measure(task) == Outcome(unavailable="RuntimeError: out of memory")


def test_cells_of_one_original_are_of_the_same_images(smoke: Path, models: Path, tmp_path: Path) -> None:
    """A dataset has copies that differ, such as JPEG files of CIFAR-10."""
    out = tmp_path / "out"
    shutil.copytree(smoke, out)
    lines = [json.loads(line) for line in lines_of(out / FILE)]
    kept = [{**line, "data_digest": "other"} for line in lines[1:]]
    (out / FILE).write_text("".join(json.dumps(line) + "\n" for line in kept))
    summary, _ = do(load_grid(SMOKE).cells("cpu"), out, models)
    assert "the images of sample here are not those that earlier cells" in summary.problems[0]
    assert len(read_results(out)) == len(kept)


def test_an_original_was_trained_on_the_training_split(smoke: Path, models: Path, tmp_path: Path) -> None:
    place = tmp_path / "models/sample-small_resnet"
    original = load_grid(SMOKE).cells("cpu")[0].original
    train("sample:test", "small_resnet", place, settings=original.settings, seed=original.seed, device="cpu")
    with pytest.raises(InputError, match="was trained with data='sample:test', the grid wants 'sample'"):
        do(load_grid(SMOKE).cells("cpu"), tmp_path / "out", tmp_path / "models")


def test_a_test_image_that_is_a_forgotten_one_too_is_left_out(models: Path) -> None:
    """`unlearn` and the audit refuse it."""
    path = models / "sample-small_resnet/model.safetensors"
    cell = replace(load_grid(SMOKE).cells("cpu")[0], row="c", method="calibrated", forget_size=30, heldout=True)
    cell = replace(cell, settings=settings_of(make_method("calibrated", epochs=1)))
    stage = Stage("sample", path, "cpu")
    before = stage.measured(replace(cell, method=BEFORE, settings={}))
    forget = stage.train.select(draw_ids(stage.train, cell.forget_size, cell.seed))
    images = stage.test.images.clone()
    images[::10] = forget.images[0]
    stage.test = replace(stage.test, images=images)
    stage.test_pixels = digests(images)
    stage._before = {}
    assert stage.measured(cell)["audit_verdict"]
    assert stage.measured(replace(cell, method=BEFORE, settings={}))["audit_a1"] != before["audit_a1"]


def test_a_setting_that_came_later_leaves_the_ids_of_cells_as_they_were() -> None:
    cell = replace(load_grid(SMOKE).cells("cpu")[0], row="c", method="calibrated")
    now = settings_of(make_method("calibrated"))
    before = {name: value for name, value in now.items() if name != "targets"}
    ids = [replace(cell, settings=settings).id for settings in (now, before, now | {"targets": "residuals"})]
    assert ids[0] == ids[1] != ids[2]


def test_two_runs_do_not_train_the_same_original(tmp_path: Path) -> None:
    cells = load_grid(SMOKE).cells("cpu")[:1]
    lock = tmp_path / "models/.sample-small_resnet.lock"
    lock.parent.mkdir()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        summary, done = do(cells, tmp_path / "out", tmp_path / "models")
    assert done == []
    assert "another run is training it" in summary.problems[0]
    summary, done = do(cells, tmp_path / "out", tmp_path / "models")  # a lock that nobody holds any more
    assert (len(done), summary.problems, lock.exists()) == (1, (), False)


@pytest.mark.parametrize("content", [b"\xff" * 100, b"text, no checkpoint", b"", b"\x08"])
def test_the_digest_of_what_is_no_checkpoint_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        model_digest(tmp_path / "model")


def test_only_picks_cells() -> None:
    cells = load_grid(GRIDS / "paper.toml").cells("cpu")
    assert len(only(cells, [])) == 2_520
    assert len(only(cells, ["dataset=cifar10,architecture=vit"])) == 210
    assert len(only(cells, ["method=targeted"])) == 720
    assert len(only(cells, ["method=targeted3,size=16", "size=512"])) == 120
    assert len(only(cells, ["seed=4", "dataset=cifar10,dataset=cifar100"])) == 252
    for choice, message in (
        ("colour=red", "--only has no key 'colour'; it has dataset, architecture, method, size, seed"),
        ("size=17", "the grid has no size '17'; it has 16, 32, 64, 128, 256, 512"),
        ("vit", "--only takes KEY=VALUE"),
    ):
        with pytest.raises(SettingError) as caught:
            only(cells, [choice])
        assert str(caught.value).startswith(message)


BAD_GRIDS = {
    "not TOML": ("format =", "format = [", "is not TOML"),
    "other format": ("expunge-grid/1", "expunge-grid/9", "its format is 'expunge-grid/9'"),
    "unknown key": ("retain_size = 20", "retain_size = 20\ncolour = 1", "the grid has no 'colour'"),
    "missing key": ("retain_size = 20", "", "the grid lacks 'retain_size'"),
    "comma in a name": ('name = "before"', 'name = "a,b"', "a row's name is text without commas"),
    "dataset": ('["sample"]', '["mnist"]', "unknown dataset 'mnist'"),
    "architecture": ('["small_resnet"]', '["vgg"]', "unknown architecture 'vgg'"),
    "sizes": ("[4, 16]", "[0]", "sizes and retain_size are at least 1"),
    "sizes' kind": ("[4, 16]", '["4"]', "sizes must be a list of at least one int"),
    "twice": ("[4, 16]", "[4, 4]", "sizes lists a value twice"),
    "method": ('method = "neg_grad"', 'method = "neg_grat"', "unknown method 'neg_grat'"),
    "setting": ("{ epochs = 3, lam = 1.0 }", "{ lambda = 1.0 }", "targeted has no setting 'lambda'"),
    "range": ("{ epochs = 3, lam = 1.0 }", "{ lam = 0.5 }", "lam=0.5 is out of range"),
    "rows' names": ('name = "amnesiac"', 'name = "before"', "two rows are called 'before'"),
    "before": ('method = "before"', 'method = "before"\npreset = "paper"', "takes no preset"),
    "retrain": ('method = "neg_grad"', 'method = "retrain"', "it takes the original's recipe"),
    "profile": ("cpu = { retain = 500 }", "cpu = { retain = -1 }", 'retain is "all" or a number'),
    "no profile": ("cpu = { retain = 500 }", "", "it needs the profiles cpu and gpu"),
    "method's kind": ('method = "neg_grad"', 'method = ["neg_grad"]', "a row's method is text, not ['neg_grad']"),
    "option's kind": ("options = { width = ", "options = { depth = 2020-01-01, width = ", "depth is text, a number"),
    "rows alike": (
        'name = "neg_grad"',
        'name = "two"\nmethod = "before"\n\n[[rows]]\nname = "neg_grad"',
        "the rows 'before' and 'two' are the same method",
    ),
    "recipe": ("recipe = { epochs = 1 }", "recipe = { epoch = 1 }", "small_resnet.recipe has no 'epoch'"),
    "original": ("[originals.sample.small", "[originals.sample.big", "originals.sample has no 'big_resnet'"),
}


@pytest.mark.parametrize("case", BAD_GRIDS)
def test_a_wrong_grid_is_one_clear_line(tmp_path: Path, case: str) -> None:
    old, new, message = BAD_GRIDS[case]
    path = tmp_path / "grid.toml"
    assert old in SMOKE.read_text()
    path.write_text(SMOKE.read_text().replace(old, new, 1))
    with pytest.raises(ExpungeError) as caught:
        load_grid(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


CPU = {"device": "cpu"}


def test_wrong_use_is_one_clear_line(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: type[Exception], message: str, **settings: Any) -> None:
        with pytest.raises(error, match=message):
            bench_run(**{"grid": SMOKE, "out": tmp_path / "out", **({} if "ray" in settings else CPU), **settings})

    fails(InputError, "cannot read", grid=tmp_path / "none.toml")
    fails(SettingError, "--limit is a number of minutes above 0", limit_minutes=0.0)
    fails(SettingError, "the grid has no profile 'tpu'; it has cpu, gpu", profile="tpu")
    fails(SettingError, "--only has no key", only_cells=["a=b"])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    fails(InputError, "cannot write results to .*choose another --out", out=tmp_path / "file")
    with opened(tmp_path / "out"):
        fails(InputError, "another run writes to")
    (tmp_path / "out" / FILE).write_text("{}\n")
    fails(InputError, r"jsonl, line 1, is no result of `python -m experiments run`")
    fails(
        SettingError,
        "the row 'row_0' reads the update log beside its original",
        grid=grid_with(tmp_path / "undo.toml", ['method = "amnesiac_undo"']),
        ray="local",
    )
    fails(SettingError, "with --ray the cluster's own are used", ray="local", workers=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(MissingExtraError, r"pip install '\.\[ray\]'", ray="local")


def test_the_command_prints_json_and_its_errors(smoke: Path, models: Path, tmp_path: Path) -> None:
    done = experiments("run", SMOKE, "--out", smoke, "--json", "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["format"] == "expunge-bench-run/1"
    assert [told["originals"][0][key] for key in ("cells", "new", "failed", "left")] == [28, 0, 0, 0]
    done = experiments("run", SMOKE, "--out", tmp_path / "out", "--only", "colour=red")
    assert done.returncode == 2
    assert done.stderr.startswith("expunge: error: --only has no key 'colour'")
    done = experiments("run", SMOKE, "--out", tmp_path / "out", "--no-train", "--only", "seed=0")
    assert done.returncode == 1
    assert "sample-small_resnet: 14 cells are left: there is no" in done.stdout


def test_a_killed_run_goes_on_where_it_was(models: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(SMOKE.read_text().replace("epochs = 3", "epochs = 20"))
    out = tmp_path / "out"
    command = ("run", grid, "--out", out, "--models", models, "--workers", "2", "--device", "cpu")
    with running(*command, command="experiments") as process:
        wait_for(lambda: len(lines_of(out / FILE)) >= 8, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = [line.rstrip("\n") for line in (out / FILE).read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert 7 <= len(kept) < 28  # the last one may be cut
    with (out / FILE).open("a") as file:
        file.write(kept[0][:100])  # as a kill in the midst of a write leaves it
    done = experiments(*command)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{FILE}: dropped an unfinished last line, which a killed run left\n"
    assert lines_of(out / FILE)[: len(kept)] == kept
    assert Counter(r.cell for r in read_results(out)) == {cell.id: 1 for cell in load_grid(grid).cells("cpu")}


def test_a_killed_worker_costs_its_cell_alone(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    grid = grid_with(tmp_path / "grid.toml", [FOREVER, QUICK])
    out = tmp_path / "out"
    with running("run", grid, "--out", out, "--models", models, "--device", "cpu", command="experiments") as process:
        wait_for(lambda: list(tmp_path.glob("**/*scratch*/0")), process)  # it is begun
        worker = [pid for pid in children(process.pid) if "LokyProcess" in command_of(pid)]
        os.kill(worker[0], signal.SIGKILL)
        printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "2 results in" in printed
    found = {r.row: r for r in read_results(out)}
    assert found["row_0"].failed == "its worker process ended with code -9 (out of memory, or killed)"
    assert found["row_1"].failed is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stop_of_all_processes_fails_no_cell(
    models: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a closed terminal or a scheduler sends it. A failure would not be run again."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    grid = grid_with(tmp_path / "grid.toml", [FOREVER, QUICK])
    out = tmp_path / "out"
    with running("run", grid, "--out", out, "--models", models, "--device", "cpu", command="experiments") as process:
        wait_for(lambda: list(tmp_path.glob("**/*scratch*/0")), process)
        worker = [pid for pid in children(process.pid) if "LokyProcess" in command_of(pid)]
        for pid in (*worker, process.pid):
            os.kill(pid, number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.endswith(f"stopped; what was finished is kept in {out}, run it again to go on\n")
    assert read_results(out) == []


def test_a_model_directory_without_a_model_is_named(tmp_path: Path) -> None:
    place = tmp_path / "models/sample-small_resnet"
    place.mkdir(parents=True)
    done, ran = do(load_grid(SMOKE).cells("cpu"), tmp_path / "out", tmp_path / "models")
    assert (done.originals[0].why, ran) == (
        f"{place} holds no model.safetensors: remove it, or choose another --models",
        [],
    )


def test_wrong_options_of_a_network_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    path = grid_with(tmp_path / "grid.toml", [QUICK])
    text = path.read_text().replace("options = { width = 4 }", "options = OF")
    for options, error in (('{ stem = "small" }', "unexpected keyword argument 'stem'"), ("{ width = -1 }", "width")):
        path.write_text(text.replace("OF", options))
        with pytest.raises(SettingError, match=f"originals.sample.small_resnet: .*{error}"):
            do(load_grid(path).cells("cpu"), tmp_path / "out", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_limit_ends_a_run_cleanly(models: Path, tmp_path: Path) -> None:
    cells = load_grid(grid_with(tmp_path / "grid.toml", [QUICK, FOREVER])).cells("cpu")

    engine = Engine(workers=1, device="cpu", train=train)
    out = tmp_path / "out"
    run_cells(cells[:1], out, models, engine)
    started = time.monotonic()
    summary = run_cells(cells, out, models, engine, limit=3)
    assert 3 <= time.monotonic() - started < 30
    assert summary.limit_reached
    assert (summary.originals[0].new, summary.originals[0].left, summary.problems) == (0, 1, ())
    assert [r.row for r in read_results(out)] == ["row_0"]
    # While an original is in training: what it takes to go on is all that is left behind.
    told: list[str] = []
    long = tmp_path / "long.toml"
    long.write_text(
        (tmp_path / "grid.toml").read_text().replace("recipe = { epochs = 1 }", "recipe = { epochs = 1000 }")
    )
    cells = load_grid(long).cells("cpu")
    summary = run_cells(cells, tmp_path / "out2", tmp_path / "models", engine, limit=6, announce=told.append, beat=0.0)
    assert (summary.limit_reached, summary.originals[0].left) == (True, 2)
    assert summary.originals[0].why == "its training was cut off; the next run goes on with it"
    assert "still training sample-small_resnet" in told
    (state,) = tmp_path.glob("models/*")
    assert state.name == ".sample-small_resnet.training.pt"
    # What is left of another training is no obstacle.
    brief = load_grid(grid_with(tmp_path / "brief.toml", [QUICK])).cells("cpu")
    assert run_cells(brief, tmp_path / "out3", tmp_path / "models", engine).originals[0].left == 0
    assert not state.exists()


def test_results_of_two_originals_are_told_apart() -> None:
    cells = load_grid(SMOKE).cells("cpu")[:3]
    common: dict[str, Any] = {"dataset": "sample", "architecture": "small_resnet", "row": "before", "method": "before"}
    common |= {"settings": {}, "forget_size": 4, "seed": 0, "retain_subset": None, "original": {}, "versions": {}}

    def result(cell: Cell, digest: str, commit: str) -> Result:
        return Result(cell=cell.id, model_digest=digest, commit=commit, **common)

    results = [result(cell, "a", "1") for cell in cells[:2]] + [result(cell, "b", "2") for cell in cells[1:]]
    assert {r.commit for r in current(cells, results).values()} == {"2"}  # of equals the latest
    assert {r.commit for r in current(cells, [*results, result(cells[2], "a", "1")]).values()} == {"1"}
    assert current(cells, [*results, result(cells[2], "b", "3")])[cells[2].id].commit == "3"
    assert current(cells[:1], results)[cells[0].id].commit == "1"
    assert isinstance(load_grid(SMOKE), Grid)


CLUSTER = """
import sys, warnings
warnings.simplefilter("ignore")
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_a_cluster_that_does_not_answer_is_told_at_once() -> None:
    with socket.socket() as taken:  # bound and not listening: nothing else can take the port, and nobody answers
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ExpungeError, match=f"nothing answers at {address}"):
            Engine(workers=1, device="cpu", train=train, ray=address)


class Unreadable:
    """Cannot be unpickled, as what a node has no code for."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


def test_what_a_ray_node_cannot_run_is_no_cells_failure(models: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    path = models / "sample-small_resnet/model.safetensors"
    told: dict[str, Any] = {"model": path, "model_digest": model_digest(path), "device": "cpu"}
    task = Task(cells=tuple(load_grid(SMOKE).cells("cpu")[:1]), **told, commit=Unreadable())  # type: ignore[arg-type]
    engine = Engine(workers=1, device="cpu", train=train, ray="local")
    try:
        with pytest.raises(ExpungeError, match="invalid literal"):
            list(engine.run([task], lambda: None))
    finally:
        engine.close()


def test_two_ray_nodes_and_a_worker_that_is_killed(models: Path, tmp_path: Path) -> None:
    """A real cluster of two nodes; Ray repeats the task whose process died, and every cell is there once."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    text = SMOKE.read_text().replace("epochs = 3", "epochs = 40")
    (tmp_path / "grid.toml").write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        address = cluster.stdout.readline().strip()
        assert address, "the cluster did not start"
        out = tmp_path / "out"
        command = ("run", tmp_path / "grid.toml", "--out", out, "--models", models, "--json")
        with running(*command, "--ray", address, command="experiments") as process:
            wait_for(lambda: len(lines_of(out / FILE)) >= 6, process)
            busy = wait_for(
                lambda: [pid for pid in children(cluster.pid) if command_of(pid).startswith("ray::_run")],
                process,
            )
            os.kill(busy[0], signal.SIGKILL)
            printed, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    finally:
        own = children(cluster.pid)
        cluster.stdin.close()
        try:
            cluster.wait(30)
        except subprocess.TimeoutExpired:
            cluster.kill()
            cluster.wait()
        cluster.stdout.close()
        for pid in own:
            if "ray" in command_of(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    told = json.loads(printed)
    assert len(told["nodes"]) == 2
    assert sum(told["nodes"].values()) == 28
    results = read_results(out)
    assert {r.failed for r in results} == {None}
    cells = load_grid(tmp_path / "grid.toml").cells("cpu")
    assert Counter(r.cell for r in results) == {cell.id: 1 for cell in cells}
