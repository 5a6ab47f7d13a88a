"""The full audit of every method: a small network on the embedded sample, 32 images forgotten.

    python -m experiments full-audit --num 64 --work runs/full-audit
    python -m experiments full-audit --num 64 --work runs/full-audit --which better

Trains the network whose recipe is audited and the reference models in --work; what is there already is not trained
again, so that a stopped benchmark goes on where it was. Writes results/audit/full_audit.json; `calibrated` and
its rivals (docs/research/comparisons-full-audit.md) are in full_audit_better.json.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from experiments import places
from experiments.commit import origin
from experiments.markdown import sourced
from expunge.auditing.full_audit import FullAudit
from expunge.cli import full_audit
from expunge.cli.sources import Sources
from expunge.data import draw_ids, load_data
from expunge.trainer import train

RESULTS = places.RESULTS / "audit"
SETTINGS = {
    "epochs": "12",  # of the recipe's 30: it memorises its training set all the same, in less than half of the time
    "precision": "bf16",  # twice as fast
}
NUM_FORGET = 32
PROCESSOR = "1 thread a process"
"""How records end of audits whose models a processor trained."""
METHODS = (
    "targeted",
    "targeted,preset=paper",
    "targeted,preset=paper,lam=3",
    "neg_grad,preset=paper",
    "random_label,preset=paper",
    "bad_teacher,preset=paper",
    "amnesiac,preset=paper",
    "finetune",
)
BETTER = (
    "calibrated",
    "calibrated,rank=margin",
    "neg_grad,preset=paper",
    "boundary_shrink,preset=chen2023",
    "delete,preset=zhou2025",
    "jit,preset=foster2024",
    "mu_mis,preset=paper",
    "finetune",
    "scrub,preset=kurmanji2023",
    "ssd,preset=foster2024",
)
"""Ours and quick rivals. Since `calibrated` reads held-out examples, all are measured on the half that is left."""


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=64, help="models of each kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--which", choices=["paper", "better"], default="paper", help="methods")
    parser.add_argument("--work", type=Path, required=True, help="where the models and what they say are kept")
    arguments = parser.parse_args()
    made = origin(PROCESSOR)
    if arguments.device == "cuda":
        made["device"] = torch.cuda.get_device_name()
    model, ids, out = (arguments.work / name for name in ("model", "ids.txt", "out"))
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        train("sample", "small_resnet", model, settings=SETTINGS, device=arguments.device)
    ids.write_text("".join(f"{i}\n" for i in draw_ids(load_data("sample"), NUM_FORGET, 0)))
    shutil.rmtree(out, ignore_errors=True)
    found = full_audit.run(
        Sources(model=str(model), forget="sample", ids=ids, test="sample:test"),
        "sample",
        arguments.work / "references",
        out,
        methods=METHODS if arguments.which == "paper" else BETTER,
        num_models=arguments.num,
        workers=arguments.workers,
        device=arguments.device,
    )
    record = {"audit": json.loads(found.to_json()), **made}
    target_of(arguments.which).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(full_audit_table(arguments.which))


def target_of(which: str) -> Path:
    """The file of results of the `paper`'s methods or of the `better` ones."""
    return RESULTS / ("full_audit.json" if which == "paper" else "full_audit_better.json")


def full_audit_table(which: str = "paper") -> str:
    """A row a kind of model."""
    record = json.loads(places.read(target_of(which)))
    found = FullAudit.from_json(json.dumps(record["audit"]))
    more = "" if which == "paper" else f" --which {which}"
    more += "" if record["device"].endswith(PROCESSOR) else " --device cuda"
    of = f"{found.num_models} models of each kind, {found.num_forget} forgotten, {found.num_test:,} held out"
    command = f"`python -m experiments full-audit --num {found.num_models} --work runs/full-audit{more}`"
    return sourced(found.table(), record, of, command)
