"""What is left behind: nothing of a dead run after the next one, and nothing that others can read names an example."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from expunge.data import draw_ids, load_data
from expunge.files import new_directory, write_private, written_whole
from tests.conftest import expunge, pixels, starting, succeed, write_image
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


SCRATCH = """
import sys, time
from pathlib import Path
from expunge.files import scratch_directory
with scratch_directory() as directory:
    (directory / "outputs").write_text("who was deleted")
    print(directory, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_run_left_among_temporary_files_is_removed_by_a_later_one(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    places = {**os.environ, "TMPDIR": str(temporary)}
    with ExitStack() as stack:
        command = [sys.executable, "-c", SCRATCH]
        dead, living = (
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=places)) for _ in "12"
        )
        stack.callback(living.kill)
        stack.callback(dead.kill)
        names = []
        for process in (dead, living):
            assert process.stdout is not None
            names.append(Path(process.stdout.readline().strip()))
        assert all(name.stat().st_mode & 0o077 == 0 for name in names)
        dead.kill()
        dead.wait()
        # Whatever the later run is: one that needs no temporary files of its own removes them too.
        code = "import sys; from pathlib import Path; from expunge.files import new_directory\n"
        code += "with new_directory(Path(sys.argv[1])): pass"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "next")], check=True, env=places)
        assert [path for path in names if path.exists()] == [names[1]]
        assert (names[1] / "outputs").read_text() == "who was deleted"
    subprocess.run([sys.executable, "-c", SCRATCH.replace("600", "0")], check=True, env=places, capture_output=True)
    assert not list(temporary.iterdir())


def test_a_killed_full_audit_leaves_nothing_after_the_next_run(tmp_path: Path) -> None:
    temporary, out = tmp_path / "tmp", tmp_path / "references"
    temporary.mkdir()
    script = tmp_path / "train.py"
    script.write_text(REFERENCES)
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(out)]
    with subprocess.Popen([*command, "500"], env=environment, text=True) as process:
        try:
            wait_for(lambda: len(list(out.glob("retrained-*.safetensors"))) > 0, process)
            assert list(temporary.iterdir())
        finally:
            process.kill()
    subprocess.run([*command, "2"], env=environment, check=True)
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]  # torch's own, empty
    assert not list(out.glob(".*.part"))


REFERENCES = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from tests.test_audit_full import trained
    trained(Path(sys.argv[1]), num_models=int(sys.argv[2]))
"""


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


def test_a_command_sees_to_signals_before_it_imports_anything_that_takes_time() -> None:
    """Until it does, Python ends in a traceback. What pip's script imports itself is there already."""
    code = "import re, sys; known = set(sys.modules); from expunge.cli import main; print(*{*sys.modules} - known)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {"expunge", "expunge.cli", "expunge.stopping"}
    assert set(done.stdout.split()) <= ours | {"__future__", "signal", "contextlib", "collections.abc", "importlib"}


def catches(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which signals a process catches")
@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.0), (signal.SIGTERM, 0.5), (signal.SIGINT, 2.0)]
)
def test_a_signal_at_any_moment_ends_the_command_in_one_line(
    trained: Path, tmp_path: Path, number: signal.Signals, seconds: float
) -> None:
    """While torch is imported too, which takes some seconds."""
    (tmp_path / "ids").write_text("0\n")
    arguments = ("forget", "--model", trained, "--forget", "sample", "--ids", tmp_path / "ids", "--out", tmp_path / "o")
    endless = ("--method", "neg_grad", "--set", "epochs=1000000", "--set", "lr=1e-9")
    with starting(*arguments, *endless) as process:
        wait_for(lambda: catches(process.pid), process)  # until Python has begun, the system ends it
        time.sleep(seconds)
        process.send_signal(number)
        output, errors = process.communicate(timeout=600)
    assert (process.returncode, output, errors) == (1, "", "expunge: error: stopped; nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids"]
