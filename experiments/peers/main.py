"""Other unlearning libraries beside ours: cost, accuracies, distance to retraining, verdict and lines to write.

    PYTHONPATH=DIR:DIR:DIR:DIR python -m experiments peers [NAME ...]

Does what is missing of results/peers.jsonl, a line a run; with names, these libraries or methods alone. A library
that is not on the path is left out, and a line says how to put it into a directory DIR. The networks are in runs/peers.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from experiments.commit import origin
from experiments.peers import steps, table
from experiments.peers.candidates import BY_NAME, NAMES
from experiments.peers.job import SEEDS, train_missing
from experiments.peers.measuring import apart
from expunge.errors import SettingError

PACKAGE = "experiments.peers"


def main() -> None:
    """Measures what is missing, and prints the tables."""
    os.environ["OMP_NUM_THREADS"] = "1"
    train_missing()
    made = origin("1 threads")
    known, missing = table.read(), set()
    for module, place, arguments in wanted(sys.argv[1:]):
        if any(place.items() <= row.items() for row in known):
            continue
        found = apart(f"{PACKAGE}.{module}", *arguments)
        if "missing" in found:
            missing.add(found["missing"])
            continue
        line = {**place, **found, **made}
        with table.TARGET.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    for each in (table.peers_table, table.failures_table, table.steps_table):
        print(each(), end="\n\n")
    for line in sorted(missing):
        print(line, file=sys.stderr)


def wanted(chosen: list[str]) -> Iterator[tuple[str, dict[str, Any], tuple[str, str]]]:
    """(module, what a line of it is told by, its arguments) of each run, the slow ones last.

    Raises `SettingError` for an unknown name.
    """
    for each in chosen:
        if not any(_is_of(name, each) for name in NAMES):
            raise SettingError(f"there is no library or method {each!r}: choose of {', '.join(NAMES)}")
    names = [name for name in NAMES if not chosen or any(_is_of(name, each) for each in chosen)]
    slow = {name for name in names if name in BY_NAME and BY_NAME[name].data == "retained"}
    for name in (name for name in steps.PAIRS if name in names):
        for epochs in steps.EPOCHS:
            yield "steps", {"name": name, "epochs": epochs}, (name, str(epochs))
    for last in (False, True):
        for seed in SEEDS:
            for name in (name for name in names if (name in slow) == last):
                yield "measuring", {"name": name, "seed": seed}, (name, str(seed))


def _is_of(name: str, chosen: str) -> bool:
    return name == chosen or name.startswith(f"{chosen} ")
