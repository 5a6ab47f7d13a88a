"""The docs are true: figures come from results/, links lead somewhere, commands and their options exist."""

import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from experiments.docs import DATA, FILES, PAGES, filled
from experiments.places import ROOT

from expunge.methods import METHODS, GradientMethod
from expunge.training import Recipe
from tests.conftest import experiments, expunge

LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^\s*(?:`)?((?:expunge|python -m experiments) (?:data )?[a-z][a-z-]*)(.*)$", re.MULTILINE)
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
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@cache
def help_of(command: str) -> str:
    words = command.split()
    done = expunge(*words[1:], "--help") if words[0] == "expunge" else experiments(*words[3:], "--help")
    assert done.returncode == 0, f"{command} is no command"
    return done.stdout


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_commands_and_options_exist(page: Path) -> None:
    for command, rest in COMMAND.findall(page.read_text()):
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", rest):
            assert option in help_of(command), f"{command} has no {option}"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_methods_page_names_its_class_and_source(name: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert f"expunge.{METHODS[name].__name__}(" in page
    for preset in set(METHODS[name].presets) - {"paper"}:
        assert f'preset="{preset}"' in page


@pytest.mark.parametrize(("page", "of"), [("methods/index.md", GradientMethod), ("data-and-models.md", Recipe)])
def test_shared_settings_are_listed_with_their_defaults(page: str, of: type[GradientMethod | Recipe]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE))
    for setting in fields(of):
        shown = rows[setting.name]
        if isinstance(setting.default, float | int) and not isinstance(setting.default, bool):
            assert float(shown) == setting.default, setting.name
        else:
            assert shown == str(setting.default).lower(), setting.name


def test_every_row_of_what_was_tried_names_tests_that_exist() -> None:
    rows = (ROOT / "docs" / "inputs.md").read_text().partition("## What was tried")[2]
    named = set(re.findall(r"`(test_\w+)`", rows))
    there = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 15
    assert named <= there
