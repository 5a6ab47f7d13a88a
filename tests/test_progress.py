"""What is shown and logged while something runs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import expunge
from expunge import progress
from tests.conftest import expunge as run_expunge

DATA = TensorDataset(torch.eye(12), torch.arange(12) % 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(12, 3)


def test_a_run_that_ends_early_ends_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int, str]] = []
    token = progress._current.set(lambda *given: seen.append(given))
    try:
        trace = expunge.unlearn(network(), DATA, method=expunge.Targeted(lr=0.1, epochs=200)).trace
    finally:
        progress._current.reset(token)
    forgetting = [each for each in seen if each[0] == "forgetting"]
    assert trace.steps < 100
    assert {note for *_, note in forgetting[:-1]} == {"at most"}
    assert forgetting[-1][1] == forgetting[-1][2] == trace.steps


def test_a_phase_is_logged_as_begun_and_ended(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "expunge"):
        expunge.unlearn(network(), DATA, method=expunge.Targeted(lr=0.1, epochs=200))
    lines = [line for line in caplog.messages if line.startswith("forgetting")]
    assert [line.split()[1] for line in lines] == ["begins:", "ends:"]


class Handle:
    """What IPython gives back for a display."""

    shown: list[str] = []  # noqa: RUF012

    def update(self, data: dict[str, str], **_: Any) -> None:
        self.shown.append(data["text/plain"])


def test_a_notebook_has_a_line_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type("display", (), {"display": lambda *args, **more: Handle()})
    monkeypatch.setitem(__import__("sys").modules, "IPython.display", module)
    monkeypatch.setattr("rich.console.Console.is_jupyter", True, raising=False)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with progress.show():
        for _ in progress.track(range(2), "reading", 2):
            pass
    assert Handle.shown == ["reading 0 of 2", "reading 1 of 2", "reading 2 of 2"]


def test_verbose_and_a_reference(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("0\n1\n2\n")
    given: list[str | Path] = [
        "--model",
        trained,
        "--forget",
        "sample",
        "--ids",
        tmp_path / "ids",
        "--test",
        "sample:test",
    ]
    more: list[str | Path] = ["--method", "targeted", "--reference", "ticket <7>", "--out", tmp_path / "out"]
    done = run_expunge("--verbose", "forget", *given, *more)
    assert done.returncode in {0, 3}, done.stderr
    assert "targeted begins: 3 examples to forget" in done.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("ticket &lt;7&gt;") >= 2
    assert "--reference" in page


@pytest.mark.parametrize(("note", "said"), [("loss 1.8", True), (progress.AT_MOST, False)])
def test_long_work_is_announced_once(note: str, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    token = progress._say.set(lines.append)
    try:
        for done in range(11):
            progress.advance("reading", done, 20, note)
            now[0] += 5.9
        assert bool(lines) == said  # one that may end early is announced when it has taken a minute
        progress.advance("reading", 13, 20, note)
        progress.advance("reading", 14, 20, note)
        progress.advance("reading", 20, 20, note)
    finally:
        progress._say.reset(token)
    assert len(lines) == 1
    assert lines[0].startswith("reading takes 2 minutes more" if said else "reading takes at most 1 minute more")
    assert progress.memory() in lines[0]


def test_short_work_is_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    token = progress._say.set(lines.append)
    try:
        for done in range(21):
            progress.advance("reading", done, 20)
            now[0] += 2.5
    finally:
        progress._say.reset(token)
    assert not lines


def test_what_was_done_before_does_not_count_for_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    token = progress._say.set(lines.append)
    try:
        for done in (50, 51, 100):  # a training that is gone on with
            progress.advance("training", done, 100)
            now[0] += 10.0
    finally:
        progress._say.reset(token)
    assert [line.split(";")[0] for line in lines] == ["training takes 8 minutes more"]  # 49 of 10 seconds
