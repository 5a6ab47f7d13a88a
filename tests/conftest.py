"""What every test shares: a private cache, the installed command in a real process, and one trained checkpoint."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor

from tests import forked

COMMAND = Path(sys.executable).with_name("expunge")
LAUNCHER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts a command that signals can stop, also where the tests themselves run in the background or under nohup."""

hypothesis.settings.register_profile("expunge", deadline=None)  # speed is no test's business
hypothesis.settings.load_profile("expunge")


def pytest_collection_finish() -> None:
    """Else each collection of garbage goes through all that was imported: a tenth of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the machine's own data or cache, or the network of a model hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("fonts")))  # else every process lists them anew
        patch.setenv("COLUMNS", "200")
        patch.setenv("EXPUNGE_REFERENCE_MINUTES", "0")  # tests of them ask for reference models
        patch.delenv("EXPUNGE_DATA", raising=False)
        patch.delenv("PYTHONWARNINGS", raising=False)
        yield


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def expunge(
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    command: str = str(COMMAND),
    largest_file: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs the installed command to its end. One thread: the suite runs a process a core.

    `largest_file`: bytes from which on a file cannot grow, as on a full disk.
    """
    command_line = [command, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return forked.run(command_line, cwd or Path.cwd(), environment, largest_file)


def experiments(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python -m experiments` to its end, as `expunge` does."""
    return expunge(*arguments, cwd=cwd, command="experiments")


@contextmanager
def running(*arguments: str | Path, command: str = str(COMMAND)) -> Iterator[forked.Started]:
    """The installed command, or `experiments`, while it runs, for sending signals to; killed at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = forked.Started([command, *map(str, arguments)], Path.cwd(), environment)
    try:
        yield process
    finally:
        process.close()


@contextmanager
def starting(*arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """As `running`, from Python's own start on, which imports torch."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(COMMAND), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def succeed(*arguments: str | Path, command: str = str(COMMAND)) -> str:
    """Runs the command, fails the test unless it exits with 0 and a silent stderr, and returns its stdout."""
    done = expunge(*arguments, command=command)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: the smallest network, trained for one pass over the embedded sample."""
    out = tmp_path_factory.mktemp("trained") / "model"
    succeed(
        "train", "--data", "sample", "--model", "small_resnet", "--set", "epochs=1", "--set", "width=4", "--out", out
    )
    return out


def pixels(size: int, *, channels: int = 1, side: int = 28, seed: int = 0) -> Tensor:
    """Random images, uint8, (size, channels, side, side)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size, channels, side, side), generator=rng, dtype=torch.uint8)


def write_image(path: Path, image: Tensor, form: str | None = None) -> Path:
    """Writes one image (channels, H, W) as a file of the format of its suffix, or of `form`."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(array)).save(path, format=form)
    return path


def write_folder(root: Path, images: Tensor, names: Sequence[str], suffix: str = ".png") -> Path:
    """Writes images into one folder a class, the n-th into the folder names[n]."""
    for n, (image, name) in enumerate(zip(images, names, strict=True)):
        write_image(root / name / f"{n:04d}{suffix}", image)
    return root


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Everything below `root`, with sizes and times of writing."""
    return {str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*")}
