"""Inputs of several tensors, and of different lengths, in one tensor (`expunge.models.Form`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Examples
from expunge.data.content import PAD
from expunge.data.examples import STEADY, as_label, items_at, size_of
from expunge.errors import InputError
from expunge.inputs.columns import Collated, Pairs
from expunge.models import Form, Leaf, parameters_of
from expunge.models.adapter import LEAF

EXACT = 2**24
"""Integers up to this are exact in float32."""


@dataclass
class _Read:
    """One set as it was read: by example the leaves of its input, and a label."""

    name: str
    dataset: Any
    leaves: list[list[Tensor]]
    labels: list[int]


def packed(sets: Mapping[str, Any], unlabelled: str, model: nn.Module) -> tuple[Form, dict[str, Examples]]:
    """The form of the inputs of all sets, and each set in it.

    Args:
        sets: datasets of (input, label) by name, of inputs of one structure: dicts and tuples of arrays.
        unlabelled: the name of the one whose labels do not count.
        model: what takes the inputs; a configuration of transformers tells what short texts are filled up with.

    Raises:
        InputError: structures, shapes or kinds of numbers differ, an input holds NaN or infinity, or lengths differ
            where nothing tells the model so.
    """
    structure: Any = None
    paths: list[str] = []
    found: list[_Read] = []
    for name, dataset in sets.items():
        read = _Read(name, dataset, [], [])
        for n, (value, *label) in items_at(dataset, name, range(size_of(dataset, name))):
            where = f"{name} example {n}"
            named: list[tuple[str, Tensor]] = []
            shape = _flat(value, "", named, where)
            structure, paths = (shape, [path for path, _ in named]) if structure is None else (structure, paths)
            if shape != structure:
                raise InputError(f"{where} is not built as the first one: it must have {', '.join(paths)}")
            read.leaves.append([leaf for _, leaf in named])
            read.labels.append(0 if name == unlabelled else as_label(label[0], where))
        _check_steady(read, structure)
        found.append(read)
    form = _form(structure, paths, found, model)
    return form, {
        read.name: Examples(
            _joined(form, read),
            torch.tensor(read.labels, dtype=torch.int64, device="cpu"),
            ids=tuple(getattr(read.dataset, "ids", ())),
            class_names=tuple(getattr(read.dataset, "class_names", ())),
        )
        for read in found
    }


def is_plain(value: Any) -> bool:
    """Whether an input is one array of numbers."""
    return not isinstance(value, Mapping) and not _is_nested(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, tuple | list) and any(
        isinstance(part, Tensor | np.ndarray | Mapping) or _is_nested(part) for part in value
    )


def _flat(value: Any, path: str, leaves: list[tuple[str, Tensor]], where: str) -> Any:
    """Adds the tensors in a value to `leaves`, and gives its structure."""
    if isinstance(value, Mapping):
        return {str(k): _flat(part, f"{path}{'.' if path else ''}{k}", leaves, where) for k, part in value.items()}
    if _is_nested(value):
        return tuple(_flat(part, f"{path}[{n}]", leaves, where) for n, part in enumerate(value))
    try:
        leaf = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: {path or 'its input'}, of {type(value).__name__}, cannot become a tensor"
        ) from error
    if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
        raise InputError(f"{where}: {path or 'its input'} holds NaN or infinity; repair or remove it")
    leaves.append((path or "input", leaf))
    return LEAF


def _check_steady(read: _Read, structure: Any) -> None:
    """Raises `InputError` where the first examples read otherwise a second time."""
    for n, (value, *_) in items_at(read.dataset, read.name, range(min(STEADY, len(read.leaves)))):
        again: list[tuple[str, Tensor]] = []
        same = _flat(value, "", again, read.name) == structure
        if not same or not all(map(torch.equal, read.leaves[n], (leaf for _, leaf in again))):
            raise InputError(
                f"the {read.name} set gives examples otherwise each time it is read: take out its random transforms, "
                "such as by expunge.without_transforms(dataset), and its shuffling, where it is a stream"
            )


def _form(structure: Any, paths: Sequence[str], found: Sequence[_Read], model: nn.Module) -> Form:
    """How the leaves of all sets lie in one tensor."""
    examples = list(chain.from_iterable(read.leaves for read in found))
    columns = list(zip(*examples, strict=True))
    leaves = []
    for path, column in zip(paths, columns, strict=True):
        if len({leaf.is_floating_point() for leaf in column}) > 1 or len({leaf.ndim for leaf in column}) > 1:
            raise InputError(f"{path} is of several kinds or numbers of axes; all examples must be alike")
        kind = column[0].dtype
        for leaf in column:
            kind = torch.promote_types(kind, leaf.dtype)
        leaves.append(
            Leaf(path, tuple(max(sizes) for sizes in zip(*(leaf.shape for leaf in column), strict=True)), kind)
        )
    varying = [leaf.path for leaf, column in zip(leaves, columns, strict=True) if len({c.shape for c in column}) > 1]
    whole = all(not leaf.dtype.is_floating_point and not leaf.dtype.is_complex and leaf.shape for leaf in leaves)
    aligned = whole and all(len({leaf.shape for leaf in example}) == 1 for example in examples)
    call = _call(structure, model)
    if len(leaves) == 1 and not varying:
        return Form(structure, tuple(leaves), "one", call)
    if aligned and len({leaf.shape[:-1] for leaf in examples[0]}) == 1:
        if varying:
            leaves = [replace(leaf, pad=pad) for leaf, pad in zip(leaves, _pads(leaves, found, model), strict=True)]
        return Form(structure, tuple(leaves), "planes", call)
    if varying:
        raise InputError(f"{varying[0]} has examples of several lengths, which only integers may have: pad them to one")
    for leaf, column in zip(leaves, columns, strict=True):
        if not leaf.dtype.is_floating_point and any(bool((part.long().abs() > EXACT).any()) for part in column):
            raise InputError(f"{leaf.path} holds integers above {EXACT:,}, beside other inputs; number its values anew")
    return Form(structure, tuple(leaves), "rows", call)


def _call(structure: Any, model: nn.Module) -> Any:
    names, required, any_name = parameters_of(model)
    if isinstance(structure, Mapping):
        return "names" if any_name or set(structure) <= set(names) else "whole"
    return "parts" if isinstance(structure, tuple) and required == len(structure) else "whole"


def _pads(leaves: Sequence[Leaf], found: Sequence[_Read], model: nn.Module) -> Iterator[int]:
    """What short examples of each leaf are filled up with: what the loader's function does, or by a mask with zeros."""
    by_loader = _pads_of_loader(found)
    if by_loader is not None:
        yield from by_loader
        return
    if not any("mask" in leaf.path for leaf in leaves):
        raise InputError(
            "examples are of several lengths, and no attention_mask says so to the model: add one, or give a "
            "DataLoader whose collate_fn pads them"
        )
    configs = [getattr(module, "config", None) for module in model.modules()]
    told = next((pad for pad in (getattr(config, "pad_token_id", None) for config in configs) if pad is not None), 0)
    for leaf in leaves:
        yield int(told) if leaf.path.endswith("ids") and "type" not in leaf.path else 0


