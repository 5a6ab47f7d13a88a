"""The command in a process of its own, forked from one that has imported torch, which takes three seconds."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PATIENCE = 1200.0  # seconds after which a command is taken to hang, on the slowest machine too

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["tests.preloaded"])


def run(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], largest_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `command`, the path of the installed script, or `experiments`, and its arguments, with nothing on stdin."""
    with TemporaryDirectory() as folder:
        streams = Path(folder, "stdout"), Path(folder, "stderr")
        process = start(command, cwd, environment, *streams, largest_file)
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, PATIENCE)
        printed = [path.read_text() for path in streams]
    return subprocess.CompletedProcess(command, process.exitcode, *printed)


class Started:
    """A command that runs, with the part of `subprocess.Popen` that tests need."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self._folder = TemporaryDirectory()
        self._streams = Path(self._folder.name, "stdout"), Path(self._folder.name, "stderr")
        self._process = start(command, cwd, environment, *self._streams)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.wait()
        self._folder.cleanup()

    def wait(self, timeout: float = PATIENCE) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked command", timeout)
        return self.returncode

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text() for path in self._streams)
        return out, err


def start(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
    largest_file: int | None = None,
) -> multiprocessing.process.BaseProcess:
    """Starts such a command, which writes its streams to files."""
    process = _forking.Process(target=_command, args=(command, cwd, dict(environment), out, err, largest_file))
    process.start()
    return process


def _command(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
    largest_file: int | None,
) -> None:
    """In the fork: what the installed script does, with its own streams, directory, environment and signals."""
    for number, path, flags in ((0, Path(os.devnull), os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        opened = os.open(path, flags | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # which an import may have looked up before
    sys.argv = list(command)
    named = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    beside = command[0] == "experiments"  # which is not installed
    rest = (path for path in sys.path if path and (beside or Path(path) != ROOT))
    sys.path[:] = list(dict.fromkeys([str(ROOT if beside else Path(command[0]).parent), *named, *rest]))
    from expunge import cli

    if beside:
        from experiments.__main__ import app

        cli.run(app)
    else:
        cli.main()
