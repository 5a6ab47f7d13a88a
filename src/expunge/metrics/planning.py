"""How many examples it takes that an audit can say PASS; docs/concepts/audits.md has a table."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from expunge.errors import InputError
from expunge.metrics.verdict import MARGIN, WATCHED, Z, narrowest

WANTED = 0.8
"""The share of perfectly forgotten sets that are to pass: four in five."""

MOST = 100_000
"""No larger number of examples is tried."""

OTHERS = 0.02
"""Perfectly forgotten sets that fit, and yet do not pass by the p-values that are not computed here: about two in 100,
by simulation."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan` found.

    Attributes:
        num_forget, num_test, num_classes: as given.
        pass_rate: how often PASS is said of a perfectly forgotten set of these sizes, in [0, 1]; None unless both are
            given.
        forget_needed: how many forgotten examples it takes for `WANTED`, with `num_test` held-out ones; None where no
            number is enough, or `num_test` is not given.
        test_needed: how many held-out examples it takes, with `num_forget` forgotten ones; None likewise.
    """

    num_forget: int | None
    num_test: int | None
    num_classes: int
    pass_rate: float | None
    forget_needed: int | None
    test_needed: int | None


def plan(*, num_forget: int | None = None, num_test: int | None = None, num_classes: int = 1) -> Plan:
    """How likely an audit of these sizes says PASS after perfect forgetting, and how many examples it takes.

    Numbers that it takes have two significant digits, rounded up.

    Args:
        num_forget: forgotten examples, from 1 to `MOST`.
        num_test: held-out examples that the audit uses, likewise. (`forget` gives it half of the test set where the
            method uses the other half.)
        num_classes: classes of the forgotten examples, each with as many forgotten and held-out ones; from 1, and at
            most so many as there are examples of either.

    Raises:
        InputError: neither number of examples is given, or one is out of range.

    >>> plan(num_forget=100, num_test=500, num_classes=10).test_needed, plan(num_forget=22).test_needed
    (940, None)
    """
    given = [number for number in (num_forget, num_test) if number is not None]
    if not given:
        raise InputError("a plan needs the number of forgotten or of held-out examples, or both")
    if not all(1 <= number <= MOST for number in given):
        raise InputError(f"numbers of examples must be from 1 to {MOST:,}, not {', '.join(map(str, given))}")
    if not 1 <= num_classes <= min(given):
        raise InputError(f"there are from 1 to {min(given):,} classes of {min(given):,} examples, not {num_classes:,}")
    rate = forget_needed = test_needed = None
    if num_forget is not None:
        test_needed = _least(lambda number: pass_rate(num_forget, number, num_classes), num_classes)
    if num_test is not None:
        forget_needed = _least(lambda number: pass_rate(number, num_test, num_classes), num_classes)
    if num_forget is not None and num_test is not None:
        rate = pass_rate(num_forget, num_test, num_classes)
    return Plan(
        num_forget=num_forget,
        num_test=num_test,
        num_classes=num_classes,
        pass_rate=rate,
        forget_needed=forget_needed,
        test_needed=test_needed,
    )


def pass_rate(num_forget: int, num_test: int, num_classes: int = 1) -> float:
    """About how often PASS is said where forgotten and held-out scores are alike, in [0, 1].

    A1 and A2 are taken as normal and independent. From that are taken sets of which too many score above, or below, all
    unseen ones, and `OTHERS`. Simulated shares are within 0.05 of it, and within 0.08 where a class has five held-out
    examples or fewer.

    Args:
        num_forget, num_test, num_classes: at least 1 each, and no fewer examples than classes; they are spread evenly.

    >>> round(pass_rate(100, 1000), 2), pass_rate(22, 1000)
    (0.82, 0.0)
    """
    own, others = (np.bincount(np.arange(num) % num_classes) for num in (num_forget, num_test))
    error_a1, expected, error_a2 = narrowest(list(zip(own.tolist(), others.tolist(), strict=True)))
    normal, bound = NormalDist(), Z * (1 + 0.18 / math.sqrt(num_forget))  # a sample that varies more has larger errors
    within_a1 = 2 * normal.cdf(MARGIN / error_a1 - bound) - 1
    within_a2 = normal.cdf((0.5 + MARGIN - expected) / error_a2 - bound)
    most, beyond = 0, 1.0  # the chance that `most` of the forgotten ones score above all unseen ones
    while beyond >= WATCHED["highest"]:
        beyond *= (num_forget - most) / (num_forget + num_test - most)
        most += 1
    return max(0.0, within_a1) * within_a2 * max(0.0, 1 - 2 * beyond - OTHERS)


def _least(rate: Callable[[int], float], lowest: int) -> int | None:
    """The smallest number of two significant digits whose rate is at least `WANTED`; None: not even `MOST`."""
    if rate(MOST) < WANTED:
        return None
    low, high = lowest, MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if rate(middle) >= WANTED else (middle + 1, high)
    unit = int(10 ** max(0, len(str(high)) - 2))
    return -(-high // unit) * unit
