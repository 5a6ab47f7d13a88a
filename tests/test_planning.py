"""How many examples an audit takes to say PASS: the plan agrees with simulated audits, in Python and as a command."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import InputError
from expunge.metrics import Plan, pass_rate, plan, score_test
from tests.conftest import expunge


def simulated(num_forget: int, num_test: int, num_classes: int, repetitions: int = 200) -> float:
    """How often PASS is said where forgotten and held-out scores of a class are alike; classes differ."""
    rng = np.random.default_rng(num_forget + num_test)
    own, others = np.arange(num_forget) % num_classes, np.arange(num_test) % num_classes
    passed = 0
    for _ in range(repetitions):
        s, t = rng.standard_normal(num_forget) + own, rng.standard_normal(num_test) + others
        passed += score_test(s, t, forget_labels=own, test_labels=others).verdict == "PASS"
    return passed / repetitions


@pytest.mark.parametrize(
    "sizes", [(60, 1000, 1), (100, 100, 1), (100, 100, 10), (100, 500, 10), (300, 200, 1), (100, 500, 100)]
)
def test_it_is_near_how_often_simulated_audits_pass(sizes: tuple[int, int, int]) -> None:
    assert pass_rate(*sizes) == pytest.approx(simulated(*sizes), abs=0.05 + 2 * 0.035)


@pytest.mark.parametrize(("num_forget", "num_classes"), [(100, 1), (120, 10), (300, 50)])
def test_with_as_many_held_out_examples_as_it_says_four_in_five_pass(num_forget: int, num_classes: int) -> None:
    found = plan(num_forget=num_forget, num_classes=num_classes).test_needed
    assert found is not None
    assert simulated(num_forget, found, num_classes) >= 0.72
    assert pass_rate(num_forget, found, num_classes) >= 0.8 > pass_rate(num_forget, int(0.85 * found), num_classes)


def test_it_answers_what_was_asked() -> None:
    both = plan(num_forget=100, num_test=500, num_classes=10)
    assert both.pass_rate == pass_rate(100, 500, 10)
    assert both.forget_needed == plan(num_test=500, num_classes=10).forget_needed
    assert both.test_needed == plan(num_forget=100, num_classes=10).test_needed
    assert plan(num_forget=100) == Plan(
        num_forget=100, num_test=None, num_classes=1, pass_rate=None, forget_needed=None, test_needed=810
    )
    assert plan(num_forget=50).test_needed is None  # the interval of A1 is too wide, whatever it is compared with


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 400), st.integers(1, 2000), st.integers(1, 20))
def test_any_sizes_have_a_rate(num_forget: int, num_test: int, num_classes: int) -> None:
    if num_classes > min(num_forget, num_test):
        with pytest.raises(InputError, match="classes"):
            plan(num_forget=num_forget, num_test=num_test, num_classes=num_classes)
        return
    rate = pass_rate(num_forget, num_test, num_classes)
    assert 0 <= rate <= 1
    assert num_forget > 22 or rate == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "forgotten or of held-out"),
        ({"num_forget": 0}, "from 1"),
        ({"num_test": 10**6}, "100,000"),
        ({"num_forget": 5, "num_classes": 6}, "classes"),
        ({"num_forget": 5, "num_classes": 0}, "classes"),
    ],
)
def test_what_is_no_plan_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**sizes)


def test_the_command_prints_what_python_finds() -> None:
    done = expunge("audit", "--plan", "--forgotten", "100", "--held-out", "500", "--classes", "10")
    found = plan(num_forget=100, num_test=500, num_classes=10)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{found.pass_rate:.0%}" in done.stdout
    assert f"{found.test_needed} held-out" in done.stdout
    assert f"{found.forget_needed} forgotten" in done.stdout
    as_json = expunge("audit", "--plan", "--forgotten", "22", "--json")
    assert json.loads(as_json.stdout)["test_needed"] is None
    assert "not even" in expunge("audit", "--plan", "--forgotten", "22").stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan"], "forgotten or of held-out"),
        (["--plan", "--forgotten", "0"], "--forgotten"),
        (["--plan", "--held-out", "3", "--classes", "4"], "classes"),
        (["--forgotten", "100"], "--plan"),
        (["--before", "x", "--out", "y"], "--forget DATA, --test DATA"),
    ],
)
def test_wrong_options_are_one_line(options: Sequence[str], message: str) -> None:
    done = expunge("audit", *options)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
