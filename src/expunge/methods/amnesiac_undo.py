"""Taking back the recorded updates of the batches that held forgotten examples."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from expunge.methods._task import Method, Needs, Presets, Recorder, Task
from expunge.models import mark_undone, undone_steps
from expunge.progress import track
from expunge.update_log import check_model, matching_updates, subtract


@dataclass(frozen=True, kw_only=True)
class AmnesiacUndo(Method):
    """Subtracts, once, what the training steps with a forgotten example in their batch added to the parameters.

    Graves et al. 2021, "Amnesiac Machine Learning", section 3: θ' = θ − Σ Δθ_b over the sensitive batches b. Needs
    the update log that `expunge train --record-updates` writes. Updates that an earlier request took back are left
    out: the model and its checkpoint say which. Running statistics of normalisation layers are not reverted, as in
    the authors' code. It has no hyperparameters; `updates` is the directory of the log.

    A log is refused unless its training ended with the model's parameters; once updates were taken back, nothing can
    tell. The authors follow it with training on retained data where many batches are undone; here that is a second run
    (`finetune`).
    """

    name = "amnesiac_undo"
    summary = "subtract the recorded updates of the batches that held forgotten examples"
    source = "Graves et al. 2021, section 3"
    needs = Needs.FORGET | Needs.UPDATES
    presets: ClassVar[Presets] = {"paper": {}}

    updates: str | Path | None = field(default=None, metadata={"setting": False})

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Reads one update after another and subtracts it."""
        assert task.updates is not None
        found = matching_updates(task.updates, task.forget_digests)
        done = set(undone_steps(model))
        if not done:
            check_model(task.updates, model)
        updates = [(step, path) for step, path in found if step not in done]
        if len(updates) < len(found):
            record.warn(f"{len(found) - len(updates)} of {len(found)} updates were taken back before, and not again")
        for _, path in track(updates, "undoing updates", len(updates)):
            subtract(model, path)
            record.steps += 1
        mark_undone(model, *(step for step, _ in updates))
        return model
