"""What the package needs of POSIX: nothing. Other systems are played by taking away what they lack."""

import subprocess
import sys
from pathlib import Path

WITHOUT_POSIX = """
import os, signal, sys

sys.modules.update(dict.fromkeys(("fcntl", "resource")))  # None: an import of it fails
for name in ("SIGALRM", "SIGHUP", "ITIMER_REAL", "getitimer", "setitimer"):
    delattr(signal, name)
del os.O_DIRECTORY
opened = os.open


def opening(path, flags, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, flags, *rest, **options)


os.open = opening
"""


def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_POSIX + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_unlearning_in_python_needs_no_posix() -> None:
    code = """
import expunge, torch, warnings
from torch.utils.data import TensorDataset

warnings.simplefilter("ignore", expunge.ExpungeWarning)
data = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
done = expunge.unlearn(torch.nn.Linear(3, 2), data, method="neg_grad")
assert done.trace.peak_bytes is None
assert expunge.Trace.from_json(done.trace.to_json()) == done.trace
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_the_command_needs_no_posix(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "ids").write_text("0\n1\n")
    sources = ("--model", trained, "--forget", "sample", "--ids", tmp_path / "ids", "--test", "sample:test")
    settings = ("--method", "neg_grad", "--set", "epochs=1", "--out", tmp_path / "out")
    done = run("from expunge.cli import main; main()", "forget", *sources, *settings)
    assert done.returncode in {0, 3}, done.stderr  # 3: done, and the audit failed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "report.html", "report.json"}


def test_ctrl_c_is_one_line_without_timers_too() -> None:
    code = """
from expunge.cli import demo, main

demo.run = lambda *_, **__: signal.raise_signal(signal.SIGINT)
main()
"""
    done = run(code, "demo")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("expunge: error: stopped")
    assert "nothing" in done.stderr
