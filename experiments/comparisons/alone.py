"""The model and the examples to forget, and nothing else: what test accuracy it costs to get them all wrong.

    python -m experiments alone [KIND ...]

Measures small networks of other kinds than images and convolutions, into results/alone-KIND.jsonl: `digits` (rows of
numbers, scikit-learn's), `vit` (a vision transformer on the embedded sample), `text` (news, a transformer; takes
runs/data/ag_news/test.csv of github:mhjabreel/CharCnn_Keras), and `one-class` (few images of the sample, all of one
class). Without a KIND all of them. What is there already is not done again. Larger image networks are of
grids/alone-sample.toml and grids/alone.toml.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments import places
from experiments.commit import origin
from experiments.grid import Result, current, load_grid, read_results
from experiments.paper.statistics import summarize
from expunge.data import load_data
from expunge.errors import InputError
from expunge.markdown import markdown
from expunge.methods import make_method
from expunge.models import ModelSpec, load_model, logits_of
from expunge.models.building import build
from expunge.unlearning import unlearn

RESULTS = places.RESULTS / "alone"
GRIDS = {"sample": "alone-sample.toml", "fashion-mnist": "alone.toml", "cifar10": "alone.toml"}
SIZES = (16, 64, 128, 512)
SEEDS = range(5)
FORGOTTEN = {"stop": "forgotten", "epochs": 1000}
ROWS: dict[str, dict[str, Any]] = {
    "held_boundary": {},
    "masked_distillation": {},
    "targeted1": {"preset": "paper", "lam": 1.0, **FORGOTTEN},
    "targeted3": {"preset": "paper", "lam": 3.0, **FORGOTTEN},
    "delete": FORGOTTEN,
    "boundary_shrink": {},
    "salsa": {},
}
"""Settings by row, as in the grids, with a larger budget: steps are small for these networks."""
SEEN_BY_AUDITOR = ("held_boundary", "calibrated", "calibrated accuracy=0.86", "targeted1")
FEW_ROWS = ("held_boundary", "targeted1", "targeted3", "delete")
"""Those of kinds other than the digits."""


Set = list[Tensor]
"""Inputs and labels."""


def main() -> None:
    """Runs what is missing."""
    kinds = sys.argv[1:] or list(KINDS)
    made = origin()
    for kind in kinds:
        known = _known(kind)
        for seed in SEEDS:
            model, train, test = KINDS[kind](seed)
            for size in SIZES_OF[kind]:
                for row in ROWS if kind == "digits" else FEW_ROWS:
                    settings = ROWS[row]
                    place = {"row": row, "size": size, "seed": seed}
                    if any(place.items() <= found.items() for found in known):
                        continue
                    method = make_method(row.removesuffix("1").removesuffix("3"), **settings)
                    gone = [part[:size] for part in train]
                    done = unlearn(model, TensorDataset(*gone), method=method, seed=seed)
                    measured = {
                        "forget_accuracy": accuracy(done.model, gone),
                        "test_accuracy": accuracy(done.model, test),
                        "test_accuracy_before": accuracy(model, test),
                        "seconds": done.trace.seconds,
                        "steps": done.trace.steps,
                    }
                    line = {**place, **measured, "settings": done.trace.settings, **made}
                    with _file(kind).open("a") as file:
                        file.write(json.dumps(line) + "\n")
        print(alone_table(kind))


def digits(seed: int) -> tuple[nn.Module, Set, Set]:
    """A network of rows of 64 numbers, its 1,200 training examples and the 597 others."""
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    data = load_digits()
    inputs, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(inputs))
    train, test = ([inputs[part], labels[part]] for part in (order[:1200], order[1200:]))
    model = nn.Sequential(
        nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    )
    return trained(model, train, epochs=60), train, test


def vit(seed: int) -> tuple[nn.Module, Set, Set]:
    """A vision transformer of 16 patches, width 64 and depth 4, on the embedded sample."""
    torch.manual_seed(seed)
    spec = ModelSpec(
        architecture="vit",
        num_classes=10,
        in_channels=1,
        image_size=28,
        mean=(0.286,),
        std=(0.353,),
        options={"patch_size": 7, "embed_dim": 64, "depth": 4, "num_heads": 4},
    )
    train, test = ([images.images, images.labels] for images in map(load_data, ("sample:train", "sample:test")))
    order = torch.randperm(len(train[0]))
    train = [part[order] for part in train]
    return trained(build(spec), train, epochs=40), train, test


def one_class(seed: int) -> tuple[nn.Module, Set, Set]:
    """The committed residual network of the embedded sample, and of its training images those of class `seed`."""
    network, _ = load_model(str(places.RESULTS / "better" / "originals" / "sample-small_resnet"))
    train, test = ([images.images, images.labels] for images in map(load_data, ("sample:train", "sample:test")))
    mine = (train[1] == seed).nonzero()[:, 0]
    mine = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed))]
    return network.eval(), [part[mine] for part in train], test


class Reader(nn.Module):
    """A transformer of one layer over the 40 first words of a text, 0 where there are fewer."""

    def __init__(self, num_words: int, num_classes: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(num_words, 64), nn.Parameter(0.02 * torch.randn(WORDS, 64))
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids > 0)[..., None]
        read = self.layer(self.words(ids) + self.places) * there
        logits: Tensor = self.head(read.sum(1) / there.sum(1).clamp(min=1))
        return logits


def text(seed: int) -> tuple[nn.Module, Set, Set]:
    """A reader of news of four kinds: 3,000 texts that it is trained on, and 4,600 others."""
    path = places.ROOT / "runs/data/ag_news/test.csv"
    if not path.is_file():
        raise InputError(f"there is no {path.relative_to(places.ROOT)}: it is in github:mhjabreel/CharCnn_Keras")
    with path.open(newline="") as file:
        rows = [(int(kind) - 1, f"{title} {body}".lower().split()[:WORDS]) for kind, title, body in csv.reader(file)]
    torch.manual_seed(seed)
    order = torch.randperm(len(rows)).tolist()
    counts = Counter(word for n in order[:TEXTS] for word in rows[n][1])
    number = {word: n + 2 for n, (word, _) in enumerate(counts.most_common(VOCABULARY))}
    ids = torch.zeros(len(rows), WORDS, dtype=torch.int64)
    for place, n in enumerate(order):
        known = [number.get(word, 1) for word in rows[n][1]]
        ids[place, : len(known)] = torch.tensor(known)
    labels = torch.tensor([rows[n][0] for n in order])
    train, test = ([ids[part], labels[part]] for part in (slice(None, TEXTS), slice(TEXTS, None)))
    return trained(Reader(VOCABULARY + 2, 4), train, epochs=8), train, test


VERDICTS = ("PASS", "INCONCLUSIVE", "FAIL")
WORDS, VOCABULARY, TEXTS = 40, 5000, 3000
KINDS: dict[str, Callable[[int], tuple[nn.Module, Set, Set]]] = {
    "digits": digits,
    "vit": vit,
    "text": text,
    "one-class": one_class,
}
SIZES_OF = {"digits": SIZES, "vit": (64,), "text": (64,), "one-class": (1, 2, 64)}


def trained(model: nn.Module, train: Set, epochs: int) -> nn.Module:
    """The same network after so many passes, in eval mode."""
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0])).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(model(train[0][batch]), train[1][batch]).backward()
            adam.step()
    return model.eval()


def accuracy(model: nn.Module, examples: Sequence[Tensor]) -> float:
    """In [0, 1]."""
    with torch.no_grad():
        return float((logits_of(model, examples[0]).argmax(1) == examples[1]).double().mean())


def alone_table(dataset: str) -> str:
    """A row a method, a column a size: points of test accuracy lost, and what is still right of the forgotten."""
    found, told = _of_kind(dataset) if dataset in KINDS else of_grid(dataset)
    rows, sizes = [], sorted({size for _, size in found})
    for row in ROWS:
        cells = [found.get((row, size), []) for size in sizes]
        if any(cells):
            rows.append([f"`{row}`", *map(_cell, cells)])
    if not rows:
        return "Not measured yet."
    return markdown(["test points lost", *(f"{size} forgotten" for size in sizes)], rows) + f"\n\n{told}"


def alone_cells(dataset: str, size: int) -> list[tuple[str, float, float]]:
    """A row a method that is measured: its name, points of test accuracy lost and forget accuracy, means over draws."""
    found, _ = _of_kind(dataset) if dataset in KINDS else of_grid(dataset)
    cells = [(row, found[row, size]) for row in ROWS if (row, size) in found]
    return [(row, fmean(lost for lost, _ in cell), fmean(right for _, right in cell)) for row, cell in cells]


def cost(row: str, size: int) -> tuple[str, str, str]:
    """Points lost, percent still right and the score test's verdicts of a row of the sample."""
    (lost, right), *_ = [cell[1:] for cell in alone_cells("sample", size) if cell[0] == row]
    verdicts = [r.audit_verdict for (name, n, _), r in _results("sample").items() if (name, n) == (row, size)]
    return f"{lost:.1f}", f"{100 * right:.0f}", "/".join(str(verdicts.count(v)) for v in VERDICTS)


