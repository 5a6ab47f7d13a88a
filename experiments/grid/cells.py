"""Cells of a grid: one run of one method, with everything that determines its result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from expunge.errors import SettingError
from expunge.methods import METHODS, Needs

FORMAT = "expunge-bench/1"
"""Part of every cell's key: a change in how cells are measured changes it."""

BEFORE = "before"
"""The row of the original model as it is, which no method touches."""

CONDITIONS: dict[str, tuple[Any, ...]] = {
    "precision": ("bf16",),
    "augment": ("shift", "flip_shift"),
    "schedule": ("cosine",),
    "carried": (True,),
}
"""{condition: its values}. `precision`: the network runs under autocast in bf16 while it is unlearned, with weights in
fp32. `augment`: inputs are augmented in train mode, as in training. `schedule`: the step size falls to zero along a
cosine over the budget. `carried`: Adam starts with the moments that it would have at the end of training."""


LATER: dict[str, dict[str, Any]] = {
    "calibrated": {"mixing": "blend", "accuracy": None, "targets": "ranks"},
    "jit": {"accumulate": False},
    "masked_distillation": {"mixing": "blend"},
    "ssd": {"forget_last": False},
}
"""{method: {setting: value}}: settings that came when there were results, and the value that means what was before. A
key leaves them out at that value, and those that came for all methods."""
ALL_LATER: dict[str, Any] = {"precision": "fp32", "micro_batch_size": None, "gradient_checkpointing": False}


def as_before(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of `LATER` that change nothing."""
    later = LATER.get(method, {}) | ({} if method == "retrain" else ALL_LATER)
    return {name: value for name, value in settings.items() if name not in later or later[name] != value}


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model that the methods start from, and how it is trained.

    Attributes:
        dataset: a named dataset; it is trained on all of `DATASET:train`.
        architecture: a key of `ARCHITECTURES`.
        recipe: all fields of `Recipe`.
        options: the model's options.
        seed: of the training.
        settings: what the grid itself says of recipe and options, over the measured recipe.
        target: the paper's `retain_accuracy` and `test_accuracy` of it, in [0, 1]; no part of the key.
    """

    dataset: str
    architecture: str
    recipe: Mapping[str, Any]
    options: Mapping[str, Any]
    seed: int
    settings: Mapping[str, Any]
    target: Mapping[str, float]

    @property
    def name(self) -> str:
        """DATASET-ARCHITECTURE: the name of its checkpoint and of its file of results."""
        return f"{self.dataset}-{self.architecture}"

    def training(self) -> dict[str, Any]:
        """How it is trained, as JSON values: the part that determines results."""
        return {"recipe": dict(self.recipe), "options": dict(self.options), "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a `Cell` and its `Result` both say of one run.

    Attributes:
        row: the row's name in the grid; no part of the key.
        method: a key of `METHODS`, or `before`.
        settings: all fields of the method; empty for `before`.
        forget_size: the first so many of the permutation of the training set that `seed` draws are forgotten.
        seed: of the draw and of everything random in the method.
        retain_subset: retain accuracy is measured on so many retained examples, the same for all cells but for those
            that are forgotten; None: on all of them.
        heldout: the method is handed the test set, of which it sees one half, and the cell is measured on the other.
        withheld: the cell is measured on that half, and the method is handed no held-out examples all the same.
        test_subset: test accuracy and audit are of so many test images, the same for all cells; None: of all.
        conditions: what else the method runs under, by keys of `CONDITIONS`; empty: nothing else.
    """

    row: str
    method: str
    settings: Mapping[str, Any]
    forget_size: int
    seed: int
    retain_subset: int | None
    heldout: bool = False
    withheld: bool = False
    test_subset: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cell(Run):
    """One run to make and measure: it starts from the model `original`."""

    original: Original

    @property
    def reads_updates(self) -> bool:
        """Whether it needs the update log of the original's training."""
        return self.method in METHODS and Needs.UPDATES in METHODS[self.method].needs

    @cached_property
    def key(self) -> str:
        """Canonical JSON of everything that determines the result, but for the original's weights."""
        content = {
            "format": FORMAT,
            "dataset": self.original.dataset,
            "architecture": self.original.architecture,
            "original": self.original.training(),
            "method": self.method,
            "settings": as_before(self.method, self.settings),
            "forget_size": self.forget_size,
            "seed": self.seed,
            "retain_subset": self.retain_subset,
            **({"heldout": True} if self.heldout else {}),
            **({"withheld": True} if self.withheld else {}),
            **({} if self.test_subset is None else {"test_subset": self.test_subset}),
            **({"conditions": dict(self.conditions)} if self.conditions else {}),
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """A short digest of `key`: 16 hexadecimal digits."""
        return sha256(self.key.encode()).hexdigest()[:16]


ONLY_KEYS = ("dataset", "architecture", "method", "size", "seed")


def only(cells: Sequence[Cell], choices: Sequence[str]) -> list[Cell]:
    """The cells that `--only` picks.

    Args:
        cells: of a grid.
        choices: each `KEY=VALUE,KEY=VALUE,…` with keys of `ONLY_KEYS`; `method` takes a row's name too. Values of one
            key widen the choice, different keys narrow it.

    Raises:
        SettingError: an unknown key, or a value that the grid does not have.
    """
    wanted: dict[str, set[str]] = {}
    for choice in choices:
        for pair in choice.split(","):
            key, found, value = (part.strip() for part in pair.partition("="))
            if not found or not value:
                raise SettingError(f"--only takes KEY=VALUE,…, such as dataset=cifar10,seed=0, not {choice!r}")
            if key not in ONLY_KEYS:
                raise SettingError(f"--only has no key {key!r}; it has {', '.join(ONLY_KEYS)}")
            known = sorted({name for cell in cells for name in _names(cell, key)}, key=_by_number)
            if value not in known:
                raise SettingError(f"the grid has no {key} {value!r}; it has {', '.join(known)}")
            wanted.setdefault(key, set()).add(value)
    return [cell for cell in cells if all(values & _names(cell, key) for key, values in wanted.items())]


def _names(cell: Cell, key: str) -> set[str]:
    return {
        "dataset": {cell.original.dataset},
        "architecture": {cell.original.architecture},
        "method": {cell.method, cell.row},
        "size": {str(cell.forget_size)},
        "seed": {str(cell.seed)},
    }[key]


def _by_number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (0, text)
