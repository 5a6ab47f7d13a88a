"""Several processes make one run together: what one would, and nothing where one of them dies."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from expunge.distributed import share
from expunge.records import Trace
from tests import forked, together
from tests.conftest import COMMAND, expunge, succeed

ROOT = Path(__file__).parents[1]
PATIENCE = 300


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


class Pair:
    """Two processes of the command, started as a launcher would start them."""

    def __init__(self, place: Path, *given: Sequence[str | Path]) -> None:
        """`given` are the arguments of each; what they print goes to files in `place`."""
        self.files = [(place / f"{rank}.out", place / f"{rank}.err") for rank in (0, 1)]
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # held by the launcher
        told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
        told |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
        self.processes = [
            forked.start(
                [str(COMMAND), *map(str, arguments)],
                Path.cwd(),
                {**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                *self.files[rank],
            )
            for rank, arguments in enumerate(given)
        ]

    def ends(self) -> list[tuple[int | None, str, str]]:
        """Exit codes and what was printed on either stream. Those that do not end are killed."""
        for process in self.processes:
            process.join(PATIENCE)
            process.kill()
        codes = [process.exitcode for process in self.processes]
        return [(code, out.read_text(), err.read_text()) for code, (out, err) in zip(codes, self.files, strict=True)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found in one launch."""
    out, port = tmp_path_factory.mktemp("both"), free_port()
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=together.main, args=(rank, port, out)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", together.RUNS)
def test_two_processes_do_what_one_does(name: str, both: list[dict[str, Any]]) -> None:
    alone = together.outcome(name)
    one, trace = alone["weights"], Trace.from_json(alone["trace"])
    assert trace.steps > 1
    for found in both:
        two, other = found[name]["weights"], Trace.from_json(found[name]["trace"])
        for key, tensor in one.items():
            assert torch.allclose(tensor.double(), two[key].double(), rtol=1e-4, atol=1e-5), key
        assert other.device == f"{trace.device}, 2 processes"
        for field in ("steps", "examples_seen", "first_step_all_reached", "warnings", "forget_digest"):
            assert getattr(other, field) == getattr(trace, field)
        assert [epoch.loss for epoch in other.epochs] == pytest.approx([epoch.loss for epoch in trace.epochs], rel=1e-3)
        assert [e.forget_accuracy for e in other.epochs] == [e.forget_accuracy for e in trace.epochs]
    first, second = (found[name]["weights"] for found in both)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_both_have_the_audit_that_one_makes(both: list[dict[str, Any]]) -> None:
    assert both[0]["forget"][1:] == both[1]["forget"][1:] == together.audited()[1:]


def test_different_examples_are_refused(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert "were given different forget: give each the same" in found["error"]


def test_what_draws_within_a_step_is_refused(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["drawn"] == "drawing draws random numbers within a step: set splits = False in its class"


def test_rows_are_split_only_where_there_are_several_processes() -> None:
    assert share(10) is None


def test_the_command_under_a_launcher_writes_what_one_process_writes(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("\n".join(map(str, range(30))))
    given: list[str | Path] = [
        "forget",
        "--model",
        trained,
        "--forget",
        "sample",
        "--ids",
        tmp_path / "ids",
        "--test",
        "sample:test",
    ]
    given += ["--method", "targeted", "--json", *("--set", "optimizer=sgd", "--set", "lr=0.01", "--set", "epochs=2")]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--gpu_ids", "all"]
    done = subprocess.run(
        [*launcher, "--main_process_port", free_port(), "-m", "expunge", *map(str, given), "--out", tmp_path / "two"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    alone = expunge(*given, "--out", tmp_path / "one")
    found, wanted = json.loads(done.stdout), json.loads(alone.stdout)
    assert found["audit"]["verdict"] == wanted["audit"]["verdict"]
    assert (done.returncode == 0) == (alone.returncode == 0), done.stderr
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids", "one", "two"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key, tensor in one.items():
        assert torch.allclose(tensor, two[key], rtol=1e-4, atol=1e-5), key


def forgetting(trained: Path, out: Path, *more: str) -> list[str | Path]:
    return ["forget", "--model", trained, "--forget", "sample", "--out", out, *more]


@pytest.mark.parametrize("dead", [0, 1])
def test_where_one_process_is_killed_the_other_ends_with_one_line(dead: int, trained: Path, tmp_path: Path) -> None:
    (place := tmp_path / "place").mkdir()
    endless = forgetting(trained, place / "out", "--method", "neg_grad", "--set", "epochs=100000", "--set", "lr=1e-9")
    pair, begun = Pair(tmp_path, endless, endless), time.monotonic()
    while not list(place.glob(".out*.part")):
        assert time.monotonic() < begun + PATIENCE
        time.sleep(0.05)
    time.sleep(0.5)
    pair.processes[dead].kill()
    code, printed, errors = pair.ends()[1 - dead]
    assert (code, printed) == (1, "")
    (line,) = errors.splitlines()
    assert "error: another process of this run ended, or does not answer" in line
    assert not (place / "out").exists()
    assert dead == 0 or not list(place.iterdir())


def test_where_one_process_fails_one_line_says_why(trained: Path, tmp_path: Path) -> None:
    ids, out = tmp_path / "ids", tmp_path / "out"
    ids.write_text("no such id")
    ends = Pair(tmp_path, forgetting(trained, out), forgetting(trained, out, "--ids", str(ids))).ends()
    assert [end[0] for end in ends] == [1, 1]
    (line,) = "".join(end[2] for end in ends).splitlines()
    assert "no such id" in line
    assert not [path for path in tmp_path.iterdir() if "out" in path.name and path.suffix != ".out"]


def test_other_commands_are_refused_under_a_launcher(tmp_path: Path) -> None:
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    done = expunge("methods", env=told)
    assert done.returncode == 2
    assert "start `expunge methods` by itself" in done.stderr
    assert expunge("methods", env={**told, "RANK": "1", "LOCAL_RANK": "1"}).stderr == ""
    assert succeed("methods")


def test_a_launcher_that_starts_one_process_only_is_told_of(tmp_path: Path) -> None:
    done = expunge(
        *forgetting(tmp_path / "none", tmp_path / "out"), env={"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "1"}
    )
    note, error = done.stderr.splitlines()
    assert note == "expunge: note: accelerate launch --cpu starts one process: torchrun starts several"
    assert error.startswith("expunge: error: ")
