"""Which of the weights in a file are meant, and which of the network's they are.

Trainings store averaged ones beside the raw ones; wrappers put words into names.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from expunge.errors import InputError

T = TypeVar("T")

Content = Mapping[Any, Any]
"""What a file holds: names and tensors, or dicts of them at any depth, and other things."""

AVERAGED = re.compile(r"ema|swa|averag|shadow", re.IGNORECASE)
"""What averaged weights are called."""

COUNTER = "n_averaged"
"""The one tensor of torch's AveragedModel that is not of the network."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DataParallel, torch.compile and others put into names, before them or in their middle."""

BESIDE = re.compile(
    r"(\w+_)?(criterion|criteria|loss|losses|loss_?fn|loss_?func|loss_?function|metric|metrics|acc|accuracy)_?\d*"
)
"""Modules that a training keeps beside its network: what is under them makes no logits."""
COUNTS = frozenset({"total_ops", "total_params"})
"""What thop's profiler leaves in each layer."""


def chosen_weights(content: Content, wanted: Mapping[str, Tensor], key: str | None, path: Path) -> dict[str, Tensor]:
    """The state dict in the content of a file that `key` names, or the only one that it can be.

    Args:
        content: of the file.
        wanted: the network's own state dict.
        key: names of dicts from the outermost inward, joined by dots, or what the names of the tensors begin with; "":
            those without anything before the network's names. None: there must be one set of weights that fits.
        path: of the file, for messages.

    Raises:
        InputError: no state dict, several that may be meant, or none of the name `key`.
    """
    found = dict(_state_dicts(content, wanted))
    fitting = [name for name, state in found.items() if _share(state, wanted) > 0.5]
    if key is not None:
        meant = _under(content, key, wanted)
        if not meant:
            offered = f"it holds {_listed(fitting)}" if fitting else "it holds no weights that fit the network"
            raise InputError(f"{path} has no weights under {key!r}: {offered}")
        return chosen_weights(meant, wanted, None, path)
    others = [
        str(name)
        for name, part in content.items()
        if AVERAGED.search(str(name)) and not isinstance(part, Tensor) and _holds_tensors(part)
    ]
    # What is averaged may lie there in a form that no network takes, such as a list.
    others = [name for name in others if not any(f"{each}.".startswith(f"{name}.") for each in fitting)]
    if len(fitting) > 1 or (fitting and others):
        raise InputError(
            f"{path} holds several sets of weights, {_listed([*fitting, *others])}: say which by --weights-key "
            "(weights_key=). Those called ema are averages, and mostly what is deployed"
        )
    if not fitting and len(found) > 1:  # of other networks, or an optimizer's: the fullest is what does not fit
        fitting = [max(found, key=lambda name: (_share(found[name], wanted), len(found[name])))]
    state = found[(fitting or list(found) or [""])[0]] if found else {}
    if not state:
        raise InputError(f"{path} does not hold a state dict (names and tensors)")
    return {name: value for name, value in state.items() if name != COUNTER or COUNTER in wanted}


def _listed(names: Collection[str]) -> str:
    return " and ".join(map(repr, names))


def _state_dicts(
    content: Content, wanted: Mapping[str, Tensor], place: str = ""
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The place of each state dict in the content, and what it holds, under the names that it has there."""
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        groups = _prefixes(content, wanted)
        if len(groups) < 2:
            yield place, dict(content)
        for prefix in groups if len(groups) > 1 else ():
            yield ".".join(filter(None, (place, prefix))), _under(content, prefix, wanted)
        return
    for name, part in content.items():
        if isinstance(part, Mapping):
            yield from _state_dicts(part, wanted, f"{place}.{name}" if place else str(name))


def _prefixes(state: Content, wanted: Mapping[str, Tensor]) -> list[str]:
    """What stands before most of the network's names, "" for nothing; several in a file of several networks."""
    return [prefix.removesuffix(".") for prefix, count in _counts(state, wanted).items() if 2 * count > len(wanted)]


def own_names(state: Mapping[str, T], wanted: Collection[str]) -> tuple[dict[str, T], list[str]]:
    """The weights under the network's names, and the names of those that are left out, as no part of a network.

    The names in the file may have one prefix more, and words of wrappers anywhere. What else is not the network's
    stays, under the file's name.
    """
    if set(state) <= set(wanted):
        return dict(state), []
    names = _plain_names(wanted)
    fitting = Counter(name[:n] for name in state for n in _ends(name) if _plain(name[n:]) in names)
    prefix = max(fitting, key=lambda found: (fitting[found], -len(found)), default="")
    own, left_out = dict[str, T](), []
    for name, value in state.items():
        inner = _plain(name.removeprefix(prefix))
        first, last = inner.split(".")[0], inner.split(".")[-1]
        if name.startswith(prefix) and inner in names:
            own[names[inner]] = value
        elif BESIDE.fullmatch(first) or last in COUNTS:
            left_out.append(name)
        else:
            own[name] = value
    return own, left_out


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _plain_names(wanted: Collection[str]) -> dict[str, str]:
    """The network's names by what they are without words of wrappers; by themselves where some would be the same."""
    plain = {_plain(name): name for name in wanted}
    return plain if len(plain) == len(wanted) else {name: name for name in wanted}


def _ends(name: str) -> list[int]:
    """Where prefixes of a name end: at its start or a dot, with no word of a wrapper behind."""
    ends = (0, *(n for n, letter in enumerate(name, 1) if letter == "."))
    return [n for n in ends if name[n:].split(".")[0] not in WRAPPERS]


def _share(state: Content, wanted: Mapping[str, Tensor]) -> float:
    """How many of the network's names a state dict has, after one prefix."""
    return max(_counts(state, wanted).values(), default=0) / max(len(wanted), 1)


def _counts(state: Content, wanted: Mapping[str, Tensor]) -> Counter[str]:
    """How many tensors of the network, by name and shape, stand after each prefix."""
    names, counts = _plain_names(wanted), Counter[str]()
    for name, value in state.items():
        for n in _ends(name):
            inner = names.get(_plain(name[n:]))
            counts[name[:n]] += inner is not None and wanted[inner].shape == value.shape
    return counts


def _under(content: Content, key: str, wanted: Mapping[str, Tensor]) -> dict[Any, Any]:
    """What the content holds under a name, or the tensors whose names begin with it; {} for nothing."""
    if key == "":
        return {name: value for name, value in content.items() if name in wanted}
    if isinstance(content.get(key), Mapping):
        return dict(content[key])
    for name, part in content.items():
        if isinstance(part, Mapping) and key.startswith(f"{name}."):
            return _under(part, key[len(str(name)) + 1 :], wanted)
    return {name[len(key) + 1 :]: value for name, value in content.items() if str(name).startswith(f"{key}.")}


def _holds_tensors(part: object) -> bool:
    if isinstance(part, Mapping):
        return any(map(_holds_tensors, part.values()))
    return isinstance(part, Tensor) or (isinstance(part, list | tuple) and any(map(_holds_tensors, part)))
