"""Every forgotten example predicted wrong, at the least cost to everything else."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.methods._distilling import Held, Mixing, divergence
from expunge.methods._task import Needs, Recorder, Task
from expunge.settings import Ranges


@dataclass(frozen=True, kw_only=True)
class MaskedDistillation(Mixing):
    """Pushes the true class just below the likeliest wrong one, and holds the outputs on other inputs.

    For the criterion of "Towards Safe Machine Unlearning", that every forgotten example be mispredicted. The pull of an
    example is the hinge max(0, z_y − max_{j≠y} z_j + gap): it ends as soon as the example is wrong by `gap`. With
    `objective="divergence"` it is that of DELETE (Zhou et al. 2025): KL to the original softmax without the true class.
    Beside it the original's outputs on other examples and their mixtures with forgotten ones are distilled, or on
    forgotten ones that are pasted together: strongly at first, so that what can be forgotten at no cost is, then ever
    less, until all is forgotten.

    Attributes:
        objective: `hinge` or `divergence`.
        gap: by which the true class's logit is to fall below another's, ≥ 0; for `hinge` alone.
        mixtures, mixing: as in `Mixing`; pace, retention, relax, retention_size, norm: as in `Distilling`.

    What invalidates it: a model that never saw the examples predicts most of them right, so that being wrong on all of
    them is itself a mark that they were forgotten.
    """

    epochs: int = 300
    objective: Literal["hinge", "divergence"] = "hinge"
    gap: float = 0.1

    name = "masked_distillation"
    summary = "push the true class just below another, hold outputs on other inputs"
    source = "this package, after Zhou et al. 2025 (DELETE)"
    needs = Needs.FORGET | Needs.TEST | Needs.UNLABELLED

    ranges: ClassVar[Ranges] = {"gap": "at least 0"}

    def run(self, model: nn.Module, task: Task, *, rng: torch.Generator, record: Recorder) -> nn.Module:
        """Pulls until all are predicted wrong."""
        labels = task.forget.labels
        # Finite where the masked softmax is zero: 0 × −∞ would be undefined.
        masked = task.forget_logits.scatter(1, labels[:, None], torch.finfo(task.forget_logits.dtype).min / 2)
        wanted = masked.log_softmax(1)

        def pull(logits: Tensor, index: Tensor) -> Tensor:
            if self.objective == "divergence":
                return divergence(wanted[index], logits)
            own = labels[index][:, None]
            best = logits.scatter(1, own, -torch.inf).amax(1)
            return (logits.gather(1, own)[:, 0] - best + self.gap).clamp(min=0)

        held = Held(self, model, task, rng)
        settled = self.paced(model, task, pull)
        descent = settled.descent(model, task, inputs=held.inputs, rng=rng, record=record)
        for epoch in descent.epochs():
            held.renew(epoch)
            for index, logits in descent.batches():
                descent.step(held.losses(index, logits, pull=pull, hold=divergence))
        return model
