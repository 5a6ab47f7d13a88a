"""What is left behind: nothing of a dead run after the next one, and nothing that others can read names an example."""

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from expunge.data import draw_ids, load_data
from expunge.files import new_directory, write_private, written_whole
from tests.conftest import expunge, pixels, running, succeed, write_image
from tests.test_bad_input import wait_for

pytest.importorskip("fcntl", reason="without locks nothing is removed")

WRITING = """
import sys, time
from pathlib import Path
from expunge.files import new_directory, written_whole
with new_directory(Path(sys.argv[1], "out")) as temporary, written_whole(Path(sys.argv[1], "file")) as file:
    (temporary / "model").write_text("who was deleted")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_later_run_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        command = [sys.executable, "-c", WRITING, str(tmp_path)]
        dead, living = (stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in "12")
        stack.callback(living.kill)
        stack.callback(dead.kill)
        for process in (dead, living):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        (tmp_path / ".theirs.abcdefgh.part").mkdir()
        assert len(list(tmp_path.glob(".*.part"))) == 5
        dead.kill()
        dead.wait()
        with new_directory(tmp_path / "next"):
            pass
        left = set(tmp_path.glob(".*.part"))
        assert len(left) == 3
        assert tmp_path / ".theirs.abcdefgh.part" in left
    with new_directory(tmp_path / "last"):
        assert len(list(tmp_path.glob(".*expunge-*.part"))) == 1


def test_what_names_deleted_examples_is_for_its_user_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("0\n1\n2\n")
    sources = ("--model", trained, "--forget", "sample", "--ids", tmp_path / "ids")
    told = succeed("forget", *sources, "--out", tmp_path / "out", "--method", "neg_grad", "--set", "epochs=1")
    assert (tmp_path / "out/report.json").stat().st_mode & 0o077 == 0
    for remains in (str(tmp_path / "out"), str(tmp_path / "ids"), str(trained)):
        assert remains in told
    with written_whole(tmp_path / "one", private=True) as temporary:
        temporary.write_text("x")
    write_private(tmp_path / "two", "x")
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in ("one", "two"))


def test_ids_are_printed_so_that_a_terminal_and_ids_take_them(tmp_path: Path) -> None:
    for n in range(3):
        write_image(tmp_path / f"data/Bag/{n}\x1b[31m\u202e.png", pixels(1, seed=n)[0])
    printed = succeed("data", "ids", f"folder:{tmp_path}/data", "--num", "2")
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    (tmp_path / "ids").write_text(printed)
    from expunge.cli.sources import Sources, forget_set
    from expunge.models import Header
    from tests.test_hostile_files import SPEC

    header = Header(spec=SPEC, class_names=("Bag", "b", "c", "d", "e"))
    images = load_data(f"folder:{tmp_path}/data")
    chosen = forget_set(Sources(model="x", forget=f"folder:{tmp_path}/data", ids=tmp_path / "ids"), header)
    assert list(chosen.ids) == draw_ids(images, 2, 0)


def test_messages_and_paths_cannot_fill_or_command_the_terminal(tmp_path: Path) -> None:
    done = expunge("data", "show", "folder:" + "x\x1b" * 500_000)
    assert done.returncode == 1
    assert len(done.stderr) < 10_000
    assert "\x1b" not in done.stderr


def catches(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which signals a process catches")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("seconds", [0.0, 0.5, 2.0])
def test_a_signal_at_any_moment_ends_the_command_in_one_line(
    trained: Path, tmp_path: Path, number: signal.Signals, seconds: float
) -> None:
    """While torch is imported too, which takes some seconds."""
    (tmp_path / "ids").write_text("0\n")
    arguments = ("forget", "--model", trained, "--forget", "sample", "--ids", tmp_path / "ids", "--out", tmp_path / "o")
    endless = ("--method", "neg_grad", "--set", "epochs=1000000", "--set", "lr=1e-9")
    with running(*arguments, *endless) as process:
        wait_for(lambda: catches(process.pid), process)  # until Python has begun, the system ends it
        time.sleep(seconds)
        process.send_signal(number)
        output, errors = process.communicate(timeout=600)
    assert (process.returncode, output, errors) == (1, "", "expunge: error: stopped; nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids"]
