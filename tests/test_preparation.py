"""Which examples an audit counts: one rule, whoever asks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import expunge
from expunge.auditing.preparation import AuditSets, prepare
from expunge.data import Examples, ImageSet, audit_side
from expunge.errors import InputError
from expunge.metrics import Difficulty
from expunge.models import mark_calibrated


def numbered(first: int, last: int, *more: int) -> Examples:
    """Examples of one number each, which stand for images."""
    numbers = torch.tensor([*range(first, last), *more])
    return Examples(numbers[:, None].float(), numbers % 3)


def numbers(examples: Examples | None) -> list[int]:
    return [] if examples is None else examples.inputs[:, 0].int().tolist()


def test_sets_that_share_nothing_are_counted_as_they_are() -> None:
    sets = prepare(numbered(0, 20), numbered(20, 60), numbered(60, 90))
    assert (len(sets.forget), len(sets.by_name["test"]), len(sets.by_name["retain"])) == (20, 40, 30)
    assert sets.left_out == ()
    assert sets.ids is None
    assert prepare(numbered(0, 3)).by_name.keys() == {"forget"}


def test_what_is_in_two_sets_counts_in_one_and_is_said() -> None:
    """Copies of forgotten examples, retained ones that are to be forgotten, test examples that are either."""
    retain = numbered(60, 90, 1, 2)
    sets = prepare(numbered(0, 20, 3, 3, 4), numbered(20, 60, 5, 19, 61), retain, ids=[f"n{n}" for n in range(23)])
    assert numbers(sets.forget) == list(range(20))
    assert numbers(sets.test) == list(range(20, 60))
    assert numbers(sets.retain) == list(range(60, 90))
    assert sets.ids == tuple(f"n{n}" for n in range(20))
    assert [said.split()[2:5:2] for said in sets.left_out] == [["3", "23"], ["2", "32"], ["2", "43"], ["1", "43"]]
    named = zip(("copies", "forgotten", "forget", "retain"), sets.left_out, strict=True)
    assert all(name in said for name, said in named)
    for name, given in (("forget", numbered(0, 20, 3, 3, 4)), ("retain", retain)):
        assert numbers(given.take(sets.positions[name])) == numbers(sets.by_name[name])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: prepare(numbered(0, 20), numbered(20, 60, 1, 2, 3)),
            "3 of the 43 .*forget",
        ),
        (lambda: prepare(numbered(0, 9), numbered(20, 60, 1)), "1 of the 41 .*forget"),
        (lambda: prepare(numbered(0, 9, *range(9)), numbered(20, 60, 1)), "1 of the 41"),  # copies are no more examples
        (
            lambda: prepare(numbered(0, 20), numbered(20, 40), numbered(30, 60)),
            "10 of the 20 .*retain",
        ),
        (lambda: prepare(numbered(0, 20), numbered(1, 2)), "test"),
        (lambda: prepare(numbered(0, 20), None, numbered(1, 5)), "every"),
        (lambda: prepare(numbered(0, 20), ids=["one"]), "1 ids .*20"),
        (lambda: prepare(numbered(0, 0)), "forget.*empty"),
    ],
)
def test_more_than_a_few_shared_examples_are_refused(call: Callable[[], AuditSets], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_what_a_model_was_calibrated_on_is_left_out() -> None:
    model = nn.Linear(1, 3)
    sets = prepare(numbered(0, 20), numbered(20, 60, 5))
    assert (sets.calibration_known, sets.uncalibrated(model).calibration_known) == (True, False)
    mark_calibrated(model)
    assert sets.uncalibrated(model) is sets
    mark_calibrated(model, 3)
    side = audit_side(numbered(20, 60).inputs, [3])
    left = sets.uncalibrated(model)
    assert numbers(left.test) == numbers(numbered(20, 60).take(side.nonzero()[:, 0]))
    assert numbers(numbered(20, 60, 5).take(left.positions["test"])) == numbers(left.test)
    assert [f"{int((~side).sum())} of 40" in said for said in left.left_out] == [False, True]
    alone = prepare(numbered(0, 20))
    assert alone.uncalibrated(model) is alone
    used = numbered(20, 60).take((~side).nonzero()[:, 0])
    with pytest.raises(InputError, match="calibrated"):
        prepare(numbered(0, 20), used).uncalibrated(model)


def test_a_difficulty_is_that_of_the_examples_that_count() -> None:
    sets = prepare(numbered(0, 20, 3), numbered(20, 60, 5))
    of_all = Difficulty(
        forget=np.arange(21.0), test=np.arange(41.0), num_references=4, accuracy=0.5, forget_accuracy=0.5
    )
    counted = sets.of(of_all)
    assert counted.forget.tolist() == list(range(20))
    assert counted.test.tolist() == list(range(40))
    assert sets.of(counted).test is counted.test


def test_images_are_selected_as_they_are_counted() -> None:
    pixels = torch.arange(60).to(torch.uint8).reshape(-1, 1, 1, 1)
    images = ImageSet(pixels, torch.zeros(60, dtype=torch.int64), ("a",))
    sets = prepare(images.take(range(20)), images.take([*range(20, 60), 1]))
    test = sets.select("test", images.take([*range(20, 60), 1]))
    assert test.ids == tuple(str(n) for n in range(20, 60))
    assert sets.ids == tuple(str(n) for n in range(20))
    whole = images.take(range(20))
    assert sets.select("forget", whole) is whole


def test_retained_examples_that_are_to_be_forgotten_count_in_no_accuracy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 3))
    sets = [TensorDataset(part.inputs, part.labels) for part in (numbered(0, 20), numbered(20, 60))]
    retained = [numbered(60, 90), numbered(60, 90, *range(10))]
    alone, beside = (expunge.audit(model, model, *sets, retain=retain) for retain in retained)
    assert alone.num_retain == beside.num_retain == 30
    assert alone.after.retain_accuracy == beside.after.retain_accuracy
    assert len(beside.left_out) == 1
