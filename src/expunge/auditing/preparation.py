"""What an audit counts of the sets that it is handed: the one rule for Python and for the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from expunge.data import Examples, ImageSet, as_examples, audit_side
from expunge.data.content import first_copies, shared
from expunge.data.ids import ids_of
from expunge.errors import InputError
from expunge.metrics.difficulty import Difficulty
from expunge.models import calibration_seeds, says_calibration
from expunge.records import Trace

Given = Examples | Dataset[Any]


@dataclass(frozen=True, kw_only=True)
class AuditSets:
    """The examples that an audit counts, as `prepare` chose them; None for sets that were not given.

    Attributes:
        ids: one a forgotten example; None where there are none.
        positions: int64, shape (n,), on the CPU, by set (`forget`, `test`, `retain`): which of the given these are.
        given: by set, how many there were.
        left_out: one sentence each: what was left out, and why.
        calibration_known: whether the model or its trace says what it was calibrated on.
    """

    forget: Examples
    test: Examples | None
    retain: Examples | None
    ids: tuple[str, ...] | None
    positions: Mapping[str, Tensor]
    given: Mapping[str, int]
    left_out: tuple[str, ...]
    calibration_known: bool = True

    @property
    def by_name(self) -> dict[str, Examples]:
        """Those that there are."""
        sets = {"forget": self.forget, "test": self.test, "retain": self.retain}
        return {name: examples for name, examples in sets.items() if examples is not None}

    def uncalibrated(self, after: nn.Module, trace: Trace | None = None) -> "AuditSets":
        """The same without the test examples that the unlearned model was calibrated on, as it or its trace says.

        Where neither says so, `calibration_known` is False. Raises `InputError` where none is left.
        """
        if self.test is None:
            return self
        if trace is None and not says_calibration(after):
            return replace(self, calibration_known=False)
        traced = [trace.seed] if trace is not None and trace.num_calibration else []
        left = audit_side(self.test.inputs, [*calibration_seeds(after), *traced]).nonzero()[:, 0]
        if len(left) == len(self.test):
            return self
        used, num = len(self.test) - len(left), len(self.test)
        if len(left) == 0:
            raise InputError(f"the model was calibrated on all {num} test examples; audit it with others")
        return replace(
            self,
            test=self.test.take(left),
            positions={**self.positions, "test": self.positions["test"][left]},
            left_out=(*self.left_out, f"Left out {used:,} of {num:,} test examples: the model was calibrated on them."),
        )

    def select(self, name: str, images: ImageSet) -> ImageSet:
        """Those of the given images that count, as a dataset."""
        at = self.positions[name]
        return images if len(at) == len(images) else images.take(at)

    def of(self, difficulty: Difficulty) -> Difficulty:
        """A difficulty of these examples, from one of these or of all that were given."""
        values = {"forget": difficulty.forget, "test": difficulty.test}
        kept = {
            name: found[self.positions[name].numpy()] if len(found) == self.given[name] else found
            for name, found in values.items()
        }
        return replace(difficulty, forget=kept["forget"], test=kept["test"])


def prepare(
    forget: Given, test: Given | None = None, retain: Given | None = None, *, ids: Sequence[str] | None = None
) -> AuditSets:
    """Chooses the examples that an audit counts, by the content of their inputs, and says what it leaves out.

    - Of equal forgotten examples one counts: copies have one score.
    - Forgotten examples are left out of the retain set, and forgotten and retained ones out of the test set. Published
      datasets have a few in both splits. More than a tenth (of the forget set, or of the test set where it is retained
      ones) are refused: then `test` is no set of unseen examples.

    Args:
        forget, test, retain: examples in memory, or datasets of (input, label).
        ids: one a forgotten example; default: those of the dataset, where it has as many.

    Raises:
        InputError: an empty set, one of which nothing is left, too many shared examples, or a wrong number of ids.

    >>> data = Examples(torch.arange(40.0)[:, None], torch.arange(40) % 2)
    >>> sets = prepare(data.take(torch.tensor([0, 0, 1])), data.take(torch.arange(2, 40)))
    >>> len(sets.forget), len(sets.test), sets.left_out
    (2, 38, ('Left out 1 of 3 forgotten examples: copies of others.',))
    """
    handed = {"forget": forget, "test": test, "retain": retain}
    sets = {name: as_examples(held, name) for name, held in handed.items() if held is not None}
    named = _ids(ids, forget, len(sets["forget"]))
    at = {name: torch.arange(len(held), device="cpu") for name, held in sets.items()}
    at["forget"] = first_copies(sets["forget"].inputs)
    left_out = []
    if copies := len(sets["forget"]) - len(at["forget"]):
        left_out.append(f"Left out {copies:,} of {len(sets['forget']):,} forgotten examples: copies of others.")
    if retain is not None:
        gone = shared(sets["forget"].inputs, sets["retain"].inputs)
        if gone.all():
            raise InputError("every retained example is in the forget set too; give others")
        at["retain"] = (~gone).nonzero()[:, 0]
        if num := int(gone.sum()):
            left_out.append(f"Left out {num:,} of {len(gone):,} retained examples: they are to be forgotten.")
    if test is not None:
        unseen = torch.ones(len(sets["test"]), dtype=torch.bool, device="cpu")
        for name, most in (("forget", len(at["forget"])), ("retain", len(unseen))):
            if name in sets:
                mask, said = not_in(sets["test"].inputs, sets[name].inputs[at[name]], name, most)
                unseen &= mask
                left_out += said
        if not unseen.any():
            raise InputError("no test example is left that is neither forgotten nor retained; give unseen ones")
        at["test"] = unseen.nonzero()[:, 0]
    # Large sets are copied only where something is left out.
    kept = {name: held if len(at[name]) == len(held) else held.take(at[name]) for name, held in sets.items()}
    return AuditSets(
        forget=kept["forget"],
        test=kept.get("test"),
        retain=kept.get("retain"),
        ids=tuple(str(named[n]) for n in at["forget"].tolist()) if named is not None else None,
        positions=at,
        given={name: len(held) for name, held in sets.items()},
        left_out=tuple(left_out),
    )


def not_in(test: Tensor, other: Tensor, name: str, most: int) -> tuple[Tensor, list[str]]:
    """Which test inputs the set `name` does not hold, bool, (N,), on the CPU, and what to say of the others.

    Raises `InputError` where more than a tenth of `most` are in both.
    """
    duplicates = shared(other, test)
    num = int(duplicates.sum())
    if 10 * num > most:
        raise InputError(
            f"{num} of the {len(test)} test examples are in the {name} set too; give unseen ones, which the model was "
            "never trained on"
        )
    return ~duplicates, [f"Left out {num:,} of {len(test):,} test examples: they are in the {name} set."] * (num > 0)


def sequence_of(value: object) -> Sequence[Any]:
    """What a dataset's attribute says, if it is a sequence at all: ids, or names of classes."""
    is_one = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    return cast(Sequence[Any], value) if is_one else ()


def _ids(given: Sequence[str] | None, forget: object, num: int) -> Sequence[str] | None:
    """One id a forgotten example: those given, the dataset's own, or None."""
    if given is None:
        own = ids_of(forget)
        return own if len(own) == num else None
    if len(given) != num:
        raise InputError(f"there are {len(given)} ids for {num} forgotten examples; give one for each, in their order")
    return given
