"""How often each attack of the quick audit finds what it should, and what it should not, on real networks.

    python -m experiments audit-attacks --num 70

Three kinds of networks: an MLP on digits, an MLP and a small residual network on the embedded sample. For each of --num
draws an original is trained with the forgotten examples and another network without them, from fresh weights. The
audit of the two should find the examples in the first and not in the second: what it finds there is a false alarm.
The first --methods draws of each kind also make the original forget by each method. `drawn outputs` are no networks:
logits, features and difficulties of 64 forgotten and 500 unseen examples from one distribution, --drawn times. Writes
results/audit/attacks.jsonl; what is there is not done again.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments import places
from experiments.commit import origin
from experiments.markdown import sourced
from expunge.auditing import AuditSettings, audit
from expunge.auditing.attacks import FALSE_ALARMS, classifier_attack, rank_attack, reference_attack
from expunge.auditing.forward import Outputs
from expunge.data import Examples, load_data
from expunge.markdown import markdown
from expunge.methods import METHODS, Needs, make_method
from expunge.metrics import Difficulty, clopper_pearson, score_test
from expunge.models import ModelSpec, build
from expunge.randomness import stream
from expunge.training import Recipe, train
from expunge.unlearning import unlearn

TARGET = places.RESULTS / "audit" / "attacks.jsonl"
NUM_FORGET = 64
DRAWN = "drawn outputs"
FEWEST = 10
"""Audits of which a row of the table is made; fewer say too little."""
OURS = ("calibrated", "masked_distillation", "held_boundary", "targeted")
"""At their defaults; the others with the settings of the paper, or of their source."""

ALONE = ("held_boundary",)
"""Measured without test examples, as it is the default then."""

ROWS = (*OURS, *sorted({*METHODS} - {*OURS, "retrain", "amnesiac_undo"}))
"""`retrain` is a row of its own, and `amnesiac_undo` needs a log of the training."""


def digits() -> tuple[Examples, Examples]:
    """1,000 to train on, 797 held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    inputs = torch.tensor(found.data, dtype=torch.float32) / 16
    order = torch.randperm(len(inputs), generator=stream("digits", 0))
    data = Examples(inputs, torch.tensor(found.target)).take(order)
    return data.take(torch.arange(1000)), data.take(torch.arange(1000, len(order)))


def sample() -> tuple[Examples, Examples]:
    """The embedded sample."""
    return load_data("sample:train").examples, load_data("sample:test").examples


def mlp(width: int) -> nn.Module:
    """Two hidden layers, on inputs that are flattened and scaled."""
    return nn.Sequential(
        nn.Linear(width, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10)
    )


class Pixels(nn.Module):
    """An MLP on 8-bit images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(28 * 28)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 10) of images (B, 1, 28, 28)."""
        logits: torch.Tensor = self.network(images.flatten(1).float() / 255)
        return logits


def resnet() -> nn.Module:
    """The small residual network, narrow."""
    spec = ModelSpec(
        architecture="small_resnet", num_classes=10, in_channels=1, image_size=28, mean=(0.286,), std=(0.353,),
        options={"width": 8},
    )  # fmt: skip
    return build(spec)


ADAM = Recipe(epochs=30, batch_size=64, lr=1e-3, momentum=0.9, weight_decay=0.0, optimizer="adam")
KINDS: Mapping[str, tuple[Callable[[], tuple[Examples, Examples]], Callable[[], nn.Module], Recipe]] = {
    "digits, MLP": (digits, lambda: mlp(64), ADAM),
    "sample, MLP": (sample, Pixels, ADAM),
    "sample, small ResNet": (sample, resnet, Recipe(epochs=12, batch_size=64, lr=0.1)),
}


