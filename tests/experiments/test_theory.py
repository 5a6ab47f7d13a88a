"""`python -m experiments theory`: what it prints and writes, and that bad input writes nothing."""

import doctest
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from experiments.theory.concentration import concentration
from experiments.theory.figure import draw_theory
from experiments.theory.measure import theory
from experiments.theory.report import TheoryReport
from experiments.theory.tables import SCOPE, facts, runs, tables
from experiments.theory.updates import METHODS_COMPARED, measure_updates
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

import expunge
from expunge.auditing import accuracy
from expunge.data import draw_ids, load_data
from expunge.errors import InputError, SettingError
from expunge.metrics import parameter_change
from expunge.models import last_layer, load_model
from tests.conftest import expunge as run_command
from tests.conftest import pixels, succeed, tree, write_folder

MEASURES = {"pair_share", "pr_rows", "pr_entries", "gini_rows", "gini_entries"}


@pytest.fixture(scope="session")
def report(trained: Path) -> TheoryReport:
    return theory(str(trained), "sample", num=24, batch=6, steps=[3, 1], seed=2, device="cpu")


@pytest.fixture(scope="session")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory that the command wrote, and what it printed."""
    out = tmp_path_factory.mktemp("theory") / "new" / "out"
    arguments = ("--num", "24", "--batch", "6", "--steps", "1,3", "--seed", "2", "--device", "cpu", "--out", out)
    return out, succeed("theory", "--model", trained, "--data", "sample", *arguments, "--json", command="experiments")


def test_the_document_is_printed_and_written(written: tuple[Path, str], report: TheoryReport) -> None:
    out, text = written
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert told == json.loads((out / "theory.json").read_text())
    assert sorted(tree(out.parent)) == ["out", "out/theory.json", "out/theory.svg"]
    assert told["format"] == "expunge-theory/1"
    assert told["directory"] == str(out)
    assert told.keys() == json.loads(report.to_json()).keys()
    assert told["single"]["num_predicted"] == report.single.num_predicted
    median = told["single"]["percentiles"]["targeted"]["pr_rows"][50]
    assert median == pytest.approx(report.single.percentiles["targeted"]["pr_rows"][50], rel=1e-6)


def test_the_document_goes_there_and_back(written: tuple[Path, str]) -> None:
    text = (written[0] / "theory.json").read_text()
    read = TheoryReport.from_json(text)
    assert read.to_json() == text
    assert TheoryReport.from_json(read.to_json()) == read
    for wrong in ("[]", "{}", "no JSON", text.replace("expunge-theory/1", "expunge-theory/9")):
        with pytest.raises(InputError, match="not a theory report"):
            TheoryReport.from_json(wrong)


def test_the_numbers_are_those_of_the_library(trained: Path, report: TheoryReport) -> None:
    model, _ = load_model(str(trained))
    images = load_data("sample")
    examples = images.select(draw_ids(images, 24, 2))
    shapes = concentration(model, examples, seed=2)
    single = report.single
    assert single.num_examples == 24
    assert single.num_predicted == round(24 * accuracy(model, examples.examples))
    assert single.num_majorized_predicted == int((shapes.majorized & shapes.predicted).sum()) == single.num_predicted
    assert single.num_majorized_mispredicted == int((shapes.majorized & ~shapes.predicted).sum())
    assert single.disagreement == shapes.disagreement < 1e-6
    assert single.percentiles.keys() == shapes.closed_form.keys()
    for method, shape in shapes.closed_form.items():
        assert single.percentiles[method].keys() == MEASURES
        for measure, values in vars(shape).items():
            percentiles = single.percentiles[method][measure]
            assert len(percentiles) == 101
            assert (percentiles[0], percentiles[100]) == (values.min(), values.max())
            assert percentiles[50] == pytest.approx(np.median(values), rel=1e-12)
    batch = examples.take(range(6))
    p = model.eval()(batch.images).softmax(1).detach()
    assert np.allclose(shapes.label_probability[:6], p[torch.arange(6), batch.labels], atol=1e-5)
    assert report.batch == 6
    assert report.forget_accuracy_before == accuracy(model, batch.examples)
    assert report.trajectory == measure_updates(model, batch, steps=(1, 3), seed=2)
    assert (report.num_classes, report.num_entries) == (10, 10 * 17)


def test_a_trajectory_is_that_of_separate_runs(trained: Path) -> None:
    """Looking at a run on its way changes no bit of it."""
    model, _ = load_model(str(trained))
    images = load_data("sample").take(range(5))
    methods = {"random_label": METHODS_COMPARED["random_label"]}
    measured = measure_updates(model, images, methods=methods, steps=(4, 2), seed=1)
    assert [(m.optimizer, m.scope, m.steps) for m in measured] == [
        ("sgd", "all", 1),
        *(("adam", scope, steps) for scope in ("last_layer", "all") for steps in (2, 4)),
    ]
    for found in measured[-2:]:
        method = expunge.RandomLabel(epochs=found.steps, lr=1e-4, weight_decay=1e-5)
        alone = expunge.unlearn(model, images, method=method, seed=1)
        change = parameter_change(
            dict(model.named_parameters()), dict(alone.model.named_parameters()), last_layer=last_layer(model)
        )
        assert (found.l1, found.l1_last_layer) == (change.l1, change.l1_last_layer)
        assert found.forget_accuracy == alone.trace.forget_accuracy_after


def test_the_methods_compared_are_different_ones() -> None:
    """And differ in nothing but what is compared."""
    assert len(set(METHODS_COMPARED.values())) == len(METHODS_COMPARED) == 4
    assert {(m.optimizer, m.lr, m.weight_decay) for m in METHODS_COMPARED.values()} == {("adam", 1e-4, 1e-5)}
    data = TensorDataset(torch.rand(2, 3), torch.tensor([0, 1]))
    for steps in ((), (0, 1)):
        with pytest.raises(SettingError, match="steps"):
            measure_updates(nn.Linear(3, 2), data, steps=steps)


def test_the_tables_fit_a_terminal(trained: Path) -> None:
    command = ("theory", "--model", trained, "--data", "sample", "--num", "9", "--batch", "4", "--steps", "1,20")
    done = run_command(*command, env={"COLUMNS": "100"}, command="experiments")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "…" not in done.stdout.replace("… of these", "")  # nothing is cut off
    assert SCOPE in done.stdout
    assert "theory.json" not in done.stdout
    for text in ("targeted", "gradient ascent", "random label", "pair share", "PR, entries", "ratio", "of 9 ("):
        assert text in done.stdout


def test_the_tables_hold_the_numbers(report: TheoryReport) -> None:
    shown = {row[0]: row[1] for row in facts(report).rows}
    assert shown["examples"] == "24"
    assert f"{report.single.num_predicted} of 24" in shown["predicted right, where the theorem applies"]
    sgd, last, whole = runs(report)
    assert [len(table.rows) for table in (sgd, last, whole)] == [4, 8, 8]
    assert "‖Δθ‖₁" not in last.columns  # it would be ‖Δφ‖₁ again
    entry = next(e for e in report.trajectory if (e.optimizer, e.scope, e.steps) == ("adam", "all", 1))
    assert whole.rows[0] == (
        "targeted, λ = 1",
        "1",
        f"{entry.pr_rows:#.4g}",
        f"{entry.pr_entries:#.4g}",
        f"{entry.l1:#.4g}",
        f"{entry.l1_last_layer:#.4g}",
        f"{entry.l1_last_layer / entry.l1:#.4g}",
        f"{100 * entry.forget_accuracy:.1f}",
    )
    assert all(len(row) == len(table.columns) for table in tables(report) for row in table.rows)


def test_the_figure(written: tuple[Path, str], tmp_path: Path) -> None:
    out = written[0]
    root = ElementTree.fromstring((out / "theory.svg").read_text())  # noqa: S314  (our own file)
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("}text")}
    for label in (
        "Runs that forget a batch of 6 at once: not covered",
        "share of the change in rows y and y′",
        "participation ratio over 10 rows",
        "participation ratio over 170 entries",
        "% of examples at or below",
        "‖Δθ‖₁ of all parameters, steps of Adam",
        "‖Δφ‖₁ of the last layer",
        "accuracy on the batch, %",
        "targeted, λ = 3",
        "gradient ascent",
        "random label",
    ):
        assert label in texts, label
    assert any("covered by the theorem where the example is predicted right" in text for text in texts)
    read = TheoryReport.from_json((out / "theory.json").read_text())
    draw_theory(read, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (out / "theory.svg").read_bytes()


def test_a_run_that_changed_nothing_and_a_model_that_knows_nothing_are_shown(
    report: TheoryReport, tmp_path: Path
) -> None:
    still = replace(report.trajectory[0], pr_rows=None, pr_entries=None, gini_rows=None, l1=0.0, l1_last_layer=0.0)
    single = replace(report.single, num_predicted=0, num_majorized_predicted=0, l1_ratio=None)
    odd = replace(report, single=single, trajectory=(still, *report.trajectory[1:]))
    assert TheoryReport.from_json(odd.to_json()) == odd
    assert runs(odd)[0].rows[0][2:7] == ("–", "–", "0", "0", "–")
    assert ("… of these, targeted majorizes gradient ascent", "none") in facts(odd).rows
    draw_theory(odd, tmp_path / "odd.svg")
    assert (tmp_path / "odd.svg").stat().st_size > 0


def test_matplotlib_is_needed_for_the_figure_alone(trained: Path, tmp_path: Path) -> None:
    code = f"""
