"""The command in a process of its own, forked from one that has imported torch, which takes three seconds."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PATIENCE = 1200.0  # seconds after which a command is taken to hang, on the slowest machine too

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["expunge.cli.app", "expunge.forgetting", "expunge.trainer", "torch._dynamo"])


def run(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `command`, the path of the installed script, or `experiments`, and its arguments, with nothing on stdin."""
    with TemporaryDirectory() as folder:
        streams = Path(folder, "stdout"), Path(folder, "stderr")
        process = start(command, cwd, environment, *streams)
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, PATIENCE)
        printed = [path.read_text() for path in streams]
    return subprocess.CompletedProcess(command, process.exitcode, *printed)


def start(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], out: Path, err: Path
) -> multiprocessing.process.BaseProcess:
    """Starts such a command, which writes its streams to files."""
    process = _forking.Process(target=_command, args=(command, cwd, dict(environment), out, err))
    process.start()
    return process


def _command(command: Sequence[str], cwd: Path, environment: Mapping[str, str], out: Path, err: Path) -> None:
    """In the fork: what the installed script does, with its own streams, directory, environment and signals."""
    for number, path, flags in ((0, Path(os.devnull), os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        opened = os.open(path, flags | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
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
