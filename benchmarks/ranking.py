"""What tells typical forgotten examples from odd ones? Orders of them, against how retrained networks score them.

    python -m benchmarks.ranking --work runs/full-audit

Four small networks trained on the embedded sample rank 32 of their training images by what `calibrated` has at hand.
The truth is the mean margin of each image under the 64 networks that benchmarks.full_audit trained without them.
Writes results/better/ranking.json.
"""

import argparse
import json
import platform
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from scipy import stats

from benchmarks.forgetting import commit
from benchmarks.full_audit import NUM_FORGET, SETTINGS
from benchmarks.tables import markdown
from expunge.audit.references import load_references
from expunge.audit.scores import logit_margin
from expunge.data import Examples, calibration_side, draw_ids, load_data
from expunge.methods._difficulty import reference_margins
from expunge.methods._margins import margins, ranks
from expunge.methods.calibrated import VIEWS
from expunge.models import build, load_model, logits_of
from expunge.training import augmented, recipe_for, train

TARGET = Path(__file__).parents[1] / "results" / "better" / "ranking.json"
ORDERS = {"own": "own margin", "shifted": "margin of shifted copies", "references": "margin of reference networks"}
ORIGINALS = 4


def main() -> None:
    """Measures it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="of benchmarks.full_audit")
    work = parser.parse_args().work
    label = commit()
    data, test = load_data("sample"), load_data("sample:test")
    gone = data.select(sorted(draw_ids(data, NUM_FORGET, 0), key=int))  # in the order of the references
    forget = Examples(gone.images, gone.labels)
    retrained = load_references(work / "references", rows=())
    scores = logit_margin(
        retrained.logits["retrained"]["forget"].reshape(-1, len(data.class_names)),
        np.tile(gone.labels.numpy(), retrained.num_models),
    ).reshape(retrained.num_models, -1)
    truth = scores.mean(0)
    left = [float(stats.spearmanr(one, (scores.sum(0) - one) / (len(scores) - 1)).statistic) for one in scores]
    found: dict[str, list[float]] = {}
    network, header = load_model(str(work / "model"))
    recipe = replace(recipe_for("sample", "small_resnet")[0], epochs=int(SETTINGS["epochs"]), precision="bf16")
    for seed in range(ORIGINALS):
        rng = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        if seed:
            network = build(header.spec)
            train(network, Examples(data.images, data.labels), recipe, rng=rng)
        held = calibration_side(test.images, seed).nonzero()[:, 0]
        views = [
            margins(logits_of(network, augmented(forget.inputs, "shift", rng)), forget.labels) for _ in range(VIEWS)
        ]
        at_hand = {
            "own": margins(logits_of(network, forget.inputs), forget.labels),
            "shifted": torch.stack(views).mean(0),
            "references": reference_margins(network, forget, Examples(test.images[held], test.labels[held]), rng),
        }
        for size in (1, 2, 3):
            for names in combinations(at_hand, size):
                order = torch.stack([ranks(at_hand[name]) for name in names]).sum(0)
                found.setdefault("+".join(names), []).append(float(stats.spearmanr(order, truth).statistic))
        print({name: round(values[-1], 3) for name, values in found.items()})
    record = {
        "orders": found,
        "one_retrained": mean(left),
        "num_forget": len(gone),
        "commit": label,
        "device": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    TARGET.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(ranking_table())


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
    told = (
        f"{record['num_forget']} forgotten, {ORIGINALS} originals · "
        "`python -m benchmarks.ranking --work runs/full-audit` · "
        f"{record['device']} · torch {record['torch']} · commit {record['commit']}"
    )
    head = ["ranked by (sums of ranks)", "Spearman with 64 retrained networks' mean margins", "lowest to highest"]
    return markdown(head, rows) + "\n\n" + told


if __name__ == "__main__":
    main()
