"""The background job, in real processes on the embedded sample."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from experiments.background import Job, merge
from experiments.grid import load_grid, read_results
from experiments.places import ROOT
from experiments.plan import PLAN, load_plan

from expunge.errors import InputError
from tests.forked import PATIENCE

SMOKE = ROOT / "grids" / "smoke.toml"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of eight cells that is not started yet."""
    plan = tmp_path / "background-steps.toml"
    plan.write_text(
        '[[steps]]\ngrid = "small.toml"\nresults = "small"\noriginals = "small"\nhours = 1.0\n'
        'only = ["method=before", "method=neg_grad"]\n'
    )
    (tmp_path / "small.toml").write_text(SMOKE.read_text())
    (tmp_path / "runs").mkdir()
    return Job(tmp_path / "runs", plan)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def state(pid: int) -> str:
    """Linux's letter for what a process does: T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def lines(job: Job) -> list[str]:
    return [line for path in job.results.glob("*/*.jsonl") for line in path.read_text().splitlines()]


def test_it_pauses_ends_at_once_and_goes_on(job: Job) -> None:
    job.pause.touch()
    assert "started" in job.start()
    until(lambda: "pid" in job._noted("worker"))
    worker = job._noted("worker")["pid"]
    until(lambda: state(worker) == "T")
    assert (os.getpriority(os.PRIO_PROCESS, worker), os.sched_getscheduler(worker)) == (19, os.SCHED_IDLE)
    assert job.status().startswith("paused")
    assert lines(job) == []
    job.pause.unlink()
    until(lambda: len(lines(job)) >= 1)
    assert job.stop()
    assert not job.stop()
    assert not Path(f"/proc/{worker}").exists() or state(worker) == "Z"
    first = lines(job)
    assert "started" in job.start()
    until(lambda: job.status().startswith("not running"))
    assert lines(job)[: len(first)] == first
    assert len(lines(job)) == len(load_grid(SMOKE).cells("cpu")) * 2 // 7
    assert "8 of     8 cells     0.0 h left" in job.status()
    assert len({result.commit for result in read_results(job.results / "small")}) == 1


def test_one_job_takes_the_place_of_another(job: Job) -> None:
    job.start()
    until(lambda: "pid" in job._noted("worker"))
    first = job._noted("worker")["pid"]
    assert "restarted" in job.start()
    until(lambda: job._noted("worker")["pid"] != first)
    assert not Path(f"/proc/{first}").exists() or state(first) == "Z"
    assert job.stop()


def test_whole_lines_are_merged_once(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a.jsonl").write_text('{"n": 1}\n{"n": 2}\n{"n": 3')
    assert (merge(source, target), merge(source, target)) == (2, 0)
    assert (target / "a.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'
    assert merge(tmp_path / "nowhere", target) == 0


def test_results_in_folders_of_folders_are_collected(job: Job, tmp_path: Path) -> None:
    for name in ("small", "protocol/standard"):
        (job.results / name).mkdir(parents=True)
        (job.results / name / "a.jsonl").write_text('{"n": 1}\n')
    assert job.collect(tmp_path / "into").startswith("2 new")
    assert (tmp_path / "into" / "protocol" / "standard" / "a.jsonl").read_text() == '{"n": 1}\n'
    assert job.collect(tmp_path / "into").startswith("0 new")


def test_the_plan_holds_every_cell_of_the_papers_grid() -> None:
    planned = {cell.id for step in load_plan(PLAN) if step.grid == "paper.toml" for cell in step.cells(PLAN)}
    assert planned == {cell.id for cell in load_grid(ROOT / "grids" / "paper.toml").cells("cpu")}


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    for text in ("steps", "[[steps]]\nname = 1\n", "[other]\n"):
        (tmp_path / "background-steps.toml").write_text(text)
        with pytest.raises(InputError):
            load_plan(tmp_path / "background-steps.toml")
