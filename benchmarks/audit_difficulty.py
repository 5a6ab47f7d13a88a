"""Does the correction for difficulty keep odd forget sets from failing after retraining, and find them before it?

    python -m benchmarks.audit_difficulty --num 20

A small network on the embedded sample, some of whose labels are made wrong. Four sets of 32, drawn anew each time, are
forgotten at once, by retraining without all of them: a random draw; the mislabelled images; the hardest images, as a
network that was trained on the other half of the training set finds; the nearest neighbours of one image, as the
photos of one person would be. One JSON line a repetition goes to results/audit/difficulty.jsonl; repetitions that are
there already are skipped.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.forgetting import commit
from benchmarks.tables import markdown
from expunge.audit import corrected_scores, difficulty_of, logit_margin, score_test
from expunge.audit.forward import outputs_of
from expunge.audit.placement import Floats
from expunge.data import Examples, load_data
from expunge.models import ModelSpec, build
from expunge.randomness import stream
from expunge.training import Recipe, train

TARGET = Path(__file__).parents[1] / "results" / "audit" / "difficulty.jsonl"
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
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=20, help="repetitions")
    num = parser.parse_args().num
    torch.set_num_threads(1)
    label = commit()
    heldout = load_data("sample:test").examples
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    for repetition in range(len(lines()), num):
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
        found: dict[str, Any] = {}
        for name, model in models.items():
            margins = margins_of(model, forget), margins_of(model, heldout)
            fixed = corrected_scores(margins[0], margins[1], hard.forget, hard.heldout)
            for how, (ours, theirs) in (("as it is", margins), ("corrected", fixed[:2])):
                for number, kind in enumerate(chosen):
                    part = slice(number * NUM, (number + 1) * NUM)
                    test = score_test(
                        ours[part],
                        theirs,
                        forget_labels=forget.labels[part].numpy(),
                        heldout_labels=heldout.labels.numpy(),
                    )
                    found[f"{name}, {kind}, {how}"] = {"verdict": test.verdict, "a1": test.a1, "a2": test.a2}
        told = {"commit": label, "torch": torch.__version__, "device": f"{platform.machine()}, 1 thread"}
        with TARGET.open("a") as file:
            file.write(json.dumps({"repetition": repetition, "found": found, **told}) + "\n")
        print(f"{repetition + 1} of {num}", flush=True)
    print(difficulty_table())


def sets(seed: int) -> tuple[Examples, dict[str, Tensor]]:
    """The training set, some of it mislabelled, and the positions of the four sets, which share no example."""
    images = load_data("sample")
    labels, rng = images.labels.clone(), stream("kinds", seed)
    order = torch.randperm(len(images), generator=rng)
    random, wrong, rest = order[:NUM], order[NUM : 2 * NUM], order[2 * NUM :]
    labels[wrong] = (labels[wrong] + 1 + torch.randint(0, 9, (NUM,), generator=rng)) % 10
    data = Examples(images.images, labels)
    judged, taught = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    hardness = torch.from_numpy(margins_of(trained(data.take(taught), 2000 + seed), data.take(judged)))
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


def margins_of(model: nn.Module, examples: Examples) -> Floats:
    """Logit margins under `model`."""
    outputs = outputs_of(model, examples)
    return logit_margin(outputs.logits, outputs.labels)


def lines() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in TARGET.read_text().splitlines()] if TARGET.exists() else []


def difficulty_table() -> str:
    """A row a kind of forget set: mean A1 and how many audits failed, for both models, without and with correction."""
    found = lines()
    if not found:
        return "not measured"
    rows = []
    for kind, words in KINDS.items():
        row = [words]
        for model in ("retrained", "original"):
            for how in ("as it is", "corrected"):
                tests = [line["found"][f"{model}, {kind}, {how}"] for line in found]
                mean = sum(test["a1"] for test in tests) / len(tests)
                row.append(f"{mean:.2f}, {sum(test['verdict'] == 'FAIL' for test in tests)}/{len(tests)}")
        rows.append(row)
    head = [
        "forgotten",
        *(f"{model}, {how}" for model in ("retrained", "original") for how in ("as it is", "corrected")),
    ]
    told = (
        f"mean A1, audits that FAIL; {NUM} forgotten, 1,000 held out · `python -m benchmarks.audit_difficulty --num "
        f"{len(found)}` · {found[0]['device']} · torch {found[0]['torch']} · commit "
        + ", ".join(sorted({line["commit"] for line in found}))
    )
    return markdown(head, rows) + "\n\n" + told


if __name__ == "__main__":
    main()
