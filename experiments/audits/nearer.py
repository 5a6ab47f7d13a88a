"""Does `targets="residuals"` come nearer to retraining than `calibrated` as it is? What U-LiRA sees of either.

    python -m experiments audit-nearer --num 64 --work runs/nearer
    python -m experiments audit-nearer --num 16 --work runs/nearer --targets

Network and recipe are those of `full-audit` in fp32, on the embedded sample. For the 32 images of a draw it trains
--num networks on all images, and twice as many without the 32: half of those are what the others are compared with,
and half are a row of their own, the control. The originals then forget by either setting. Each model is a line of
results/audit/nearer.jsonl, written when it is done; what is there is not done again. Originals are kept in --work.
`--targets` prints what U-LiRA sees of the targets themselves: two students a model, the second of which is taught 10%
of the retained images too. Nothing is unlearned, and the guard against targets that are recognisable is in use.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments import places
from experiments.audits.full import SETTINGS
from experiments.commit import origin
from experiments.markdown import sourced
from expunge.data import Examples, audit_side, calibration_side, draw_ids, load_data
from expunge.files import written_whole
from expunge.markdown import markdown
from expunge.methods import Calibrated
from expunge.methods._confidence import ranks, scaled_confidence, student_confidence, transported
from expunge.methods._targets import kept, nearer
from expunge.methods._task import Recorder
from expunge.metrics import lira, score_test
from expunge.models import build, logits_of
from expunge.trainer import spec_for
from expunge.training import recipe_for, train
from expunge.unlearning import unlearn

TARGET = places.RESULTS / "audit" / "nearer.jsonl"
NUM_FORGET = 32
REFERENCE, ORIGINAL, CONTROL = "reference", "original", "retrained (control)"
METHODS = {"calibrated": Calibrated(), "calibrated targets=residuals": Calibrated(targets="residuals")}
SEED = 0
"""Of the split of the test images; each run of a method has it."""


class Bench:
    """The models of a draw, and what they say. Originals are on all images, whatever the draw."""

    def __init__(self, work: Path, draw: int) -> None:
        self.work, self.draw, self.data, self.test = work, draw, load_data("sample"), load_data("sample:test")
        self.forget = self.data.select(draw_ids(self.data, NUM_FORGET, draw))
        recipe, options = recipe_for("sample", "small_resnet")
        self.recipe = replace(recipe, epochs=int(SETTINGS["epochs"]))
        self.spec = spec_for(self.data, "small_resnet", options)
        inputs = self.test.examples.inputs
        self.heldout = self.test.examples.take(calibration_side(inputs, SEED).nonzero()[:, 0])
        self.audited = self.test.examples.take(audit_side(inputs, [SEED]).nonzero()[:, 0])

    def trained(self, row: str, j: int) -> nn.Module:
        """A network of `REFERENCE`, `ORIGINAL` or `CONTROL`."""
        images = self.data if row == ORIGINAL else self.data.without(self.forget)
        part = {ORIGINAL: 1, REFERENCE: 2 + self.draw, CONTROL: 1002 + self.draw}[row]
        torch.manual_seed(seed := 1_000_003 * part + j)
        model = build(self.spec)
        train(model, images.examples, self.recipe, rng=torch.Generator().manual_seed(seed))
        return model.eval()

    def original(self, j: int) -> nn.Module:
        """The one in `work`, trained where it is not there."""
        path = self.work / f"O-{j}.pt"
        if not path.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                torch.save(self.trained(ORIGINAL, j).state_dict(), temporary)
        model = build(self.spec)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()

    def measured(self, row: str, j: int) -> dict[str, Any]:
        """The line of a model, but for where it comes from. `seconds` are those of forgetting, None where none does."""
        seconds = None
        if row in METHODS:
            model, start = self.original(j), time.perf_counter()
            model = unlearn(model, self.forget, method=METHODS[row], test=self.test, seed=SEED).model
            seconds = time.perf_counter() - start
        else:
            model = self.original(j) if row == ORIGINAL else self.trained(row, j)
        of, others = self.forget.examples, self.audited
        logits, beside = (logits_of(model, part.inputs).double() for part in (of, others))
        scores, held = (scaled_confidence(out, part.labels).numpy() for out, part in ((logits, of), (beside, others)))
        return {
            "draw": self.draw,
            "row": row,
            "model": j,
            "scores": [round(float(score), 5) for score in scores],
            "forget_accuracy": accuracy(logits, of),
            "test_accuracy": accuracy(beside, others),
            "verdict": str(
                score_test(scores, held, forget_labels=of.labels.numpy(), test_labels=others.labels.numpy()).verdict
            ),
            "seconds": seconds,
        }

    def targets(self, j: int) -> dict[str, np.ndarray[Any, Any]]:
        """The targets of an original's forgotten images, by their kind."""
        model, forget, heldout = self.original(j), self.forget.examples, self.heldout
        own, unseen = (scaled_confidence(logits_of(model, part.inputs), part.labels) for part in (forget, heldout))
        found = {"own": own}
        remain = self.data.without(self.forget)
        retained = remain.select(draw_ids(remain, len(remain) // 10, self.draw)).examples
        both = Examples(torch.cat([heldout.inputs, retained.inputs]), torch.cat([heldout.labels, retained.labels]))
        for taught, told in ((heldout, ""), (both, ", the student taught 10% of the retained images too")):
            order = ranks(own) + ranks(student_confidence(model, forget, taught, torch.Generator().manual_seed(j)))
            by_rank = transported(order, forget.labels, unseen, heldout.labels)
            found |= {
                f"ranks{told}": by_rank,
                f"ranks, confident ones kept{told}": kept(own, by_rank, forget.labels, unseen, heldout.labels),
                f"residuals{told}": nearer(order, by_rank, model, forget, heldout, Recorder()),
            }
        return {name: values.double().numpy() for name, values in found.items()}


def accuracy(logits: Tensor, of: Examples) -> float:
    """In [0, 1]."""
    return float((logits.argmax(1) == of.labels).double().mean())


def main() -> None:
    """Measures what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=64, help="models of each kind")
    parser.add_argument("--first", type=int, default=0, help="the number of the first: several machines can share them")
    parser.add_argument(
        "--draw", type=int, default=3, help="of the forgotten images; 0 to 2 were used to find the rule"
    )
    parser.add_argument("--targets", action="store_true", help="score targets alone: nothing is unlearned")
    parser.add_argument("--work", type=Path, required=True, help="where the originals are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made, bench = origin("1 thread"), Bench(arguments.work, arguments.draw)
    rows = (REFERENCE, *(() if arguments.targets else (ORIGINAL, CONTROL, *METHODS)))
    done = {(line["draw"], line["row"], line["model"]) for line in lines()}
    for j in range(arguments.first, arguments.num):
        for row in rows:
            if (bench.draw, row, j) not in done:
                line = bench.measured(row, j)
                TARGET.parent.mkdir(parents=True, exist_ok=True)
                with TARGET.open("a") as file:
                    file.write(json.dumps({**line, **made}, sort_keys=True) + "\n")
                print(j, row, line["verdict"], flush=True)
    if arguments.targets:
        each = [bench.targets(j) for j in range(arguments.num)]
        for name in each[0]:
            print(name, seen([targets[name] for targets in each], scores_of(bench.draw, REFERENCE)))
    else:
        print(nearer_table())


def lines() -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(line) for line in TARGET.read_text().splitlines()] if TARGET.exists() else []


def scores_of(draw: int, row: str) -> list[list[float]]:
    """φ of the forgotten images under each model of a row."""
    return [line["scores"] for line in lines() if (line["draw"], line["row"]) == (draw, row)]


def seen(scores: Iterable[Any], references: Iterable[Any]) -> str:
    """AUC of U-LiRA and its interval."""
    found = lira(np.array(list(scores)), np.array(list(references)))
    return f"{found.auc:.3f} ({found.auc_interval[0]:.3f} to {found.auc_interval[1]:.3f})"


def nearer_table() -> str:
    """A row a draw and a kind of model; those with fewer than three models are left out."""
    found, rows = lines(), []
    for draw in sorted({line["draw"] for line in found}):
        references = scores_of(draw, REFERENCE)
        for row in (ORIGINAL, CONTROL, *METHODS):
            here = [line for line in found if (line["draw"], line["row"]) == (draw, row)]
            if min(len(here), len(references)) < 3:
                continue
            accuracies = [
                f"{100 * mean(line[key] for line in here):.1f}" for key in ("forget_accuracy", "test_accuracy")
            ]
            counts = [sum(line["verdict"] == word for line in here) for word in ("PASS", "INCONCLUSIVE", "FAIL")]
            seconds = f"{mean(line['seconds'] for line in here):.0f}" if row in METHODS else ""
            auc = seen([line["scores"] for line in here], references)
            rows.append([str(draw), row, auc, *accuracies, " / ".join(map(str, counts)), seconds, str(len(here))])
    if not rows:
        return ""
    head = ["draw", "models", "AUC (95%)", "forget %", "test %", "PASS / INCONCLUSIVE / FAIL", "seconds", "n"]
    num = max(len(scores_of(int(row[0]), REFERENCE)) for row in rows)
    of = f"U-LiRA against {num} retrained networks; {NUM_FORGET} forgotten; verdicts of the rank test"
    return sourced(
        markdown(head, rows), found, of, f"`python -m experiments audit-nearer --num {num} --work runs/nearer`"
    )


if __name__ == "__main__":
    main()
