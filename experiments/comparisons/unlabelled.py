"""What unlabelled images are worth where there is no test set: of the same kind as the training data, and of another.

    python -m experiments unlabelled

64 images of the embedded sample are forgotten by `held_boundary`, the draws of grids/alone-sample.toml, with 0, 100 or
1,000 unlabelled images beside them: others of Fashion-MNIST, or of CIFAR-100 in grey, their middle 28 × 28 pixels.
Writes results/alone-unlabelled.jsonl; what is there is not done again.
"""

import json
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments import places
from experiments.commit import origin
from experiments.comparisons.alone import accuracy
from experiments.markdown import sourced
from experiments.paper.statistics import summarize
from expunge.data import digests, draw_ids, load_data
from expunge.markdown import markdown
from expunge.models import load_model
from expunge.randomness import stream
from expunge.unlearning import unlearn

TARGET = places.RESULTS / "alone-unlabelled.jsonl"
SIZE, SEEDS = 64, (1, 2, 3, 4, 5)
NUMBERS = (100, 1000)


def same_kind() -> Tensor:
    """Training images of Fashion-MNIST that are not in the sample."""
    sample = {digest for part in ("train", "test") for digest in digests(load_data(f"sample:{part}").images)}
    images = load_data("fashion-mnist:train").images
    return images[[n for n, digest in enumerate(digests(images)) if digest not in sample]]


def another_kind() -> Tensor:
    """CIFAR-100's training images in grey, their middle 28 × 28 pixels."""
    images = load_data("cifar100:train").images.float()
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (images * weights[:, None, None]).sum(1, keepdim=True).round().to(torch.uint8)[:, :, 2:30, 2:30]


KINDS: dict[str, Callable[[], Tensor]] = {"Fashion-MNIST": same_kind, "CIFAR-100 in grey": another_kind}


def main() -> None:
    """Measures what is missing."""
    made = origin()
    network, _ = load_model(str(places.RESULTS / "better" / "originals" / "sample-small_resnet"))
    train, test = load_data("sample:train"), load_data("sample:test")
    images = {kind: load() for kind, load in KINDS.items()}
    rows: list[tuple[str, int]] = [("none", 0), *((kind, number) for kind in KINDS for number in NUMBERS)]
    for seed in SEEDS:
        gone = train.select(draw_ids(train, SIZE, seed))
        for kind, number in rows:
            place = {"kind": kind, "number": number, "seed": seed}
            if any(place.items() <= line.items() for line in lines()):
                continue
            given: dict[str, Any] = {}
            if number:
                order = torch.randperm(len(images[kind]), generator=stream("unlabelled images", seed))
                given["unlabelled"] = TensorDataset(images[kind][order[:number]])
            done = unlearn(network, gone, method="held_boundary", seed=seed, **given)
            of = {"forget": [gone.images, gone.labels], "test": [test.images, test.labels]}
            measured = {
                **{f"{name}_accuracy": accuracy(done.model, examples) for name, examples in of.items()},
                "before": accuracy(network, of["test"]),
                "steps": done.trace.steps,
                "seconds": done.trace.seconds,
            }
            with TARGET.open("a") as file:
                file.write(json.dumps({**place, **measured, **made}, sort_keys=True) + "\n")
    print(unlabelled_table())


def lines() -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(line) for line in places.read(TARGET).splitlines()] if TARGET.exists() else []


def unlabelled_table() -> str:
    """A row a kind and number of images: points of test accuracy lost, and what is still right."""
    found = lines()
    if not found:
        return "Not measured yet."
    rows = []
    for kind, number in dict.fromkeys((line["kind"], line["number"]) for line in found):
        here = [line for line in found if (line["kind"], line["number"]) == (kind, number)]
        lost = summarize([100 * (line["before"] - line["test_accuracy"]) for line in here])
        spread = "" if lost.high is None else f" ± {lost.high - lost.mean:.1f}"
        right = 100 * fmean(line["forget_accuracy"] for line in here)
        steps = fmean(line["steps"] for line in here)
        rows.append([kind, f"{number:,}", f"{lost.mean:.1f}{spread}", f"{right:.0f}", f"{steps:.0f}", str(lost.n)])
    head = ["unlabelled images", "number", "test points lost", "still right, %", "steps", "n"]
    of = f"`held_boundary`, {SIZE} forgotten; means with 95% intervals"
    return sourced(markdown(head, rows), found, of, "`python -m experiments unlabelled`")