def main() -> None:
    """Measures what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=70, help="draws of each kind")
    parser.add_argument("--methods", type=int, default=10, help="draws of each kind for which methods are run")
    parser.add_argument("--drawn", type=int, default=1000, help="draws of outputs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    made = origin()
    done = {(line["kind"], line["draw"]) for line in lines()}
    for draw in range(arguments.drawn):
        if (DRAWN, draw) not in done:
            write(DRAWN, draw, {DRAWN: drawn(draw)}, made)
    for draw in range(arguments.num):
        for kind in KINDS:
            if (kind, draw) not in done:
                found = measured(kind, draw, with_methods=draw < arguments.methods)
                write(kind, draw, found, made)
                print(kind, draw, {row: audited["verdict"] for row, audited in found.items()}, flush=True)
    print(attacks_table())


def write(kind: str, draw: int, audits: Mapping[str, Any], made: Mapping[str, str]) -> None:
    """Appends a line to the results."""
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with TARGET.open("a") as file:
        file.write(json.dumps({"kind": kind, "draw": draw, "audits": audits, **made}, sort_keys=True) + "\n")


def drawn(draw: int) -> dict[str, Any]:
    """The attacks where nothing is recognisable: both sets are of one distribution, with classes of their own."""
    rng = np.random.default_rng(draw)
    sets, hard = [], []
    for num in (NUM_FORGET, 500):
        labels = rng.integers(0, 10, num)
        features = rng.normal(size=(num, 40)) + 0.2 * labels[:, None]
        logits = rng.normal(size=(num, 10)) + features[:, :10]
        logits[np.arange(num), labels] += 2 + 0.3 * labels
        shifted = tuple(logits + 0.3 * rng.normal(size=logits.shape) for _ in range(4))
        outputs = Outputs(logits=logits, labels=labels, features=torch.from_numpy(features), shifted=shifted)
        sets.append(outputs)
        hard.append(outputs.scores + 2 * rng.normal(size=num))
    level = FALSE_ALARMS["rank test"]
    labels_of = {"forget_labels": sets[0].labels, "test_labels": sets[1].labels}
    difficulty = Difficulty(forget=hard[0], test=hard[1], num_references=4, accuracy=0.5, forget_accuracy=0.5)
    made = (
        rank_attack(score_test(sets[0].scores, sets[1].scores, **labels_of, false_alarms=level)),
        classifier_attack(sets[0], sets[1], seed=draw),
        reference_attack(sets[0], sets[1], difficulty),
    )
    found = {a.name: {"p": a.p_value, "auc": a.auc, "found": a.succeeded} for a in made}
    return {"verdict": "FAIL" if any(a.succeeded for a in made) else "INCONCLUSIVE", "after": found}


def measured(kind: str, draw: int, *, with_methods: bool) -> dict[str, Any]:
    """Audits of one draw by row: `original` (against itself), `retrained`, and the methods."""
    load, make, recipe = KINDS[kind]
    data, test = load()
    order = torch.randperm(len(data), generator=stream("attacks draw", draw))
    gone, rest = data.take(order[:NUM_FORGET]), data.take(order[NUM_FORGET:])
    networks = {}
    for number, (name, part) in enumerate((("original", data), ("retrained", rest))):
        torch.manual_seed(2 * draw + number)
        networks[name] = make()
        train(networks[name], part, recipe, rng=torch.Generator().manual_seed(2 * draw + number))
        networks[name].eval()
    original = networks["original"]
    if with_methods:
        for name in ROWS:
            method = make_method(name, preset=None if name in OURS else "paper")
            given: dict[str, Any] = {"test": _pairs(test)} if Needs.TEST in method.needs and name not in ALONE else {}
            given |= {"retain": _pairs(rest)} if Needs.RETAIN in method.needs else {}
            given |= {"factory": make} if Needs.FACTORY in method.needs else {}
            networks[name] = unlearn(original, _pairs(gone), method=method, seed=draw, **given).model
    how = AuditSettings(recipe=recipe, factory=make, reference_minutes=60)
    return {name: _record(audit(original, net, gone, test, settings=how, seed=draw)) for name, net in networks.items()}


def _pairs(examples: Examples) -> Any:
    return torch.utils.data.TensorDataset(examples.inputs, examples.labels)


def _record(report: Any) -> dict[str, Any]:
    when = {"before": report.attacks_before, "after": report.attacks_after}
    return {
        "verdict": report.verdict,
        "works": report.loss.works,
        "loss": report.loss.loss,
        **{
            at: {a.name: {"p": a.p_value, "auc": a.auc, "found": a.succeeded} for a in made}
            for at, made in when.items()
        },
        "both models": {each.name: each.auc for each in report.comparisons},
    }


@cache
def lines() -> tuple[dict[str, Any], ...]:
    """What was measured."""
    return tuple(json.loads(line) for line in TARGET.read_text().splitlines()) if TARGET.exists() else ()


def attacks_table() -> str:
    """A row a kind of model: by how many audits each attack finds the forgotten examples, and the verdicts."""
    lines.cache_clear()
    found = lines()
    if len(found) < FEWEST:
        return ""
    rows = []
    for name in (DRAWN, "original", "retrained", *ROWS):
        here = [(line["kind"], line["audits"][name]) for line in found if name in line["audits"]]
        if len(here) < FEWEST:
            continue
        cells = []
        for attack in FALSE_ALARMS:
            hits = [audited["after"][attack]["found"] for _, audited in here if attack in audited["after"]]
            cells.append(_share(sum(hits), len(hits)))
        any_hits = sum(any(a["found"] for a in audited["after"].values()) for _, audited in here)
        verdicts = [sum(audited["verdict"] == word for _, audited in here) for word in ("PASS", "FAIL", "INCONCLUSIVE")]
        rows.append((name, str(len(here)), *cells, _share(any_hits, len(here)), " / ".join(map(str, verdicts))))
    head = ["model", "audits", *FALSE_ALARMS, "any", "PASS / FAIL / INCONCLUSIVE"]
    of = f"{NUM_FORGET} forgotten; {', '.join(KINDS)}; 95% intervals"
    number = 1 + max(line["draw"] for line in found if line["kind"] != DRAWN)
    return sourced(markdown(head, rows), found, of, f"`python -m experiments audit-attacks --num {number}`")


def _share(hits: int, num: int) -> str:
    low, high = clopper_pearson(hits, num)
    return f"{100 * hits / num:.1f}% ({100 * float(low):.1f} to {100 * float(high):.1f})"
