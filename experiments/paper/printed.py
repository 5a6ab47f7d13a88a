"""The numbers of the paper's Tables 1 to 16, each with how it was read.

Source: "Towards Safe Machine Unlearning: a Paradigm that Mitigates Performance Degradation". `paper_tables.csv` holds
means and population standard deviations in percent. The text of its tables is damaged, and some rows contradict each
other; `provenance` and `doubt` say where.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

MEAN = "mean"
"""The architecture of Tables 1 to 4, which average over all three."""
DATASETS = {
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny-imagenet": "Tiny-ImageNet",
}
ARCHITECTURES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit": "ViT"}
_ORDER = ("cifar10", "cifar100", "fashion-mnist", "tiny-imagenet")
TABLES: dict[int, tuple[str, str]] = dict(
    enumerate(
        [
            *((dataset, MEAN) for dataset in _ORDER),
            *((dataset, architecture) for dataset in _ORDER for architecture in ARCHITECTURES),
        ],
        start=1,
    )
)
"""{table: (dataset, architecture)}; the architecture of an average is `MEAN`."""
SPLITS = {"forget": "D_f", "retain": "D_r", "test": "D_t"}
ROWS = {
    "before": "BEFORE",
    "neg_grad": "NegGrad",
    "random_label": "RandL",
    "bad_teacher": "Bad Teacher",
    "amnesiac": "Amnesiac",
    "targeted1": "δ-Targeted¹",
    "targeted3": "δ-Targeted³",
}
"""{row: what the paper calls it}, in its order."""
OURS = ("targeted1", "targeted3")
"""The paper's own method, with λ = 1 and λ = 3."""
BASELINES = ("neg_grad", "random_label", "bad_teacher", "amnesiac")
USES_RETAIN = ("bad_teacher", "amnesiac")
"""Rows whose method trains on retained examples too, 300 in the paper."""
GROUPS = (("neg_grad", "random_label", *OURS), USES_RETAIN)
"""Rows that start from the same knowledge, among which one can be called best."""
SIZES = (16, 32, 64, 128, 256, 512)
SEEDS = 5

PROVENANCE = {
    "plain": "",
    "collapsed": "†",
    "recomputed": "‡",
    "empty": "",
}
"""{how a number was read: its mark}. Collapsed: printed once for several columns. Recomputed: lost from Table 1 or 2,
and averaged here from the tables of its architectures. Empty: lost."""
DOUBTS = {
    "unequal runs": "pools unequal numbers of runs (5 of ResNet-18, 2 of ResNet-50, 1 or 2 of ViT)",
    "impossible": "no number of right predictions out of so many examples gives it",
    "copied row": "the same row as in Table 15",
    "two runs": "two runs only, far below the accuracy on the retained examples",
    "above before": "implies a run that is better than the original model",
}
"""{a reason to doubt a number: in words}. The mark of all is `DOUBTED`."""
DOUBTED = "?"


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A cell of the paper's tables.

    Attributes:
        mean, sd: in percent; None where lost. The deviation is the population's, over 5 runs (15 in Tables 1 to 4).
        provenance: a key of `PROVENANCE`.
        doubt: a key of `DOUBTS`, or empty.
    """

    mean: float | None
    sd: float | None
    provenance: str
    doubt: str

    @property
    def mark(self) -> str:
        """What to put behind the number."""
        return PROVENANCE[self.provenance] + (DOUBTED if self.doubt else "")


@cache
def printed() -> dict[tuple[int, str, str, int], Printed]:
    """{(table, split, row, size): cell} for all 2,016 cells.

    >>> printed()[5, "retain", "targeted3", 16].mean
    96.19
    """
    text = files("experiments.paper").joinpath("paper_tables.csv").read_text(encoding="utf-8")
    return {
        (int(line["table"]), line["split"], line["row"], int(line["forget_size"])): Printed(
            mean=float(line["mean"]) if line["mean"] else None,
            sd=float(line["sd"]) if line["sd"] else None,
            provenance=line["provenance"],
            doubt=line["doubt"],
        )
        for line in csv.DictReader(text.splitlines())
    }


def title(table: int) -> str:
    """What a table is about.

    >>> title(5)
    'Table 5. Accuracy (%) on CIFAR-10 with ResNet-18'
    """
    dataset, architecture = TABLES[table]
    where = "averaged over architectures" if architecture == MEAN else f"with {ARCHITECTURES[architecture]}"
    return f"Table {table}. Accuracy (%) on {DATASETS[dataset]} {where}"
