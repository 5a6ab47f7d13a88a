"""Models as people have them, as functions of one tensor: named or several inputs, and outputs of any form."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from expunge.data.content import PAD
from expunge.errors import InputError

LEAF = None
"""What stands in a `Form`'s structure for a tensor."""


@dataclass(frozen=True)
class Leaf:
    """One of the tensors that an input consists of: its `path`, such as `input_ids`, and what an example of it is.

    `pad` is what the model is given where an example is shorter than others of its batch.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pad: int = 0


@dataclass(frozen=True)
class Form:
    """How inputs of several tensors lie in one.

    Attributes:
        structure: dicts and tuples as the model takes them, with `LEAF` for each tensor.
        leaves: the tensors, in the order in which the structure has them.
        kind: `one`: the one tensor itself. `planes`: integers (N, K, ...), one plane a leaf; where lengths differ,
            `PAD` fills the last axis. `rows`: floats (N, D), all leaves' values one after the other.
        call: how the model is called: with the input as it is, with a tuple's parts, or with a dict's by name.
    """

    structure: Any
    leaves: tuple[Leaf, ...]
    kind: Literal["one", "planes", "rows"]
    call: Literal["whole", "parts", "names"]

    def unpack(self, inputs: Tensor, dtype: torch.dtype) -> Any:
        """The batch that a packed one (B, ...) stands for; floats become `dtype`."""
        return rebuilt(self.structure, iter(self._tensors(inputs, dtype)))

    def _tensors(self, inputs: Tensor, dtype: torch.dtype) -> list[Tensor]:
        if self.kind == "one":
            return [inputs]
        if self.kind == "planes":
            filled = (inputs != PAD).flatten(0, -2).any(0).nonzero()
            length = int(filled[-1]) + 1 if len(filled) else 1
            planes = inputs[..., :length].unbind(1)
            return [
                torch.where(plane == PAD, leaf.pad, plane).to(leaf.dtype)
                for plane, leaf in zip(planes, self.leaves, strict=True)
            ]
        sizes = [prod(leaf.shape) for leaf in self.leaves]
        return [
            part.reshape(len(inputs), *leaf.shape).to(dtype)
            if leaf.dtype.is_floating_point
            else part.round().reshape(len(inputs), *leaf.shape).to(leaf.dtype)
            for part, leaf in zip(inputs.split(sizes, 1), self.leaves, strict=True)
        ]


class Adapted(nn.Module):
    """A model of several inputs, or of inputs by name, as a function of one tensor: `network` is the model itself."""

    def __init__(self, network: nn.Module, form: Form) -> None:
        super().__init__()
        self.network = network
        self.form = form
        self.training = network.training  # not by `train`, which would set what is in it

    @property
    def packs_rows(self) -> bool:
        """Whether its inputs are rows of floats that hold integers, too, which half precision would round."""
        return self.form.kind == "rows"

    def forward(self, inputs: Tensor) -> Any:
        """What the network makes of the batch that `inputs` (B, ...) stand for."""
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
        value = self.form.unpack(inputs, dtype)
        if self.form.call == "names":
            return self.network(**value)
        return self.network(*value) if self.form.call == "parts" else self.network(value)


class WithOutput(nn.Module):
    """A model whose logits are what `output` takes out of its output, as in `WithOutput(model, lambda o: o[1])`.

    Logits alone, an output with `.logits`, a dict with "logits", and a tuple that begins with them need no such.
    Parameters are those of the `model` within, which is what you keep: `result.model.model`.
    """

    def __init__(self, model: nn.Module, output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, C), of whatever the model takes."""
        return self.output(self.model(*args, **kwargs))


