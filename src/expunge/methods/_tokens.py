"""Methods that move inputs, on token ids: they move what the model looks up for the ids instead."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import Examples
from expunge.data.content import PAD
from expunge.methods._task import Method, Recorder, Task
from expunge.models import logits_of

STAND_IN = -1.0
"""What fills short texts where they are floats: `PAD` would be the lowest value of all."""


class Embedded(nn.Module):
    """A model of token ids as one of rows: the looked-up vectors (Miyato et al. 2017), and the ids after them.

    The ids, and what else the model takes, are whole numbers, which no method moves. The table is not trained.
    """

    def __init__(self, model: nn.Module, table: str, vectors: tuple[int, ...], codes: tuple[int, ...]) -> None:
        """`table` is the embedding layer's name; the shapes are of one example's vectors and of its integers."""
        super().__init__()
        self.model, self.table, self.vectors, self.codes = model, table, vectors, codes
        self.training = model.training

    def forward(self, rows: Tensor) -> Any:
        """The model's output on rows (B, D)."""
        vectors, codes = rows.split([prod(self.vectors), prod(self.codes)], 1)
        whole = codes.round().long()
        ids = torch.where(codes == STAND_IN, PAD, whole).reshape(len(rows), *self.codes)

        def looked_up(layer: nn.Module, given: Any, output: Tensor) -> Tensor:
            found: Tensor = vectors.reshape(len(rows), *self.vectors).to(output)
            return found[:, : output.shape[1]] if output.ndim > 2 else found

        hook = self.model.get_submodule(self.table).register_forward_hook(looked_up)
        try:
            return self.model(ids)
        finally:
            hook.remove()

    def rows(self, examples: Examples) -> Examples:
        """Examples of ids as rows, in the model's dtype or, where that is coarser, float32."""
        with looking_up(self.model) as seen:
            parts = []
            for batch in examples.inputs.split(500):
                seen.clear()
                logits_of(self.model, batch)
                found = seen[self.table].float()
                vectors = found.new_zeros(len(batch), *self.vectors)
                if found.ndim > 2:  # without what fills up the longest of the batch
                    vectors[:, : found.shape[1]] = found
                else:
                    vectors = found
                codes = torch.where(batch == PAD, STAND_IN, batch.float()).flatten(1)
                parts.append(torch.cat([vectors.flatten(1), codes], 1))
        return Examples(torch.cat(parts), examples.labels)


def run_on(method: Method, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
    """`method.run`, of a method that moves inputs and a model of token ids on what it looks up for them."""
    inputs = task.forget.inputs
    if not getattr(method, "moves_inputs", False) or inputs.is_floating_point() or inputs.dtype == torch.uint8:
        return method.run(model, task, rng=rng, record=record)
    with looking_up(model) as seen:
        logits_of(model, inputs)
    if not seen:
        return method.run(model, task, rng=rng, record=record)
    table, vectors = next(iter(seen.items()))
    model.get_submodule(table).requires_grad_(False)
    own = Embedded(model, table, tuple(vectors.shape[1:]), tuple(inputs.shape[1:]))
    record.warn(f"{method.name} moves inputs, and these are integers: it moved what {table!r} gives for them")
    sets = {"forget": task.forget, "retain": task.retain, "calibration": task.calibration}
    moved: dict[str, Any] = {name: own.rows(given) for name, given in sets.items() if given is not None}
    result = method.run(own, replace(task, **moved), rng=rng, record=record)
    return result.model if isinstance(result, Embedded) else result


@contextmanager
def looking_up(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What each embedding layer of a model gave last, by its name, in the order in which they are first used."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def keep(layer: nn.Module, given: Any, output: Tensor) -> None:
            seen[name] = output.detach()

        return keep

    tables = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    hooks = [module.register_forward_hook(watch(name)) for name, module in tables]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