def _cell(values: Sequence[tuple[float, float]]) -> str:
    """The mean with its 95% interval, how many draws where not all, and the forget accuracy where it is not 0."""
    if not values:
        return "–"
    found, right = summarize([one for one, _ in values]), fmean(one for _, one in values)
    text = f"{found.mean:.1f}"
    if found.high is not None:
        text += f" ± {found.high - found.mean:.1f}"
    text += f" n={found.n}" if found.n < len(SEEDS) else ""
    return text + (f" ({100 * right:.0f}% still right)" if right > 0 else "")


Found = dict[tuple[str, int], list[tuple[float, float]]]
"""(points of test accuracy lost, forget accuracy), one a seed."""


def _file(kind: str) -> Path:
    return places.RESULTS / f"alone-{kind}.jsonl"


def _known(kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in places.read(_file(kind)).splitlines()] if _file(kind).exists() else []


def _of_kind(kind: str) -> tuple[Found, str]:
    found: Found = {}
    for r in _known(kind):
        lost = 100 * (r["test_accuracy_before"] - r["test_accuracy"])
        found.setdefault((r["row"], r["size"]), []).append((lost, r["forget_accuracy"]))
    return found, _told(f"alone {kind}", _known(kind))


def of_grid(dataset: str) -> tuple[Found, str]:
    """What the grid of a dataset measured, and the line that tells from where."""
    done = _results(dataset)
    before = {(size, seed): r.test_accuracy for (row, size, seed), r in done.items() if row == "before"}
    found: Found = {}
    for (row, size, seed), result in done.items():
        was, now = before.get((size, seed)), result.test_accuracy
        if row != "before" and was is not None and now is not None:
            found.setdefault((row, size), []).append((100 * (was - now), result.forget_accuracy or 0))
    return found, _of_results(dataset, done.values())


