"""Does the correction for difficulty keep odd forget sets from failing after retraining, and find them before it?

    python -m experiments audit-difficulty --num 20 --work runs/difficulty

A small network on the embedded sample, some of whose labels are made wrong. Four sets of 32, drawn anew each time, are
forgotten at once, by retraining without all of them: a random draw; the mislabelled images; the hardest images, as a
network that was trained on the other half of the training set finds; the nearest neighbours of one image, as the
photos of one person would be. Margins are kept in --work, and what is there already is not trained again. Writes
results/audit/difficulty.json.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments import places
from experiments.commit import origin
from experiments.markdown import sourced
from expunge.auditing import difficulty_of
from expunge.auditing.forward import outputs_of
from expunge.data import Examples, load_data
from expunge.files import written_whole
from expunge.markdown import markdown
from expunge.metrics import difficulty_calibrated_scores, score_test
from expunge.models import ModelSpec, build
from expunge.randomness import stream
from expunge.training import Recipe, train

TARGET = places.RESULTS / "audit" / "difficulty.json"
NUM = 32
KINDS = {
    "random": "a random draw",
    "mislabelled": "mislabelled images",
    "hard": "the hardest images",
    "alike": "images that are alike",
}
SPEC = ModelSpec(architecture="small_resnet", num_classes=10, in_channels=1, image_size=28, mean=(0.286,), std=(0.353,))
RECIPE = Recipe(epochs=12, batch_size=64, lr=0.1, precision="bf16")


def main() -> None:
    """Trains what is missing, and audits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=20, help="repetitions")
    parser.add_argument("--work", type=Path, required=True, help="where the margins are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = origin("1 thread")
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = []
    for repetition in range(arguments.num):
        path = arguments.work / f"{repetition}.npz"
        if not path.exists():
            with written_whole(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **measured(repetition))
            print(f"{repetition + 1} of {arguments.num}", flush=True)
        with np.load(path) as kept:
            found.append(audited(dict(kept)))
    TARGET.write_text(json.dumps({"found": found, **made}, indent=1, sort_keys=True) + "\n")
    print(difficulty_table())


def measured(repetition: int) -> dict[str, Any]:
    """Margins of the forgotten (the four sets after one another) and of the held-out examples, and their difficulty."""
    heldout = load_data("sample:test").examples
    data, chosen = sets(repetition)
    everything = torch.cat(list(chosen.values()))
    forget = data.take(everything)
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[everything] = False
    models = {
        "original": trained(data, repetition),
        "retrained": trained(data.take(torch.nonzero(kept).flatten()), 1000 + repetition),
    }
    hard = difficulty_of(forget, heldout, factory=lambda: build(SPEC), recipe=RECIPE, seed=repetition)
    return {
        "forget_labels": forget.labels.numpy(),
        "heldout_labels": heldout.labels.numpy(),
        "forget_difficulty": hard.forget,
        "heldout_difficulty": hard.test,
        **{f"{name}_forget": outputs_of(model, forget).scores for name, model in models.items()},
        **{f"{name}_heldout": outputs_of(model, heldout).scores for name, model in models.items()},
    }


def audited(kept: dict[str, Any]) -> dict[str, Any]:
    """{"model, kind, how": verdict, A1 and A2} of one repetition."""
    found: dict[str, Any] = {}
    for name in ("original", "retrained"):
        margins = kept[f"{name}_forget"], kept[f"{name}_heldout"]
        fixed = difficulty_calibrated_scores(*margins, kept["forget_difficulty"], kept["heldout_difficulty"])
        for how, (ours, theirs) in (("as it is", margins), ("corrected", fixed[:2])):
            for number, kind in enumerate(KINDS):
                part = slice(number * NUM, (number + 1) * NUM)
                test = score_test(
                    ours[part],
                    theirs,
                    forget_labels=kept["forget_labels"][part],
                    test_labels=kept["heldout_labels"],
                )
                found[f"{name}, {kind}, {how}"] = {"verdict": test.verdict, "a1": test.a1, "a2": test.a2}
    return found


def sets(seed: int) -> tuple[Examples, dict[str, Tensor]]:
    """The training set, some of it mislabelled, and the positions of the four sets, which share no example."""
    images = load_data("sample")
    labels, rng = images.labels.clone(), stream("kinds", seed)
    order = torch.randperm(len(images), generator=rng)
    random, wrong, rest = order[:NUM], order[NUM : 2 * NUM], order[2 * NUM :]
    labels[wrong] = (labels[wrong] + 1 + torch.randint(0, 9, (NUM,), generator=rng)) % 10
    data = Examples(images.images, labels)
    judged, taught = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    hardness = torch.from_numpy(outputs_of(trained(data.take(taught), 2000 + seed), data.take(judged)).scores)
    hard, others = lowest(judged, lambda _: hardness)

    def distance(index: Tensor) -> Tensor:
        pixels = images.images[index].flatten(1).float()
        other_class = labels[index] != labels[index[0]]
        return (pixels - pixels[0]).square().sum(1) + 1e12 * other_class

    alike, _ = lowest(torch.cat([others, taught]), distance)
    return data, {"random": random, "mislabelled": wrong, "hard": hard, "alike": alike}


def lowest(index: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The `NUM` positions with the lowest scores, and the rest in their order."""
    ranked = score(index).argsort(stable=True)
    return index[ranked[:NUM]], index[ranked[NUM:].sort().values]


def trained(data: Examples, seed: int) -> nn.Module:
    """A network of `SPEC` by `RECIPE`."""
    torch.manual_seed(seed)
    network = build(SPEC)
    train(network, data, RECIPE, rng=torch.Generator().manual_seed(seed))
    return network


def difficulty_table() -> str:
    """A row a kind of forget set: mean A1 and how many audits failed, for both models, without and with correction."""
    record = json.loads(TARGET.read_text())
    found = record["found"]
    rows = []
    for kind, words in KINDS.items():
        row = [words]
        for model in ("retrained", "original"):
            for how in ("as it is", "corrected"):
                tests = [each[f"{model}, {kind}, {how}"] for each in found]
                mean = sum(test["a1"] for test in tests) / len(tests)
                row.append(f"{mean:.2f}, {sum(test['verdict'] == 'FAIL' for test in tests)}/{len(tests)}")
        rows.append(row)
    head = [
        "forgotten",
        *(f"{model}, {how}" for model in ("retrained", "original") for how in ("as it is", "corrected")),
    ]
    of = f"mean A1, audits that FAIL; {NUM} forgotten, 1,000 held out"
    command = f"`python -m experiments audit-difficulty --num {len(found)} --work runs/difficulty`"
    return sourced(markdown(head, rows), record, of, command)