import sys, pathlib
sys.modules["matplotlib"] = None  # an import of it fails
import warnings
from expunge import ExpungeWarning, MissingExtraError
warnings.simplefilter("ignore", ExpungeWarning)
from experiments.theory.measure import theory
settings = dict(num=3, batch=2, steps=[1])
assert theory({str(trained)!r}, "sample", **settings).single.num_examples == 3
try:
    theory({str(trained)!r}, "sample", out=pathlib.Path({str(tmp_path)!r}) / "out", **settings)
except MissingExtraError as error:
    assert "pip install '.[report]'" in str(error)
else:
    raise SystemExit("a missing extra was not reported")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_fewer_examples_than_the_defaults(trained: Path, tmp_path: Path) -> None:
    """All that there are, and ids in the order of their file."""
    images = load_data("sample").take(range(3))
    path = tmp_path / "few.safetensors"
    save_file({"images": images.images, "labels": images.labels}, path)
    few = theory(str(trained), f"safetensors:{path}", steps=[1])
    assert (few.single.num_examples, few.batch, few.ids) == (3, 3, None)


def ids(root: Path, *names: str) -> Path:
    (root / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    return root / "ids.txt"


SCALED = """
from torch import nn
class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)
    def forward(self, x):
        return self.head(x.flatten(1)) / 2
"""


def scaled(root: Path) -> list[str | Path]:
    """A model whose logits are not what its last layer puts out."""
    (root / "their_model.py").write_text(SCALED)
    save_file({"head.weight": torch.rand(10, 784), "head.bias": torch.zeros(10)}, root / "w.safetensors")
    return ["--model", "py:their_model:Scaled", "--weights", root / "w.safetensors", "--num", "2"]


Arrange = Callable[[Path], list[str | Path]]
CASES: dict[str, tuple[int, str, Arrange]] = {
    "unknown id": (1, "no example '77777'", lambda root: ["--ids", ids(root, "1", "77777")]),
    "no ids": (1, "list of ids is empty", lambda root: ["--ids", ids(root)]),
    "ids and a number": (2, "not both", lambda root: ["--ids", ids(root, "1"), "--num", "1"]),
    "too many": (1, "cannot draw 5000 of the 2000", lambda _: ["--num", "5000"]),
    "batch too large": (2, "--batch 9 is not between 1 and the 4 examples", lambda _: ["--num", "4", "--batch", "9"]),
    "steps that are no numbers": (2, "--steps takes whole numbers.*not '1,two'", lambda _: ["--steps", "1,two"]),
    "no step": (2, "--steps takes numbers of updates, each at least 1", lambda _: ["--steps", "0,1"]),
    "out in use": (1, "exists already", lambda root: ["--out", root]),
    "out below a file": (1, "cannot write", lambda root: ["--num", "2", "--out", ids(root, "1") / "out"]),
    "no such model": (1, "there is no checkpoint", lambda root: ["--model", root / "nowhere"]),
    "no such data": (1, "unknown data 'mnist'", lambda _: ["--data", "mnist"]),
    "images of another size": (
        1,
        "the model takes 1 × 28 × 28",
        lambda root: ["--data", f"folder:{write_folder(root / 'images', pixels(1, side=20), ['Bag'])}"],
    ),
    "another last layer": (1, "the logits are not what the last linear layer 'network.head' puts out", scaled),
    "unknown device": (2, "device 'gpu' cannot be used", lambda _: ["--device", "gpu"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said, arrange = CASES[name]
    more = arrange(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for option, usual in (("--out", tmp_path / "out"), ("--model", trained), ("--data", "sample")):
        more += [] if option in more else [option, usual]
    before = tree(tmp_path)
    done = run_command("theory", *more, cwd=tmp_path, command="experiments")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("expunge: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert tree(tmp_path) == before


class Casting(nn.Module):
    """Computes in float32 whatever the precision of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.float().flatten(1) / 255)
        return logits


def test_a_model_that_does_not_work_in_float64_is_told_so() -> None:
    forget = TensorDataset(pixels(3), torch.tensor([1, 2, 3]))
    with pytest.raises(InputError, match="one SGD step is measured in float64, which the model does not work in"):
        measure_updates(Casting(), forget, steps=(1,))


def test_the_example_in_the_docstring_runs() -> None:
    results = doctest.testmod(sys.modules[concentration.__module__])
    assert results.attempted > results.failed == 0
