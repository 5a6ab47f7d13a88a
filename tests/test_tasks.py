"""Tasks in processes: what a death costs, and that nothing outlives who asked for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.errors import ExpungeError, InputError
from expunge.tasks import Died, end, in_processes
from tests.forked import PATIENCE


@pytest.fixture(autouse=True, scope="module")
def _no_process_is_left() -> Iterator[None]:
    yield
    end()


def work(task: int) -> int:
    """Squares; a negative task ends its process, and zero cannot be done."""
    if task < 0:
        os._exit(3)
    if task == 0:
        raise InputError("zero cannot be done")
    return task**2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_death_costs_its_own_task(workers: int) -> None:
    done = dict(in_processes(work, [1, -1, 2, 3], workers=workers))
    (died,) = (done.pop(-1),)
    assert isinstance(died, Died)
    assert "code 3" in died.why
    assert done == {1: 1, 2: 4, 3: 9}


def test_what_is_raised_ends_the_rest() -> None:
    with pytest.raises(InputError, match="zero"):
        list(in_processes(work, [0, 1], workers=1))
    with pytest.raises(ExpungeError, match="TypeError"):
        list(in_processes(work, ["text"], workers=1))  # type: ignore[arg-type]
    assert list(in_processes(work, [], workers=2)) == []


def test_leaving_early_ends_what_runs() -> None:
    tasks = in_processes(time.sleep, [0.0, 1000.0], workers=2)
    assert next(tasks) == (0.0, None)
    started = time.monotonic()
    tasks.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 500


def test_what_idle_raises_ends_what_runs() -> None:
    def enough() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        list(in_processes(time.sleep, [1000.0], workers=1, idle=enough))


def test_processes_that_end_before_they_begin_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that run out of memory while they start."""
    import importlib

    (tmp_path / "ends_in_workers.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}: os._exit(7)\ndef work(task): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ExpungeError, match="before they did anything"):
        list(in_processes(importlib.import_module("ends_in_workers").work, [1, 2], workers=2))


@pytest.mark.parametrize("at_work", [True, False], ids=["at work", "while it starts"])
def test_no_process_outlives_its_parent(tmp_path: Path, at_work: bool) -> None:
    """Also one that was started a moment before its parent was killed."""
    code = (
        "import pathlib, sys, time\nfrom expunge.tasks import in_processes\n"
        "def work(path):\n    pathlib.Path(path).touch()\n    time.sleep(1000)\n"
        f"list(in_processes(work, [{str(tmp_path / 'begun')!r}], workers=1))\n"
    )
    environment = {**os.environ, "EXPUNGE_TEST_MARK": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        until = time.monotonic() + PATIENCE
        while not ((tmp_path / "begun").exists() if at_work else len(marked(tmp_path)) > 1):
            assert time.monotonic() < until
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    while marked(tmp_path):
        assert time.monotonic() < until
        time.sleep(0.05)


def marked(place: Path) -> list[int]:
    """The processes that have `EXPUNGE_TEST_MARK` from this test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"EXPUNGE_TEST_MARK={place}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
