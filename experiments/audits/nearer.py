"""Targets nearer to retraining than those of `calibrated`: what U-LiRA sees of either, on the embedded sample.

    python -m experiments.audits.nearer --draw 2 --num 16 --work runs/nearer

Trains `--num` networks on all images and as many without the 32 of a draw (network and recipe are those of
`full-audit`), lets `calibrated` forget them with its own targets and with those of `nearer`, and prints a row a kind of
model. What is in --work is not made again. `--targets` scores the targets themselves: a student a model, no unlearning.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Examples, audit_side, calibration_side, draw_ids, load_data
from expunge.methods import Calibrated
from expunge.methods._confidence import ranks, scaled_confidence, student_confidence, transported
from expunge.metrics import lira, score_test
from expunge.models import build, logits_of
from expunge.trainer import spec_for
from expunge.training import recipe_for, train
from expunge.unlearning import unlearn

NUM_FORGET = 32
KEPT_FROM, KEPT_WIDTH = 0.3, 0.25
"""Where an example's own φ has half of the weight, above the median of the held-out ones, in their deviation; width."""

RIDGE = 0.3
"""Of the regression on features, in units of their mean squared norm."""

Targets = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Those of `transported`."""


def features(model: nn.Module, inputs: Tensor) -> Tensor:
    """What leaves the second of three blocks of `small_resnet`, pooled to 2 × 2: before most of what is memorised."""
    caught: list[Tensor] = []
    hook = model.network[4].register_forward_hook(  # type: ignore[union-attr, index]
        lambda _, __, out: caught.append(F.adaptive_avg_pool2d(out, 2).flatten(1).double())
    )
    logits_of(model, inputs)
    hook.remove()
    return torch.cat(caught)


def explained(model: nn.Module, forget: Examples, heldout: Examples, unseen: Tensor) -> tuple[Tensor, Tensor]:
    """The φ that held-out examples' features and outputs foretell, of forgotten and of held-out examples.

    A ridge regression of the model's own logits on its features at the held-out examples, each of which is left out of
    its own fit; then a line from the φ of that to φ itself.
    """
    taught, given = logits_of(model, heldout.inputs).double(), features(model, heldout.inputs)
    asked = features(model, forget.inputs)
    mean, spread, middle = given.mean(0), given.std(0, correction=0) + 1e-3, taught.mean(0)
    given, asked, rest = (given - mean) / spread, (asked - mean) / spread, taught - middle
    kernel = given @ given.T
    inverse = torch.linalg.inv(kernel + RIDGE * kernel.diagonal().mean() * torch.eye(len(kernel)))
    hat = kernel @ inverse
    without = taught - (rest - hat @ rest) / (1 - hat.diagonal())[:, None]
    found = scaled_confidence(middle + asked @ given.T @ (inverse @ rest), forget.labels)
    line = torch.stack([scaled_confidence(without, heldout.labels), torch.ones(len(without))], 1)
    slope, level = torch.linalg.lstsq(line, unseen.double()[:, None]).solution[:, 0]
    return (slope * found + level).float(), (line @ torch.stack([slope, level])).float()


def kept(own: Tensor, targets: Tensor, unseen: Tensor) -> Tensor:
    """Targets that leave confident examples where they are, and raise none: retraining hardly moves those."""
    unit = unseen.std(correction=0)
    share = ((own - unseen.median() - KEPT_FROM * unit) / (KEPT_WIDTH * unit)).sigmoid()
    return torch.lerp(torch.minimum(own, targets), own, share)


def nearer(model: nn.Module, forget: Examples, heldout: Examples, *, residuals: bool = True) -> Targets:
    """Like `transported`; ranks are handed what features leave unexplained, and confident examples are kept."""
    own = scaled_confidence(logits_of(model, forget.inputs), forget.labels)

    def targets(order: Tensor, labels: Tensor, unseen: Tensor, unseen_labels: Tensor) -> Tensor:
        if not residuals:
            return kept(own, transported(order, labels, unseen, unseen_labels), unseen)
        found, known = explained(model, forget, heldout, unseen)
        return kept(own, found + transported(order, labels, unseen - known, unseen_labels), unseen)

    return targets


class Bench:
    """The models of a draw, and what they say: O_j is on all images, whatever the draw."""

    def __init__(self, work: Path, draw: int) -> None:
        self.work, self.draw, self.data, self.test = work, draw, load_data("sample"), load_data("sample:test")
        ids = set(draw_ids(self.data, NUM_FORGET, draw))
        chosen = [n for n, name in enumerate(self.data.ids) if name in ids]
        self.forget, self.rest = self.data.take(chosen), self.data.without(self.data.take(chosen))
        recipe, options = recipe_for("sample", "small_resnet")
        self.recipe = replace(recipe, epochs=12, precision="bf16")
        self.spec = spec_for(self.data, "small_resnet", options)
        inputs = self.test.examples.inputs
        self.heldout = self.test.examples.take(calibration_side(inputs, 0).nonzero()[:, 0])
        self.audited = self.test.examples.take(audit_side(inputs, [0]).nonzero()[:, 0])

    def model(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The one of that name, made if it is not there."""
        path = self.work / f"{name}.pt"
        if not path.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            torch.save(make().state_dict(), path)
        model = build(self.spec)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()

    def trained(self, kind: str, j: int) -> nn.Module:
        """O_j, or R_j of the draw."""
        name, images, part = ("O", self.data, 1) if kind == "O" else (f"R{self.draw}", self.rest, 2 + self.draw)

        def make() -> nn.Module:
            seed = 1_000_003 * part + j
            torch.manual_seed(seed)
            model = build(self.spec)
            train(model, images.examples, self.recipe, rng=torch.Generator().manual_seed(seed))
            return model

        return self.model(f"{name}-{j}", make)

    def row(self, name: str, scores: np.ndarray, retrained: np.ndarray, models: list[nn.Module]) -> str:
        """AUC, offset of the mean scores, spread, accuracies and verdicts."""
        offset, found = scores.mean(0) - retrained.mean(0), lira(scores, retrained, num_bootstrap=500)
        text = f"{name:28s} AUC {found.auc:.3f} [{found.auc_interval[0]:.3f}, {found.auc_interval[1]:.3f}]"
        text += f" offset {offset.mean():+.2f} ± {offset.std():.2f} spread {scores.std(0, ddof=1).mean():.2f}"
        text += f"/{retrained.std(0, ddof=1).mean():.2f}"
        if not models:
            return text
        right, verdicts = [], []
        for model, own in zip(models, scores, strict=True):
            logits = logits_of(model, self.audited.inputs)
            held = scaled_confidence(logits.double(), self.audited.labels).numpy()
            right.append((float((own > 0).mean()), float((logits.argmax(1) == self.audited.labels).double().mean())))
            labels, others = self.forget.examples.labels.numpy(), self.audited.labels.numpy()
            verdicts.append(score_test(own, held, forget_labels=labels, test_labels=others).verdict)
        forget, test = 100 * np.mean(right, axis=0)
        counts = " / ".join(str([*map(str, verdicts)].count(kind)) for kind in ("PASS", "INCONCLUSIVE", "FAIL"))
        return f"{text} φ>0 {forget:.1f} test {test:.1f} verdicts {counts}"

    def scores(self, model: nn.Module) -> np.ndarray:
        """φ of the forgotten examples, float64."""
        of = self.forget.examples
        return scaled_confidence(logits_of(model, of.inputs).double(), of.labels).numpy()


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=16, help="models of each kind")
    parser.add_argument("--draw", type=int, default=0, help="of the forgotten examples")
    parser.add_argument("--targets", action="store_true", help="score targets alone: nothing is unlearned")
    parser.add_argument("--work", type=Path, required=True, help="where the models are kept")
    arguments = parser.parse_args()
    bench, num = Bench(arguments.work, arguments.draw), arguments.num
    forget, heldout = bench.forget.examples, bench.heldout
    retrained = np.stack([bench.scores(bench.trained("R", j)) for j in range(num)])
    originals = [bench.trained("O", j) for j in range(num)]
    print(bench.row("original", np.stack([bench.scores(model) for model in originals]), retrained, originals))
    for name, choice in {"calibrated": None, "kept": False, "kept, residuals": True}.items():

        def targets_of(model: nn.Module, residuals: bool | None = choice) -> Targets:
            return transported if residuals is None else nearer(model, forget, heldout, residuals=residuals)

        if arguments.targets:
            rows = []
            for j, model in enumerate(originals):
                own = scaled_confidence(logits_of(model, forget.inputs), forget.labels)
                unseen = scaled_confidence(logits_of(model, heldout.inputs), heldout.labels)
                student = student_confidence(model, forget, heldout, torch.Generator().manual_seed(j))
                order = ranks(own) + ranks(student)
                rows.append(targets_of(model)(order, forget.labels, unseen, heldout.labels).double().numpy())
            print(bench.row(f"targets of {name}", np.stack(rows), retrained, []))
            continue
        models = []
        for j, model in enumerate(originals):

            def make(model: nn.Module = model) -> nn.Module:
                with patch("expunge.methods.calibrated.transported", targets_of(model)):
                    return unlearn(model, bench.forget, method=Calibrated(), test=bench.test).model

            models.append(bench.model(f"U{bench.draw}-{name.replace(', ', '-')}-{j}", make))
        print(bench.row(name, np.stack([bench.scores(model) for model in models]), retrained, models))


if __name__ == "__main__":
    main()
