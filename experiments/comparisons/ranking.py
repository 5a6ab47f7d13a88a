"""What tells typical forgotten examples from odd ones? Orders of them, against how retrained networks score them.

    python -m experiments ranking

Small networks trained on the embedded sample rank 128 of their training images by what `calibrated` could have at
hand. The truth is the mean margin of each image under 24 networks that were trained without them, as those of
experiments.audits.full are. Writes results/better/ranking.json.
"""

import json
from dataclasses import replace
from itertools import combinations
from statistics import mean

import torch
from scipy import stats
from torch import Tensor, nn

from experiments import places
from experiments.audits.full import SETTINGS
from experiments.commit import origin
from experiments.markdown import sourced
from expunge.data import Examples, ImageSet, calibration_side, draw_ids, load_data
from expunge.markdown import markdown
from expunge.methods._confidence import ranks, scaled_confidence, student_confidence
from expunge.models import build, logits_of
from expunge.trainer import spec_for
from expunge.training import Recipe, augmented, recipe_for, train

TARGET = places.RESULTS / "better" / "ranking.json"
ORDERS = {
    "own": "own margin",
    "shifted": "margin of shifted copies",
    "references": "margin of reference networks",
    "student": "margin of a student",
}
NUM_FORGET, RETRAINED, ORIGINALS = 128, 24, 4
VIEWS, REFERENCES = 16, 4
REFERENCE = Recipe(epochs=20, batch_size=64, lr=1e-3, optimizer="adam", momentum=0.9, weight_decay=1e-5)


def main() -> None:
    """Measures it."""
    made = origin()
    data, test = load_data("sample"), load_data("sample:test")
    gone = data.select(draw_ids(data, NUM_FORGET, 0))
    forget, rest = gone.examples, data.without(gone)
    scores = []
    for seed in range(RETRAINED):
        scores.append(scaled_confidence(logits_of(trained(rest, ORIGINALS + seed), forget.inputs), forget.labels))
        print(f"retrained {seed + 1} of {RETRAINED}", flush=True)
    total = torch.stack(scores).sum(0)
    truth = total / RETRAINED
    left = [spearman(one, (total - one) / (RETRAINED - 1)) for one in scores]
    found: dict[str, list[float]] = {}
    for seed in range(ORIGINALS):
        network, rng = trained(data, seed), torch.Generator().manual_seed(seed)
        side = calibration_side(test.images, seed)
        held = Examples(test.images[side], test.labels[side])
        views = [
            scaled_confidence(logits_of(network, augmented(forget.inputs, "shift", rng)), forget.labels)
            for _ in range(VIEWS)
        ]
        at_hand = {
            "own": scaled_confidence(logits_of(network, forget.inputs), forget.labels),
            "shifted": torch.stack(views).mean(0),
            "references": reference_margins(data, forget, held, rng),
            "student": student_confidence(network, forget, held, rng),
        }
        for size in (1, 2, 3):
            for names in combinations(at_hand, size):
                order = torch.stack([ranks(at_hand[name]) for name in names]).sum(0)
                found.setdefault("+".join(names), []).append(spearman(order, truth))
        print({name: round(values[-1], 3) for name, values in found.items()}, flush=True)
    record = {
        "orders": found,
        "one_retrained": mean(left),
        "num_forget": len(gone),
        **made,
    }
    TARGET.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(ranking_table())


def trained(data: ImageSet, seed: int) -> nn.Module:
    """The network of the full audit's benchmark."""
    recipe = replace(recipe_for("sample", "small_resnet")[0], epochs=int(SETTINGS["epochs"]), precision="bf16")
    torch.manual_seed(seed)
    return learned(data, data.examples, recipe, torch.Generator().manual_seed(seed))


def reference_margins(data: ImageSet, forget: Examples, heldout: Examples, rng: torch.Generator) -> Tensor:
    """Mean margins under networks that are trained on held-out examples and their labels alone."""
    networks = [learned(data, heldout, REFERENCE, rng) for _ in range(REFERENCES)]
    return torch.stack(
        [scaled_confidence(logits_of(network, forget.inputs), forget.labels) for network in networks]
    ).mean(0)


def learned(data: ImageSet, examples: Examples, recipe: Recipe, rng: torch.Generator) -> nn.Module:
    """A fresh network for such data, trained on the examples."""
    network = build(spec_for(data, "small_resnet", {}))
    train(network, examples, recipe, rng=rng)
    return network


def spearman(order: Tensor, truth: Tensor) -> float:
    """Rank correlation."""
    return float(stats.spearmanr(order, truth).statistic)


def ranking_table() -> str:
    """A row an order."""
    record = json.loads(TARGET.read_text())
    rows = [
        [
            " + ".join(ORDERS[part] for part in name.split("+")),
            f"{mean(values):.2f}",
            f"{min(values):.2f} to {max(values):.2f}",
        ]
        for name, values in record["orders"].items()
    ]
    rows.append(["margin under one retrained network", f"{record['one_retrained']:.2f}", ""])
    of = f"{record['num_forget']} forgotten, {len(record['orders']['own'])} originals"
    head = [
        "ranked by (sums of ranks)",
        f"Spearman with {RETRAINED} retrained networks' mean margins",
        "lowest to highest",
    ]
    return sourced(markdown(head, rows), record, of, "`python -m experiments ranking`")