def _pads_of_loader(found: Sequence[_Read]) -> list[int] | None:
    """What a loader's own function puts behind or before the shorter of two examples; None: there is no such loader."""
    for read in found:
        source = read.dataset.items if isinstance(read.dataset, Pairs) else read.dataset
        lengths = [example[0].shape[-1] for example in read.leaves]
        short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
        if not isinstance(source, Collated) or lengths[short] == lengths[long]:
            continue
        pair = read.dataset.pair(source.together([short, long])) if isinstance(read.dataset, Pairs) else None
        together: list[tuple[str, Tensor]] = []
        _flat((pair or source.together([short, long]))[0], "", together, read.name)
        size = lengths[short]
        pads = []
        for (_, filled), own in zip(together, read.leaves[short], strict=True):
            after = torch.equal(filled[..., :size], own)
            pads.append(int((filled[..., size:] if after else filled[..., :-size]).flatten()[0]))
        return pads
    return None


def _joined(form: Form, read: _Read) -> Tensor:
    """The inputs of one set in one tensor."""
    if form.kind == "one":
        return torch.stack([leaves[0].to(form.leaves[0].dtype) for leaves in read.leaves])
    if form.kind == "planes":
        shape = form.leaves[0].shape
        joined = torch.full((len(read.leaves), len(form.leaves), *shape), PAD, dtype=torch.int64, device="cpu")
        for row, leaves in zip(joined, read.leaves, strict=True):
            row[..., : leaves[0].shape[-1]] = torch.stack([leaf.long() for leaf in leaves])
        return joined
    floats = [leaf.dtype for leaf in form.leaves if leaf.dtype.is_floating_point]
    kind = torch.float64 if torch.float64 in floats else torch.float32
    joined = torch.empty(len(read.leaves), sum(prod(leaf.shape) for leaf in form.leaves), dtype=kind, device="cpu")
    for row, leaves in zip(joined, read.leaves, strict=True):
        row[:] = torch.cat([leaf.reshape(-1).to(kind) for leaf in leaves])
    return joined
