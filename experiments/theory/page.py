"""What the theorem's quantities are for a ResNet-18 trained on all of Fashion-MNIST, on 512 of its training images.

python -m experiments theory-results --model runs/fm-r18    measures, writes results/theory/NAME.json
python -m experiments theory-results                        draws docs/research/figures/theory.svg anew
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from experiments import places
from experiments.commit import commit
from experiments.theory.figure import draw_theory
from experiments.theory.measure import theory
from experiments.theory.report import TheoryReport
from experiments.theory.tables import Table, facts, runs, single_steps
from expunge.markdown import markdown

RESULTS = places.ROOT / "results" / "theory"
FIGURE = places.DOCS / "research" / "figures" / "theory.svg"
SHOWN = "fm-r18"
"""The model of the docs."""


def main() -> None:
    """Measures where a model is given, and draws the figure of the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory of `expunge train --data fashion-mnist`")
    model = parser.parse_args().model
    if model:
        path = RESULTS / f"{Path(model).name}.json"
        measured = measure(Path(model))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measured, indent=1) + "\n")
    draw_theory(load()[1], FIGURE)
    print(f"wrote {FIGURE.relative_to(places.ROOT)}")


def measure(model: Path) -> dict[str, Any]:
    """The report, and where it comes from."""
    started_at = commit()
    report = replace(theory(str(model), "fashion-mnist:train", num=512, seed=0), model=model.name)
    return {
        "versions": {"torch": torch.__version__},
        "command": f"python -m experiments theory-results --model {model.name}",
        "commit": started_at,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "model_digest": sha256((model / "model.safetensors").read_bytes()).hexdigest(),
        "report": json.loads(report.to_json()),
    }


def load(name: str = SHOWN) -> tuple[dict[str, Any], TheoryReport]:
    """A result as it lies on disk, and the report in it."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    return content, TheoryReport.from_json(json.dumps(content["report"]))


def facts_table() -> str:
    """Where the theorem's order holds, and how certain the model is."""
    return _markdown(lambda report: [facts(report)])


def single_steps_table() -> str:
    """The distributions over the examples."""
    return _markdown(lambda report: [single_steps(report)])


def runs_table() -> str:
    """The runs, one table for each kind, after the fewest and the most steps alone."""

    def ends(report: TheoryReport) -> tuple[Table, ...]:
        counts = {entry.steps for entry in report.trajectory}
        kept = tuple(entry for entry in report.trajectory if entry.steps in {min(counts), max(counts)})
        return runs(replace(report, trajectory=kept))

    return _markdown(ends)


def _markdown(chosen: Callable[[TheoryReport], Sequence[Table]]) -> str:
    if not (RESULTS / f"{SHOWN}.json").exists():
        return "not measured"
    content, report = load()
    command = content["command"].replace("benchmarks.theory", "experiments theory-results")  # as it was called once
    told = (command, content["machine"], f"torch {content['versions']['torch']}")
    shown = [f"{table.title}:\n\n{markdown(table.columns, table.rows)}" for table in chosen(report)]
    source = f"`{told[0]}` · {told[1]} · {told[2]} · commit {content['commit']}"
    return "\n\n".join([*shown, source])


TABLES: dict[str, Callable[[], str]] = {"where": facts_table, "single": single_steps_table, "runs": runs_table}
"""What `experiments.docs` puts into docs/research/theory.md."""
