"""Twenty requests of 16 images one after another, against one request for all 320: what is lost, and what comes back.

    python -m experiments chains --models results/better/originals

The small residual network on the embedded sample, of grids/better-sample.toml. Writes results/better/chains.json; what
is there already is not done again.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments import places
from experiments.commit import origin
from experiments.grid.cells import as_before
from experiments.grid.measuring import model_digest
from expunge.auditing import AuditSettings, audit
from expunge.data import ImageSet, audit_side, draw_ids, load_data
from expunge.markdown import markdown
from expunge.methods import Method, Needs, make_method, settings_of
from expunge.metrics.rank_test import percentile_ranks
from expunge.metrics.scores import logit_scaled_confidence
from expunge.models import load_model, logits_of
from expunge.models.checkpoint import FILE_NAME
from expunge.unlearning import unlearn

TARGET = places.RESULTS / "better" / "chains.json"
REQUESTS, SIZE = 20, 16
ROWS: dict[str, dict[str, Any]] = {
    "calibrated": {},
    "calibrated mixing=paste": {"mixing": "paste"},
    "held_boundary alone": {},
    "calibrated mixtures=false": {"mixtures": False},
    "masked_distillation mixtures=false": {"mixtures": False, "mixing": "blend"},
    "targeted": {"lr": 3e-5},
    "delete": {"preset": "zhou2025"},
    "amnesiac": {"preset": "paper"},
}
"""Settings by row, whose name starts with the method's; `alone`: it is handed no test examples."""
SEEDS = (1, 2, 3)


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="where the grid keeps its originals")
    place = parser.parse_args().models / "sample-small_resnet"
    network, _ = load_model(str(place))
    digest = model_digest(place / FILE_NAME)
    train, test = load_data("sample:train"), load_data("sample:test")
    rows = json.loads(TARGET.read_text()) if TARGET.exists() else []
    for seed in SEEDS:
        for name in ROWS:
            for how in ("chain", "at once"):
                method = method_of(name)
                wanted = {**identity(name, how), "seed": seed, "model_digest": digest}
                if not any(wanted.items() <= row.items() for row in rows):
                    given = None if "alone" in wanted else test
                    rows.append({**run(network, train, test, given, method, how, seed), **wanted})
                    TARGET.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
                    print(rows[-1])


def method_of(name: str) -> Method:
    """The method of a row."""
    return make_method(name.partition(" ")[0], **ROWS[name])


def identity(name: str, how: str) -> dict[str, Any]:
    """What tells a row's lines from others."""
    method = method_of(name)
    found = {"method": method.name, "how": how, "settings": as_before(method.name, settings_of(method))}
    return found | ({"alone": True} if name.endswith(" alone") else {})


def run(
    network: torch.nn.Module,
    train: ImageSet,
    test: ImageSet,
    handed: ImageSet | None,
    method: Method,
    how: str,
    seed: int,
) -> dict[str, Any]:
    """One chain, or the same images at once: accuracies, each request's when made and at the end, and an audit of all.

    One half of `test` measures. `handed` is what methods get that read test examples, of which they see the other half:
    every request has the chain's seed.
    """
    started = origin()
    gone = train.select(draw_ids(train, REQUESTS * SIZE, seed))
    parts = [gone] if how == "at once" else [gone.take(range(n, n + SIZE)) for n in range(0, len(gone), SIZE)]
    rest = train.without(gone)
    left = test.take(audit_side(test.images, [seed]).nonzero()[:, 0])
    model, seconds = network, 0.0
    made = []
    given: dict[str, Any] = {"retain": rest} if Needs.RETAIN in method.needs else {}
    given |= {"test": handed} if Needs.TEST in method.needs else {}
    for part in parts:
        done = unlearn(model, part, method=method, seed=seed, **given)
        model, seconds = done.model, seconds + done.trace.seconds
        made.append(scores(model, part, left))
    found = audit(network, model, gone, left)
    return {
        "method": method.name,
        "how": how,
        "seed": seed,
        "test_accuracy_before": accuracy(network, left),
        "test_accuracy": accuracy(model, left),
        "forget_accuracy": accuracy(model, gone),
        "when_made": made,
        "at_the_end": [scores(model, part, left) for part in parts],
        "verdict": found.verdict,
        "a1": found.scores_after.a1,
        "seconds": seconds,
        "settings": as_before(method.name, settings_of(method)),
        **started,
    }


def accuracy(model: torch.nn.Module, images: ImageSet) -> float:
    """In [0, 1], in eval mode."""
    return float((logits_of(model, images.images).argmax(1) == images.labels).double().mean())


def scores(model: torch.nn.Module, request: ImageSet, left: ImageSet) -> dict[str, float]:
    """Accuracy on a request's images, and the mean placement of their margins among held-out ones."""
    own, unseen = (logit_scaled_confidence(logits_of(model, part.images), part.labels) for part in (request, left))
    return {"accuracy": accuracy(model, request), "a1": percentile_ranks(own, unseen).a1}


def chains_table() -> str:
    """A row a method and way, means over seeds."""
    rows = json.loads(TARGET.read_text()) if TARGET.exists() else []
    if not rows:
        return ""
    (digest, _), *_ = Counter(row["model_digest"] for row in rows).most_common(1)  # draws of one original alone compare
    rows = [row for row in rows if row["model_digest"] == digest]
    found = []
    for name in ROWS:
        for how in ("chain", "at once"):
            wanted = identity(name, how)
            here = [row for row in rows if wanted.items() <= row.items()]
            if here:
                found.append(_row(name, how, here))
    head = ["320 forgotten", "how", "test points lost", "a request's accuracy when made", "at the end"]
    head += ["its A1 when made", "at the end", "audit of all", "seconds", "n"]
    told = (
        f"`python -m experiments chains --models results/better/originals` · {rows[0]['device']} · "
        f"torch {rows[0]['torch']} · commit "
        f"{', '.join(sorted({row['commit'] for row in rows}))}"
    )
    return markdown(head, found) + "\n\n" + told


def _row(name: str, how: str, here: list[dict[str, Any]]) -> list[str]:
    def mean(key: str) -> float:
        return fmean(row[key] for row in here)

    def of_requests(when: str, which: str) -> float:
        return fmean(request[which] for row in here for request in row[when])

    # The verdict of today's audit, which fails a network that lost so much.
    lost = [row["test_accuracy_before"] - row["test_accuracy"] > AuditSettings().max_loss for row in here]
    verdicts = ["FAIL" if gone else row["verdict"] for row, gone in zip(here, lost, strict=True)]
    return [
        name,
        f"{REQUESTS} × {SIZE}" if how == "chain" else "at once",
        f"{100 * (mean('test_accuracy_before') - mean('test_accuracy')):.1f}",
        f"{100 * of_requests('when_made', 'accuracy'):.1f}",
        f"{100 * of_requests('at_the_end', 'accuracy'):.1f}",
        f"{of_requests('when_made', 'a1'):.2f}",
        f"{of_requests('at_the_end', 'a1'):.2f}",
        " / ".join(str(verdicts.count(v)) for v in ("PASS", "INCONCLUSIVE", "FAIL")),
        f"{mean('seconds'):.0f}",
        str(len(here)),
    ]