def auditor_table(dataset: str) -> str:
    """A row a method and size: what it leaves right, what it costs, and what the default audit says."""
    done, (found, _) = _results(dataset), of_grid(dataset)
    rows, shown = [], []
    for name in SEEN_BY_AUDITOR:
        for size in SIZES:
            here = [r for (row, n, _), r in done.items() if (row, n) == (name, size)]
            if here and (name, size) in found:
                shown += here
                verdicts = [r.audit_verdict for r in here]
                rows.append(
                    [
                        f"`{name}`",
                        str(size),
                        f"{100 * fmean(r.forget_accuracy or 0 for r in here):.1f}",
                        f"{fmean(lost for lost, _ in found[name, size]):.1f}",
                        " / ".join(str(verdicts.count(v)) for v in VERDICTS),
                        f"{fmean(r.audit_a1 or 0 for r in here):.2f}",
                        str(len(here)),
                    ]
                )
    if not rows:
        return "Not measured yet."
    head = ["method", "forgotten", "still right, %", "test points lost", "PASS / INC. / FAIL", "A1", "n"]
    return markdown(head, rows) + f"\n\n{_of_results(dataset, shown)}"


def _results(dataset: str) -> dict[tuple[str, int, int], Result]:
    """{(row, size, seed): result} of the cells that have one."""
    cells = [c for c in load_grid(places.ROOT / "grids" / GRIDS[dataset]).cells("cpu") if c.original.dataset == dataset]
    known = current(cells, read_results(RESULTS)) if RESULTS.exists() else {}
    return {(c.row, c.forget_size, c.seed): known[c.id] for c in cells if c.id in known and known[c.id].failed is None}


def _of_results(dataset: str, results: Iterable[Result]) -> str:
    models = " --models results/better/originals" if dataset == "sample" else ""
    sources = [{"device": r.device, "commit": r.commit, "torch": r.versions.get("torch", "")} for r in results]
    return _told(f"run grids/{GRIDS[dataset]} --out results/alone{models}", sources)


def _told(command: str, sources: Iterable[dict[str, Any]]) -> str:
    parts = [", ".join(sorted({source[key] for source in sources})) for key in ("device", "torch", "commit")]
    of = f"{parts[0]} · torch {parts[1]} · commit {parts[2]}"
    return f"Means with 95% intervals. `python -m experiments {command}` · {of}"