class TwoClasses(nn.Module):
    """One logit z of a model as a classifier of two classes: class 1 where the label is there, class 0 where not.

    Its logits are (0, z), so that the probability of class 1 is the sigmoid of z, exactly. Parameters are those of the
    `model` within, which is what you keep: `result.model.model`. Of a model of several labels, the outputs of the
    others are not held: measure them afterwards. A model of one logit needs no such.

    >>> net = TwoClasses(nn.Linear(4, 3), label=2)
    >>> net(torch.zeros(3, 4)).shape, bool((net(torch.zeros(3, 4))[:, 0] == 0).all())
    (torch.Size([3, 2]), True)
    """

    def __init__(self, model: nn.Module, label: int = 0) -> None:
        """Wraps a model that maps a batch to logits (B,), (B, 1) or (B, L); `label` is the column, in [0, L)."""
        super().__init__()
        self.model = model
        self.label = label

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, 2), of whatever the model takes. Raises `InputError` where the model has no such label."""
        logits = _given_logits(self.model(*args, **kwargs))
        logits = logits.reshape(len(logits), -1)
        if not 0 <= self.label < logits.shape[1]:
            raise InputError(f"there is no label {self.label}: the model gives {logits.shape[1]}")
        return two_logits(logits[:, self.label])


_HOLDERS: dict[type[nn.Module], str] = {
    WithOutput: "model",
    TwoClasses: "model",
    nn.DataParallel: "module",
    nn.parallel.DistributedDataParallel: "module",
    AveragedModel: "module",
}
"""Modules that hand on what they get, and where they hold the model that takes it."""


def two_logits(logit: Tensor) -> Tensor:
    """The logits (B, 2) of two classes for one logit (B,)."""
    return torch.stack([torch.zeros_like(logit), logit], 1)


def check_one_label(model: nn.Module) -> None:
    """Raises `InputError` for a model of transformers that was trained on several labels an example, unless wrapped."""
    modules = list(model.modules())
    if any(isinstance(module, TwoClasses) for module in modules):
        return
    kinds = {str(getattr(getattr(module, "config", None), "problem_type", None)) for module in modules}
    if "multi_label_classification" in kinds:
        raise InputError(
            "the model gives several labels an example (problem_type=multi_label_classification), and its logits are "
            "no softmax's. Forget one label at a time: expunge.TwoClasses(model, label), with examples labelled 0 or 1"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that the user gave, of one that was adapted; any other as it is."""
    return model.network if isinstance(model, Adapted) else model


def logits_in(output: object) -> Tensor:
    """The logits in a model's output, of any floating-point dtype.

    They are the output itself, its `logits` (also of a dict), the only tensor of a dict, or the first of a tuple.
    Axes of one pixel after the classes are dropped. One logit z, (N,) or (N, 1), is (0, z) of two classes: the sigmoid
    of z is the probability of class 1.

    Raises:
        InputError: they cannot be told.
    """
    found = _given_logits(output)
    return two_logits(found.flatten()) if found.ndim == 1 or tuple(found.shape[1:]) == (1,) else found


def _given_logits(output: object) -> Tensor:
    """The same as the model gives them, one or more an example."""
    found: Any = output
    if not isinstance(found, Tensor):
        found = found.get("logits", found) if isinstance(found, Mapping) else getattr(found, "logits", found)
    if isinstance(found, Mapping) and len(found) == 1:
        (found,) = found.values()
    if isinstance(found, tuple | list) and found and isinstance(found[0], Tensor):
        rows = [part for part in found if isinstance(part, Tensor) and part.ndim == 2]
        if len(rows) > 1 and rows[0].shape[1] > min(part.shape[1] for part in rows):
            widths = " and ".join(str(part.shape[1]) for part in rows)
            raise InputError(
                f"the model returns several tensors, of {widths} columns: say which are the logits, such as "
                "expunge.WithOutput(model, lambda output: output[1])"
            )
        found = found[0]
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = str(found.dtype) if isinstance(found, Tensor) else type(output).__name__
        raise InputError(
            f"the model must return logits (N, C), not {kind}: say where they are, such as "
            "expunge.WithOutput(model, lambda output: output[0])"
        )
    if found.ndim > 2 and prod(found.shape[2:]) == 1:
        found = found.flatten(1)
    logits: Tensor = found
    return logits


def parameters_of(model: nn.Module) -> tuple[list[str], int, bool]:
    """What a model's `forward` takes: the names, how many without a default, and whether any name will do."""
    while isinstance(model, tuple(_HOLDERS)) or hasattr(model, "_orig_mod"):
        held = next((name for kind, name in _HOLDERS.items() if isinstance(model, kind)), "_orig_mod")
        model = getattr(model, held)
    try:
        given = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return [], 1, False
    kinds = inspect.Parameter
    names = [p.name for p in given if p.kind in {kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY}]
    required = sum(p.default is kinds.empty and p.kind == kinds.POSITIONAL_OR_KEYWORD for p in given)
    return names, required, any(p.kind == kinds.VAR_KEYWORD for p in given)


def rebuilt(structure: Any, leaves: Iterator[Tensor]) -> Any:
    """Dicts and tuples as in `structure`, with the leaves in their places."""
    if isinstance(structure, Mapping):
        return {key: rebuilt(part, leaves) for key, part in structure.items()}
    if isinstance(structure, Sequence):
        return tuple(rebuilt(part, leaves) for part in structure)
    return next(leaves)
