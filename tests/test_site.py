"""The site: every public name is on the Python page, and it builds without a warning.

A page that is not in the navigation, or a link or anchor that leads nowhere, is a warning (`validation` in mkdocs.yml).
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from experiments.places import DOCS, ROOT
from experiments.reference import EXAMPLES, READ

import expunge
from expunge import auditing, metrics
from expunge.methods import METHODS


def test_every_public_name_is_on_the_python_page() -> None:
    shown = re.findall(r"^::: expunge\.([\w.]+)$", (DOCS / "reference" / "python.md").read_text(), re.MULTILINE)
    public = {
        *expunge.__all__,
        *(f"{part.__name__.partition('.')[2]}.{n}" for part in (metrics, auditing) for n in part.__all__),
    }
    again = {f"auditing.{name}" for name in expunge.__all__}
    assert len(shown) == len(set(shown))
    assert public - again <= set(shown)


def test_what_was_read_is_told_of_every_method() -> None:
    assert set(READ) == set(METHODS)


def test_examples_are_of_the_verbs_that_they_stand_under() -> None:
    assert all(example.startswith(f"expunge {verb}") for verb, example in EXAMPLES.items())


def test_it_builds_without_a_warning_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?:https?:)?//[^"']+""", page.read_text()
        )
        assert not loaded, f"{page.relative_to(tmp_path)} loads {loaded}"
