"""The docs are true: figures come from results/, links lead somewhere, commands, options, names in Python exist."""

import ast
import builtins
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from experiments.docs import DATA, FILES, PAGES, filled
from experiments.places import ROOT

from expunge import errors
from expunge.methods import METHODS, GradientMethod
from expunge.training import Recipe
from tests.conftest import experiments, expunge

LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```(.*?)^```|^ {4}(.*?)$|`([^`]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s|])((?:expunge|python -m experiments) (?:data )?[a-z][a-z-]*)\b(.*)$", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^```python\n((?:(?!```).*\n)+)```\n\n```\n((?:(?!```).*\n)+)```", re.MULTILINE)
TEXTS = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text()
    assert filled(text) == text, "run python -m experiments docs"
    assert "\nnot measured\n" not in text


@pytest.mark.parametrize("name", FILES)
def test_the_data_are_those_of_the_results(name: str) -> None:
    assert (DATA / name).read_text() == FILES[name](), "run python -m experiments docs"


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name} links to {target}"
        if heading and there.suffix == ".md":
            assert heading in headings(there), f"{page.name} links to {target}#{heading}"


@cache
def headings(page: Path) -> set[str]:
    """The headings of a page as addresses name them."""
    found = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", text).lower()).replace(" ", "-") for text in found}


@cache
def help_of(command: str) -> str:
    words = command.split()
    done = expunge(*words[1:], "--help") if words[0] == "expunge" else experiments(*words[3:], "--help")
    assert done.returncode == 0, f"{command} is no command"
    return done.stdout


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_commands_and_options_exist(page: Path) -> None:
    for command, rest in commands(page):
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", rest):
            assert option in help_of(command), f"{command} has no {option}"


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """The commands in a page's code, each with the rest of its line; lines that end with a backslash go on."""
    for code in CODE.findall(page.read_text().replace("\\\n", " ")):
        yield from COMMAND.findall("".join(code))


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_settings_of_commands_exist(page: Path) -> None:
    known = {field.name for of in (*METHODS.values(), Recipe) for field in fields(of)} | {"width", "stem"}
    for command, rest in commands(page):
        for name in re.findall(r"--set ([a-z]\w*)=", rest):
            assert name in known, f"{command} --set {name}"


@pytest.mark.parametrize("page", [page for page in TEXTS if PYTHON.search(page.read_text())], ids=named)
def test_names_in_python_exist(page: Path) -> None:
    """Those of expunge, and the arguments that they are called with; what a name is bound to elsewhere is not known."""
    for block in PYTHON.findall(page.read_text()):
        block = doctest.script_from_examples(block) if ">>> " in block else block
        names: dict[str, Any] = {"expunge": importlib.import_module("expunge")}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "expunge":
                module = importlib.import_module(str(node.module))
                names |= {each.asname or each.name: getattr(module, each.name) for each in node.names}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute):
                named_by(node, names)
            elif isinstance(node, ast.Call) and (called := named_by(node.func, names)) is not None:
                parameters = inspect.signature(called).parameters
                if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                    assert {each.arg for each in node.keywords if each.arg} <= parameters.keys(), ast.unparse(node)


@pytest.mark.parametrize("page", [page for page in TEXTS if PRINTED.search(page.read_text())], ids=named)
def test_python_prints_what_the_page_says(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block, printed in PRINTED.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), {})  # noqa: S102
        assert capsys.readouterr().out == printed


def named_by(node: ast.AST, names: dict[str, Any]) -> Any:
    """What an expression of names and dots stands for, where it begins with one of `names`; else None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if not isinstance(node, ast.Attribute) or (owner := named_by(node.value, names)) is None:
        return None
    return getattr(owner, node.attr)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_methods_page_names_its_class_and_source(name: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert f"expunge.{METHODS[name].__name__}(" in page
    for preset in set(METHODS[name].presets) - {"paper"}:
        assert f'preset="{preset}"' in page


@pytest.mark.parametrize(
    ("page", "of"), [("methods/index.md", GradientMethod), ("reference/data-and-models.md", Recipe)]
)
def test_shared_settings_are_listed_with_their_defaults(page: str, of: type[GradientMethod | Recipe]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE))
    for setting in fields(of):
        shown = rows[setting.name]
        if isinstance(setting.default, float | int) and not isinstance(setting.default, bool):
            assert float(shown) == setting.default, setting.name
        else:
            assert shown == str(setting.default).lower(), setting.name


def test_every_row_of_what_was_tried_names_tests_that_exist() -> None:
    rows = (ROOT / "docs" / "reference" / "inputs.md").read_text().partition("## What was tried")[2]
    named = set(re.findall(r"`(test_\w+)`", rows))
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 15
    assert named <= there


def test_every_error_has_its_exit_code() -> None:
    text = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d) \| `\w+` \|", text, re.MULTILINE))
    kinds = (kind for kind in errors.ExpungeError.__subclasses__() if kind.__module__ == errors.__name__)
    found = {kind.__name__: kind for kind in kinds}
    assert rows == {name: str(kind.exit_code) for name, kind in found.items()}
    for name, standard in re.findall(r"^\| `(\w+Error)` \| \d \| `(\w+)` \|", text, re.MULTILINE):
        assert issubclass(found[name], getattr(builtins, standard))
