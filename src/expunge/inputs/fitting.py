"""A model and the sets that go with it, as methods and audits take them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import Subset

from expunge.data import RowSet, as_numbered, names_of
from expunge.errors import InputError
from expunge.inputs.columns import Collated, Pairs, as_pairs
from expunge.inputs.packing import is_plain, packed
from expunge.models import Adapted, Form, class_names_of
from expunge.models.adapter import LEAF

UNLABELLED = "unlabelled"
"""The set whose labels nobody needs to know."""


@dataclass(frozen=True)
class Fitted:
    """A model and sets that fit together.

    Attributes:
        sets: by name, each `Examples` or a dataset of (tensor or array, label); of the unlabelled one, inputs alone do.
        form: how inputs of several tensors lie in one; None where they are one tensor as it is.
        said: sentences on what was left out, or counted otherwise.
    """

    sets: Mapping[str, Any]
    form: Form | None
    said: tuple[str, ...]

    def around(self, model: nn.Module) -> nn.Module:
        """The model as a function of what is in the sets."""
        return model if self.form is None else Adapted(model, self.form)

    def building(self, factory: Callable[[], nn.Module] | None) -> Callable[[], nn.Module] | None:
        """What builds a network in the same way."""
        return factory if factory is None or self.form is None else lambda: self.around(factory())


def fitted(model: nn.Module, sets: Mapping[str, Any]) -> Fitted:
    """Brings what users hold into one form; sets that are None are left out.

    Taken are datasets of (input, label), of dicts or of longer tuples, loaders, lists, tables, columns as a dict or as
    (inputs, labels), and streams. An input may be a tensor or array, or a dict or tuple of such; texts may have
    different lengths. docs/reference/inputs.md has them all. Labels are matched by name, where a set and the model name
    their classes, or, where the model does not, two sets.

    Raises:
        InputError: a set is none of these, or sets do not go together.
    """
    if isinstance(model, Adapted):  # within `expunge.forget`
        return Fitted({name: given for name, given in sets.items() if given is not None}, None, ())
    pairs: dict[str, Any] = {}
    nested: dict[str, bool] = {}
    said: list[str] = []
    for name, given in sets.items():
        if given is not None:
            pairs[name], first, more = as_pairs(given, model, name, labelled=name != UNLABELLED)
            nested[name] = not is_plain(first) or _is_collated(pairs[name])
            said += more
    said += _on_columns(pairs)
    numbered_by, names = _numbering(model, pairs)
    for name in [name for name in pairs if name != UNLABELLED]:
        pairs[name], more = as_numbered(pairs[name], names, name, numbered_by)
        said += more
    if not any(nested.values()):
        return Fitted(pairs, None, tuple(said))
    if not all(nested.values()):
        other = next(name for name, is_nested in nested.items() if not is_nested)
        raise InputError(f"the {other} set has inputs of one tensor, and others have several: give all in one form")
    form, examples = packed(pairs, UNLABELLED, model)
    is_one = form.kind == "one" and form.call == "whole" and form.structure is LEAF
    return Fitted(examples, None if is_one else form, tuple(said))


def _on_columns(sets: Mapping[str, Any]) -> list[str]:
    """Sentences on tables whose columns are called otherwise than those of the first one: places count.

    Raises:
        InputError: a column has another place in another table. Which of both the model takes nobody says.
    """
    named = {name: columns for name, given in sets.items() if len(columns := _columns_of(given)) > 1}
    said: list[str] = []
    whose, own = next(iter(named.items()), ("", ()))
    for name, columns in named.items():
        if columns != own and any(column in own and own.index(column) != n for n, column in enumerate(columns)):
            raise InputError(
                f"the {whose} set has the columns {', '.join(own)}, and the {name} set {', '.join(columns)}: give both "
                "in the model's order (--input-columns, expunge.with_columns)"
            )
        others = [
            f"{column!r} for {wanted!r}" for column, wanted in zip(columns, own, strict=False) if column != wanted
        ]
        if others:
            said.append(
                f"Columns of the {name} set were taken by their places in the {whose} set: {', '.join(others)}."
            )
    return said


def _columns_of(dataset: object) -> tuple[str, ...]:
    """The names of the columns that are an input of numbers, in their order; () where it is something else."""
    if isinstance(dataset, Subset):
        return _columns_of(dataset.dataset)
    return dataset.columns if isinstance(dataset, Pairs | RowSet) else ()


def _numbering(model: nn.Module, sets: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    """Whose names number the classes, and the names: the model's, else those of the set that names most."""
    own = class_names_of(model)
    if own:
        return "the model", own
    named = {f"the {name} set": names_of(each) for name, each in sets.items() if name != UNLABELLED}
    whose = max(named, key=lambda name: len(named[name]), default="the model")
    return whose, named.get(whose, ())


def _is_collated(dataset: Any) -> bool:
    """Whether a loader's own function makes the examples, which may give them several lengths."""
    return isinstance(dataset, Pairs) and isinstance(dataset.items, Collated)
