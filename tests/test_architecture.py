"""The shape of the house: which way imports run, what the core needs, how large files may get."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import expunge
from expunge.methods import METHODS

SOURCE = Path(expunge.__file__).parent
ROOT = SOURCE.parents[1]
LAYERS = [
    {"errors", "progress", "randomness", "settings", "distributed"},
    {"arrays", "markdown", "parsing"},
    {"metrics", "theory"},
    {"records", "files"},
    {"tasks", "tensor_files"},
    {"data", "models"},
    {"inputs"},
    {"update_log", "training", "training_state"},
    {"methods"},
    {"method_inputs", "unlearning", "doubts"},
    {"auditing"},
    {"report"},
    {"forgetting", "trainer"},
    {"cli", "stopping"},
]
"""Imports run from a later layer to an earlier one, or within one."""
PURE = {"metrics", "theory"}
"""Functions of arrays, which know no model: they may import these alone."""
PURE_IMPORTS = {"arrays", "errors"}
MODULES = sorted(SOURCE.rglob("*.py"))


EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The parts of expunge that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("expunge."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "expunge":
            names |= {alias.name for alias in node.names} - {"__version__"}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part in {"__init__", "__main__"}:
        return
    depth = next((n for n, layer in enumerate(LAYERS) if part in layer), None)
    assert depth is not None, f"{part} has no place in LAYERS"
    allowed = {part, *PURE_IMPORTS} if part in PURE else set().union(*LAYERS[: depth + 1])
    assert imported(path) <= allowed


def test_the_product_does_not_know_the_experiments() -> None:
    assert not [path for path in MODULES if re.search(r"^\s*(from|import) experiments", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("path", [*MODULES, *EXPERIMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    is_method = path.parent.name == "methods" and not path.name.startswith("_")
    limit = 150 if is_method else 400 if path.is_relative_to(SOURCE) else 500
    assert lines <= limit


def test_every_method_is_a_file_and_a_docs_page() -> None:
    files = {path.stem for path in (SOURCE / "methods").glob("*.py") if not path.name.startswith("_")}
    assert files == set(METHODS)
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == {*METHODS, "index"}


def test_every_public_name_loads_and_is_listed_once() -> None:
    assert sorted(set(expunge.__all__)) == sorted(expunge._HOMES)
    for name in expunge.__all__:
        assert getattr(expunge, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = expunge.nonsense


def test_the_core_runs_without_the_extras() -> None:
    """A network without torchvision and the like is trained, made to forget, saved and loaded."""
    code = """
import sys, tempfile, pathlib, warnings
blocked = ("torchvision", "timm", "PIL", "transformers", "datasets", "matplotlib", "ray", "sklearn", "jinja2")
sys.modules.update(dict.fromkeys(blocked))  # None: an import of it fails
import expunge
warnings.simplefilter("ignore", expunge.ExpungeWarning)
out = pathlib.Path(tempfile.mkdtemp())
expunge.train("sample", "small_resnet", out / "a", settings={"epochs": "1", "width": "4"})
from expunge.cli.forget import run as forget
from expunge.cli.sources import Sources
(out / "ids").write_text("0\\n1\\n")
sources = Sources(model=str(out / "a"), forget="sample", ids=out / "ids", test="sample:test")
report = forget(sources, out / "b")
assert report.trace.num_forget == 2 and expunge.load_model(str(out / "b"))
assert "pip install '.[report]'" in report.notes[-1]
assert sorted(path.name for path in (out / "b").iterdir()) == ["model.safetensors", "report.json"]
try:
    expunge.train("sample", "resnet18", out / "c")
except expunge.MissingExtraError as error:
    assert "pip install '.[vision]'" in str(error)
else:
    raise SystemExit("a missing extra was not reported")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
